//! What can go wrong in the store, each with the sentence that an administrator reads.
//!
//! Owns the crate's one error enum; never decides what to do about an error.

use std::io;
use std::path::{Path, PathBuf};

use crate::id::PacketId;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot {doing} {}: {source}; check the disk, its free space and the directory's permissions", path.display())]
    Io {
        /// What was tried: "write", "sync", "open" …
        doing: &'static str,
        /// The file or directory it was tried on.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// sled failed while the store was running.
    #[error(
        "the index failed: {0}; no packet is lost: restart, and if it stays, run `addenda store rebuild`"
    )]
    Index(#[from] sled::Error),
    /// A value in the index does not decode.
    #[error(
        "the index holds {what} that does not decode; no packet is lost: run `addenda store rebuild`"
    )]
    IndexValue {
        /// Which kind of value.
        what: &'static str,
    },
    /// Another process has this data directory open.
    #[error("{} is in use by process {pid} on {host}; stop that one first, or give this one another data directory", dir.display())]
    Locked {
        /// The data directory.
        dir: PathBuf,
        /// The owner's process id, "unknown" where its LOCK file does not say.
        pid: String,
        /// The owner's host name, "unknown" where its LOCK file does not say.
        host: String,
    },
    /// No live packet has this id.
    #[error("there is no packet {id}; it was never stored, or it was deleted, evicted or replaced")]
    NotFound {
        /// The id that was asked for.
        id: PacketId,
    },
    /// What lies on disk is not what was stored. The record is quarantined and its key is a miss from now on.
    #[error(
        "packet {id} is damaged on disk ({what}); it is quarantined and will be computed anew; check the disk's health"
    )]
    Damaged {
        /// The damaged packet.
        id: PacketId,
        /// What did not match.
        what: &'static str,
    },
    /// The store may not grow by so much, and what may be evicted would not make enough room.
    #[error(
        "the packet store is full: {needed} bytes are needed, {used} of at most {limit} are in use, and only {evictable} can be evicted (the rest is pinned, being read or not reclaimable); unpin or delete packets, or raise the limit"
    )]
    Budget {
        /// Bytes that the refused write takes on disk.
        needed: u64,
        /// Bytes on disk now.
        used: u64,
        /// Bytes on disk at most.
        limit: u64,
        /// Bytes that eviction could give back.
        evictable: u64,
    },
    /// A namespace may not take so much, and what may be evicted of its own would not make enough room.
    #[error(
        "namespace {namespace} is full: {needed} bytes are needed, {used} of at most {limit} are in use, and only {evictable} can be evicted (the rest is pinned or being read); unpin or delete packets of it, or raise the limit of a namespace"
    )]
    Quota {
        /// Whose packets.
        namespace: String,
        /// Bytes that the refused write takes.
        needed: u64,
        /// Bytes of its packets now.
        used: u64,
        /// Bytes of its packets at most.
        limit: u64,
        /// Bytes that eviction of its own packets could give back.
        evictable: u64,
    },
    /// The disk is full.
    #[error(
        "the disk is full: {needed} bytes are needed and {free} are free; free some disk space, or delete packets: what is stored is still served"
    )]
    DiskFull {
        /// Bytes that the failed write takes on disk.
        needed: u64,
        /// Bytes free on the file system now.
        free: u64,
    },
    /// Writing would leave less free disk than the configured floor.
    #[error(
        "the disk is too full: {needed} bytes are needed and {free} are free, of which {floor} must stay free; free some disk space, or lower the floor"
    )]
    DiskFloor {
        /// Bytes that the refused write takes on disk.
        needed: u64,
        /// Bytes free on the file system now.
        free: u64,
        /// Bytes that must stay free.
        floor: u64,
    },
    /// The caller passed something that the store does not take.
    #[error("{field} {what}")]
    Invalid {
        /// The field at fault.
        field: &'static str,
        /// What it must be.
        what: String,
    },
    /// A file was written by a newer version of Addenda.
    #[error("{} has format version {found}, and this version of Addenda knows formats up to {known}; use the newer Addenda that wrote it", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
}

impl Error {
    /// Wraps an I/O error with what was tried and where.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }

    /// The same error for another who meets it.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Io {
                doing,
                path,
                source,
            } => Self::Io {
                doing,
                path: path.clone(),
                source: source.raw_os_error().map_or_else(
                    || io::Error::new(source.kind(), source.to_string()),
                    io::Error::from_raw_os_error,
                ),
            },
            Self::Index(error) => Self::Index(error.clone()),
            Self::DiskFull { needed, free } => Self::DiskFull {
                needed: *needed,
                free: *free,
            },
            other => Self::Io {
                doing: "write to",
                path: PathBuf::from("the store"),
                source: io::Error::other(other.to_string()),
            },
        }
    }

    pub(crate) fn invalid(field: &'static str, what: impl Into<String>) -> Self {
        Self::Invalid {
            field,
            what: what.into(),
        }
    }
}
