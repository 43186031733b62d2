//! What stands between Addenda and its disk: nothing, or faults that a test or a drill asked for.
//!
//! The packet store and the facts' ledger go through here, so that both meet a failing disk in the code that serves.
//! Owns the points at which a disk can fail, and the plan of when it does. Never touches a file: whoever is about to
//! asks here first, in the one code there is. Invariant: without a plan nothing is changed and nothing is counted.

use std::io;
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

    /// To be asked before `length` bytes are written: how many of them to write before it fails, where it does.
    ///
    /// # Errors
    /// The fault that is due, where no byte is to be written.
    pub fn write(&self, point: IoPoint, length: usize) -> io::Result<Option<usize>> {
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
#[must_use]
pub fn full() -> io::Error {
    rustix::io::Errno::NOSPC.into()
}
