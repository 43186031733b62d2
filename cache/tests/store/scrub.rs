//! The scrub: each packet once a lap, over restarts, and damage found before a reader meets it.

use std::fs::OpenOptions;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;

use addenda_cache::{Gone, Miss, Scrubbed, Store};

use crate::sample::{Sample, copy, open};

fn walk(store: &Store, bytes: u64) -> Scrubbed {
    store
        .scrub(bytes, &mut || ControlFlow::Continue(()))
        .unwrap()
}

fn samples(directory: &Path) -> Vec<Sample> {
    let samples: Vec<Sample> = (0..20).map(|number| Sample::new(number, 5_000)).collect();
    let store = open(directory);
    for sample in &samples {
        sample.put(&store);
    }
    samples
}

fn flip(directory: &Path, store: &Store, sample: &Sample) {
    let place = store.lookup(&sample.header.key).unwrap().unwrap().location;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(directory.join(format!("extents/{:010}.extent", place.extent)))
        .unwrap();
    let mut byte = [0];
    let at = place.payload + place.payload_len / 2;
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn a_scrub_goes_on_where_it_stopped_over_restarts_and_ends_its_lap_after_each_packet_once() {
    let directory = tempfile::tempdir().unwrap();
    let samples = samples(directory.path());
    let mut packets = 0;
    let mut stretches = 0;
    let ended = loop {
        let store = open(directory.path());
        assert_eq!(store.scrub_state().unwrap().lap_ended_at_ms, None);
        let done = walk(&store, 12_000);
        packets += done.packets;
        stretches += 1;
        if done.lap_ended {
            break store.scrub_state().unwrap();
        }
        assert!(done.bytes >= 12_000 && done.bytes < 24_000, "{done:?}");
    };
    assert_eq!(packets, samples.len() as u64);
    assert!(stretches > 5);
    assert!(ended.after.is_none() && ended.lap_ended_at_ms.is_some());
    // The next lap begins at the beginning.
    assert_eq!(walk(&open(directory.path()), u64::MAX).packets, packets);
}

#[test]
fn a_scrub_finds_what_decayed_and_quarantines_it() {
    let directory = tempfile::tempdir().unwrap();
    let samples = samples(directory.path());
    let store = open(directory.path());
    // Verified and read before: a reader would not notice.
    samples.iter().for_each(|sample| sample.assert_in(&store));
    flip(directory.path(), &store, &samples[13]);
    let done = walk(&store, u64::MAX);
    assert!(done.lap_ended);
    assert_eq!(done.damaged.len(), 1);
    samples[13].assert_missing(&store);
    assert_eq!(
        store.why_missing(&samples[13].header.key).unwrap(),
        Some(Miss::Gone(Gone::Quarantined))
    );
    samples[12].assert_in(&store);
}

#[test]
fn a_process_that_is_killed_repeats_at_most_what_its_index_had_not_flushed() {
    let directory = tempfile::tempdir().unwrap();
    let samples = samples(directory.path());
    let store = open(directory.path());
    let first = walk(&store, 40_000).packets;
    store.checkpoint().unwrap();
    let image = copy(directory.path());
    let rest = walk(&open(image.path()), u64::MAX);
    assert_eq!(first + rest.packets, samples.len() as u64);
}
