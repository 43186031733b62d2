//! What older versions wrote is still read.
//!
//! `fixtures/vN` holds the extents of a store of version N: v1 was made by [`write_the_fixture`], v2, in which documents
//! have editions of several parts, by [`write_the_fixture_of_version_2`], v3, in which packets have primers, by
//! [`write_the_fixture_of_version_3`]. They are never made again: a new version of a
//! format gets a folder of its own beside them.

use std::path::{Path, PathBuf};

use addenda_cache::{Edition, Gone, Miss};
use tempfile::TempDir;

use crate::sample::{Sample, open};

const EXTENT: &str = "0000000001.extent";

fn fixture(version: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixtures.join(version)
}

/// Keeps the extent of a store as the fixture of a version.
fn keep(directory: &Path, version: &str) {
    std::fs::create_dir_all(fixture(version)).unwrap();
    let extent = directory.join("extents").join(EXTENT);
    std::fs::copy(extent, fixture(version).join(EXTENT)).unwrap();
}

/// A data directory with the extent of a version and no index.
fn stored(version: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let extents = directory.path().join("extents");
    std::fs::create_dir(&extents).unwrap();
    std::fs::copy(fixture(version).join(EXTENT), extents.join(EXTENT)).unwrap();
    directory
}

/// A document put twice, a pinned packet, a deleted one, and one in another namespace.
fn samples() -> [Sample; 5] {
    [
        Sample::of("default", "visiting hours", 1, 700),
        Sample::of("default", "visiting hours", 2, 800),
        Sample::of("default", "", 3, 64),
        Sample::of("default", "old rules", 4, 900),
        Sample::of("ward-3", "visiting hours", 5, 1),
    ]
}

#[test]
#[ignore = "made the fixture of version 1; to run it again would be to forget what version 1 was"]
fn write_the_fixture() {
    let directory = tempfile::tempdir().unwrap();
    {
        let store = open(directory.path());
        let ids = samples().map(|sample| sample.put(&store));
        store.pin(&ids[2]).unwrap();
        store.delete_document("default", "old rules").unwrap();
    }
    keep(directory.path(), "v1");
}

#[test]
fn a_store_of_version_1_is_read() {
    let directory = stored("v1");
    let store = open(directory.path());
    let [replaced, current, pinned, deleted, theirs] = samples();
    for sample in [&current, &pinned, &theirs] {
        sample.assert_in(&store);
    }
    for (sample, why) in [(&replaced, Gone::Replaced), (&deleted, Gone::Deleted)] {
        let missing = store.why_missing(&sample.header.key).unwrap();
        assert_eq!(missing, Some(Miss::Gone(why)));
    }
    let listed = store.list("default", None, 10).unwrap();
    assert_eq!(listed.len(), 2);
    for manifest in listed {
        assert_eq!(manifest.pinned, manifest.header == pinned.header);
    }
    let document = store
        .document("default", "visiting hours")
        .unwrap()
        .unwrap();
    assert_eq!(document.source, current.header.source);
    assert_eq!(document.ids().count(), 1);
    // The very bytes, so that a change of the key's or id's derivation shows.
    let id = document.ids().next().unwrap().to_string();
    assert_eq!(
        id,
        "e2cc874e73a02a305e58e17f9a3b0952cc8fd14b8d1dfa0cd5449d14c58d93d2"
    );
    let report = store
        .verify(&mut |_| std::ops::ControlFlow::Continue(()))
        .unwrap();
    assert_eq!(
        (report.packets, report.damaged.len(), report.damaged_bytes),
        (3, 0, 0)
    );
}

/// Three parts of a document, one of which it lost, and the parts of its next text: one old, one new.
fn parts() -> [Sample; 4] {
    [1, 2, 3, 4].map(|number| Sample::of("default", "handbook", number, 500 + number as usize))
}

#[test]
#[ignore = "made the fixture of version 2; to run it again would be to forget what version 2 was"]
fn write_the_fixture_of_version_2() {
    let directory = tempfile::tempdir().unwrap();
    {
        let store = open(directory.path());
        let [first, lost, third, new] = parts();
        let ids = [first, lost, third].map(|part| part.stage(&store));
        for name in ["handbook", "copy of it"] {
            store.bind("default", name, &[1; 32], &ids).unwrap();
        }
        store.delete(&ids[1]).unwrap();
        let new = new.stage(&store);
        store
            .bind("default", "handbook", &[2; 32], &[ids[2], new])
            .unwrap();
    }
    keep(directory.path(), "v2");
}

#[test]
fn a_store_of_version_2_is_read() {
    let directory = stored("v2");
    let store = open(directory.path());
    let [first, lost, third, new] = parts();
    for part in [&first, &third, &new] {
        part.assert_in(&store);
    }
    assert_eq!(
        store.why_missing(&lost.header.key).unwrap(),
        Some(Miss::Gone(Gone::Deleted))
    );
    let id = |part: &Sample| {
        store
            .lookup(&part.header.key)
            .unwrap()
            .map(|found| found.id)
    };
    let editions = |name: &str| store.document("default", name).unwrap().unwrap().editions;
    let whole = Edition {
        parts: vec![id(&third), id(&new)],
    };
    let holed = Edition {
        parts: vec![id(&first), None, id(&third)],
    };
    assert_eq!(editions("handbook"), [whole]);
    assert_eq!(editions("copy of it"), [holed]);
    assert_eq!(store.place(&id(&new).unwrap()).unwrap(), (1, 2));
    let report = store
        .verify(&mut |_| std::ops::ControlFlow::Continue(()))
        .unwrap();
    assert_eq!(
        (report.packets, report.damaged.len(), report.damaged_bytes),
        (3, 0, 0)
    );
}

/// Two packets of one text, behind a primer and without one, and one behind another primer.
fn primed() -> [Sample; 3] {
    let of = |name, number| Sample::of("default", name, number, 300 + number as usize);
    [
        of("", 1).behind([6; 32]),
        of("", 1),
        of("visiting hours", 2).behind([7; 32]),
    ]
}

#[test]
#[ignore = "made the fixture of version 3; to run it again would be to forget what version 3 was"]
fn write_the_fixture_of_version_3() {
    let directory = tempfile::tempdir().unwrap();
    {
        let store = open(directory.path());
        for sample in primed() {
            let _ = sample.put(&store);
        }
    }
    keep(directory.path(), "v3");
}

#[test]
fn a_store_of_version_3_is_read() {
    let directory = stored("v3");
    let store = open(directory.path());
    for sample in primed() {
        sample.assert_in(&store);
        let found = store.lookup(&sample.header.key).unwrap().unwrap();
        assert_eq!(found.header, sample.header);
    }
    let bound = store
        .document("default", "visiting hours")
        .unwrap()
        .unwrap();
    assert!(bound.editions[0].whole().is_some());
}
