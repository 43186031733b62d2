//! Flips, cuts and forgeries at every place of a record.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic fails the test, which is what tests are for"
)]

use std::sync::Arc;

use tempfile::TempDir;

use super::{Found, Scanner, Step, read_record, verify_payload};
use crate::event::Event;
use crate::extent::{Extents, Origin, Payload, Pending, Tail};
use crate::file::{ExtentFile, FIRST_RECORD};
use crate::id::{PacketId, PacketKey};
use crate::packet::PacketHeader;
use crate::payload::{Hands, payload_hasher};
use crate::record::body_offset;
use addenda_disk::Disk;

fn append(extents: &Extents, tail: &mut Tail, number: u8, body: &[u8]) {
    let header = PacketHeader {
        key: PacketKey::from_bytes([number; 32]),
        namespace: "default".into(),
        document: String::new(),
        source: [number; 32],
        revision: [0; 32],
        tokenizer: [0; 32],
        adapter: [0; 32],
        primer: [0; 32],
        tokens: 3,
        dtype: "f32".into(),
        rope: "none".into(),
        layers: 1,
        kv_heads: 1,
        head_dim: 1,
        created_at_ms: 0,
    };
    let lead = vec![number; 64];
    let mut hasher = payload_hasher();
    hasher.update(&lead).update(body);
    let digest = *hasher.finalize().as_bytes();
    let event = Event::Packet {
        id: PacketId::derive(&header.identity(), &digest),
        header: Box::new(header),
        token_ids: 3,
        body_len: body.len() as u64,
    };
    let length = body_offset(3) + body.len() as u64;
    let payload = Payload {
        pieces: &[&lead, body],
        length,
        digest,
    };
    extents
        .append(
            tail,
            &[Pending {
                event,
                payload,
                origin: Origin::New,
            }],
        )
        .unwrap();
}

/// An extent with three packets.
fn extent() -> (TempDir, Arc<ExtentFile>, u64) {
    let directory = tempfile::tempdir().unwrap();
    let extents = Extents::open(directory.path(), 1 << 20, &Disk::default())
        .unwrap()
        .extents;
    let mut tail = Tail {
        next_extent: 1,
        ..Tail::default()
    };
    for (number, length) in [(1, 100), (2, 300), (3, 50)] {
        append(&extents, &mut tail, number, &vec![number; length]);
    }
    let (file, end) = tail.active.unwrap();
    (directory, file, end)
}

fn walk(file: &ExtentFile) -> (Vec<Found>, Vec<(u64, u64)>, Option<u64>) {
    let mut scanner = Scanner::new(file, FIRST_RECORD).unwrap();
    let (mut found, mut gaps) = (Vec::new(), Vec::new());
    loop {
        match scanner.step().unwrap() {
            Step::Record(record) => found.push(*record),
            Step::Gap { from, to } => gaps.push((from, to)),
            Step::Tail { from } => return (found, gaps, Some(from)),
            Step::End => return (found, gaps, None),
        }
    }
}

#[test]
fn every_flipped_bit_of_a_record_is_found() {
    let (_directory, file, length) = extent();
    let (records, _, _) = walk(&file);
    let place = records[1].location;
    let hands = Hands::new();
    for at in place.offset..records[1].next {
        let mut byte = [0];
        file.read_at(&mut byte, at).unwrap();
        for bit in 0..8 {
            file.write_at(&[byte[0] ^ (1 << bit)], at).unwrap();
            let intact = read_record(&file, length, place.offset)
                .unwrap()
                .is_ok_and(|found| {
                    verify_payload(&file, &found.location, &found.payload_digest, &hands)
                        .unwrap()
                        .is_some()
                });
            assert!(!intact, "bit {bit} of byte {at}");
        }
        file.write_at(&byte, at).unwrap();
    }
    assert_eq!(walk(&file).0.len(), 3);
}

#[test]
fn a_damaged_frame_hides_only_its_own_record() {
    let (_directory, file, _) = extent();
    let (records, _, _) = walk(&file);
    let place = records[1].location.offset;
    for at in 0..128 {
        let mut byte = [0];
        file.read_at(&mut byte, place + at).unwrap();
        file.write_at(&[byte[0] ^ 0x10], place + at).unwrap();
        let (found, gaps, tail) = walk(&file);
        assert_eq!(gaps, [(place, records[1].next)], "byte {at}");
        assert_eq!((found.len(), tail), (2, None));
        file.write_at(&byte, place + at).unwrap();
    }
}

#[test]
fn a_record_cut_at_any_byte_is_a_torn_tail() {
    let (_directory, file, length) = extent();
    let start = walk(&file).0[2].location.offset;
    for cut in (start + 1..length).rev() {
        file.cut(cut).unwrap();
        let (found, gaps, tail) = walk(&file);
        assert_eq!(
            (found.len(), gaps.len(), tail),
            (2, 0, Some(start)),
            "{cut}"
        );
    }
}

#[test]
fn a_record_inside_a_body_never_passes_for_one() {
    let (_directory, file, length) = extent();
    let first = walk(&file).0[0].location;
    let mut record = vec![0; usize::try_from(first.record_len()).unwrap()];
    file.read_at(&mut record, first.offset).unwrap();
    // What an attacker would store as a body, hoping that the frame before it is damaged one day.
    file.write_at(&record, length + 64).unwrap();
    let (found, _, tail) = walk(&file);
    assert_eq!((found.len(), tail), (3, Some(length)));
}
