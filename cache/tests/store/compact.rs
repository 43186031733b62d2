//! Disk that dead records took comes back, and nothing else changes.

use std::ops::ControlFlow;
use std::path::Path;

use addenda_cache::{CompactReport, Effort, Gone, Miss, Store, StoreOptions};

use crate::sample::{Sample, copy, options};

fn small() -> StoreOptions {
    StoreOptions {
        extent_bytes: 1 << 20,
        ..options()
    }
}

fn compact(store: &Store) -> CompactReport {
    let report = store.compact(Effort::Thorough, &mut |_| ControlFlow::Continue(()));
    report.unwrap()
}

/// The text of a document in a turn: small bodies, which no hole gives back.
fn text(turn: u32, document: u32) -> Sample {
    let length = 500 + 700 * (document as usize % 7);
    let name = format!("document {document}");
    Sample::of("default", &name, turn * 1_000 + document, length)
}

/// Replaces a hundred documents ten times over, with pins and a document that two names share.
fn turns(directory: &Path) -> Store {
    let store = Store::open(directory, small()).unwrap();
    for turn in 0..=10 {
        for document in 0..100 {
            let id = text(turn, document).put(&store);
            if document == 7 {
                let source = [u8::try_from(turn).unwrap(); 32];
                store.bind("default", "shared", &source, &[id]).unwrap();
            }
        }
    }
    let pinned = store.lookup(&text(10, 3).header.key).unwrap().unwrap();
    store.pin(&pinned.id).unwrap();
    store.delete_document("default", "document 99").unwrap();
    store
}

fn assert_turned(store: &Store) {
    for document in 0..99 {
        text(10, document).assert_in(store);
        text(9, document).assert_missing(store);
    }
    let key = |turn, document| text(turn, document).header.key;
    assert!(store.lookup(&key(10, 3)).unwrap().unwrap().pinned);
    let why = |turn, document| store.why_missing(&key(turn, document)).unwrap();
    assert_eq!(why(9, 3), Some(Miss::Gone(Gone::Replaced)));
    assert_eq!(why(10, 99), Some(Miss::Gone(Gone::Deleted)));
    assert!(store.document("default", "shared").unwrap().is_some());
    let document = store.document("default", "document 99").unwrap();
    assert_eq!(document, None);
    assert_eq!(store.stats().unwrap().packets, 99);
}

#[test]
fn ten_turns_of_small_packets_take_little_more_than_the_last() {
    let directory = tempfile::tempdir().unwrap();
    let store = turns(directory.path());
    let before = store.stats().unwrap();
    assert!(before.disk_bytes > 3 * before.live_bytes, "{before:?}");
    let report = compact(&store);
    assert!(
        report.complete && report.removed > 0 && report.waiting == 0,
        "{report:?}"
    );
    let after = store.stats().unwrap();
    // Reasons of misses, bindings and the extents' heads are all that is left beside live packets.
    assert!(after.disk_bytes < 2 * after.live_bytes, "{after:?}");
    assert_eq!(after.live_bytes, before.live_bytes);
    assert_turned(&store);
    drop(store);
    let again = Store::open(directory.path(), small()).unwrap();
    assert_eq!(again.recovery().rebuilt, None);
    assert_turned(&again);
    drop(again);
    let rebuilt = Store::rebuild(directory.path(), small(), &mut |_| {}).unwrap();
    assert_eq!(rebuilt.recovery().damaged, []);
    assert_turned(&rebuilt);
}

#[test]
fn a_store_of_which_everything_was_deleted_gives_its_disk_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = turns(directory.path());
    for document in 0..99 {
        store
            .delete_document("default", &format!("document {document}"))
            .unwrap();
    }
    store.delete_document("default", "shared").unwrap();
    compact(&store);
    let stats = store.stats().unwrap();
    assert_eq!((stats.packets, stats.live_bytes), (0, 0));
    assert!(stats.disk_bytes < 1 << 20, "{stats:?}");
}

#[test]
fn readers_go_on_while_their_packets_are_moved() {
    let directory = tempfile::tempdir().unwrap();
    let store = turns(directory.path());
    let held: Vec<_> = (0..99)
        .map(|document| {
            let sample = text(10, document);
            let id = store.lookup(&sample.header.key).unwrap().unwrap().id;
            (store.read(&id).unwrap(), sample)
        })
        .collect();
    std::thread::scope(|scope| {
        let store = &store;
        let reader = scope.spawn(move || {
            for turn in 0..3_000 {
                text(10, turn % 99).assert_in(store);
            }
        });
        while !reader.is_finished() {
            compact(store);
        }
    });
    for (body, sample) in &held {
        assert_eq!(body.as_ref(), sample.body.as_slice());
    }
    assert_turned(&store);
}

#[test]
fn a_crash_at_any_batch_of_a_compaction_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = turns(directory.path());
    let mut images = Vec::new();
    let report = store.compact(Effort::Thorough, &mut |_| {
        images.push(copy(directory.path()));
        ControlFlow::Continue(())
    });
    assert!(report.unwrap().complete && images.len() > 2);
    images.push(copy(directory.path()));
    for (number, image) in images.iter().enumerate() {
        if number % 2 == 0 {
            std::fs::remove_dir_all(image.path().join("index")).unwrap();
        }
        let store = Store::open(image.path(), small()).unwrap();
        assert_eq!(store.recovery().damaged, [], "image {number}");
        assert_turned(&store);
        compact(&store);
        assert_turned(&store);
    }
}

#[test]
fn a_compaction_that_is_stopped_goes_on_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let store = turns(directory.path());
    let stopped = store
        .compact(Effort::Thorough, &mut |_| ControlFlow::Break(()))
        .unwrap();
    assert!(!stopped.complete);
    assert_turned(&store);
    assert!(compact(&store).complete);
    assert_turned(&store);
}

#[test]
fn the_order_of_uses_is_not_changed_by_a_compaction() {
    let directory = tempfile::tempdir().unwrap();
    let limited = StoreOptions {
        max_bytes: Some(600_000),
        ..small()
    };
    let store = Store::open(directory.path(), limited).unwrap();
    let samples: Vec<Sample> = (0..4).map(|number| Sample::new(number, 100_000)).collect();
    let ids: Vec<_> = samples.iter().map(|sample| sample.put(&store)).collect();
    store.delete(&Sample::new(9, 100_000).put(&store)).unwrap();
    store.touch(&ids[0]);
    compact(&store);
    for number in 10..12 {
        Sample::new(number, 100_000).put(&store);
    }
    samples[0].assert_in(&store);
    samples[1].assert_missing(&store);
}
