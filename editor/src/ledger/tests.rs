//! The ledger against torn tails, damage and failing disks.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may fail loudly"
)]

use std::path::Path;
use std::sync::Arc;

use addenda_disk::{Disk, Fault, Faults, IoPoint};

use super::chain::{Chain, HEAD, MARK};
use super::{FILE_NAME, Ledger, Opened, Place};
use crate::error::Error;

fn open(dir: &Path) -> Opened {
    Ledger::open(dir, &Disk::default(), None).unwrap()
}

fn ledger_of(dir: &Path, contents: &[&[u8]]) -> Vec<u64> {
    let mut ledger = open(dir).ledger;
    contents
        .iter()
        .map(|content| {
            ledger.append(content).unwrap();
            ledger.end.end
        })
        .collect()
}

fn contents(opened: &Opened) -> Vec<Vec<u8>> {
    opened
        .frames
        .iter()
        .map(|frame| frame.content.clone())
        .collect()
}

#[test]
fn what_was_appended_is_read_again_in_order() {
    let dir = tempfile::tempdir().unwrap();
    ledger_of(dir.path(), &[b"one", b"two"]);
    ledger_of(dir.path(), &[b"three"]);
    let opened = open(dir.path());
    assert_eq!(
        contents(&opened),
        [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]
    );
    assert_eq!((opened.torn, opened.ledger.frames()), (0, 3));
}

#[test]
fn a_tail_torn_at_any_byte_leaves_the_last_frame_wholly_in_or_wholly_out() {
    let dir = tempfile::tempdir().unwrap();
    let ends = ledger_of(dir.path(), &[b"one", b"two"]);
    let path = dir.path().join(FILE_NAME);
    let bytes = std::fs::read(&path).unwrap();
    for cut in usize::try_from(ends[0]).unwrap()..bytes.len() {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let mut opened = open(dir.path());
        let whole = cut >= bytes.len() - MARK.len();
        assert_eq!(
            opened.frames.len(),
            if whole { 2 } else { 1 },
            "cut at {cut}"
        );
        opened.ledger.append(b"after").unwrap();
        let again = open(dir.path());
        assert_eq!(
            (again.frames.len(), again.torn),
            (if whole { 3 } else { 2 }, 0),
            "cut at {cut}"
        );
    }
}

#[test]
fn a_chain_is_the_same_in_whatever_stretches_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let contents: Vec<Vec<u8>> = (0..40).map(|n| vec![n; usize::from(n) * 37]).collect();
    let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
    ledger_of(dir.path(), &contents);
    let whole = open(dir.path()).ledger.end;
    let path = dir.path().join(FILE_NAME);
    let mut bytes = std::fs::read(&path).unwrap();
    for stretch in [1, 17, 100, 1_000, 5_000] {
        let mut chain = Chain::behind(Place::start());
        let mut ledger = open(dir.path()).ledger;
        let length = ledger.follow(&mut chain, stretch).unwrap();
        assert_eq!((chain.end, length), (whole, bytes.len() as u64));
        assert_eq!(chain.frames.len(), 40);
    }
    // Damage in the middle is named by its frame, however little is read at once.
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let mut ledger = open(dir.path()).ledger;
    std::fs::write(&path, &bytes).unwrap();
    let frame = |stretch| {
        let error = ledger.follow(&mut Chain::behind(Place::start()), stretch);
        match error.unwrap_err() {
            Error::DamagedLedger { frame, .. } => frame,
            other => panic!("{other}"),
        }
    };
    let frames: Vec<u64> = [1, 100, 5_000, 1 << 20].map(frame).to_vec();
    assert!(frames[0] > 1 && frames.iter().all(|frame| *frame == frames[0]));
}

#[test]
fn what_lies_before_a_place_is_verified_and_not_read_again() {
    let dir = tempfile::tempdir().unwrap();
    ledger_of(dir.path(), &[b"one", b"two"]);
    let place = open(dir.path()).ledger.end();
    ledger_of(dir.path(), &[b"three"]);
    let from = |place| Ledger::open(dir.path(), &Disk::default(), Some(place));
    let opened = from(place).unwrap();
    assert_eq!(
        (opened.from, contents(&opened)),
        (place, vec![b"three".to_vec()])
    );
    assert_eq!(opened.frames[0].sequence, 3);
    // A place in another ledger, or behind the end of a shorter one, is none.
    let head = [7; 32];
    for other in [
        Place { head, ..place },
        Place {
            end: place.end + 9,
            ..place
        },
        Place {
            end: 1 << 40,
            ..place
        },
    ] {
        let opened = from(other).unwrap();
        assert_eq!((opened.from, opened.frames.len()), (Place::start(), 3));
    }
    let path = dir.path().join(FILE_NAME);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[HEAD + 45] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(
        from(place).unwrap_err(),
        Error::DamagedLedger { frame: 1, .. }
    ));
}

#[test]
fn a_failing_disk_refuses_the_frame_and_what_was_acknowledged_stays() {
    for point in [IoPoint::Write, IoPoint::Sync, IoPoint::Cut] {
        for (fault, after) in [
            (Fault::Full, 0),
            (Fault::Short, 0),
            (Fault::Broken, 0),
            (Fault::Broken, 1),
            (Fault::Short, 1),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let faults = Arc::new(Faults::default());
            let disk = Disk::with(Arc::clone(&faults));
            let mut ledger = Ledger::open(dir.path(), &disk, None).unwrap().ledger;
            ledger.append(b"one").unwrap();
            faults.arm(point, after, fault, 2);
            let case = format!("{fault:?} at {point:?} behind {after}");
            let refused = ledger.append(b"two").is_err();
            assert_eq!(refused, point != IoPoint::Cut, "{case}");
            let met = faults.disarm();
            assert_eq!(met > 0, refused, "{case}");
            let again = ledger.append(b"three");
            // After a sync that failed only a restart may write.
            let stuck = matches!(again, Err(Error::LedgerStuck));
            assert_eq!(stuck, point == IoPoint::Sync, "{case}: {again:?}");
            let mut expected = vec![b"one".to_vec()];
            if !refused {
                expected.push(b"two".to_vec());
            }
            if again.is_ok() {
                expected.push(b"three".to_vec());
            }
            drop(ledger);
            let opened = open(dir.path());
            assert_eq!(contents(&opened), expected, "{case}");
        }
    }
}

#[test]
fn a_tail_of_garbage_that_was_never_acknowledged_is_cut_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    ledger_of(dir.path(), &[b"one"]);
    let path = dir.path().join(FILE_NAME);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend_from_slice(&[0; 300]);
    std::fs::write(&path, &bytes).unwrap();
    let opened = open(dir.path());
    assert_eq!((opened.frames.len(), opened.torn), (1, 300));
}

#[test]
fn a_flipped_bit_in_any_acknowledged_frame_stops_the_start_with_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let ends = ledger_of(dir.path(), &[b"one", b"two", b"three"]);
    let path = dir.path().join(FILE_NAME);
    let bytes = std::fs::read(&path).unwrap();
    let last_mark = bytes.len() - MARK.len();
    for at in HEAD..last_mark {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        let number = ends.iter().position(|end| (at as u64) < *end).unwrap() as u64 + 1;
        match Ledger::open(dir.path(), &Disk::default(), None).unwrap_err() {
            Error::DamagedLedger { frame, .. } => assert_eq!(frame, number, "byte {at}"),
            other => panic!("byte {at}: {other}"),
        }
        assert_eq!(
            std::fs::read(&path).unwrap(),
            damaged,
            "a damaged ledger is left as it is"
        );
    }
}

#[test]
fn the_way_out_that_a_damaged_ledger_names_works() {
    let dir = tempfile::tempdir().unwrap();
    let ends = ledger_of(dir.path(), &[b"one", b"two", b"three"]);
    let path = dir.path().join(FILE_NAME);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[usize::try_from(ends[0]).unwrap() + 45] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let Error::DamagedLedger {
        frame: 2, offset, ..
    } = Ledger::open(dir.path(), &Disk::default(), None).unwrap_err()
    else {
        panic!()
    };
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(offset)
        .unwrap();
    assert_eq!(contents(&open(dir.path())), [b"one".to_vec()]);
}

#[test]
fn a_file_that_is_no_ledger_or_a_newer_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    for (bytes, says) in [
        (&b"something else altogether"[..], "is no ledger"),
        (b"ADDLEDGR\x07\0\0\0\0\0\0\0", "version 7"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = Ledger::open(dir.path(), &Disk::default(), None).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}
