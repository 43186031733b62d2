//! A copy that is taken while packets come and go is a store.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use addenda_cache::{BackupPart, BackupReport, Error, Store};
use tempfile::TempDir;

use crate::sample::{Sample, open, options};

/// Writes a backup into a folder; `between` is called before each file or piece.
fn back_up(store: &Store, between: &mut dyn FnMut(&Store)) -> (TempDir, BackupReport) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("extents")).unwrap();
    let mut file: Option<File> = None;
    let report = store
        .backup::<Error>(&mut |part| {
            between(store);
            match part {
                BackupPart::File(path) => {
                    file = Some(File::create(folder.path().join(path)).unwrap());
                }
                BackupPart::Bytes(bytes) => file.as_mut().unwrap().write_all(bytes).unwrap(),
            }
            Ok(())
        })
        .unwrap();
    (folder, report)
}

fn restored(folder: &Path) -> Store {
    let store = Store::rebuild(folder, options(), &mut |_| {}).unwrap();
    assert_eq!(store.recovery().damaged, []);
    let report = store.verify(&mut |_| std::ops::ControlFlow::Continue(()));
    assert_eq!(report.unwrap().damaged_bytes, 0);
    store
}

#[test]
fn a_backup_restores_to_the_same_packets_documents_and_pins() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let samples: Vec<Sample> = (0..20)
        .map(|number| {
            let document = format!("document {}", number % 15);
            Sample::of("default", &document, number, 40_000 * number as usize + 1)
        })
        .collect();
    let ids: Vec<_> = samples.iter().map(|sample| sample.put(&store)).collect();
    store.pin(&ids[9]).unwrap();
    store
        .bind("default", "two", &[1; 32], &ids[10..12])
        .unwrap();
    let (folder, report) = back_up(&store, &mut |_| {});
    assert_eq!((report.packets, report.documents), (15, 16));
    let copy = restored(folder.path());
    for sample in &samples[5..] {
        sample.assert_in(&copy);
    }
    samples[0].assert_missing(&copy);
    let documents = |store: &Store| store.documents("default", None, 100).unwrap();
    assert_eq!(documents(&copy), documents(&store));
    assert!(copy.get(&ids[9]).unwrap().unwrap().pinned);
    assert_eq!(copy.stats().unwrap().pinned, 1);
}

#[test]
fn a_backup_beside_puts_deletes_and_compactions_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let of = |number| Sample::of("default", &format!("document {number}"), number, 300_000);
    for number in 0..30 {
        of(number).put(&store);
    }
    let mut calls = 0;
    let (folder, report) = back_up(&store, &mut |store| {
        calls += 1;
        if calls % 5 == 0 {
            let number = 29 - calls / 5;
            store
                .delete_document("default", &format!("document {number}"))
                .unwrap();
            of(100 + calls).put(store);
            let effort = addenda_cache::Effort::Thorough;
            store
                .compact(effort, &mut |_| std::ops::ControlFlow::Continue(()))
                .unwrap();
        }
    });
    let copy = restored(folder.path());
    assert!(report.packets >= 10 && report.packets < 30, "{report:?}");
    assert_eq!(copy.stats().unwrap().packets, report.packets);
    for document in copy.documents("default", None, 100).unwrap() {
        assert!(document.editions[0].whole().is_some());
    }
    of(0).assert_in(&copy);
    of(100).assert_missing(&copy);
}

#[test]
fn a_damaged_packet_is_not_in_the_backup() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let samples = [1, 2, 3].map(|number| Sample::new(number, 5_000));
    let ids = samples.each_ref().map(|sample| sample.put(&store));
    let place = store.get(&ids[1]).unwrap().unwrap().location;
    let path = directory.path().join("extents/0000000001.extent");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"damaged", place.payload + 1_000).unwrap();
    let (folder, report) = back_up(&store, &mut |_| {});
    assert_eq!(report.packets, 2);
    let copy = restored(folder.path());
    samples[0].assert_in(&copy);
    samples[1].assert_missing(&copy);
    samples[1].assert_missing(&store);
}
