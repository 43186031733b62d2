//! Flipped bits, cut files and lost indexes, seen from outside.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use addenda_cache::{Error, Gone, Location, Miss, Store};

use crate::sample::{Sample, copy, open, options};

fn extent(directory: &Path, number: u64) -> PathBuf {
    directory
        .join("extents")
        .join(format!("{number:010}.extent"))
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

fn drop_index(directory: &Path) {
    fs::remove_dir_all(directory.join("index")).unwrap();
}

/// Three packets, and where the second lies.
fn three(directory: &Path) -> ([Sample; 3], Location) {
    let samples = [1, 2, 3].map(|number| Sample::of("default", "d", number, 200));
    let samples = samples.map(|sample| Sample {
        header: addenda_cache::PacketHeader {
            document: format!("document {:?}", sample.header.source[0]),
            ..sample.header
        },
        ..sample
    });
    let store = open(directory);
    for sample in &samples {
        sample.put(&store);
    }
    let second = store.lookup(&samples[1].header.key).unwrap().unwrap();
    (samples, second.location)
}

#[test]
fn a_flipped_bit_anywhere_in_a_record_is_never_served_and_the_others_are() {
    let pristine = tempfile::tempdir().unwrap();
    let (samples, place) = three(pristine.path());
    let end = place.payload + place.payload_len;
    // Every region of the record: frame, meta, padding, token ids, body. Every single bit is tried in the unit tests.
    for (round, at) in (place.offset..end).step_by(29).enumerate() {
        let directory = copy(pristine.path());
        flip(&extent(directory.path(), 1), at);
        if round % 2 == 0 {
            drop_index(directory.path());
        }
        let store = open(directory.path());
        if let Some(found) = store.lookup(&samples[1].header.key).unwrap() {
            let refused = store.read(&found.id).unwrap_err();
            assert!(
                matches!(refused, Error::Damaged { .. }),
                "byte {at}: {refused}"
            );
        }
        samples[1].assert_missing(&store);
        samples[0].assert_in(&store);
        samples[2].assert_in(&store);
        // Computed anew, it is served again, also after a restart.
        samples[1].put(&store);
        drop(store);
        let store = open(directory.path());
        samples.iter().for_each(|sample| sample.assert_in(&store));
    }
}

#[test]
fn a_quarantined_packet_stays_a_miss_after_a_restart_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let (samples, place) = three(directory.path());
    flip(&extent(directory.path(), 1), place.payload + 70);
    for _ in 0..2 {
        let store = open(directory.path());
        if let Some(found) = store.lookup(&samples[1].header.key).unwrap() {
            store.read(&found.id).unwrap_err();
        }
        assert_eq!(
            store.why_missing(&samples[1].header.key).unwrap(),
            Some(Miss::Gone(Gone::Quarantined))
        );
        assert_eq!(store.stats().unwrap().quarantined, 1);
    }
    drop_index(directory.path());
    let store = open(directory.path());
    samples[1].assert_missing(&store);
    assert_eq!(store.stats().unwrap().quarantined, 1);
}

#[test]
fn a_packet_that_was_verified_once_is_not_read_from_disk_again() {
    let directory = tempfile::tempdir().unwrap();
    let (samples, place) = three(directory.path());
    let store = open(directory.path());
    samples[1].assert_in(&store);
    // The test's own way to see that the second read does not verify: it does not notice this.
    flip(&extent(directory.path(), 1), place.offset + 40);
    samples[1].assert_in(&store);
}

#[test]
fn verify_finds_every_damaged_packet_and_quarantines_it() {
    let directory = tempfile::tempdir().unwrap();
    let (samples, place) = three(directory.path());
    flip(&extent(directory.path(), 1), place.payload + 99);
    let store = open(directory.path());
    let mut last = None;
    let report = store
        .verify(&mut |progress| {
            last = Some(*progress);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert!(report.complete);
    assert_eq!((report.packets, report.damaged.len()), (3, 1));
    assert_eq!(report.damaged[0].document, samples[1].header.document);
    assert_eq!(last.unwrap().packets, last.unwrap().packets_total);
    samples[1].assert_missing(&store);
    samples[0].assert_in(&store);
    let again = store
        .verify(&mut |_| std::ops::ControlFlow::Continue(()))
        .unwrap();
    assert_eq!((again.packets, again.damaged.len()), (2, 0));
    let stopped = store
        .verify(&mut |_| std::ops::ControlFlow::Break(()))
        .unwrap();
    assert!(!stopped.complete && stopped.packets == 1);
}

#[test]
fn a_torn_last_record_is_cut_and_all_before_it_is_there() {
    let pristine = tempfile::tempdir().unwrap();
    let (samples, _) = three(pristine.path());
    let last = {
        let store = open(pristine.path());
        store
            .lookup(&samples[2].header.key)
            .unwrap()
            .unwrap()
            .location
    };
    let end = fs::metadata(extent(pristine.path(), 1)).unwrap().len();
    for (round, length) in (last.offset..last.payload + last.payload_len)
        .step_by(23)
        .enumerate()
    {
        let directory = copy(pristine.path());
        let file = OpenOptions::new()
            .write(true)
            .open(extent(directory.path(), 1))
            .unwrap();
        file.set_len(length).unwrap();
        if round % 3 == 0 {
            // The length came to the disk, the bytes did not.
            file.set_len(end).unwrap();
        }
        drop_index(directory.path());
        let store = open(directory.path());
        samples[0].assert_in(&store);
        samples[1].assert_in(&store);
        samples[2].assert_missing(&store);
        assert!(store.recovery().rebuilt.is_some());
        assert_eq!(
            store.recovery().damaged,
            [],
            "an unfinished write is no damage"
        );
        samples[2].put(&store);
        drop(store);
        let store = open(directory.path());
        samples.iter().for_each(|sample| sample.assert_in(&store));
    }
}

#[test]
fn an_index_that_is_ahead_of_a_cut_extent_forgets_what_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (samples, place) = three(directory.path());
    let file = OpenOptions::new()
        .write(true)
        .open(extent(directory.path(), 1))
        .unwrap();
    file.set_len(place.payload).unwrap();
    let store = open(directory.path());
    samples[0].assert_in(&store);
    samples[1].assert_missing(&store);
    samples[2].assert_missing(&store);
}

#[test]
fn an_extents_header_survives_damage_to_one_copy() {
    for at in [3, 20, 30, 60, 4096 + 3, 4096 + 30] {
        let directory = tempfile::tempdir().unwrap();
        let (samples, _) = three(directory.path());
        flip(&extent(directory.path(), 1), at);
        let store = open(directory.path());
        samples.iter().for_each(|sample| sample.assert_in(&store));
    }
}

#[test]
fn an_extent_that_cannot_be_read_at_all_costs_only_its_own_packets() {
    let directory = tempfile::tempdir().unwrap();
    let samples: Vec<Sample> = (0..6).map(|number| Sample::new(number, 3_000)).collect();
    let small = addenda_cache::StoreOptions {
        extent_bytes: 16_384,
        ..options()
    };
    {
        let store = Store::open(directory.path(), small).unwrap();
        for sample in &samples {
            sample.put(&store);
        }
        assert!(store.stats().unwrap().extents >= 3);
    }
    flip(&extent(directory.path(), 1), 30);
    flip(&extent(directory.path(), 1), 4096 + 30);
    let store = Store::open(directory.path(), small).unwrap();
    assert_eq!(store.recovery().unreadable.len(), 1);
    samples[0].assert_missing(&store);
    samples[5].assert_in(&store);
    samples[0].put(&store);
    samples[0].assert_in(&store);
}

#[test]
fn an_extent_of_a_newer_version_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    three(directory.path());
    let path = extent(directory.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    for copy in [0, 4096] {
        bytes[copy + 8] = 2;
        let digest = blake3::derive_key("addenda 2025 extent header", &bytes[copy..copy + 56]);
        bytes[copy + 56..copy + 88].copy_from_slice(&digest);
    }
    fs::write(&path, bytes).unwrap();
    let refused = Store::open(directory.path(), options()).unwrap_err();
    assert!(
        matches!(
            refused,
            Error::NewerFormat {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{refused}"
    );
}

#[test]
fn a_damaged_index_is_made_anew_or_changes_nothing() {
    let pristine = tempfile::tempdir().unwrap();
    let (samples, _) = three(pristine.path());
    let names: Vec<PathBuf> = fs::read_dir(pristine.path().join("index"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| PathBuf::from("index").join(entry.file_name()))
        .collect();
    assert!(!names.is_empty());
    for name in &names {
        // sled's file is mostly zeros behind the first few kilobytes.
        let length = fs::metadata(pristine.path().join(name))
            .unwrap()
            .len()
            .min(6_000);
        for at in (0..length).step_by(311) {
            let directory = copy(pristine.path());
            flip(&directory.path().join(name), at);
            let store = open(directory.path());
            for sample in &samples {
                if store.lookup(&sample.header.key).unwrap().is_none() {
                    sample.put(&store);
                }
                sample.assert_in(&store);
            }
        }
        let directory = copy(pristine.path());
        fs::write(directory.path().join(name), b"not what it was").unwrap();
        let store = open(directory.path());
        samples.iter().for_each(|sample| sample.assert_in(&store));
    }
}
