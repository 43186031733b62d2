//! The index, made anew from the extents, says what it said before.

use addenda_cache::{Document, Manifest, Store, StoreOptions};

use crate::sample::{Sample, copy, open, options};

/// All that a store can be asked, save when packets were last used: that is only in the index.
fn contents(store: &Store) -> (Vec<Manifest>, Vec<Document>) {
    let mut manifests = Vec::new();
    let mut documents = Vec::new();
    for namespace in ["default", "ward-3"] {
        manifests.extend(store.list(namespace, None, 1_000).unwrap());
        documents.extend(store.documents(namespace, None, 1_000).unwrap());
    }
    for manifest in &mut manifests {
        manifest.last_used_at_ms = 0;
    }
    (manifests, documents)
}

/// A store with a history of everything, over several extents.
fn history(store: &Store) {
    for number in 0..30 {
        let document = format!("document {}", number % 12);
        let namespace = if number % 2 == 0 { "default" } else { "ward-3" };
        let id = Sample::of(namespace, &document, number, 3_000).put(store);
        if number % 5 == 0 {
            store.pin(&id).unwrap();
        }
        if number % 10 == 0 {
            store.unpin(&id).unwrap();
        }
        if number % 7 == 0 {
            store.delete(&id).unwrap();
        }
    }
    store.delete_document("ward-3", "document 3").unwrap();
}

fn small() -> StoreOptions {
    StoreOptions {
        extent_bytes: 20_000,
        ..options()
    }
}

#[test]
fn a_rebuilt_index_lists_the_same_packets_pins_and_documents() {
    let directory = tempfile::tempdir().unwrap();
    let before = {
        let store = Store::open(directory.path(), small()).unwrap();
        history(&store);
        assert!(store.stats().unwrap().extents > 3);
        contents(&store)
    };
    assert!(before.0.len() > 5 && before.0.iter().any(|manifest| manifest.pinned));
    let mut progress = Vec::new();
    let store =
        Store::rebuild(directory.path(), small(), &mut |step| progress.push(*step)).unwrap();
    assert_eq!(contents(&store), before);
    assert_eq!(
        store.recovery().rebuilt.as_deref(),
        Some("it was asked for")
    );
    let last = progress.last().unwrap();
    assert!(last.bytes_done == last.bytes_total && last.records == store.recovery().records);
    assert!(progress.is_sorted_by_key(|step| step.bytes_done));
    for manifest in &before.0 {
        store.read(&manifest.id).unwrap();
    }
}

#[test]
fn a_missing_index_is_made_anew_at_open() {
    let directory = tempfile::tempdir().unwrap();
    let before = {
        let store = Store::open(directory.path(), small()).unwrap();
        history(&store);
        contents(&store)
    };
    std::fs::remove_dir_all(directory.path().join("index")).unwrap();
    let store = Store::open(directory.path(), small()).unwrap();
    assert_eq!(contents(&store), before);
    assert_eq!(store.recovery().rebuilt.as_deref(), Some("it was missing"));
}

#[test]
fn an_index_of_another_store_is_not_believed() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sample = Sample::new(1, 2_000);
    sample.put(&open(ours.path()));
    let other = Sample::new(2, 2_000);
    other.put(&open(theirs.path()));
    let mixed = copy(ours.path());
    std::fs::remove_dir_all(mixed.path().join("index")).unwrap();
    std::fs::rename(theirs.path().join("index"), mixed.path().join("index")).unwrap();
    let store = open(mixed.path());
    sample.assert_in(&store);
    other.assert_missing(&store);
}

#[test]
fn what_the_index_never_flushed_is_replayed() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), small()).unwrap();
    history(&store);
    // As if the process had been killed now.
    let killed = copy(directory.path());
    let after = Store::open(killed.path(), small()).unwrap();
    assert!(after.recovery().records > 0);
    assert_eq!(contents(&after), contents(&store));
}
