//! Fuzz targets of everything here that makes sense of bytes from a disk.
//!
//! Owns what each decoder promises of any bytes at all: it never panics, holds little memory, and what it takes
//! encodes to the same bytes again. Digests keep nearly all such bytes from a decoder, so the targets make the digests
//! right first: what lies behind them is tried too. `make fuzz` runs these for long.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic fails the test, which is what tests are for"
)]

use std::path::{Path, PathBuf};

use addenda_fuzz::{target, within};

use crate::document::{Document, Edition};
use crate::error::Error;
use crate::event::{Event, Gone};
use crate::extent::sealed;
use crate::file::{ExtentFile, FIRST_RECORD, head};
use crate::id::{PacketId, PacketKey};
use crate::index::Checkpoint;
use crate::manifest::{Location, Manifest};
use crate::packet::PacketHeader;
use crate::payload::{Hands, payload_hasher};
use crate::record::{COPY_VERSION, FRAME, Frame, RECORD_VERSION, align, body_offset};
use crate::scan::{Found, Scanner, Step, verify_payload};
use addenda_disk::Disk;

const SALT: [u8; 32] = [5; 32];
/// More than any value of the index, and less than a length field could ask for.
const LITTLE: usize = 256 << 10;

#[test]
fn a_packet_header_is_refused_or_encodes_to_the_bytes_that_it_came_from() {
    target!("packet_header", 30_000, |bytes: &[u8]| {
        if let Ok(header) = within(LITTLE, || PacketHeader::decode(bytes)) {
            assert_eq!(header.encode(), bytes);
            header.check().unwrap();
        }
    });
}

/// One byte for the version, one for the kind, and the event's encoding.
#[test]
fn an_event_of_any_version_is_refused_or_encodes_to_the_bytes_that_it_came_from() {
    target!("event", 30_000, |bytes: &[u8]| {
        let [version, kind, meta @ ..] = bytes else {
            return;
        };
        let (version, kind) = (u16::from(*version), u16::from(*kind));
        let id = PacketId::from_bytes([9; 32]);
        let Ok(event) = within(LITTLE, || Event::decode(version, kind, id, meta)) else {
            return;
        };
        assert_eq!(event.kind(), kind);
        let encoded = event.encode();
        if version > 1 || kind != 3 {
            assert_eq!(encoded, meta);
        }
        let again = Event::decode(RECORD_VERSION, kind, id, &encoded).unwrap();
        assert_eq!(again, event);
    });
}

/// One byte for the kind of value, and the value.
#[test]
fn a_value_of_the_index_is_refused_or_encodes_to_the_bytes_that_it_came_from() {
    target!("index_value", 30_000, |bytes: &[u8]| {
        let [kind, value @ ..] = bytes else { return };
        let encoded = within(LITTLE, || match kind % 3 {
            0 => {
                let manifest = Manifest::decode(PacketId::from_bytes([9; 32]), value);
                manifest.map(|manifest| {
                    // Whatever it says of where its record lies, it can be asked.
                    let _ = manifest.bytes();
                    manifest.encode()
                })
            }
            1 => Document::decode("default", "a", value).map(|document| document.encode()),
            _ => Checkpoint::decode(value).map(|checkpoint| checkpoint.encode()),
        });
        if let Ok(encoded) = encoded {
            assert_eq!(encoded, value);
        }
    });
}

/// One byte, whose bits say which of the two copies get a right digest, and the copies' fields, 56 bytes each.
#[test]
fn an_extents_header_gives_the_salt_of_an_intact_copy_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(ExtentFile::name(1));
    target!("extent_header", 600, |bytes: &[u8]| {
        let Some((flags, fields)) = bytes.split_first() else {
            return;
        };
        let mut block = vec![0; 8192];
        let mut salts = Vec::new();
        for (copy, fields) in fields.chunks(56).take(2).enumerate() {
            let at = copy * 4096;
            block[at..at + fields.len()].copy_from_slice(fields);
            if flags >> copy & 1 == 1 {
                let digest = blake3::derive_key("addenda 2025 extent header", &block[at..at + 56]);
                block[at + 56..at + 88].copy_from_slice(&digest);
                salts.push(block[at + 24..at + 56].to_vec());
            }
        }
        std::fs::write(&path, block).unwrap();
        match within(LITTLE, || ExtentFile::open(&path, 1, &Disk::default())) {
            Ok(None) | Err(Error::NewerFormat { .. }) => {}
            Ok(Some(file)) => assert!(salts.contains(&file.salt().to_vec())),
            Err(error) => panic!("{error}"),
        }
    });
}

/// One byte, whose lowest bit says whether all digests are made right, and what lies behind an extent's header.
#[test]
fn an_extent_is_records_and_gaps_from_end_to_end_and_each_record_is_what_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let file = ExtentFile::create(directory.path(), 1, SALT, &Disk::default()).unwrap();
    let hands = Hands::new();
    target!("extent", 8_000, |bytes: &[u8]| {
        let Some((flags, area)) = bytes.split_first() else {
            return;
        };
        let mut area = area.to_vec();
        if flags & 1 == 1 {
            seal(&mut area);
        }
        file.write_at(&area, FIRST_RECORD).unwrap();
        let end = FIRST_RECORD + area.len() as u64;
        file.cut(end).unwrap();
        within(4 << 20, || walk(&file, end, &area, &hands));
    });
}

/// Gives the number of intact records.
fn walk(file: &ExtentFile, end: u64, area: &[u8], hands: &Hands) -> usize {
    let mut records = 0;
    let mut scanner = Scanner::up_to(file, FIRST_RECORD, end);
    let mut at = FIRST_RECORD;
    loop {
        match scanner.step() {
            Ok(Step::Record(found)) => {
                assert_eq!(found.location.offset, at);
                is_what_was_written(&found, area);
                let digest = &found.payload_digest;
                // A right frame over wrong bytes is possible, reading behind the end is not.
                let map = verify_payload(file, &found.location, digest, hands).unwrap();
                if let Some(map) = map {
                    let start = place(found.location.payload);
                    assert_eq!(&map[..], &area[start..start + map.len()]);
                }
                at = found.next;
                records += 1;
            }
            Ok(Step::Gap { from, to }) => {
                assert!(from == at && to > from);
                at = to;
            }
            Ok(Step::Tail { from }) => {
                assert_eq!(from, at);
                at = end;
            }
            Ok(Step::End) => {
                assert_eq!(at, end);
                return records;
            }
            Err(Error::NewerFormat { .. }) => return records,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn what_the_corpus_holds_gets_past_every_digest() {
    let directory = tempfile::tempdir().unwrap();
    let file = ExtentFile::create(directory.path(), 1, SALT, &Disk::default()).unwrap();
    for (name, records) in [("records", 6), ("copies", 6), ("version-1", 13)] {
        let mut area = std::fs::read(corpus("extent").join(name))
            .unwrap()
            .split_off(1);
        seal(&mut area);
        file.write_at(&area, FIRST_RECORD).unwrap();
        let end = FIRST_RECORD + area.len() as u64;
        assert_eq!(walk(&file, end, &area, &Hands::new()), records, "{name}");
    }
}

fn is_what_was_written(found: &Found, area: &[u8]) {
    let start = place(found.location.offset);
    let frame = Frame::parse(area[start..].first_chunk().unwrap()).unwrap();
    let meta = &area[start + FRAME..][..frame.meta_len as usize];
    if frame.version > 1 || frame.kind != 3 {
        assert_eq!(found.event.encode(), meta);
    }
    if frame.version == RECORD_VERSION {
        let key = ExtentFile::key_of(&SALT);
        let place = (key, found.location.offset, found.sequence);
        let record = sealed(
            &found.event,
            place,
            (found.location.payload_len, found.payload_digest),
        );
        // Events of documents leave an id that says nothing out of account.
        if frame.id == found.event.id() {
            assert_eq!(record, &area[start..start + record.len()]);
        }
    }
    assert_eq!(found.copy, frame.version == COPY_VERSION);
    assert!(found.next > found.location.offset && found.next.is_multiple_of(64));
}

fn place(offset: u64) -> usize {
    usize::try_from(offset - FIRST_RECORD).unwrap()
}

/// Makes the digests of all that looks like a record right: the payload's, the packet's id, the frame's.
fn seal(area: &mut [u8]) {
    let key = ExtentFile::key_of(&SALT);
    let mut at = 0;
    while let Some(head) = area.get(at..).and_then(<[u8]>::first_chunk::<FRAME>) {
        let length = Frame::parse(head).and_then(|frame| {
            let rest = &area[at..];
            let meta = rest.get(FRAME..)?.get(..frame.meta_len as usize)?.to_vec();
            let start = usize::try_from(frame.payload_start()).ok()?;
            let payload = rest.get(start..)?;
            let payload = payload.get(..usize::try_from(frame.payload_len).ok()?)?;
            let sealed =
                right(frame.clone(), &meta, payload).seal(&key, FIRST_RECORD + at as u64, &meta);
            area[at..at + sealed.len()].copy_from_slice(&sealed);
            usize::try_from(frame.record_len()).ok()
        });
        at += length.unwrap_or(64);
    }
}

fn right(mut frame: Frame, meta: &[u8], payload: &[u8]) -> Frame {
    if frame.kind == 1 {
        frame.payload_digest = *payload_hasher().update(payload).finalize().as_bytes();
        let event = Event::decode(RECORD_VERSION, 1, frame.id, meta);
        if let Ok(Event::Packet { header, .. }) = event {
            frame.id = PacketId::derive(&header.identity(), &frame.payload_digest);
        }
    }
    frame
}

fn header(number: u8, document: &str) -> PacketHeader {
    PacketHeader {
        key: PacketKey::from_bytes([number; 32]),
        namespace: "ward-3".into(),
        document: document.into(),
        source: [2; 32],
        revision: [3; 32],
        tokenizer: [4; 32],
        adapter: [0; 32],
        primer: [number % 2; 32],
        tokens: 3,
        dtype: "bf16".into(),
        rope: "default theta=10000".into(),
        layers: 2,
        kv_heads: 1,
        head_dim: 16,
        created_at_ms: 1_700_000_000_000,
    }
}

fn events() -> Vec<(Event, Vec<u8>)> {
    let mut events = Vec::new();
    for (number, document, body_len) in [(1, "visiting hours", 100), (2, "", 0), (3, "b", 700)] {
        let header = header(number, document);
        let mut payload = vec![number; usize::try_from(body_offset(3)).unwrap()];
        payload.resize(payload.len() + body_len, number ^ 0xff);
        let digest = *payload_hasher().update(&payload).finalize().as_bytes();
        let event = Event::Packet {
            id: PacketId::derive(&header.identity(), &digest),
            header: Box::new(header),
            token_ids: 3,
            body_len: body_len as u64,
        };
        events.push((event, payload));
    }
    let id = |number: u8| PacketId::from_bytes([number; 32]);
    let mut holed = Edition::of(&[id(1), id(2), id(3)]);
    holed.keep(|part| *part != id(2));
    let others = [
        Event::Tombstone {
            id: id(1),
            key: PacketKey::from_bytes([1; 32]),
            why: Gone::Replaced,
            at_ms: 7,
        },
        Event::Document {
            namespace: "ward-3".into(),
            name: "visiting hours".into(),
            source: [2; 32],
            editions: vec![Edition::of(&[id(1)]), holed],
        },
        Event::Pin {
            id: id(3),
            pinned: true,
        },
    ];
    events.extend(others.map(|event| (event, Vec::new())));
    events
}

/// The events as records, one behind the other; a version of 1 or 3 makes them old ones, or copies.
fn records(version: u16, events: &[(Event, Vec<u8>)]) -> Vec<u8> {
    let mut area = Vec::new();
    for (sequence, (event, payload)) in (1..).zip(events) {
        let meta = match event {
            // As version 1 had it: the ids alone.
            Event::Document { .. } if version == 1 => Vec::new(),
            event => event.encode(),
        };
        let frame = Frame {
            version,
            kind: event.kind(),
            meta_len: u32::try_from(meta.len()).unwrap(),
            payload_len: payload.len() as u64,
            sequence,
            id: event.id(),
            payload_digest: *payload_hasher().update(payload).finalize().as_bytes(),
        };
        let key = ExtentFile::key_of(&SALT);
        let pad = |area: &mut Vec<u8>| {
            area.resize(usize::try_from(align(area.len() as u64)).unwrap(), 0);
        };
        let sealed = frame.seal(&key, FIRST_RECORD + area.len() as u64, &meta);
        area.extend(sealed);
        pad(&mut area);
        area.extend(payload);
        pad(&mut area);
    }
    area
}

fn corpus(target: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/__fuzz__");
    let folder = Path::new(folder).join(target).join("corpus");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
#[ignore = "writes the corpus, which lies in git"]
fn the_corpus_is_what_the_encoders_write() {
    let events = events();
    let write = |target: &str, name: &str, parts: &[&[u8]]| {
        std::fs::write(corpus(target).join(name), parts.concat()).unwrap();
    };
    for (event, _) in &events {
        let name = format!("{}-{:?}", event.kind(), event.encode().len());
        let kind = u8::try_from(event.kind()).unwrap();
        write("event", &name, &[&[2, kind], &event.encode()]);
        if let Event::Packet { header, .. } = event {
            write("packet_header", &name, &[&header.encode()]);
        }
        if let Event::Document {
            namespace,
            name,
            source,
            editions,
        } = event
        {
            let document = Document {
                namespace: namespace.clone(),
                name: name.clone(),
                source: *source,
                editions: editions.clone(),
            };
            write("index_value", "document", &[&[1], &document.encode()]);
        }
    }
    // Version 1: a document's packets, each all of its text.
    let old = std::fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/v1/0000000001.extent"
    ));
    let area = old
        .unwrap()
        .split_off(usize::try_from(FIRST_RECORD).unwrap());
    write("extent", "version-1", &[&[1], &area]);
    let mut at = 0;
    while let Some(frame) = area[at..].first_chunk().and_then(Frame::parse) {
        let meta = &area[at + FRAME..][..frame.meta_len as usize];
        if frame.kind == 3 {
            write("event", "3-version-1", &[&[1, 3], meta]);
        }
        at += usize::try_from(frame.record_len()).unwrap();
    }
    for (name, version) in [("records", RECORD_VERSION), ("copies", COPY_VERSION)] {
        write("extent", name, &[&[1], &records(version, &events)]);
    }
    write("extent", "one-unsealed", &[&[0], &records(2, &events[..1])]);
    let header = &head(1, &SALT)[..56];
    write("extent_header", "both", &[&[3], header, header]);
    write("extent_header", "second", &[&[2], &[0; 56], header]);
    let Event::Packet { id, header, .. } = &events[0].0 else {
        unreachable!("the first is a packet")
    };
    let manifest = Manifest {
        id: *id,
        header: (**header).clone(),
        location: Location {
            extent: 1,
            offset: 8192,
            payload: 8640,
            payload_len: 164,
        },
        token_ids: 3,
        body_len: 100,
        payload_digest: [8; 32],
        sequence: 1,
        pinned: false,
        last_used_at_ms: 0,
    };
    write("index_value", "manifest", &[&[0], &manifest.encode()]);
    let checkpoint = Checkpoint {
        extent: 1,
        salt: SALT,
        offset: 9000,
        next_sequence: 7,
    };
    write("index_value", "checkpoint", &[&[2], &checkpoint.encode()]);
}
