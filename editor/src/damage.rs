//! Every bit of a ledger's file flipped, one at a time, and counted.
//!
//! Owns the one promise behind it: what was acknowledged is read as it was written, or the start is refused by name.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic fails the test, which is what tests are for"
)]

use std::collections::BTreeMap;
use std::ops::Range;

use addenda_disk::Disk;

use crate::error::Error;
use crate::ledger::Ledger;

const CONTENTS: [&[u8]; 3] = [b"the first", b"a second one", b"three"];

/// The file's regions: its head, and of each frame what the format tells apart.
fn regions(length: usize) -> BTreeMap<&'static str, Vec<Range<usize>>> {
    let mut regions: BTreeMap<_, Vec<Range<usize>>> = BTreeMap::new();
    regions.entry("head of the file").or_default().push(0..16);
    let mut at = 16;
    for content in CONTENTS {
        let parts = [
            ("magic", 4),
            ("length", 4),
            ("digest before", 32),
            ("content", content.len()),
            ("digest", 32),
            ("mark", 16),
        ];
        for (name, size) in parts {
            regions.entry(name).or_default().push(at..at + size);
            at += size;
        }
    }
    assert_eq!(at, length);
    regions
}

#[test]
fn every_flipped_bit_of_a_ledger_is_refused_by_name_or_changes_no_fact() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("facts.ledger");
    let mut ledger = Ledger::open(directory.path(), &Disk::default(), None)
        .unwrap()
        .ledger;
    for content in CONTENTS {
        ledger.append(content).unwrap();
    }
    drop(ledger);
    let bytes = std::fs::read(&path).unwrap();
    let last_mark = bytes.len() - 16;
    for (region, ranges) in regions(bytes.len()) {
        let (mut tried, mut noticed) = (0, 0);
        for bit in ranges
            .into_iter()
            .flatten()
            .flat_map(|at| (0..8).map(move |bit| at * 8 + bit))
        {
            let (at, bit) = (bit / 8, bit % 8);
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            std::fs::write(&path, &damaged).unwrap();
            tried += 1;
            match Ledger::open(directory.path(), &Disk::default(), None) {
                Err(Error::DamagedLedger { .. } | Error::NotALedger { .. }) => {
                    assert_eq!(
                        std::fs::read(&path).unwrap(),
                        damaged,
                        "it is left as it is"
                    );
                    noticed += 1;
                }
                Err(error) => panic!("{region}, byte {at}: {error}"),
                // The last mark is made again: the frame before it is whole, and so is every fact.
                Ok(opened) => {
                    let contents = opened.frames.iter().map(|frame| frame.content.as_slice());
                    assert!(
                        at >= last_mark && contents.eq(CONTENTS),
                        "{region}, byte {at}"
                    );
                    assert_eq!(std::fs::read(&path).unwrap(), bytes);
                    noticed += 1;
                }
            }
        }
        assert_eq!(noticed, tried, "{region}");
        assert!(tried > 0);
    }
}
