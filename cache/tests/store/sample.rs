//! Packets to put, and stores to put them in.

use std::path::Path;

use tempfile::TempDir;

use addenda_cache::{KeyFields, PacketHeader, PacketId, PacketKey, Store, StoreOptions};

/// Options for a test: a small extent size where rolling over matters, no floor.
pub(crate) fn options() -> StoreOptions {
    StoreOptions {
        free_floor: 0,
        index_cache_bytes: 1 << 20,
        ..StoreOptions::default()
    }
}

pub(crate) fn open(directory: &Path) -> Store {
    Store::open(directory, options()).unwrap()
}

/// The directory as it is on disk at this moment: what a crash would leave.
pub(crate) fn copy(directory: &Path) -> TempDir {
    let image = tempfile::tempdir().unwrap();
    for inner in ["extents", "index"] {
        let target = image.path().join(inner);
        std::fs::create_dir(&target).unwrap();
        for entry in std::fs::read_dir(directory.join(inner)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
            }
        }
    }
    image
}

/// A packet that can be put: its number decides everything about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) header: PacketHeader,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) body: Vec<u8>,
}

impl Sample {
    /// A packet without a document.
    pub(crate) fn new(number: u32, body_len: usize) -> Self {
        Self::of("default", "", number, body_len)
    }

    /// The packet of a document's text; the number is the text.
    pub(crate) fn of(namespace: &str, document: &str, number: u32, body_len: usize) -> Self {
        let token_ids: Vec<u32> = (0..number % 97 + 1).map(|at| at ^ number).collect();
        let fields = KeyFields {
            revision: &[7; 32],
            tokenizer: &[8; 32],
            adapter: &[0; 32],
            primer: &[0; 32],
            token_ids: &token_ids,
            dtype: "bf16",
            rope: "default theta=10000",
            namespace,
        };
        let header = PacketHeader {
            key: PacketKey::derive(&fields),
            namespace: namespace.to_owned(),
            document: document.to_owned(),
            source: *blake3::hash(&number.to_le_bytes()).as_bytes(),
            revision: [7; 32],
            tokenizer: [8; 32],
            adapter: [0; 32],
            primer: [0; 32],
            tokens: u32::try_from(token_ids.len()).unwrap(),
            dtype: "bf16".to_owned(),
            rope: "default theta=10000".to_owned(),
            layers: 2,
            kv_heads: 1,
            head_dim: 16,
            created_at_ms: 1_700_000_000_000 + u64::from(number),
        };
        let mut body = vec![0; body_len];
        let mut bytes = blake3::Hasher::new()
            .update(&number.to_le_bytes())
            .finalize_xof();
        bytes.fill(&mut body);
        Self {
            header,
            token_ids,
            body,
        }
    }

    /// The same, computed behind a primer.
    pub(crate) fn behind(mut self, primer: [u8; 32]) -> Self {
        self.header.primer = primer;
        self.header.key = PacketKey::derive(&KeyFields {
            revision: &self.header.revision,
            tokenizer: &self.header.tokenizer,
            adapter: &self.header.adapter,
            primer: &primer,
            token_ids: &self.token_ids,
            dtype: &self.header.dtype,
            rope: &self.header.rope,
            namespace: &self.header.namespace,
        });
        self
    }

    pub(crate) fn put(&self, store: &Store) -> PacketId {
        self.try_put(store).unwrap()
    }

    pub(crate) fn try_put(&self, store: &Store) -> addenda_cache::Result<PacketId> {
        // In two pieces, as layers come.
        let (first, second) = self.body.split_at(self.body.len() / 2);
        Ok(store
            .put(&self.header, &self.token_ids, &[first, second])?
            .id)
    }

    /// Puts the packet as one part of its document, which is not bound to it yet.
    pub(crate) fn stage(&self, store: &Store) -> PacketId {
        let staged = store.stage(&self.header, &self.token_ids, &[&self.body]);
        staged.unwrap().id
    }

    /// Reads the packet back and compares it.
    pub(crate) fn assert_in(&self, store: &Store) {
        let found = store
            .lookup(&self.header.key)
            .unwrap()
            .expect("the packet is there");
        assert_eq!(found.header.key, self.header.key);
        assert_eq!(found.body_len, self.body.len() as u64);
        let body = store.read(&found.id).unwrap();
        assert_eq!(body.as_ref(), self.body.as_slice());
        assert_eq!(body.token_ids(), self.token_ids);
    }

    pub(crate) fn assert_missing(&self, store: &Store) {
        assert_eq!(store.lookup(&self.header.key).unwrap(), None);
    }
}
