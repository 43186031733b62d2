//! Many who put at once: one sync serves them, and a sync that fails is told to each.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use addenda_cache::{Disk, Error, Fault, Faults, IoPoint, PacketId, Store};

use crate::sample::{Sample, options};

const WRITERS: u32 = 16;

fn on_faulty_disk(directory: &Path) -> (Store, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let disk = Disk::with(Arc::clone(&faults));
    (Store::open_on(directory, options(), disk).unwrap(), faults)
}

/// Puts the samples at the same time, each on a thread of its own.
fn put_together(store: &Store, samples: &[Sample]) -> Vec<Result<PacketId, Error>> {
    let start = Barrier::new(samples.len());
    let (start, put) = (&start, |sample: &Sample| sample.try_put(store));
    std::thread::scope(|scope| {
        let writers: Vec<_> = samples
            .iter()
            .map(|sample| {
                scope.spawn(move || {
                    start.wait();
                    put(sample)
                })
            })
            .collect();
        let joined = writers.into_iter().map(|writer| writer.join().unwrap());
        joined.collect()
    })
}

fn samples(document: &dyn Fn(u32) -> String) -> Vec<Sample> {
    (0..WRITERS)
        .map(|number| Sample::of("default", &document(number), number, 3_000))
        .collect()
}

#[test]
fn many_who_put_at_once_share_the_syncs() {
    let directory = tempfile::tempdir().unwrap();
    let (store, faults) = on_faulty_disk(directory.path());
    Sample::new(900, 100).put(&store);
    // A slow disk, so that all come while the first sync runs; it also counts the syncs.
    let slow = Fault::Slow(Duration::from_millis(200));
    faults.arm(IoPoint::Sync, 0, slow, u64::MAX);
    let samples = samples(&|number| format!("document {number}"));
    let put = put_together(&store, &samples);
    let syncs = faults.disarm();
    assert!(put.iter().all(Result::is_ok));
    assert!(syncs <= 4, "{WRITERS} puts took {syncs} syncs");
    samples.iter().for_each(|sample| sample.assert_in(&store));
    for number in 0..WRITERS {
        let document = store.document("default", &format!("document {number}"));
        assert_eq!(document.unwrap().unwrap().ids().count(), 1);
    }
    drop(store);
    let store = Store::rebuild(directory.path(), options(), &mut |_| {}).unwrap();
    samples.iter().for_each(|sample| sample.assert_in(&store));
}

#[test]
fn a_sync_that_fails_is_told_to_each_who_waited_for_it_and_nobody_else_loses_anything() {
    for after in 0..3 {
        let directory = tempfile::tempdir().unwrap();
        let (store, faults) = on_faulty_disk(directory.path());
        Sample::new(900, 100).put(&store);
        faults.arm(IoPoint::Sync, after, Fault::Broken, 1);
        let samples = samples(&|_| String::new());
        let put = put_together(&store, &samples);
        let struck = faults.disarm();
        let check = |store: &Store| {
            for (sample, put) in samples.iter().zip(&put) {
                match put {
                    Ok(_) => sample.assert_in(store),
                    Err(_) => sample.assert_missing(store),
                }
            }
        };
        let refused = put.iter().filter(|put| put.is_err()).count();
        assert_eq!(struck == 1, refused > 0, "{refused} refused");
        check(&store);
        // What was refused can be put again, in another extent.
        Sample::new(901, 100).put(&store);
        drop(store);
        check(&Store::open(directory.path(), options()).unwrap());
        check(&Store::rebuild(directory.path(), options(), &mut |_| {}).unwrap());
    }
}

#[test]
fn the_same_packet_put_by_many_at_once_is_stored_once() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _faults) = on_faulty_disk(directory.path());
    let one = Sample::of("default", "a document", 7, 3_000);
    let same: Vec<Sample> = (0..WRITERS).map(|_| one.clone()).collect();
    let ids: Vec<PacketId> = put_together(&store, &same)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
    let stats = store.stats().unwrap();
    assert_eq!(stats.packets, 1);
    let record = store.get(&ids[0]).unwrap().unwrap().bytes();
    assert_eq!(stats.live_bytes, record);
}

#[test]
fn a_document_that_many_replace_at_once_ends_as_one_text() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _faults) = on_faulty_disk(directory.path());
    let samples = samples(&|number| format!("document {}", number % 3));
    let put: BTreeMap<PacketId, &Sample> = put_together(&store, &samples)
        .into_iter()
        .map(Result::unwrap)
        .zip(&samples)
        .collect();
    let check = |store: &Store| {
        let mut bound = Vec::new();
        for number in 0..3 {
            let name = format!("document {number}");
            let document = store.document("default", &name).unwrap().unwrap();
            let ids: Vec<PacketId> = document.ids().collect();
            assert_eq!(ids.len(), 1, "{name}");
            assert_eq!(put[&ids[0]].header.document, name);
            bound.extend(ids);
        }
        for (id, sample) in &put {
            if bound.contains(id) {
                sample.assert_in(store);
            } else {
                sample.assert_missing(store);
            }
        }
    };
    check(&store);
    drop(store);
    check(&Store::rebuild(directory.path(), options(), &mut |_| {}).unwrap());
}
