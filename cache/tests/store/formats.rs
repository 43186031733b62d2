//! What older versions wrote is still read.
//!
//! `fixtures/v1` holds the extents of a store of version 1, made by [`write_the_fixture`]. It is never made again:
//! a new version of a format gets a folder of its own beside it.

use std::path::{Path, PathBuf};

use addenda_cache::{Gone, Miss};

use crate::sample::{Sample, open};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1")
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
    std::fs::create_dir_all(fixture()).unwrap();
    let name = "0000000001.extent";
    std::fs::copy(
        directory.path().join("extents").join(name),
        fixture().join(name),
    )
    .unwrap();
}

#[test]
fn a_store_of_version_1_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let extents = directory.path().join("extents");
    std::fs::create_dir(&extents).unwrap();
    let name = "0000000001.extent";
    std::fs::copy(fixture().join(name), extents.join(name)).unwrap();
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
    assert_eq!(document.ids.len(), 1);
    // The very bytes, so that a change of the key's or id's derivation shows.
    let id = document.ids[0].to_string();
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
