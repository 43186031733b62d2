//! One owner of a data directory at a time.
//!
//! Owns the LOCK file, and never waits for it. Invariant: the lock is the kernel's (flock), so it goes with the process
//! that held it, however that ended; what the file says is only for people to read.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result};

/// A data directory that is ours until this is dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    file: File,
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Closing would do, were it not for a child that another thread is just starting: until its exec it holds a
        // copy of the descriptor, and with it the lock. Unlocking takes it from all copies.
        let _ = self.file.unlock();
    }
}

impl DirectoryLock {
    /// Takes the directory, which must exist, or says who has it.
    pub fn acquire(directory: &Path) -> Result<Self> {
        let path = directory.join("LOCK");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(refusal(directory, &mut file)),
            Err(TryLockError::Error(source)) => return Err(Error::io("lock", &path)(source)),
        }
        let owner = format!("{} {}\n", std::process::id(), host());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(owner.as_bytes()))
            .map_err(Error::io("write", &path))?;
        Ok(Self { file })
    }
}

/// How often, and for how long each time, a file is looked at that should be free any moment.
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(5);

/// Waits, a second at most, until nobody holds this file: sled does not unlock, so a child that was just being
/// started when an index was closed holds sled's lock until its exec. A missing file is free.
pub(crate) fn wait_until_free(path: &Path) -> Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    for _ in 0..TRIES {
        match file.try_lock() {
            Ok(()) => return file.unlock().map_err(Error::io("unlock", path)),
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            Err(TryLockError::Error(source)) => return Err(Error::io("lock", path)(source)),
        }
    }
    let unknown = || "unknown".to_owned();
    Err(Error::Locked {
        dir: path.to_path_buf(),
        pid: unknown(),
        host: unknown(),
    })
}

fn refusal(directory: &Path, file: &mut File) -> Error {
    let mut owner = String::new();
    // What can't be read is unknown; that it is locked is what counts.
    let _ = Read::take(file, 1024).read_to_string(&mut owner);
    let mut words = owner.split_whitespace().map(str::to_owned);
    let mut word = || words.next().unwrap_or_else(|| "unknown".to_owned());
    Error::Locked {
        dir: directory.to_path_buf(),
        pid: word(),
        host: word(),
    }
}

fn host() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}
