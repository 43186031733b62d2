//! Leases: who reads which record right now, and the bodies they read.
//!
//! Owns the memory maps, what was verified since the start, and the dead records that wait for their last reader.
//! Never decides what dies. Invariants: a lease is taken under the same lock under which the packet was found alive,
//! so a record is either leased or reclaimed, never both; a map is handed out only after its payload was verified
//! in this process.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use memmap2::Mmap;

use crate::error::Result;
use crate::id::PacketId;
use crate::manifest::{Location, Manifest};
use crate::record::body_offset;

/// A packet's bytes, mapped into memory. They stay readable and unchanged as long as this lives, even when the
/// packet is deleted or evicted meanwhile. Clones share the map.
#[derive(Clone)]
pub struct Body {
    map: Arc<Mmap>,
    _lease: Arc<Lease>,
    token_ids: usize,
    start: usize,
}

impl Body {
    pub(crate) fn new(map: Arc<Mmap>, lease: Arc<Lease>, manifest: &Manifest) -> Self {
        Self {
            map,
            _lease: lease,
            token_ids: manifest.token_ids as usize,
            start: usize::try_from(body_offset(manifest.token_ids)).unwrap_or(usize::MAX),
        }
    }

    /// The document's token ids, as they were put.
    #[must_use]
    pub fn token_ids(&self) -> Vec<u32> {
        let (ids, _) = self.map.as_chunks::<4>();
        ids.iter()
            .take(self.token_ids)
            .map(|id| u32::from_le_bytes(*id))
            .collect()
    }
}

impl AsRef<[u8]> for Body {
    /// The body; its address is a multiple of 64.
    fn as_ref(&self) -> &[u8] {
        self.map.get(self.start..).unwrap_or_default()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.as_ref().len())
    }
}

/// Keeps one record from being reclaimed.
#[derive(Debug)]
pub(crate) struct Lease {
    map: Mutex<Option<Arc<Mmap>>>,
    mapped: Arc<AtomicU64>,
}

impl Lease {
    /// The map, made by the first who asks; the others wait for it rather than verify again.
    pub(crate) fn map(&self, make: impl FnOnce() -> Result<Arc<Mmap>>) -> Result<Arc<Mmap>> {
        let mut slot = locked(&self.map);
        if let Some(map) = &*slot {
            return Ok(Arc::clone(map));
        }
        let map = make()?;
        self.mapped.fetch_add(map.len() as u64, Ordering::Relaxed);
        *slot = Some(Arc::clone(&map));
        Ok(map)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(map) = locked(&self.map).take() {
            self.mapped.fetch_sub(map.len() as u64, Ordering::Relaxed);
        }
    }
}

/// A record whose packet is gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dead {
    pub(crate) id: PacketId,
    pub(crate) location: Location,
}

/// All leases of a store.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    registry: Mutex<Registry>,
    mapped: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Registry {
    held: HashMap<Location, Weak<Lease>>,
    verified: HashSet<Location>,
    dead: Vec<Dead>,
    /// Entries of readers that are gone are swept when there are more than this.
    sweep_at: usize,
}

impl Leases {
    /// Leases the record of the packet that `find` finds.
    pub(crate) fn take(
        &self,
        find: impl FnOnce() -> Result<Option<Manifest>>,
    ) -> Result<Option<(Manifest, Arc<Lease>)>> {
        let mut registry = locked(&self.registry);
        let Some(manifest) = find()? else {
            return Ok(None);
        };
        if let Some(lease) = registry
            .held
            .get(&manifest.location)
            .and_then(Weak::upgrade)
        {
            return Ok(Some((manifest, lease)));
        }
        if registry.held.len() >= registry.sweep_at {
            registry.held.retain(|_, lease| lease.strong_count() > 0);
            registry.sweep_at = registry.held.len().saturating_mul(2).max(1024);
        }
        let lease = Arc::new(Lease {
            map: Mutex::default(),
            mapped: Arc::clone(&self.mapped),
        });
        registry
            .held
            .insert(manifest.location, Arc::downgrade(&lease));
        Ok(Some((manifest, lease)))
    }

    /// Whether someone reads the record.
    pub(crate) fn is_leased(&self, location: &Location) -> bool {
        locked(&self.registry)
            .held
            .get(location)
            .is_some_and(|lease| lease.strong_count() > 0)
    }

    pub(crate) fn is_verified(&self, location: &Location) -> bool {
        locked(&self.registry).verified.contains(location)
    }

    pub(crate) fn set_verified(&self, location: Location) {
        locked(&self.registry).verified.insert(location);
    }

    /// Notes a record in which its packet does not live any more.
    pub(crate) fn bury(&self, dead: &Manifest) {
        let mut registry = locked(&self.registry);
        registry.verified.remove(&dead.location);
        registry.dead.push(Dead {
            id: dead.id,
            location: dead.location,
        });
    }

    /// Hands every dead record that nobody reads to `reclaim`; the others wait. No lease is taken meanwhile.
    pub(crate) fn reclaim(&self, mut reclaim: impl FnMut(&Dead)) {
        let mut registry = locked(&self.registry);
        let Registry { held, dead, .. } = &mut *registry;
        dead.retain(|dead| {
            let lease = held.get(&dead.location);
            let read = lease.is_some_and(|lease| lease.strong_count() > 0);
            if !read {
                held.remove(&dead.location);
                reclaim(dead);
            }
            read
        });
    }

    /// Removes an extent by `remove` unless someone who found a packet in it has yet to map it. Maps that are there
    /// already stay readable. No lease is taken meanwhile.
    pub(crate) fn retire(&self, extent: u64, remove: impl FnOnce() -> Result<()>) -> Result<bool> {
        let mut registry = locked(&self.registry);
        let waits = |lease: &Arc<Lease>| {
            let slot = lease.map.try_lock();
            slot.map_or(true, |map| map.is_none())
        };
        let mut leases = registry.held.iter();
        if leases.any(|(place, lease)| {
            place.extent == extent && lease.upgrade().is_some_and(|lease| waits(&lease))
        }) {
            return Ok(false);
        }
        remove()?;
        registry.verified.retain(|place| place.extent != extent);
        registry.dead.retain(|dead| dead.location.extent != extent);
        Ok(true)
    }

    /// Bytes of all maps that are alive.
    pub(crate) fn mapped_bytes(&self) -> u64 {
        self.mapped.load(Ordering::Relaxed)
    }
}

/// A poisoned lock means that a thread panicked in one of the short sections here; each leaves its data whole.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
