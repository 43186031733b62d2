//! The two identities of a packet: its key (what it is derived from) and its id (what it is).
//!
//! Owns how they are derived, printed and parsed; never looks at a path or a model's name. Invariants: full
//! 256-bit BLAKE3, a context of its own for each purpose, over the canonical encoding. Changing any context or
//! field order changes every identity, so it needs a new [`FORMAT`].

use std::fmt;
use std::str::FromStr;

use crate::canonical::Encoder;

/// Version of what a packet's bytes mean. Part of the key, so packets of another format miss.
pub const FORMAT: u32 = 2;
/// That of packets without a primer, which mean what they meant before there were any.
const WITHOUT_PRIMER: u32 = 1;
/// The digest of no primer.
pub(crate) const NO_PRIMER: [u8; 32] = [0; 32];

const KEY_CONTEXT: &str = "addenda 2025 packet key";
const ID_CONTEXT: &str = "addenda 2025 packet id";

/// A digest was not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a packet's key or id is 64 hexadecimal digits")]
pub struct ParseDigestError;

macro_rules! digest_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Takes the digest's bytes as they are.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The digest's bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseDigestError;

            fn from_str(text: &str) -> Result<Self, ParseDigestError> {
                parse_hex(text).map(Self)
            }
        }
    };
}

digest_type! {
    /// BLAKE3 of what a packet is derived from; known before anything is computed.
    PacketKey
}

digest_type! {
    /// BLAKE3 of what a packet is: its header, its token ids and its body.
    PacketId
}

/// All that a packet is derived from. Two packets with equal fields are interchangeable.
#[derive(Debug, Clone, Copy)]
pub struct KeyFields<'a> {
    /// The weights revision: base fingerprint and active patches.
    pub revision: &'a [u8; 32],
    /// Digest of the tokenizer.
    pub tokenizer: &'a [u8; 32],
    /// Digest of the adapter's soft tokens; zeros for none.
    pub adapter: &'a [u8; 32],
    /// Digest of the primer, the tokens that the packet is computed behind; zeros for none.
    pub primer: &'a [u8; 32],
    /// The document's token ids.
    pub token_ids: &'a [u32],
    /// Element type of the stored KV, such as "bf16".
    pub dtype: &'a str,
    /// The RoPE settings, spelt in one canonical way.
    pub rope: &'a str,
    /// Whose packet it is. Tenants never share one.
    pub namespace: &'a str,
}

impl PacketKey {
    /// Derives the key of a packet that may not exist yet.
    #[must_use]
    pub fn derive(fields: &KeyFields<'_>) -> Self {
        let format = match *fields.primer {
            NO_PRIMER => Encoder::new().u32(WITHOUT_PRIMER),
            _ => Encoder::new().u32(FORMAT).bytes(fields.primer),
        };
        let encoded = format
            .bytes(fields.revision)
            .bytes(fields.tokenizer)
            .bytes(fields.adapter)
            .bytes(&token_bytes(fields.token_ids))
            .text(fields.dtype)
            .text(fields.rope)
            .text(fields.namespace)
            .finish();
        Self(blake3::derive_key(KEY_CONTEXT, &encoded))
    }
}

impl PacketId {
    /// Derives an id from the identifying part of a header and the digest of the payload (token ids and body).
    pub(crate) fn derive(identity: &[u8], payload_digest: &[u8; 32]) -> Self {
        let encoded = Encoder::new()
            .bytes(identity)
            .bytes(payload_digest)
            .finish();
        Self(blake3::derive_key(ID_CONTEXT, &encoded))
    }
}

/// Token ids as they are hashed and stored: little-endian u32.
#[must_use]
pub fn token_bytes(token_ids: &[u32]) -> Vec<u8> {
    token_ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

fn parse_hex(text: &str) -> Result<[u8; 32], ParseDigestError> {
    let mut digest = [0; 32];
    if text.len() != 64 {
        return Err(ParseDigestError);
    }
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        for &digit in pair {
            let digit = char::from(digit).to_digit(16).ok_or(ParseDigestError)?;
            *byte = (*byte << 4) | u8::try_from(digit).map_err(|_| ParseDigestError)?;
        }
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use super::{KeyFields, PacketId, PacketKey};

    const FIELDS: KeyFields<'static> = KeyFields {
        revision: &[1; 32],
        tokenizer: &[2; 32],
        adapter: &[0; 32],
        primer: &[0; 32],
        token_ids: &[5, 6, 7],
        dtype: "bf16",
        rope: "default theta=10000",
        namespace: "default",
    };

    #[test]
    fn the_key_is_the_same_on_every_machine_and_in_every_version() {
        // A change here makes every stored packet a miss: raise FORMAT and say so in the changelog.
        assert_eq!(
            PacketKey::derive(&FIELDS).to_string(),
            "79d84f157a2a35553356b703913676c63d3f129d5e4a983fad166f86a9d8f681"
        );
    }

    #[test]
    fn every_field_changes_the_key() {
        let variants = [
            FIELDS,
            KeyFields {
                revision: &[9; 32],
                ..FIELDS
            },
            KeyFields {
                tokenizer: &[9; 32],
                ..FIELDS
            },
            KeyFields {
                adapter: &[9; 32],
                ..FIELDS
            },
            KeyFields {
                primer: &[9; 32],
                ..FIELDS
            },
            KeyFields {
                token_ids: &[5, 6],
                ..FIELDS
            },
            KeyFields {
                dtype: "f32",
                ..FIELDS
            },
            KeyFields {
                rope: "linear",
                ..FIELDS
            },
            KeyFields {
                namespace: "other",
                ..FIELDS
            },
        ];
        let keys: std::collections::BTreeSet<_> = variants.iter().map(PacketKey::derive).collect();
        assert_eq!(keys.len(), variants.len());
    }

    #[test]
    fn printed_digests_parse_back_and_anything_else_is_refused() {
        let id = PacketId::from_bytes([0xa5; 32]);
        assert_eq!(id.to_string().parse::<PacketId>().unwrap(), id);
        assert_eq!(
            id.to_string().to_uppercase().parse::<PacketId>().unwrap(),
            id
        );
        for text in ["", "a5", &"g".repeat(64), &"a".repeat(63), &"é".repeat(32)] {
            assert!(text.parse::<PacketId>().is_err(), "{text:?}");
        }
    }
}
