//! The content-addressed packet store of Addenda.
//!
//! Bodies lie in append-only extents, memory-mapped when they are read; an index in sled says where. The extents are
//! the truth: each record in them is self-describing, and the index can be made anew from them at any time. This
//! crate knows bytes; what they mean to a model is others' concern, and so is the network.
//!
//! A data directory is Addenda's alone: bodies are mapped into memory, so another program that cuts an extent
//! ends the process that reads it, and one that writes to it changes what is read. Reading and copying are harmless.
//!
//! Start with [`Store`]. A packet has a [`PacketKey`], known before anything is computed, and a [`PacketId`], the
//! digest of what it is.

mod backup;
mod budget;
mod canonical;
mod document;
mod error;
mod event;
mod extent;
mod file;
#[cfg(test)]
mod fuzz;
mod id;
mod index;
mod lease;
mod lock;
mod manifest;
mod packet;
mod payload;
mod record;
mod recover;
mod scan;
mod scrub;
mod store;
mod verify;

pub use addenda_disk::{Disk, Fault, Faults, IoPoint};
pub use backup::{BackupPart, BackupReport};
pub use document::{Document, Edition};
pub use error::{Error, Result};
pub use event::Gone;
pub use id::{FORMAT, KeyFields, PacketId, PacketKey, ParseDigestError, token_bytes};
pub use lease::Body;
pub use lock::DirectoryLock;
pub use manifest::{Location, Manifest};
pub use packet::{MAX_DOCUMENT, MAX_DTYPE, MAX_NAMESPACE, MAX_ROPE, PacketHeader};
pub use recover::{RecoverProgress, Recovery};
pub use scrub::{ScrubState, Scrubbed};
pub use store::{
    CompactProgress, CompactReport, Effort, INDEX_ROOM, Miss, Put, Removed, Stats, Store,
    StoreOptions,
};
pub use verify::{DamagedPacket, VerifyProgress, VerifyReport};
