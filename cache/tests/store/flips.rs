//! A bit flipped in each region of each file, one at a time, and counted: what was tried was noticed, and nothing wrong
//! was served.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use addenda_cache::{Error, PacketId, Store};

use crate::sample::{Sample, copy, open, options};

const FRAME: u64 = 128;

fn flip(path: &Path, at: u64, bit: u32) {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
}

fn extent(directory: &Path) -> PathBuf {
    directory.join("extents/0000000001.extent")
}

/// Packets that live, in the order in which they lie.
struct Stored {
    directory: tempfile::TempDir,
    samples: Vec<Sample>,
    /// Of the second one's record, by name.
    regions: BTreeMap<&'static str, Range<u64>>,
    /// Where a packet lies that is dead: nobody misses it.
    dead: u64,
}

fn stored() -> Stored {
    let directory = tempfile::tempdir().unwrap();
    let sample = |number: u32| Sample::of("default", &format!("document {number}"), number, 301);
    let samples: Vec<Sample> = (1..=3).map(sample).collect();
    let store = open(directory.path());
    let ids: Vec<PacketId> = samples.iter().map(|sample| sample.put(&store)).collect();
    store.pin(&ids[2]).unwrap();
    let gone = sample(9).put(&store);
    let dead = store.get(&gone).unwrap().unwrap().location.offset;
    store.delete(&gone).unwrap();
    let second = store.lookup(&samples[1].header.key).unwrap().unwrap();
    drop(store);
    let place = second.location;
    let bytes = fs::read(extent(directory.path())).unwrap();
    let at = |offset: u64| usize::try_from(offset).unwrap();
    let meta = bytes[at(place.offset) + 12..].first_chunk().unwrap();
    let meta = place.offset + FRAME + u64::from(u32::from_le_bytes(*meta));
    let ids = place.payload + u64::from(second.token_ids) * 4;
    let body = place.payload + place.payload_len - second.body_len;
    let end = place.payload + place.payload_len;
    let regions = BTreeMap::from([
        ("frame", place.offset..place.offset + FRAME),
        ("meta", place.offset + FRAME..meta),
        ("zeros behind the meta", meta..place.payload),
        ("token ids", place.payload..ids),
        ("zeros behind the token ids", ids..body),
        ("body", body..end),
        ("zeros behind the body", end..end.next_multiple_of(64)),
    ]);
    Stored {
        directory,
        samples,
        regions,
        dead,
    }
}

/// About so many places of a range, its ends among them.
fn places(range: &Range<u64>, count: u64) -> impl Iterator<Item = u64> + use<> {
    let (start, last) = (range.start, range.end - 1);
    let count = count.min(range.end - range.start);
    (0..count).map(move |number| start + number * (last - start) / (count - 1).max(1))
}

/// Whether the packet is not served, and the store knows that it is damaged.
fn is_noticed(store: &Store, sample: &Sample) -> bool {
    if let Some(found) = store.lookup(&sample.header.key).unwrap() {
        match store.read(&found.id) {
            Err(Error::Damaged { .. }) => {}
            Err(error) => panic!("{error}"),
            Ok(_) => return false,
        }
    }
    let recovery = store.recovery();
    let known = recovery.damaged_bytes > 0 || store.stats().unwrap().quarantined > 0;
    known && store.lookup(&sample.header.key).unwrap().is_none()
}

#[test]
fn every_flipped_bit_of_a_record_is_noticed_and_the_packet_is_not_served() {
    let stored = stored();
    for (region, range) in &stored.regions {
        assert!(!range.is_empty(), "there are no {region} to try");
        let (mut tried, mut noticed) = (0, 0);
        for (round, at) in (0..).zip(places(range, 12)) {
            for keeps_index in [true, false] {
                let image = copy(stored.directory.path());
                flip(&extent(image.path()), at, round % 8);
                if !keeps_index {
                    fs::remove_dir_all(image.path().join("index")).unwrap();
                }
                let store = open(image.path());
                tried += 1;
                noticed += u32::from(is_noticed(&store, &stored.samples[1]));
                stored.samples[0].assert_in(&store);
                stored.samples[2].assert_in(&store);
            }
        }
        assert!(tried > 0);
        assert_eq!(noticed, tried, "{region}");
    }
}

#[test]
fn every_flipped_bit_of_an_event_without_a_body_is_noticed() {
    let stored = stored();
    let records = stored.regions["zeros behind the body"].end;
    let (mut tried, mut noticed) = (0, 0);
    // Behind the second packet: bindings, the third packet, a pin. The last record of all is not among them, for
    // damage to it can't be told from a write that was never finished.
    for (round, at) in (0..).zip((records..stored.dead).step_by(37)) {
        let image = copy(stored.directory.path());
        flip(&extent(image.path()), at, round % 8);
        fs::remove_dir_all(image.path().join("index")).unwrap();
        let store = open(image.path());
        tried += 1;
        let known = store.recovery();
        noticed += u32::from(known.damaged_bytes > 0 || !known.damaged.is_empty());
        stored.samples[..2]
            .iter()
            .for_each(|sample| sample.assert_in(&store));
        for manifest in store.list("default", None, 10).unwrap() {
            store.read(&manifest.id).unwrap();
        }
    }
    assert!(tried > 30, "{tried}");
    assert_eq!(noticed, tried);
}

#[test]
fn a_bit_of_one_copy_of_an_extents_header_costs_nothing_and_of_both_all_its_packets() {
    let stored = stored();
    let header = 0..88;
    let (mut tried, mut noticed) = (0, 0);
    for (round, at) in (0..).zip(places(&header, 30)) {
        for copies in [&[0][..], &[4096], &[0, 4096]] {
            let image = copy(stored.directory.path());
            for copy in copies {
                flip(&extent(image.path()), copy + at, round % 8);
            }
            let store = open(image.path());
            if copies.len() == 1 {
                stored
                    .samples
                    .iter()
                    .for_each(|sample| sample.assert_in(&store));
                continue;
            }
            tried += 1;
            noticed += u32::from(store.recovery().unreadable == [extent(image.path())]);
            stored
                .samples
                .iter()
                .for_each(|sample| sample.assert_missing(&store));
        }
    }
    assert_eq!((tried, noticed), (30, 30));
}

#[test]
fn a_flipped_bit_in_any_file_of_the_index_never_loses_a_packet_or_serves_a_wrong_one() {
    let stored = stored();
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(stored.directory.path().join("index")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            names.push(PathBuf::from("index").join(entry.file_name()));
        }
    }
    assert!(names.len() >= 2, "{names:?}");
    let (mut tried, mut anew, mut as_before) = (0, 0, 0);
    for name in &names {
        let bytes = fs::read(stored.directory.path().join(name)).unwrap();
        // Where the file is not zeros, closely; elsewhere, here and there.
        let written: Vec<u64> = (0..bytes.len() as u64)
            .filter(|at| bytes[usize::try_from(*at).unwrap()] != 0)
            .collect();
        let close = written.iter().copied().step_by(written.len() / 80 + 1);
        for (round, at) in (0..).zip(close.chain(places(&(0..bytes.len() as u64), 10))) {
            let image = copy(stored.directory.path());
            flip(&image.path().join(name), at, round % 8);
            let store = Store::open(image.path(), options()).unwrap();
            tried += 1;
            match store.recovery().rebuilt {
                Some(_) => anew += 1,
                None => as_before += 1,
            }
            for sample in &stored.samples {
                sample.assert_in(&store);
            }
            let third = store.lookup(&stored.samples[2].header.key).unwrap();
            assert!(third.unwrap().pinned, "{} byte {at}", name.display());
            let listed = store.list("default", None, 10).unwrap();
            assert_eq!(listed.len(), 3, "{} byte {at}", name.display());
            assert_eq!(store.documents("default", None, 10).unwrap().len(), 3);
            let report = store.verify(&mut |_| ControlFlow::Continue(())).unwrap();
            assert_eq!((report.damaged.len(), report.damaged_bytes), (0, 0));
        }
    }
    println!("{tried} flips in the index: made anew {anew}, as before {as_before}");
    assert!(tried > 100 && anew > 0, "{tried} {anew}");
}

/// With more in it than fits a page or two: what is damaged is then often not what an open reads.
#[test]
fn a_flipped_bit_in_an_index_of_many_packets_never_loses_one_silently() {
    let directory = tempfile::tempdir().unwrap();
    let samples: Vec<Sample> = (0..400).map(|number| Sample::new(number, 100)).collect();
    {
        let store = open(directory.path());
        for (number, sample) in samples.iter().enumerate() {
            sample.put(&store);
            if number % 90 == 0 {
                store.checkpoint().unwrap();
            }
        }
    }
    let (mut tried, mut anew, mut as_before, mut named) = (0, 0, 0, 0);
    for entry in fs::read_dir(directory.path().join("index")).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_type().unwrap().is_file() {
            continue;
        }
        let bytes = fs::read(entry.path()).unwrap();
        let written: Vec<u64> = (0..bytes.len() as u64)
            .filter(|at| bytes[usize::try_from(*at).unwrap()] != 0)
            .collect();
        let places = written.iter().copied().step_by(written.len() / 10 + 1);
        for (round, at) in (0..).zip(places) {
            let image = copy(directory.path());
            let name = PathBuf::from("index").join(entry.file_name());
            flip(&image.path().join(name), at, round % 8);
            let store = open(image.path());
            tried += 1;
            let mut refused = 0;
            for sample in &samples {
                match store.lookup(&sample.header.key) {
                    Ok(Some(_)) => sample.assert_in(&store),
                    Ok(None) => panic!("byte {at}: a packet is lost and nobody says so"),
                    Err(Error::Index(_) | Error::IndexValue { .. }) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            match (refused, &store.recovery().rebuilt) {
                (0, None) => as_before += 1,
                (0, Some(_)) => anew += 1,
                _ => named += 1,
            }
            if refused == 0 {
                continue;
            }
            drop(store);
            // What the message says to do helps.
            let store = Store::rebuild(image.path(), options(), &mut |_| {}).unwrap();
            samples.iter().for_each(|sample| sample.assert_in(&store));
        }
    }
    println!("{tried} flips: made anew {anew}, as before {as_before}, refused by name {named}");
    assert!(tried > 10, "{tried}");
}

#[test]
fn what_the_lock_file_says_matters_to_nobody_but_people() {
    let stored = stored();
    for (round, at) in (0..).zip(0..4) {
        flip(&stored.directory.path().join("LOCK"), at, round);
        let store = open(stored.directory.path());
        stored
            .samples
            .iter()
            .for_each(|sample| sample.assert_in(&store));
        let refused = Store::open(stored.directory.path(), options()).unwrap_err();
        let says = refused.to_string();
        assert!(says.contains(&std::process::id().to_string()), "{says}");
    }
}
