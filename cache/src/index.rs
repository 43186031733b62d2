//! The index: sled, with small values only, holding what the extents say in the order in which it is asked for.
//!
//! One tree; the first byte of a key says what it is:
//!
//! ```text
//! m id              -> manifest            k key             -> id
//! n namespace id    -> nothing             d namespace name  -> document
//! r id ns name      -> part, parts         h ns name id      -> nothing (made for that document)
//! u id              -> last use, ms        g key             -> why the packet is gone
//! p id              -> nothing (pinned)    s ns source id    -> nothing
//! c                 -> checkpoint          v                 -> version of all this
//! w                 -> where the scrub stands
//! ```
//! Owns keys, values and how an event changes them. Never reads an extent, never decides what happens. Invariants:
//! an event is one atomic batch; applying events again from the checkpoint on leads to the same state; everything
//! here save last uses and the scrub's place can be made anew from the extents. Only one thread at a time applies events.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::Path;

use sled::Batch;

use crate::document::{Document, Edition};
use crate::error::{Error, Result};
use crate::event::{Event, Gone};
use crate::id::{PacketId, PacketKey};
use crate::manifest::Manifest;
use crate::scrub::ScrubState;

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

/// Version of keys and values. An index of another one is made anew.
const INDEX_VERSION: u16 = 3;

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
        let index = std::panic::catch_unwind(AssertUnwindSafe(|| config.open())).map_or_else(
            |_| Err(Error::IndexValue { what: "damage" }),
            |opened| Ok(Self { db: opened? }),
        )?;
        if index.db.is_empty() {
            index.db.insert(b"v", &INDEX_VERSION.to_le_bytes())?;
        }
        Ok(index)
    }

    /// Whether its keys and values are those that are known here.
    pub(crate) fn is_of_this_version(&self) -> Result<bool> {
        let version = self.db.get(b"v")?;
        Ok(version.is_some_and(|version| version == INDEX_VERSION.to_le_bytes()))
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
        batch.insert(source_key(manifest), &[]);
        batch.remove(key(b'g', manifest.header.key.as_bytes()));
        if !manifest.header.document.is_empty() {
            batch.insert(maker_key(manifest), &[]);
        }
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
                editions,
            } => self.bind(namespace, name, source, editions),
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
            batch.remove(maker_key(manifest));
            batch.remove(source_key(manifest));
        }
        for mut document in self.documents_of(id)? {
            document
                .editions
                .retain_mut(|edition| edition.keep(|other| other != id));
            let name = namespace_key(b'd', &document.namespace, document.name.as_bytes());
            if document.editions.is_empty() {
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
        editions: &[Edition],
    ) -> Result<Change> {
        let mut batch = Batch::default();
        let old = self.document(namespace, name)?;
        let old_places = old
            .as_ref()
            .map(|old| places(&old.editions))
            .unwrap_or_default();
        // A binding to a packet that was lost to damage binds nothing.
        let mut dead = BTreeSet::new();
        for id in editions.iter().flat_map(Edition::ids) {
            if !old_places.contains_key(&id) && self.manifest(&id)?.is_none() {
                dead.insert(id);
            }
        }
        let mut live = editions.to_vec();
        live.retain_mut(|edition| edition.keep(|id| !dead.contains(id)));
        let places = places(&live);
        for id in old_places.keys().filter(|id| !places.contains_key(id)) {
            batch.remove(reference_key(id, namespace, name));
        }
        for (id, place) in &places {
            if old_places.get(id) != Some(place) {
                batch.insert(
                    reference_key(id, namespace, name),
                    &encode_place(*place)[..],
                );
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
                editions: live,
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

    /// Forgets why a packet is gone, where that is still what its tombstone of this time said.
    pub(crate) fn forget_grave(&self, packet_key: &PacketKey, at_ms: u64) -> Result<()> {
        if self.grave_at(packet_key)? == Some(at_ms) {
            self.db.remove(key(b'g', packet_key.as_bytes()))?;
        }
        Ok(())
    }

    /// Where the scrub stands; at the beginning where nothing is known.
    pub(crate) fn scrub(&self) -> Result<ScrubState> {
        let value = self.db.get(b"w")?;
        // What can't be read costs a lap begun anew.
        Ok(value
            .and_then(|value| ScrubState::decode(&value).ok())
            .unwrap_or_default())
    }

    pub(crate) fn set_scrub(&self, state: ScrubState) -> Result<()> {
        self.db.insert(b"w", state.encode())?;
        Ok(())
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

/// A packet's place in its document: which part it is, from 0, and of how many.
pub(crate) type Place = (u32, u32);

/// Where each packet of a document stands; in the newest edition that has it.
fn places(editions: &[Edition]) -> BTreeMap<PacketId, Place> {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let mut places = BTreeMap::new();
    for edition in editions {
        for (part, id) in edition.parts.iter().enumerate() {
            if let Some(id) = id {
                places.insert(*id, (count(part), count(edition.parts.len())));
            }
        }
    }
    places
}

fn encode_place((part, parts): Place) -> [u8; 8] {
    let mut bytes = [0; 8];
    let (first, second) = bytes.split_at_mut(4);
    first.copy_from_slice(&part.to_le_bytes());
    second.copy_from_slice(&parts.to_le_bytes());
    bytes
}

/// The entry of a packet among those that were made for its document.
fn maker_key(manifest: &Manifest) -> Vec<u8> {
    let header = &manifest.header;
    let mut key = made_for_key(&header.namespace, &header.document);
    key.extend_from_slice(manifest.id.as_bytes());
    key
}

/// The entry of a packet among those of its document's text.
fn source_key(manifest: &Manifest) -> Vec<u8> {
    let header = &manifest.header;
    let mut key = namespace_key(b's', &header.namespace, &header.source);
    key.extend_from_slice(manifest.id.as_bytes());
    key
}

/// What begins the entries of the packets that were made for a document; no name is a prefix of another.
fn made_for_key(namespace: &str, name: &str) -> Vec<u8> {
    let length = u16::try_from(name.len()).unwrap_or(u16::MAX);
    let name = [&length.to_le_bytes(), name.as_bytes()].concat();
    namespace_key(b'h', namespace, &name)
}

fn reference_key(id: &PacketId, namespace: &str, name: &str) -> Vec<u8> {
    let document = namespace_key(b'r', namespace, name.as_bytes());
    let (kind, document) = document.split_at(1);
    [kind, id.as_bytes(), document].concat()
}
