//! What stands between Addenda and its disk: nothing, or faults that a test or a drill asked for.
//!
//! The packet store and the facts' ledger go through here, so that both meet a failing disk in the code that serves.
//! Owns the points at which a disk can fail, and the plan of when it does. Never knows what a file holds: whoever is
//! about to touch one asks here first, in the one code there is. Invariant: without a plan nothing is changed and
//! nothing is counted.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A kind of operation on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IoPoint {
    /// A new file.
    Create,
    /// Bytes at the end of a file.
    Write,
    /// What was written, to the disk.
    Sync,
    /// The name of a new or removed file, to the disk.
    SyncDirectory,
    /// Bytes that were not to be.
    Cut,
    /// Dead bytes, back to the file system.
    Punch,
    /// Bytes of a record, or pages of a body.
    Read,
    /// A body into memory.
    Map,
    /// A file that is needed no more.
    Remove,
}

impl IoPoint {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Create,
        Self::Write,
        Self::Sync,
        Self::SyncDirectory,
        Self::Cut,
        Self::Punch,
        Self::Read,
        Self::Map,
        Self::Remove,
    ];
}

/// What a disk does where it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// ENOSPC.
    Full,
    /// EIO.
    Broken,
    /// Half of the bytes come to the file, then ENOSPC. Where no bytes are written, the same as [`Fault::Full`].
    Short,
    /// It works, after so long.
    Slow(Duration),
}

/// A plan of faults, shared by all who were given the same [`Disk`].
#[derive(Debug, Default)]
pub struct Faults {
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    /// Point, operations of it that still work, fault, and how many fail then.
    armed: Option<(IoPoint, u64, Fault, u64)>,
    struck: u64,
}

impl Faults {
    /// From the operation of this kind behind the next `after` on, `times` of them meet the fault.
    pub fn arm(&self, point: IoPoint, after: u64, fault: Fault, times: u64) {
        let mut plan = self.plan();
        plan.armed = Some((point, after, fault, times));
        plan.struck = 0;
    }

    /// Ends all faults; gives how many operations met one.
    pub fn disarm(&self) -> u64 {
        let mut plan = self.plan();
        plan.armed = None;
        std::mem::take(&mut plan.struck)
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self, point: IoPoint) -> Option<Fault> {
        let mut plan = self.plan();
        let (at, after, fault, times) = plan.armed.as_mut()?;
        if *at != point || *times == 0 {
            return None;
        }
        if *after > 0 {
            *after -= 1;
            return None;
        }
        *times -= 1;
        let fault = *fault;
        plan.struck += 1;
        Some(fault)
    }
}

/// The way to the disk.
#[derive(Debug, Clone, Default)]
pub struct Disk(Option<Arc<Faults>>);

impl Disk {
    /// A disk that fails as planned.
    #[must_use]
    pub fn with(faults: Arc<Faults>) -> Self {
        Self(Some(faults))
    }

    /// To be asked before an operation.
    ///
    /// # Errors
    /// The fault that is due.
    pub fn step(&self, point: IoPoint) -> io::Result<()> {
        self.write(point, 0).map(drop)
    }

    /// Writes `bytes` by `write`, or the part of them that comes to the file before the disk fails.
    ///
    /// # Errors
    /// The fault that is due, or what `write` meets.
    pub fn write_all(
        &self,
        bytes: &[u8],
        write: impl FnOnce(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(part) = self.write(IoPoint::Write, bytes.len())? else {
            return write(bytes);
        };
        let (part, _) = bytes.split_at_checked(part).unwrap_or_default();
        write(part)?;
        Err(full())
    }

    /// Makes the creation, removal and renaming of a folder's files durable.
    ///
    /// # Errors
    /// The fault that is due, or the folder's own.
    pub fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.step(IoPoint::SyncDirectory)?;
        File::open(directory)?.sync_all()
    }

    /// How many of `length` bytes to write before the disk fails, where it does.
    fn write(&self, point: IoPoint, length: usize) -> io::Result<Option<usize>> {
        let Some(fault) = self.0.as_ref().and_then(|faults| faults.next(point)) else {
            return Ok(None);
        };
        match fault {
            Fault::Slow(pause) => {
                // The slow disk itself, not a wait for something.
                std::thread::sleep(pause);
                Ok(None)
            }
            Fault::Short if length > 1 => Ok(Some(length / 2)),
            Fault::Full | Fault::Short => Err(full()),
            Fault::Broken => Err(rustix::io::Errno::IO.into()),
        }
    }
}

/// ENOSPC.
fn full() -> io::Error {
    rustix::io::Errno::NOSPC.into()
}
