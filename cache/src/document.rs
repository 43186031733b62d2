//! A document's binding: which packets stand for it, and from which text they were made.
//!
//! Owns the value and its encoding in the index; who binds and when is the store's to say. Invariant: the ids are
//! live packets of the document's namespace, in the order in which they were bound.

use crate::canonical::{Decoder, Encoder, Malformed};
use crate::event::{MAX_DOCUMENT_PACKETS, decode_ids, encode_ids};
use crate::id::PacketId;

const DOCUMENT_VERSION: u16 = 1;

/// A document and its packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Whose it is.
    pub namespace: String,
    /// The caller's name for it.
    pub name: String,
    /// BLAKE3 of its text.
    pub source: [u8; 32],
    /// Its packets: one for each weights revision, adapter or part that it was stored under. Never empty.
    pub ids: Vec<PacketId>,
}

impl Document {
    /// The encoding in the index; namespace and name are its key.
    pub(crate) fn encode(&self) -> Vec<u8> {
        Encoder::new()
            .u16(DOCUMENT_VERSION)
            .bytes(&self.source)
            .bytes(&encode_ids(&self.ids))
            .finish()
    }

    pub(crate) fn decode(namespace: &str, name: &str, bytes: &[u8]) -> Result<Self, Malformed> {
        let mut decoder = Decoder::new(bytes);
        if decoder.u16("document version")? != DOCUMENT_VERSION {
            return Err(Malformed("document version"));
        }
        let document = Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            source: decoder.array("source")?,
            ids: decode_ids(decoder.bytes("ids", MAX_DOCUMENT_PACKETS * 32)?)?,
        };
        decoder.finish()?;
        Ok(document)
    }
}
