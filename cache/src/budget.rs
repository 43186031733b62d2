//! The budget: how much the store may take, what it takes, and who goes first.
//!
//! Owns the limits, the count of bytes and the order of last uses. Never deletes anything: it names the victims, the
//! store evicts them. Invariants: a pinned or leased packet is never named; where the victims together would not make
//! enough room, none is named.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::id::PacketId;
use crate::manifest::{Location, Manifest};

/// Holes are punched in whole blocks of this size.
const BLOCK: u64 = 4096;

/// How much the store may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes on disk at most; none: as much as the floor allows.
    pub(crate) max_bytes: Option<u64>,
    /// Bytes of one namespace's packets at most; none: as many as there are.
    pub(crate) max_namespace_bytes: Option<u64>,
    /// Bytes of the file system that stay free.
    pub(crate) free_floor: u64,
}

/// The whole blocks of a record's payload: what a hole gives back.
pub(crate) fn reclaimable(location: &Location) -> (u64, u64) {
    let start = location.payload.next_multiple_of(BLOCK);
    let end = location.payload.saturating_add(location.payload_len) / BLOCK * BLOCK;
    (start, end.saturating_sub(start))
}

#[derive(Debug)]
struct Entry {
    tick: u64,
    used_at_ms: u64,
    bytes: u64,
    location: Location,
    revision: [u8; 32],
    namespace: Arc<str>,
}

/// Takes a record from the live bytes of its extent.
fn leave(extents: &mut HashMap<u64, u64>, location: &Location) {
    if let Some(bytes) = extents.get_mut(&location.extent) {
        *bytes = bytes.saturating_sub(location.record_len());
        if *bytes == 0 {
            extents.remove(&location.extent);
        }
    }
}

/// What the live packets take, and when they were used.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    entries: HashMap<PacketId, Entry>,
    /// Oldest use first. Ticks rather than times, so that two uses in one millisecond have an order.
    order: BTreeMap<u64, PacketId>,
    next_tick: u64,
    dirty: HashSet<PacketId>,
    revisions: HashMap<[u8; 32], u64>,
    /// Live bytes of each extent.
    extents: HashMap<u64, u64>,
    /// Live bytes of each namespace.
    namespaces: HashMap<Arc<str>, u64>,
    live_bytes: u64,
    disk_bytes: u64,
    evicted: u64,
}

impl Usage {
    pub(crate) fn set_disk_bytes(&mut self, bytes: u64) {
        self.disk_bytes = bytes;
    }

    pub(crate) fn wrote(&mut self, bytes: u64) {
        self.disk_bytes = self.disk_bytes.saturating_add(bytes);
    }

    pub(crate) fn gave_back(&mut self, bytes: u64) {
        self.disk_bytes = self.disk_bytes.saturating_sub(bytes);
    }

    pub(crate) fn count_evicted(&mut self, packets: u64) {
        self.evicted = self.evicted.saturating_add(packets);
    }

    /// Counts a packet as live and just used.
    pub(crate) fn add(&mut self, manifest: &Manifest) {
        self.remove(&manifest.id);
        self.live_bytes = self.live_bytes.saturating_add(manifest.bytes());
        *self.revisions.entry(manifest.header.revision).or_default() += 1;
        *self.extents.entry(manifest.location.extent).or_default() += manifest.bytes();
        let name = manifest.header.namespace.as_str();
        let known = self.namespaces.get_key_value(name);
        let namespace = known.map_or_else(|| Arc::from(name), |(name, _)| Arc::clone(name));
        *self.namespaces.entry(Arc::clone(&namespace)).or_default() += manifest.bytes();
        let tick = self.tick();
        self.order.insert(tick, manifest.id);
        self.entries.insert(
            manifest.id,
            Entry {
                tick,
                used_at_ms: manifest.last_used_at_ms,
                bytes: manifest.bytes(),
                location: manifest.location,
                revision: manifest.header.revision,
                namespace,
            },
        );
    }

    pub(crate) fn remove(&mut self, id: &PacketId) {
        let Some(entry) = self.entries.remove(id) else {
            return;
        };
        self.order.remove(&entry.tick);
        self.dirty.remove(id);
        self.live_bytes = self.live_bytes.saturating_sub(entry.bytes);
        leave(&mut self.extents, &entry.location);
        if let Some(bytes) = self.namespaces.get_mut(&entry.namespace) {
            *bytes = bytes.saturating_sub(entry.bytes);
            if *bytes == 0 {
                self.namespaces.remove(&entry.namespace);
            }
        }
        if let Some(count) = self.revisions.get_mut(&entry.revision) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.revisions.remove(&entry.revision);
            }
        }
    }

    /// Notes that a packet's record lies elsewhere now, which is no use of it; false where the packet is not live.
    pub(crate) fn relocate(&mut self, id: &PacketId, location: Location) -> bool {
        let Some(entry) = self.entries.get_mut(id) else {
            return false;
        };
        self.live_bytes = self.live_bytes.saturating_sub(entry.bytes);
        leave(&mut self.extents, &entry.location);
        entry.location = location;
        entry.bytes = location.record_len();
        self.live_bytes = self.live_bytes.saturating_add(entry.bytes);
        *self.extents.entry(location.extent).or_default() += entry.bytes;
        true
    }

    /// Bytes of live packets in an extent.
    pub(crate) fn live_in(&self, extent: u64) -> u64 {
        self.extents.get(&extent).copied().unwrap_or_default()
    }

    /// Live packets in an extent.
    pub(crate) fn packets_in(&self, extent: u64) -> Vec<PacketId> {
        let entries = self.entries.iter();
        entries
            .filter(|(_, entry)| entry.location.extent == extent)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Notes a use; false where the packet is not live.
    pub(crate) fn touch(&mut self, id: &PacketId, now_ms: u64) -> bool {
        let tick = self.tick();
        let Some(entry) = self.entries.get_mut(id) else {
            return false;
        };
        self.order.remove(&entry.tick);
        self.order.insert(tick, *id);
        entry.tick = tick;
        entry.used_at_ms = now_ms;
        self.dirty.insert(*id);
        true
    }

    pub(crate) fn used_at_ms(&self, id: &PacketId) -> Option<u64> {
        self.entries.get(id).map(|entry| entry.used_at_ms)
    }

    /// The uses that the index does not know yet.
    pub(crate) fn take_dirty(&mut self) -> Vec<(PacketId, u64)> {
        std::mem::take(&mut self.dirty)
            .into_iter()
            .filter_map(|id| Some((id, self.used_at_ms(&id)?)))
            .collect()
    }

    pub(crate) fn packets(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(crate) fn packets_of_revision(&self, revision: &[u8; 32]) -> u64 {
        self.revisions.get(revision).copied().unwrap_or_default()
    }

    pub(crate) const fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub(crate) const fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Who must go so that `needed` more bytes of this namespace fit; nobody where they fit already.
    ///
    /// Only the namespace's own packets are named: tenants can't evict one another. `spare` says who stays: the
    /// pinned and those that are being read. `can_punch` is false where the file system can't give the bytes of a
    /// dead record back; evicting would make no room on it then.
    pub(crate) fn victims(
        &self,
        limits: &Limits,
        (namespace, needed): (&str, u64),
        can_punch: bool,
        mut spare: impl FnMut(&PacketId, &Location) -> Result<bool>,
    ) -> Result<Vec<PacketId>> {
        let over = |used: u64, limit: Option<u64>| {
            limit.map_or(0, |limit| used.saturating_add(needed).saturating_sub(limit))
        };
        let own = self.namespaces.get(namespace).copied().unwrap_or_default();
        let disk_excess = over(self.disk_bytes, limits.max_bytes);
        let own_excess = over(own, limits.max_namespace_bytes);
        let (mut disk_freed, mut own_freed) = (0u64, 0u64);
        let mut victims = Vec::new();
        for id in self.order.values() {
            if disk_freed >= disk_excess && own_freed >= own_excess {
                return Ok(victims);
            }
            let Some(entry) = self.entries.get(id) else {
                continue;
            };
            let (_, given_back) = reclaimable(&entry.location);
            let given_back = if can_punch { given_back } else { 0 };
            let helps = given_back > 0 || own_freed < own_excess;
            if *entry.namespace == *namespace && helps && !spare(id, &entry.location)? {
                disk_freed = disk_freed.saturating_add(given_back);
                own_freed = own_freed.saturating_add(entry.bytes);
                victims.push(*id);
            }
        }
        if own_freed < own_excess {
            return Err(Error::Quota {
                namespace: namespace.to_owned(),
                needed,
                used: own,
                limit: limits.max_namespace_bytes.unwrap_or_default(),
                evictable: own_freed,
            });
        }
        if disk_freed < disk_excess {
            return Err(Error::Budget {
                needed,
                used: self.disk_bytes,
                limit: limits.max_bytes.unwrap_or_default(),
                evictable: disk_freed,
            });
        }
        Ok(victims)
    }

    /// Whether `needed` more bytes of this namespace fit only where someone goes.
    pub(crate) fn is_over(&self, limits: &Limits, namespace: &str, needed: u64) -> bool {
        let over = |used: u64, limit: Option<u64>| {
            limit.is_some_and(|limit| used.saturating_add(needed) > limit)
        };
        let own = self.namespaces.get(namespace).copied().unwrap_or_default();
        over(self.disk_bytes, limits.max_bytes) || over(own, limits.max_namespace_bytes)
    }

    fn tick(&mut self) -> u64 {
        self.next_tick = self.next_tick.saturating_add(1);
        self.next_tick
    }
}
