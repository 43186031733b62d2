//! The index: sled, with small values only, holding what the extents say in the order in which it is asked for.
//!
//! One tree; the first byte of a key says what it is:
//!
//! ```text
//! m id              -> manifest            k key             -> id
//! n namespace id    -> nothing             d namespace name  -> document
//! r id ns name      -> nothing             p id              -> nothing (pinned)
//! u id              -> last use, ms        g key             -> why the packet is gone
//! c                 -> checkpoint
//! ```
//! Owns keys, values and how an event changes them. Never reads an extent, never decides what happens. Invariants:
//! an event is one atomic batch; applying events again from the checkpoint on leads to the same state; everything
//! here save last uses can be made anew from the extents. Only one thread at a time applies events.

use std::panic::AssertUnwindSafe;
use std::path::Path;

use sled::Batch;

use crate::document::Document;
use crate::error::{Error, Result};
use crate::event::{Event, Gone};
use crate::id::{PacketId, PacketKey};
use crate::manifest::Manifest;

mod checkpoint;
mod read;

pub(crate) use checkpoint::Checkpoint;

/// What an event changed.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) added: Option<Manifest>,
    /// A manifest that is not there any more, or whose record lies elsewhere now.
    pub(crate) removed: Option<Manifest>,
}

/// The open index.
#[derive(Debug)]
pub(crate) struct Index {
    db: sled::Db,
}

impl Index {
    /// Opens or makes the index. sled panics on some damage; that is an error like any other here.
    pub(crate) fn open(path: &Path, cache_bytes: u64) -> Result<Self> {
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(cache_bytes)
            // Nothing acknowledged depends on sled's own flushing: what it lost is replayed from the extents.
            .flush_every_ms(None);
        std::panic::catch_unwind(AssertUnwindSafe(|| config.open())).map_or_else(
            |_| Err(Error::IndexValue { what: "damage" }),
            |opened| Ok(Self { db: opened? }),
        )
    }

    /// Makes all changes so far durable.
    pub(crate) fn flush(&self) -> Result<()> {
        self.db.flush()?;
        Ok(())
    }

    /// Applies a put packet.
    pub(crate) fn put(&self, manifest: &Manifest) -> Result<Change> {
        let removed = self
            .manifest(&manifest.id)?
            .filter(|old| old.location != manifest.location);
        let mut batch = Batch::default();
        batch.insert(key(b'm', manifest.id.as_bytes()), manifest.encode());
        batch.insert(
            key(b'k', manifest.header.key.as_bytes()),
            manifest.id.as_bytes(),
        );
        batch.insert(
            namespace_key(b'n', &manifest.header.namespace, manifest.id.as_bytes()),
            &[],
        );
        batch.remove(key(b'g', manifest.header.key.as_bytes()));
        self.db.apply_batch(batch)?;
        Ok(Change {
            added: Some(manifest.clone()),
            removed,
        })
    }

    /// Applies any event but a put packet.
    pub(crate) fn apply(&self, event: &Event) -> Result<Change> {
        match event {
            // A packet's manifest needs its place too: it goes through `put`.
            Event::Packet { .. } => Ok(Change::default()),
            Event::Tombstone {
                id,
                key,
                why,
                at_ms,
            } => self.bury(id, key, *why, *at_ms),
            Event::Document {
                namespace,
                name,
                source,
                ids,
            } => self.bind(namespace, name, source, ids),
            Event::Pin { id, pinned } => self.pin(id, *pinned),
        }
    }

    fn bury(&self, id: &PacketId, packet_key: &PacketKey, why: Gone, at_ms: u64) -> Result<Change> {
        let removed = self.manifest(id)?;
        let mut batch = Batch::default();
        if self.id_of(packet_key)?.is_none_or(|current| current == *id) {
            batch.remove(key(b'k', packet_key.as_bytes()));
            let mut grave = why.code().to_le_bytes().to_vec();
            grave.extend_from_slice(&at_ms.to_le_bytes());
            batch.insert(key(b'g', packet_key.as_bytes()), grave);
        }
        if let Some(manifest) = &removed {
            batch.remove(namespace_key(
                b'n',
                &manifest.header.namespace,
                id.as_bytes(),
            ));
        }
        for mut document in self.documents_of(id)? {
            document.ids.retain(|other| other != id);
            let name = namespace_key(b'd', &document.namespace, document.name.as_bytes());
            if document.ids.is_empty() {
                batch.remove(name);
            } else {
                batch.insert(name, document.encode());
            }
            batch.remove(reference_key(id, &document.namespace, &document.name));
        }
        for kind in [b'm', b'p', b'u'] {
            batch.remove(key(kind, id.as_bytes()));
        }
        self.db.apply_batch(batch)?;
        Ok(Change {
            added: None,
            removed,
        })
    }

    fn bind(
        &self,
        namespace: &str,
        name: &str,
        source: &[u8; 32],
        ids: &[PacketId],
    ) -> Result<Change> {
        let mut batch = Batch::default();
        for id in self
            .document(namespace, name)?
            .map(|old| old.ids)
            .unwrap_or_default()
        {
            batch.remove(reference_key(&id, namespace, name));
        }
        let mut live = Vec::with_capacity(ids.len());
        for id in ids {
            // A binding to a packet that was lost to damage binds nothing.
            if self.manifest(id)?.is_some() {
                batch.insert(reference_key(id, namespace, name), &[]);
                live.push(*id);
            }
        }
        let entry = namespace_key(b'd', namespace, name.as_bytes());
        if live.is_empty() {
            batch.remove(entry);
        } else {
            let document = Document {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                source: *source,
                ids: live,
            };
            batch.insert(entry, document.encode());
        }
        self.db.apply_batch(batch)?;
        Ok(Change::default())
    }

    fn pin(&self, id: &PacketId, pinned: bool) -> Result<Change> {
        if pinned && self.manifest(id)?.is_some() {
            self.db.insert(key(b'p', id.as_bytes()), &[])?;
        } else {
            self.db.remove(key(b'p', id.as_bytes()))?;
        }
        Ok(Change::default())
    }

    /// Notes when packets were last used; those that are gone are left out.
    pub(crate) fn note_uses(&self, uses: &[(PacketId, u64)]) -> Result<()> {
        let mut batch = Batch::default();
        for (id, at_ms) in uses {
            if self.db.contains_key(key(b'm', id.as_bytes()))? {
                batch.insert(key(b'u', id.as_bytes()), &at_ms.to_le_bytes());
            }
        }
        self.db.apply_batch(batch)?;
        Ok(())
    }
}

fn key(kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + rest.len());
    key.push(kind);
    key.extend_from_slice(rest);
    key
}

/// Namespaces are at most 64 bytes long, so their length is one byte and none is a prefix of another.
fn namespace_key(kind: u8, namespace: &str, rest: &[u8]) -> Vec<u8> {
    let mut key = vec![kind, u8::try_from(namespace.len()).unwrap_or(u8::MAX)];
    key.extend_from_slice(namespace.as_bytes());
    key.extend_from_slice(rest);
    key
}

fn reference_key(id: &PacketId, namespace: &str, name: &str) -> Vec<u8> {
    let document = namespace_key(b'r', namespace, name.as_bytes());
    let (kind, document) = document.split_at(1);
    [kind, id.as_bytes(), document].concat()
}
