//! A packet's header: whose it is, what it was derived from and how its body is laid out.
//!
//! Owns the header's canonical, versioned encoding, its bounds and the part of it that enters the packet id.
//! Never looks at the body. Invariant: a header that decodes has passed the same checks as one that was put.

use crate::canonical::{Decoder, Encoder, Malformed};
use crate::error::{Error, Result};
use crate::id::{NO_PRIMER, PacketKey};

/// Version of the header's encoding; a header without a primer is one of version 1, before there were any.
const HEADER_VERSION: u16 = 2;
const WITHOUT_PRIMER: u16 = 1;

/// Longest namespace, bytes.
pub const MAX_NAMESPACE: usize = 64;
/// Longest document name, bytes.
pub const MAX_DOCUMENT: usize = 256;
/// Longest dtype name, bytes.
pub const MAX_DTYPE: usize = 32;
/// Longest RoPE description, bytes.
pub const MAX_ROPE: usize = 512;

/// What the store knows of a packet besides its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketHeader {
    /// The packet's key; see [`PacketKey::derive`].
    pub key: PacketKey,
    /// Whose it is: 1 to 64 bytes of `[A-Za-z0-9._-]`.
    pub namespace: String,
    /// The document that it was first made for, 256 bytes at most. Empty: none, and nothing is bound.
    pub document: String,
    /// BLAKE3 of the document's text.
    pub source: [u8; 32],
    /// The weights revision that it was made under.
    pub revision: [u8; 32],
    /// Digest of the tokenizer.
    pub tokenizer: [u8; 32],
    /// Digest of the adapter; zeros for none.
    pub adapter: [u8; 32],
    /// Digest of the primer, the tokens that it was computed behind and that are no part of it; zeros for none.
    pub primer: [u8; 32],
    /// Tokens of the packet, soft ones included; at least 1.
    pub tokens: u32,
    /// Element type of the body, such as "bf16"; 1 to 32 bytes.
    pub dtype: String,
    /// The RoPE settings in their canonical spelling, 512 bytes at most.
    pub rope: String,
    /// Layers in the body.
    pub layers: u32,
    /// KV heads of each layer.
    pub kv_heads: u32,
    /// Elements of one head's key or value.
    pub head_dim: u32,
    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub created_at_ms: u64,
}

impl PacketHeader {
    /// The canonical encoding, as it is stored.
    pub(crate) fn encode(&self) -> Vec<u8> {
        self.encode_identity()
            .text(&self.document)
            .u64(self.created_at_ms)
            .finish()
    }

    /// What of the header enters the packet id: all but the name and the time of the first put, so that the same
    /// packet made twice has one id.
    pub(crate) fn identity(&self) -> Vec<u8> {
        self.encode_identity().finish()
    }

    fn encode_identity(&self) -> Encoder {
        let version = match self.primer {
            NO_PRIMER => Encoder::new().u16(WITHOUT_PRIMER),
            primer => Encoder::new().u16(HEADER_VERSION).bytes(&primer),
        };
        version
            .bytes(self.key.as_bytes())
            .text(&self.namespace)
            .bytes(&self.source)
            .bytes(&self.revision)
            .bytes(&self.tokenizer)
            .bytes(&self.adapter)
            .u32(self.tokens)
            .text(&self.dtype)
            .text(&self.rope)
            .u32(self.layers)
            .u32(self.kv_heads)
            .u32(self.head_dim)
    }

    /// Reads what [`PacketHeader::encode`] wrote.
    pub(crate) fn decode(bytes: &[u8]) -> std::result::Result<Self, Malformed> {
        let mut decoder = Decoder::new(bytes);
        let version = decoder.u16("header version")?;
        let primer = match version {
            WITHOUT_PRIMER => NO_PRIMER,
            HEADER_VERSION => decoder.array("primer")?,
            _ => return Err(Malformed("header version")),
        };
        if version == HEADER_VERSION && primer == NO_PRIMER {
            // None has an encoding of its own.
            return Err(Malformed("primer"));
        }
        let mut header = Self {
            primer,
            key: PacketKey::from_bytes(decoder.array("key")?),
            namespace: decoder.text("namespace", MAX_NAMESPACE)?.to_owned(),
            document: String::new(),
            source: decoder.array("source")?,
            revision: decoder.array("revision")?,
            tokenizer: decoder.array("tokenizer")?,
            adapter: decoder.array("adapter")?,
            tokens: decoder.u32("tokens")?,
            dtype: decoder.text("dtype", MAX_DTYPE)?.to_owned(),
            rope: decoder.text("rope", MAX_ROPE)?.to_owned(),
            layers: decoder.u32("layers")?,
            kv_heads: decoder.u32("kv_heads")?,
            head_dim: decoder.u32("head_dim")?,
            created_at_ms: 0,
        };
        header.document = decoder.text("document", MAX_DOCUMENT)?.to_owned();
        header.created_at_ms = decoder.u64("created_at_ms")?;
        decoder.finish()?;
        header
            .check()
            .map_err(|_| Malformed("header out of bounds"))?;
        Ok(header)
    }

    /// Refuses a header that is out of bounds, naming the field.
    pub(crate) fn check(&self) -> Result<()> {
        check_namespace(&self.namespace)?;
        if !self.document.is_empty() {
            check_document(&self.document)?;
        }
        if self.tokens == 0 {
            return Err(Error::invalid("tokens", "must be at least 1"));
        }
        if self.dtype.is_empty() || self.dtype.len() > MAX_DTYPE {
            return Err(Error::invalid(
                "dtype",
                format!("must be 1 to {MAX_DTYPE} bytes long"),
            ));
        }
        if self.rope.len() > MAX_ROPE {
            return Err(Error::invalid(
                "rope",
                format!("must be {MAX_ROPE} bytes long at most"),
            ));
        }
        Ok(())
    }
}

/// Refuses what is no namespace.
pub(crate) fn check_namespace(namespace: &str) -> Result<()> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if namespace.is_empty() || namespace.len() > MAX_NAMESPACE || !namespace.bytes().all(legal) {
        return Err(Error::invalid(
            "namespace",
            format!("must be 1 to {MAX_NAMESPACE} bytes of letters, digits, '.', '_' and '-'"),
        ));
    }
    Ok(())
}

/// Refuses what is no document name.
pub(crate) fn check_document(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_DOCUMENT {
        return Err(Error::invalid(
            "document",
            format!("must be a name of 1 to {MAX_DOCUMENT} bytes"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a panic fails the test, which is what tests are for"
    )]
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::PacketHeader;
    use crate::canonical::Decoder;
    use crate::id::PacketKey;

    fn header() -> PacketHeader {
        PacketHeader {
            key: PacketKey::from_bytes([1; 32]),
            namespace: "ward-3".into(),
            document: "visiting hours".into(),
            source: [2; 32],
            revision: [3; 32],
            tokenizer: [4; 32],
            adapter: [0; 32],
            primer: [5; 32],
            tokens: 512,
            dtype: "bf16".into(),
            rope: "default theta=10000".into(),
            layers: 30,
            kv_heads: 3,
            head_dim: 64,
            created_at_ms: 1_700_000_000_000,
        }
    }

    #[test]
    fn a_header_decodes_to_what_was_encoded() {
        assert_eq!(PacketHeader::decode(&header().encode()).unwrap(), header());
    }

    #[test]
    fn a_header_without_a_primer_is_encoded_as_before_there_were_any() {
        let mut without = header();
        without.primer = [0; 32];
        let bytes = without.encode();
        let mut decoder = Decoder::new(&bytes);
        assert_eq!(decoder.u16("version").unwrap(), 1);
        assert_eq!(PacketHeader::decode(&bytes).unwrap(), without);
        assert_ne!(without.identity(), header().identity());
    }

    #[test]
    fn a_cut_header_never_decodes() {
        let bytes = header().encode();
        for length in 0..bytes.len() {
            assert!(PacketHeader::decode(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn name_and_time_are_no_part_of_the_identity() {
        let mut other = header();
        other.document = "other".into();
        other.created_at_ms = 0;
        assert_eq!(other.identity(), header().identity());
        other.tokens += 1;
        assert_ne!(other.identity(), header().identity());
    }

    #[test]
    fn headers_out_of_bounds_are_refused_by_field() {
        let refused = |change: fn(&mut PacketHeader)| {
            let mut header = header();
            change(&mut header);
            header.check().unwrap_err().to_string()
        };
        assert!(refused(|h| h.namespace.clear()).starts_with("namespace"));
        assert!(refused(|h| h.namespace = "a/b".into()).starts_with("namespace"));
        assert!(refused(|h| h.namespace = "a".repeat(65)).starts_with("namespace"));
        assert!(refused(|h| h.document = "a".repeat(257)).starts_with("document"));
        assert!(refused(|h| h.tokens = 0).starts_with("tokens"));
        assert!(refused(|h| h.dtype.clear()).starts_with("dtype"));
        assert!(refused(|h| h.rope = "a".repeat(513)).starts_with("rope"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_the_decoder(bytes in any::<Vec<u8>>()) {
            prop_assert!(PacketHeader::decode(&bytes).is_err() || !bytes.is_empty());
        }

        #[test]
        fn a_changed_byte_never_decodes_to_the_same_header(at in any::<proptest::sample::Index>(), flip in 1u8..) {
            let mut bytes = header().encode();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(decoded) = PacketHeader::decode(&bytes) {
                prop_assert!(decoded != header());
                prop_assert_eq!(decoded.encode(), bytes);
            }
        }
    }
}
