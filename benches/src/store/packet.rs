//! Packets to put: a number decides everything about one.

use addenda_cache::{KeyFields, PacketHeader, PacketId, PacketKey, Store};
use addenda_model::PacketShape;
use tch::Kind;

use crate::error::Result;

/// The shape of a body of 1 MiB.
pub(crate) const MEBIBYTE: PacketShape = PacketShape {
    layers: 16,
    kv_heads: 2,
    tokens: 128,
    head_dim: 64,
    kind: Kind::BFloat16,
};

/// A packet that can be put.
pub(crate) struct Sample {
    pub(crate) header: PacketHeader,
    token_ids: Vec<u32>,
    pub(crate) body: Vec<u8>,
}

impl Sample {
    /// The packet of this number, of a document where `document` names one.
    pub(crate) fn new(number: u32, document: &str, length: usize) -> Self {
        let mut body = vec![0; length];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&number.to_le_bytes());
        hasher.finalize_xof().fill(&mut body);
        Self::of(number, document, (MEBIBYTE, body))
    }

    /// The same with a body that is KV of this shape.
    pub(crate) fn of(number: u32, document: &str, (shape, body): (PacketShape, Vec<u8>)) -> Self {
        let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let token_ids: Vec<u32> = (0..count(shape.tokens)).map(|at| at ^ number).collect();
        let key = PacketKey::derive(&KeyFields {
            revision: &[1; 32],
            tokenizer: &[2; 32],
            adapter: &[0; 32],
            primer: &[0; 32],
            token_ids: &token_ids,
            dtype: "bf16",
            rope: "theta=10000.0",
            namespace: "default",
        });
        let header = PacketHeader {
            key,
            namespace: "default".to_owned(),
            document: document.to_owned(),
            source: *blake3::hash(&number.to_le_bytes()).as_bytes(),
            revision: [1; 32],
            tokenizer: [2; 32],
            adapter: [0; 32],
            primer: [0; 32],
            tokens: count(shape.tokens),
            dtype: "bf16".to_owned(),
            rope: "theta=10000.0".to_owned(),
            layers: count(shape.layers),
            kv_heads: count(shape.kv_heads),
            head_dim: count(shape.head_dim),
            created_at_ms: 1,
        };
        Self {
            header,
            token_ids,
            body,
        }
    }

    pub(crate) fn put(&self, store: &Store) -> Result<PacketId> {
        Ok(store.put(&self.header, &self.token_ids, &[&self.body])?.id)
    }
}
