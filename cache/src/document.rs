//! A document's binding: which packets stand for it, in which order, and from which text they were made.
//!
//! Owns the value and its encodings, in an event and in the index; who binds and when is the store's to say.
//! Invariants: the ids are packets of the document's namespace; an edition's packets, one behind the other, are the
//! whole text; a packet that is gone leaves its place empty, so that a text with a hole never passes for a whole one.

use crate::canonical::{Decoder, Encoder, Malformed};
use crate::id::PacketId;

/// Most packets that one document can have, all editions together.
pub(crate) const MAX_DOCUMENT_PACKETS: usize = 16_384;

const DOCUMENT_VERSION: u16 = 2;
/// What stands for a packet that is gone; no packet's id, as far as BLAKE3 can be trusted.
const GONE: [u8; 32] = [0; 32];

/// A document and its packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Whose it is.
    pub namespace: String,
    /// The caller's name for it.
    pub name: String,
    /// BLAKE3 of its text.
    pub source: [u8; 32],
    /// One for each weights revision, adapter, dtype or split that it was stored under; the newest last. Never empty.
    pub editions: Vec<Edition>,
}

impl Document {
    /// All its packets: those of the oldest edition first, each edition's in order.
    pub fn ids(&self) -> impl Iterator<Item = PacketId> + '_ {
        self.editions.iter().flat_map(Edition::ids)
    }

    /// The encoding in the index; namespace and name are its key.
    pub(crate) fn encode(&self) -> Vec<u8> {
        Encoder::new()
            .u16(DOCUMENT_VERSION)
            .bytes(&self.source)
            .bytes(&encode_editions(&self.editions))
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
            editions: decode_editions(decoder.bytes("editions", MAX_EDITIONS)?)?,
        };
        decoder.finish()?;
        Ok(document)
    }
}

/// Packets that together are one document's whole text: one, or one for each part that it was split into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edition {
    /// In the order of the text; none where the packet is gone. Never empty.
    pub parts: Vec<Option<PacketId>>,
}

impl Edition {
    /// The edition of these packets, all of them there.
    pub(crate) fn of(parts: &[PacketId]) -> Self {
        Self {
            parts: parts.iter().copied().map(Some).collect(),
        }
    }

    /// The packets that are there, in order.
    pub fn ids(&self) -> impl Iterator<Item = PacketId> + '_ {
        self.parts.iter().filter_map(|part| *part)
    }

    /// The packets in order; none where one is gone.
    #[must_use]
    pub fn whole(&self) -> Option<Vec<PacketId>> {
        self.parts.iter().copied().collect()
    }

    /// Whether it says nothing that `other` does not say.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        let mut pairs = self.parts.iter().zip(&other.parts);
        self.parts.len() == other.parts.len()
            && pairs.all(|(own, theirs)| own.is_none() || own == theirs)
    }

    /// Empties the places of packets that do not live; false where none is left.
    pub(crate) fn keep(&mut self, lives: impl Fn(&PacketId) -> bool) -> bool {
        for part in &mut self.parts {
            *part = part.filter(&lives);
        }
        self.parts.iter().any(Option::is_some)
    }
}

/// Longest encoding of a document's editions: each has at least one packet.
pub(crate) const MAX_EDITIONS: usize = MAX_DOCUMENT_PACKETS * 36;

/// For each edition the number of its parts as u32, then their ids.
pub(crate) fn encode_editions(editions: &[Edition]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for edition in editions {
        let count = u32::try_from(edition.parts.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&count.to_le_bytes());
        for part in &edition.parts {
            let id: &[u8; 32] = part.as_ref().map_or(&GONE, PacketId::as_bytes);
            bytes.extend_from_slice(id);
        }
    }
    bytes
}

pub(crate) fn decode_editions(mut bytes: &[u8]) -> Result<Vec<Edition>, Malformed> {
    let mut editions = Vec::new();
    while !bytes.is_empty() {
        let (count, rest) = bytes
            .split_first_chunk::<4>()
            .ok_or(Malformed("editions"))?;
        let length = usize::try_from(u32::from_le_bytes(*count)).ok();
        let length = length.and_then(|count| count.checked_mul(32));
        let (parts, rest) = length
            .filter(|length| *length > 0)
            .and_then(|length| rest.split_at_checked(length))
            .ok_or(Malformed("editions"))?;
        let (parts, _) = parts.as_chunks::<32>();
        let part = |id: &[u8; 32]| (*id != GONE).then(|| PacketId::from_bytes(*id));
        editions.push(Edition {
            parts: parts.iter().map(part).collect(),
        });
        bytes = rest;
    }
    Ok(editions)
}

/// Ids one after the other, as version 1 of the events had them: every packet was a document's whole text.
pub(crate) fn decode_single_packets(bytes: &[u8]) -> Result<Vec<Edition>, Malformed> {
    let (ids, rest) = bytes.as_chunks::<32>();
    // Zeros are what stands for a packet that is gone; no packet has them for its id.
    if !rest.is_empty() || ids.contains(&GONE) {
        return Err(Malformed("ids"));
    }
    let edition = |id: &[u8; 32]| Edition::of(&[PacketId::from_bytes(*id)]);
    Ok(ids.iter().map(edition).collect())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use super::{Edition, decode_editions, decode_single_packets, encode_editions};
    use crate::id::PacketId;

    fn id(number: u8) -> PacketId {
        PacketId::from_bytes([number; 32])
    }

    #[test]
    fn editions_keep_their_order_and_their_holes() {
        let mut holed = Edition::of(&[id(1), id(2), id(3)]);
        assert!(holed.keep(|part| *part != id(2)));
        let editions = [Edition::of(&[id(9)]), holed.clone()];
        assert_eq!(
            decode_editions(&encode_editions(&editions)).unwrap(),
            editions
        );
        assert_eq!(holed.whole(), None);
        assert_eq!(holed.ids().collect::<Vec<_>>(), [id(1), id(3)]);
        assert!(!holed.keep(|_| false));
    }

    #[test]
    fn an_edition_fills_the_holes_of_an_older_one_of_the_same_parts_only() {
        let whole = Edition::of(&[id(1), id(2)]);
        let mut holed = whole.clone();
        holed.keep(|part| *part == id(1));
        assert!(holed.is_within(&whole) && !whole.is_within(&holed));
        assert!(!holed.is_within(&Edition::of(&[id(2), id(1)])));
        assert!(!holed.is_within(&Edition::of(&[id(1), id(2), id(3)])));
    }

    #[test]
    fn a_packet_of_version_1_is_never_read_as_one_that_is_gone() {
        let ids = [*id(1).as_bytes(), [0; 32]].concat();
        assert!(decode_single_packets(&ids).is_err());
        assert!(decode_single_packets(ids.get(..32).unwrap()).is_ok());
    }

    #[test]
    fn bytes_that_are_cut_or_claim_too_much_are_refused() {
        let bytes = encode_editions(&[Edition::of(&[id(1), id(2)])]);
        for length in 1..bytes.len() {
            let cut = bytes.get(..length).unwrap();
            assert!(decode_editions(cut).is_err(), "{length}");
        }
        assert!(decode_editions(&[0; 4]).is_err());
        assert!(decode_editions(&[255; 40]).is_err());
    }
}
