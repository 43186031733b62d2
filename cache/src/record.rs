//! The record: the unit in which an extent grows.
//!
//! ```text
//! offset  bytes
//! 0       8      magic "ADDRECRD"
//! 8       2      version of the event's encoding
//! 10      2      kind
//! 12      4      length of the event's encoding (meta)
//! 16      8      length of the payload
//! 24      8      sequence: place in the order of all events of the store; a copy has its original's
//! 32      32     id of the packet it is about, zeros for a document
//! 64      32     BLAKE3 of the payload
//! 96      32     keyed BLAKE3 of the record's offset, the 96 bytes above and the meta
//! 128            meta, zeros up to a multiple of 64, payload, zeros up to a multiple of 64
//! ```
//! Integers are little-endian. Only packets have a payload: token ids as u32, zeros up to a multiple of 64, body.
//! The key of the last digest comes from a random salt in the extent's header, so bytes inside a body can never
//! pass for a record, whoever chose them; the offset in it keeps a record from being valid in another place.
//!
//! Owns the frame's layout. Never touches a file, and what the meta says is an event's matter. Invariant: the 128 bytes above
//! stay as they are in all versions, so that a reader can tell a newer record from a damaged one.

use crate::id::PacketId;

/// Records, payloads and bodies begin at multiples of this, so that a mapped body serves as a tensor.
pub(crate) const ALIGN: u64 = 64;
/// Length of a frame.
pub(crate) const FRAME: usize = 128;
/// Version of the events' encoding. In version 1 a document had no editions: each of its packets was all of it.
pub(crate) const RECORD_VERSION: u16 = 2;
/// Version of a record that is a copy of an earlier one: encoded as version 2, in its original's place among all
/// events wherever it lies.
pub(crate) const COPY_VERSION: u16 = 3;
/// Longest event, bytes.
pub(crate) const MAX_META: usize = 1 << 20;
/// Longest payload, bytes.
pub(crate) const MAX_PAYLOAD: u64 = 1 << 38;
pub(crate) const MAGIC: &[u8; 8] = b"ADDRECRD";

/// Rounds up to the next multiple of [`ALIGN`].
pub(crate) const fn align(length: u64) -> u64 {
    length.saturating_add(ALIGN - 1) & !(ALIGN - 1)
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use proptest::prelude::{any, prop_assert, proptest};

    use super::{FRAME, Frame, MAGIC};
    use crate::event::Event;
    use crate::id::PacketId;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_pass_for_a_frame(mut bytes in any::<[u8; FRAME]>(), key in any::<[u8; 32]>()) {
            bytes[..8].copy_from_slice(MAGIC);
            if Frame::parse(&bytes).is_some() {
                prop_assert!(!Frame::verify(&key, 0, &bytes, &[]));
            }
        }
    }

    #[test]
    fn a_frame_is_valid_only_at_its_place_and_in_its_extent() {
        let meta = Event::Pin {
            id: PacketId::from_bytes([1; 32]),
            pinned: true,
        }
        .encode();
        let frame = Frame {
            version: 1,
            kind: 4,
            meta_len: u32::try_from(meta.len()).unwrap(),
            payload_len: 0,
            sequence: 9,
            id: PacketId::from_bytes([1; 32]),
            payload_digest: [0; 32],
        };
        let sealed = frame.seal(&[5; 32], 8192, &meta);
        let head = sealed.first_chunk::<FRAME>().unwrap();
        assert_eq!(Frame::parse(head), Some(frame));
        assert!(Frame::verify(&[5; 32], 8192, head, &meta));
        assert!(!Frame::verify(&[5; 32], 8256, head, &meta));
        assert!(!Frame::verify(&[6; 32], 8192, head, &meta));
    }
}
