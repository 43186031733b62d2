//! A manifest: what the index keeps of one live packet, above all where its record lies.
//!
//! Owns [`Location`], [`Manifest`] and their encoding in the index; never reads an extent. Invariant: a manifest
//! holds nothing that the extent record does not hold too, save when the packet was last used.

use crate::canonical::{Decoder, Encoder, Malformed};
use crate::id::PacketId;
use crate::packet::PacketHeader;

const MANIFEST_VERSION: u16 = 1;
const MAX_HEADER: usize = 4096;

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The extent's number.
    pub extent: u64,
    /// Offset of the record in it, bytes.
    pub offset: u64,
    /// Offset of the payload in the extent, bytes; a multiple of 64.
    pub payload: u64,
    /// Length of the payload, bytes.
    pub payload_len: u64,
}

impl Location {
    /// Bytes that the record takes in its extent.
    pub(crate) fn record_len(&self) -> u64 {
        crate::record::align(self.payload.saturating_add(self.payload_len))
            .saturating_sub(self.offset)
    }
}

/// One live packet as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The packet's id.
    pub id: PacketId,
    /// Its header, as it was put.
    pub header: PacketHeader,
    /// Where its record lies.
    pub location: Location,
    /// Number of document token ids stored before the body.
    pub token_ids: u32,
    /// Length of the body, bytes.
    pub body_len: u64,
    /// BLAKE3 of the payload (token ids and body).
    pub payload_digest: [u8; 32],
    /// Place of the record in the order of all records.
    pub sequence: u64,
    /// Whether it is spared by eviction.
    pub pinned: bool,
    /// Milliseconds since 1970-01-01T00:00:00Z; 0 where it is not known.
    pub last_used_at_ms: u64,
}

impl Manifest {
    /// Bytes that the packet takes on disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.location.record_len()
    }

    /// The encoding in the index; the id is its key, pin and time have entries of their own.
    pub(crate) fn encode(&self) -> Vec<u8> {
        Encoder::new()
            .u16(MANIFEST_VERSION)
            .u64(self.location.extent)
            .u64(self.location.offset)
            .u64(self.location.payload)
            .u64(self.location.payload_len)
            .u32(self.token_ids)
            .u64(self.body_len)
            .bytes(&self.payload_digest)
            .u64(self.sequence)
            .bytes(&self.header.encode())
            .finish()
    }

    pub(crate) fn decode(id: PacketId, bytes: &[u8]) -> Result<Self, Malformed> {
        let mut decoder = Decoder::new(bytes);
        if decoder.u16("manifest version")? != MANIFEST_VERSION {
            return Err(Malformed("manifest version"));
        }
        let manifest = Self {
            id,
            location: Location {
                extent: decoder.u64("extent")?,
                offset: decoder.u64("offset")?,
                payload: decoder.u64("payload")?,
                payload_len: decoder.u64("payload length")?,
            },
            token_ids: decoder.u32("token ids")?,
            body_len: decoder.u64("body length")?,
            payload_digest: decoder.array("payload digest")?,
            sequence: decoder.u64("sequence")?,
            header: PacketHeader::decode(decoder.bytes("header", MAX_HEADER)?)?,
            pinned: false,
            last_used_at_ms: 0,
        };
        decoder.finish()?;
        Ok(manifest)
    }
}
