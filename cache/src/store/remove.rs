//! Deleting, evicting, quarantining, and giving the bytes back.
//!
//! Owns the end of a packet. Invariants: its tombstone is durable before its bytes are touched, and they are touched
//! only when nobody reads them.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::write::tombstone;
use super::{Store, Writer};
use crate::budget::reclaimable;
use crate::document::Document;
use crate::error::Result;
use crate::event::{Event, Gone};
use crate::extent::Pending;
use crate::id::{PacketId, PacketKey};
use crate::lease::{Dead, locked};
use crate::packet::{check_document, check_namespace};
use crate::scan::read_record;

/// What a deletion removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Packets that are gone.
    pub packets: u64,
    /// Bytes that they took on disk.
    pub bytes: u64,
}

impl Store {
    /// Deletes a packet, pinned or not; durable when this returns. Nothing is removed where there is none.
    pub fn delete(&self, id: &PacketId) -> Result<Removed> {
        let mut writer = self.settled();
        let Some(manifest) = self.index.manifest(id)? else {
            return Ok(Removed::default());
        };
        self.commit(
            &mut writer,
            &[tombstone(*id, manifest.header.key, Gone::Deleted)],
        )?;
        drop(writer);
        self.reclaim();
        Ok(Removed {
            packets: 1,
            bytes: manifest.bytes(),
        })
    }

    /// Forgets a document and deletes its packets, pinned or not, save those that another document of the namespace
    /// needs; durable when this returns. Packets that were staged for it and never bound go too. Nothing is removed
    /// where there is none.
    pub fn delete_document(&self, namespace: &str, name: &str) -> Result<Removed> {
        check_namespace(namespace)?;
        check_document(name)?;
        let mut writer = self.settled();
        let document = self.index.document(namespace, name)?;
        let mut ids: BTreeSet<PacketId> = document.iter().flat_map(Document::ids).collect();
        ids.extend(self.index.made_for(namespace, name)?);
        let orphans = self.orphans(namespace, name, ids.iter())?;
        // The name goes first, so that its packets go one by one without it.
        let mut batch: Vec<Pending<'_>> = document
            .map(|document| {
                Pending::event(Event::Document {
                    namespace: document.namespace,
                    name: document.name,
                    source: document.source,
                    editions: Vec::new(),
                })
            })
            .into_iter()
            .collect();
        let mut removed = Removed::default();
        for orphan in orphans {
            removed.packets += 1;
            removed.bytes += orphan.bytes();
            batch.push(tombstone(orphan.id, orphan.header.key, Gone::Deleted));
        }
        if !batch.is_empty() {
            self.commit(&mut writer, &batch)?;
        }
        drop(writer);
        self.reclaim();
        Ok(removed)
    }

    /// Never serves this packet again.
    pub(crate) fn quarantine(&self, id: PacketId, key: PacketKey) -> Result<()> {
        let mut writer = self.settled();
        self.commit(&mut writer, &[tombstone(id, key, Gone::Quarantined)])
    }

    /// Evicts these packets, whom the budget named.
    pub(super) fn evict(&self, writer: &mut Writer, victims: &[PacketId]) -> Result<()> {
        let mut batch = Vec::with_capacity(victims.len());
        for id in victims {
            if let Some(manifest) = self.index.manifest(id)? {
                batch.push(tombstone(*id, manifest.header.key, Gone::Evicted));
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        tracing::info!(packets = batch.len(), "packets are evicted to make room");
        self.commit(writer, &batch)?;
        locked(&self.usage).count_evicted(batch.len() as u64);
        self.reclaim();
        Ok(())
    }

    /// Gives the bytes of dead records that nobody reads back to the file system. A failure costs only space.
    pub(super) fn reclaim(&self) {
        let mut freed = 0u64;
        self.leases
            .reclaim(|dead| freed = freed.saturating_add(self.punch(dead)));
        locked(&self.usage).gave_back(freed);
    }

    fn punch(&self, dead: &Dead) -> u64 {
        let (offset, length) = reclaimable(&dead.location);
        if length == 0 || !self.can_punch.load(Ordering::Relaxed) {
            return 0;
        }
        let Some(file) = self.extents.get(dead.location.extent) else {
            return 0;
        };
        // The place came from the index. Only the record itself can say that it is this packet's, and a hole in
        // another's would be a loss.
        let is_its_own = file
            .len()
            .and_then(|len| read_record(&file, len, dead.location.offset))
            .is_ok_and(|found| {
                found.is_ok_and(|found| {
                    found.event.id() == dead.id && found.location == dead.location
                })
            });
        if !is_its_own {
            return 0;
        }
        match file.punch(offset, length) {
            Ok(true) => length,
            Ok(false) => {
                tracing::warn!("the file system cannot give back the bytes of deleted packets");
                self.can_punch.store(false, Ordering::Relaxed);
                0
            }
            Err(error) => {
                tracing::warn!(%error, "the bytes of a deleted packet could not be given back");
                0
            }
        }
    }
}
