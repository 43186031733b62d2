//! The events whose fold is the state of the store.
//!
//! Owns what an event says and its encoding, a record's meta. Where it lies and what it does to the index is for
//! others. Invariant: an event sets what it touches whatever was there before, so that replaying some events twice,
//! in order and to the end, changes nothing.

use crate::canonical::{Decoder, Encoder, Malformed};
use crate::document::{
    Edition, MAX_EDITIONS, decode_editions, decode_single_packets, encode_editions,
};
use crate::id::{PacketId, PacketKey};
use crate::packet::{MAX_DOCUMENT, MAX_NAMESPACE, PacketHeader};
use crate::record::MAX_META;

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
        editions: Vec<Edition>,
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
                editions,
            } => encoder
                .text(namespace)
                .text(name)
                .bytes(source)
                .bytes(&encode_editions(editions)),
            Self::Pin { pinned, .. } => encoder.u16(u16::from(*pinned)),
        }
        .finish()
    }

    /// Reads what [`Event::encode`] of this version of the encoding wrote.
    pub(crate) fn decode(
        version: u16,
        kind: u16,
        id: PacketId,
        meta: &[u8],
    ) -> Result<Self, Malformed> {
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
                editions: match version {
                    1 => decode_single_packets(decoder.bytes("ids", MAX_EDITIONS)?)?,
                    _ => decode_editions(decoder.bytes("editions", MAX_EDITIONS)?)?,
                },
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};

    use super::{Event, Gone};
    use crate::document::Edition;
    use crate::id::{PacketId, PacketKey};
    use crate::record::RECORD_VERSION;

    fn events() -> impl Strategy<Value = Event> {
        let ids = any::<[u8; 32]>().prop_map(PacketId::from_bytes);
        let parts = proptest::collection::vec(proptest::option::of(ids.clone()), 1..4);
        let editions = parts.prop_map(|parts| Edition { parts });
        let why = prop_oneof![
            Just(Gone::Deleted),
            Just(Gone::Replaced),
            Just(Gone::Evicted),
            Just(Gone::Quarantined)
        ];
        prop_oneof![
            (ids.clone(), any::<[u8; 32]>(), why, any::<u64>()).prop_map(
                |(id, key, why, at_ms)| {
                    let key = PacketKey::from_bytes(key);
                    Event::Tombstone {
                        id,
                        key,
                        why,
                        at_ms,
                    }
                }
            ),
            (ids.clone(), any::<bool>()).prop_map(|(id, pinned)| Event::Pin { id, pinned }),
            (
                "[a-z]{1,64}",
                ".{0,60}",
                any::<[u8; 32]>(),
                proptest::collection::vec(editions, 0..4)
            )
                .prop_map(|(namespace, name, source, editions)| Event::Document {
                    namespace,
                    name,
                    source,
                    editions
                }),
        ]
    }

    proptest! {
        #[test]
        fn an_event_decodes_to_what_was_encoded(event in events()) {
            let id = event.id();
            prop_assert_eq!(Event::decode(RECORD_VERSION, event.kind(), id, &event.encode()).unwrap(), event);
        }

        #[test]
        fn arbitrary_bytes_decode_to_an_event_only_if_they_are_its_encoding(
            kind in 0u16..6,
            meta in any::<Vec<u8>>(),
        ) {
            if let Ok(event) = Event::decode(RECORD_VERSION, kind, PacketId::from_bytes([0; 32]), &meta) {
                prop_assert_eq!(event.encode(), meta);
            }
        }
    }
}
