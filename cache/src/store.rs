//! The store: packets under their key and id, shared by all threads.
//!
//! Owns the order of things: durable in an extent first, then in the index, then visible; dead in both before its
//! bytes are given back. Knows no file's layout and no key of the index. Invariants: one writer at a time, and many that wait for one sync; readers
//! never wait for a write to reach the disk; what is acknowledged survives a crash; what is not is never visible in
//! part.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::budget::{Limits, Usage};
use crate::error::{Error, Result};
use crate::event::Gone;
use crate::extent::{Extents, Tail};
use crate::index::{Checkpoint, Index};
use crate::lease::{Leases, locked};
use crate::lock::DirectoryLock;
use crate::payload::Hands;
use crate::recover::{RecoverProgress, Recovered, Recovery, recover};
use addenda_disk::Disk;

mod compact;
mod group;
mod read;
mod remove;
mod write;

use group::{Claims, Group};

pub use compact::{CompactProgress, CompactReport, Effort};
pub use read::Miss;
pub use remove::Removed;
pub use write::Put;

/// Bytes that packets leave free in any case: sled reads nothing any more once it could not write, so a disk must
/// be full for packets before it is full for the index.
pub const INDEX_ROOM: u64 = 4 << 20;

/// How a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreOptions {
    /// Bytes that all packets may take on disk; none: as many as the floor allows.
    pub max_bytes: Option<u64>,
    /// Bytes that the packets of one namespace may take; none: as many as there are.
    pub max_namespace_bytes: Option<u64>,
    /// Bytes of the file system that are never used; [`INDEX_ROOM`] at least.
    pub free_floor: u64,
    /// Size at which the next extent begins. A larger packet has one of its own.
    pub extent_bytes: u64,
    /// Memory for the index's cache, bytes.
    pub index_cache_bytes: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            max_bytes: None,
            max_namespace_bytes: None,
            free_floor: 1 << 30,
            extent_bytes: 1 << 30,
            index_cache_bytes: 64 << 20,
        }
    }
}

/// Figures of a store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Live packets.
    pub packets: u64,
    /// Of these, pinned ones.
    pub pinned: u64,
    /// Bytes that live packets take.
    pub live_bytes: u64,
    /// Bytes of all extents, dead records included, holes not.
    pub disk_bytes: u64,
    /// Bytes that the store may take; none: no limit.
    pub max_bytes: Option<u64>,
    /// Bytes free on the file system.
    pub free_bytes: u64,
    /// Bytes of the file system that are never used.
    pub free_floor: u64,
    /// Look-ups by key since the start that found a packet.
    pub hits: u64,
    /// Look-ups by key since the start that found none.
    pub misses: u64,
    /// Packets evicted since the start.
    pub evicted: u64,
    /// Keys whose packet was damaged and has not been put again.
    pub quarantined: u64,
    /// Bytes of packets that are held in memory maps.
    pub mapped_bytes: u64,
    /// Extent files.
    pub extents: u64,
}

/// The packet store of one data directory.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    limits: Limits,
    extents: Extents,
    index: Index,
    leases: Leases,
    hands: Hands,
    usage: Mutex<Usage>,
    writer: Mutex<Writer>,
    /// Told when a group of records was synced, or its sync failed.
    flushed: Condvar,
    /// Held by the one compaction that runs.
    compacting: Mutex<()>,
    can_punch: AtomicBool,
    hits: AtomicU64,
    misses: AtomicU64,
    recovery: Recovery,
    // Last, so that the directory is ours until everything else is closed.
    _lock: DirectoryLock,
}

/// What only the one who writes may touch.
#[derive(Debug)]
struct Writer {
    tail: Tail,
    /// What is written and waits for its sync, and what the sync that runs will change.
    group: Option<Group>,
    flushing: Option<Claims>,
    /// How many wait until nothing waits for a sync.
    settling: u32,
    records_since_checkpoint: u64,
    bytes_since_checkpoint: u64,
    /// The index missed an event that the extents have; it is replayed at the next open, so the checkpoint stays.
    index_is_behind: bool,
}

/// After so many records, or bytes, the index is flushed, so that an open replays no more than that.
const CHECKPOINT_RECORDS: u64 = 512;
const CHECKPOINT_BYTES: u64 = 256 << 20;

impl Store {
    /// Opens the store of a data directory, which is made where it is missing.
    pub fn open(directory: &Path, options: StoreOptions) -> Result<Self> {
        Self::open_with(directory, options, &mut |_| {})
    }

    /// Like [`Store::open`], and reports while records are replayed.
    pub fn open_with(
        directory: &Path,
        options: StoreOptions,
        progress: &mut dyn FnMut(&RecoverProgress),
    ) -> Result<Self> {
        Self::start(directory, (options, Disk::default()), None, progress)
    }

    /// Like [`Store::open`], on a disk that may have faults: the same code, for tests and drills.
    pub fn open_on(directory: &Path, options: StoreOptions, disk: Disk) -> Result<Self> {
        Self::start(directory, (options, disk), None, &mut |_| {})
    }

    /// Opens the store and makes its index anew from the extents, verifying every packet.
    pub fn rebuild(
        directory: &Path,
        options: StoreOptions,
        progress: &mut dyn FnMut(&RecoverProgress),
    ) -> Result<Self> {
        Self::start(
            directory,
            (options, Disk::default()),
            Some("it was asked for".to_owned()),
            progress,
        )
    }

    fn start(
        directory: &Path,
        (options, disk): (StoreOptions, Disk),
        anew: Option<String>,
        progress: &mut dyn FnMut(&RecoverProgress),
    ) -> Result<Self> {
        std::fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
        let lock = DirectoryLock::acquire(directory)?;
        let Recovered {
            extents,
            index,
            leases,
            hands,
            usage,
            tail,
            report,
            suspects,
        } = recover(directory, (&options, &disk), anew, progress)?;
        let store = Self {
            directory: directory.to_path_buf(),
            limits: Limits {
                max_bytes: options.max_bytes,
                max_namespace_bytes: options.max_namespace_bytes,
                free_floor: options.free_floor.max(INDEX_ROOM),
            },
            usage: Mutex::new(usage),
            extents,
            index,
            leases,
            hands,
            writer: Mutex::new(Writer {
                tail,
                group: None,
                flushing: None,
                settling: 0,
                records_since_checkpoint: report.records,
                bytes_since_checkpoint: 0,
                index_is_behind: false,
            }),
            flushed: Condvar::new(),
            compacting: Mutex::default(),
            can_punch: AtomicBool::new(true),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            recovery: report,
            _lock: lock,
        };
        for (id, key) in suspects {
            store.quarantine(id, key)?;
        }
        store.reclaim();
        locked(&store.usage).set_disk_bytes(store.extents.allocated()?);
        store.checkpoint_if(&mut store.settled(), 1)?;
        Ok(store)
    }

    /// Looks at the index while nothing changes it.
    pub(crate) fn at_rest<T>(&self, look: impl FnOnce(&Index) -> Result<T>) -> Result<T> {
        let _writer = self.settled();
        look(&self.index)
    }

    /// What opening this store took.
    #[must_use]
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// The data directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The store's figures.
    pub fn stats(&self) -> Result<Stats> {
        let pinned = self.index.count_pinned()?;
        let quarantined = self.index.count_graves(Gone::Quarantined)?;
        let free_bytes = crate::file::free_bytes(&self.directory)?;
        let usage = locked(&self.usage);
        Ok(Stats {
            packets: usage.packets(),
            pinned,
            live_bytes: usage.live_bytes(),
            disk_bytes: usage.disk_bytes(),
            max_bytes: self.limits.max_bytes,
            free_bytes,
            free_floor: self.limits.free_floor,
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            evicted: usage.evicted(),
            quarantined,
            mapped_bytes: self.leases.mapped_bytes(),
            extents: self.extents.all().len() as u64,
        })
    }

    /// Live packets that were made under this weights revision.
    #[must_use]
    pub fn packets_of_revision(&self, revision: &[u8; 32]) -> u64 {
        locked(&self.usage).packets_of_revision(revision)
    }

    /// Makes the index durable as it is, so that the next open replays nothing.
    pub fn checkpoint(&self) -> Result<()> {
        self.checkpoint_if(&mut self.settled(), 0)
    }

    /// Checkpoints where at least so many records came since the last one.
    fn checkpoint_if(&self, writer: &mut Writer, records: u64) -> Result<()> {
        let due = writer.records_since_checkpoint >= records;
        let Some((file, offset)) = writer.tail.active.as_ref().filter(|_| due) else {
            return Ok(());
        };
        if writer.index_is_behind {
            return Ok(());
        }
        // What waits for its sync is behind the checkpoint.
        let end = (*offset, writer.tail.next_sequence);
        let (offset, next_sequence) = writer.group.as_ref().map_or(end, Group::start);
        let uses = locked(&self.usage).take_dirty();
        self.index.note_uses(&uses)?;
        self.index.set_checkpoint(&Checkpoint {
            extent: file.number(),
            salt: *file.salt(),
            offset,
            next_sequence,
        })?;
        writer.records_since_checkpoint = 0;
        writer.bytes_since_checkpoint = 0;
        Ok(())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Nothing is lost where this fails: the next open replays what the index lacks.
        if let Err(error) = self.checkpoint().and_then(|()| self.index.flush()) {
            tracing::warn!(%error, "the index could not be flushed; the next start replays the last records");
        }
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
