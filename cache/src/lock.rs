//! One owner of a data directory at a time.
//!
//! Owns the LOCK file; never waits for it. Invariant: the lock is the kernel's (flock), so it goes with the process
//! that held it, however that ended; what the file says is only for people to read.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// A data directory that is ours until this is dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
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
        Ok(Self { _file: file })
    }
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
