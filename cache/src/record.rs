//! The record: the unit in which an extent grows, and the events that records carry.
//!
//! ```text
//! offset  bytes
//! 0       8      magic "ADDRECRD"
//! 8       2      version of the event's encoding
//! 10      2      kind
//! 12      4      length of the event's encoding (meta)
//! 16      8      length of the payload
//! 24      8      sequence: place in the order of all records of the store
//! 32      32     id of the packet it is about, zeros for a document
//! 64      32     BLAKE3 of the payload
//! 96      32     keyed BLAKE3 of the record's offset, the 96 bytes above and the meta
//! 128            meta, zeros up to a multiple of 64, payload, zeros up to a multiple of 64
//! ```
//! Integers are little-endian. Only packets have a payload: token ids as u32, zeros up to a multiple of 64, body.
//! The key of the last digest comes from a random salt in the extent's header, so bytes inside a body can never
//! pass for a record, whoever chose them; the offset in it keeps a record from being valid in another place.
//!
//! Owns the frame's layout, the events and their encoding. Never touches a file. Invariant: the 128 bytes above
//! stay as they are in all versions, so that a reader can tell a newer record from a damaged one.

use crate::canonical::{Decoder, Encoder, Malformed};
use crate::id::{PacketId, PacketKey};
use crate::packet::{MAX_DOCUMENT, MAX_NAMESPACE, PacketHeader};

/// Records, payloads and bodies begin at multiples of this, so that a mapped body serves as a tensor.
pub(crate) const ALIGN: u64 = 64;
/// Length of a frame.
pub(crate) const FRAME: usize = 128;
/// Version of the events' encoding.
pub(crate) const RECORD_VERSION: u16 = 1;
/// Longest event, bytes.
pub(crate) const MAX_META: usize = 1 << 20;
/// Longest payload, bytes.
pub(crate) const MAX_PAYLOAD: u64 = 1 << 38;
/// Most packets that one document can have.
pub(crate) const MAX_DOCUMENT_PACKETS: usize = 16_384;

pub(crate) const MAGIC: &[u8; 8] = b"ADDRECRD";

/// Rounds up to the next multiple of [`ALIGN`].
pub(crate) const fn align(length: u64) -> u64 {
    length.saturating_add(ALIGN - 1) & !(ALIGN - 1)
}

/// Why a packet is there no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Gone {
    /// Someone deleted it.
    Deleted,
    /// Its document was put with another text.
    Replaced,
    /// It made room for others.
    Evicted,
    /// It was damaged on disk.
    Quarantined,
}

impl Gone {
    pub(crate) const fn code(self) -> u16 {
        match self {
            Self::Deleted => 1,
            Self::Replaced => 2,
            Self::Evicted => 3,
            Self::Quarantined => 4,
        }
    }

    pub(crate) const fn from_code(code: u16) -> Option<Self> {
        match code {
            1 => Some(Self::Deleted),
            2 => Some(Self::Replaced),
            3 => Some(Self::Evicted),
            4 => Some(Self::Quarantined),
            _ => None,
        }
    }
}

/// Something that happened to the store. The state of the store is the fold of its events in order, and each
/// event sets what it touches whatever was there before, so that replaying some of them twice changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A packet was put.
    Packet {
        id: PacketId,
        header: Box<PacketHeader>,
        token_ids: u32,
        body_len: u64,
    },
    /// A packet went.
    Tombstone {
        id: PacketId,
        key: PacketKey,
        why: Gone,
        at_ms: u64,
    },
    /// A document is now exactly these packets; none: it is forgotten.
    Document {
        namespace: String,
        name: String,
        source: [u8; 32],
        ids: Vec<PacketId>,
    },
    /// A packet was pinned or unpinned.
    Pin { id: PacketId, pinned: bool },
}

impl Event {
    pub(crate) const fn kind(&self) -> u16 {
        match self {
            Self::Packet { .. } => 1,
            Self::Tombstone { .. } => 2,
            Self::Document { .. } => 3,
            Self::Pin { .. } => 4,
        }
    }

    /// The packet that the event is about, zeros for a document.
    pub(crate) const fn id(&self) -> PacketId {
        match self {
            Self::Packet { id, .. } | Self::Tombstone { id, .. } | Self::Pin { id, .. } => *id,
            Self::Document { .. } => PacketId::from_bytes([0; 32]),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let encoder = Encoder::new();
        match self {
            Self::Packet {
                header,
                token_ids,
                body_len,
                ..
            } => encoder
                .bytes(&header.encode())
                .u32(*token_ids)
                .u64(*body_len),
            Self::Tombstone {
                key, why, at_ms, ..
            } => encoder.bytes(key.as_bytes()).u16(why.code()).u64(*at_ms),
            Self::Document {
                namespace,
                name,
                source,
                ids,
            } => encoder
                .text(namespace)
                .text(name)
                .bytes(source)
                .bytes(&encode_ids(ids)),
            Self::Pin { pinned, .. } => encoder.u16(u16::from(*pinned)),
        }
        .finish()
    }

    pub(crate) fn decode(kind: u16, id: PacketId, meta: &[u8]) -> Result<Self, Malformed> {
        let mut decoder = Decoder::new(meta);
        let event = match kind {
            1 => Self::Packet {
                id,
                header: Box::new(PacketHeader::decode(decoder.bytes("header", MAX_META)?)?),
                token_ids: decoder.u32("token ids")?,
                body_len: decoder.u64("body length")?,
            },
            2 => Self::Tombstone {
                id,
                key: PacketKey::from_bytes(decoder.array("key")?),
                why: Gone::from_code(decoder.u16("reason")?).ok_or(Malformed("reason"))?,
                at_ms: decoder.u64("time")?,
            },
            3 => Self::Document {
                namespace: decoder.text("namespace", MAX_NAMESPACE)?.to_owned(),
                name: decoder.text("name", MAX_DOCUMENT)?.to_owned(),
                source: decoder.array("source")?,
                ids: decode_ids(decoder.bytes("ids", MAX_DOCUMENT_PACKETS * 32)?)?,
            },
            4 => Self::Pin {
                id,
                pinned: match decoder.u16("pinned")? {
                    0 => false,
                    1 => true,
                    _ => return Err(Malformed("pinned")),
                },
            },
            _ => return Err(Malformed("kind")),
        };
        decoder.finish()?;
        Ok(event)
    }
}

/// Ids one after the other.
pub(crate) fn encode_ids(ids: &[PacketId]) -> Vec<u8> {
    ids.iter().flat_map(|id| *id.as_bytes()).collect()
}

pub(crate) fn decode_ids(bytes: &[u8]) -> Result<Vec<PacketId>, Malformed> {
    let (ids, rest) = bytes.as_chunks::<32>();
    if rest.is_empty() {
        Ok(ids.iter().copied().map(PacketId::from_bytes).collect())
    } else {
        Err(Malformed("ids"))
    }
}

/// Offset of the body in a packet's payload: behind the token ids, aligned.
pub(crate) const fn body_offset(token_ids: u32) -> u64 {
    align(token_ids as u64 * 4)
}

/// The decoded frame of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) version: u16,
    pub(crate) kind: u16,
    pub(crate) meta_len: u32,
    pub(crate) payload_len: u64,
    pub(crate) sequence: u64,
    pub(crate) id: PacketId,
    pub(crate) payload_digest: [u8; 32],
}

impl Frame {
    /// Frame and meta with their digest, for a record at `offset` of an extent with this key.
    pub(crate) fn seal(&self, key: &[u8; 32], offset: u64, meta: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FRAME + meta.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&self.kind.to_le_bytes());
        bytes.extend_from_slice(&self.meta_len.to_le_bytes());
        bytes.extend_from_slice(&self.payload_len.to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(&self.payload_digest);
        let digest = frame_digest(key, offset, &bytes, meta);
        bytes.extend_from_slice(&digest);
        bytes.extend_from_slice(meta);
        bytes
    }

    /// Reads the fields without checking the digest, which needs the meta. None: no frame is here.
    pub(crate) fn parse(bytes: &[u8; FRAME]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (version, rest) = rest.split_first_chunk::<2>()?;
        let (kind, rest) = rest.split_first_chunk::<2>()?;
        let (meta_len, rest) = rest.split_first_chunk::<4>()?;
        let (payload_len, rest) = rest.split_first_chunk::<8>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (id, rest) = rest.split_first_chunk::<32>()?;
        let (payload_digest, _) = rest.split_first_chunk::<32>()?;
        let frame = Self {
            version: u16::from_le_bytes(*version),
            kind: u16::from_le_bytes(*kind),
            meta_len: u32::from_le_bytes(*meta_len),
            payload_len: u64::from_le_bytes(*payload_len),
            sequence: u64::from_le_bytes(*sequence),
            id: PacketId::from_bytes(*id),
            payload_digest: *payload_digest,
        };
        let bounded = frame.meta_len as usize <= MAX_META && frame.payload_len <= MAX_PAYLOAD;
        (magic == MAGIC && bounded).then_some(frame)
    }

    /// Whether frame and meta are what [`Frame::seal`] made for this place.
    pub(crate) fn verify(key: &[u8; 32], offset: u64, frame: &[u8; FRAME], meta: &[u8]) -> bool {
        let (fields, digest) = frame.split_at(FRAME - 32);
        frame_digest(key, offset, fields, meta).as_slice() == digest
    }

    /// Length of the record from its offset to the next one's.
    pub(crate) fn record_len(&self) -> u64 {
        self.payload_start() + align(self.payload_len)
    }

    /// Where the payload begins, from the record's offset.
    pub(crate) fn payload_start(&self) -> u64 {
        align(FRAME as u64 + u64::from(self.meta_len))
    }
}

fn frame_digest(key: &[u8; 32], offset: u64, fields: &[u8], meta: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&offset.to_le_bytes());
    hasher.update(fields);
    hasher.update(meta);
    *hasher.finalize().as_bytes()
}

/// Hashes a payload as it is stored, piece by piece.
pub(crate) fn payload_hasher() -> blake3::Hasher {
    blake3::Hasher::new_derive_key("addenda 2025 extent payload")
}
