//! How far the index has followed the extents, durably.
//!
//! Owns the checkpoint and its encoding. Invariant: it is written only after the index was flushed with all that
//! lies before it, so replaying from it on always leads to the present.

use super::Index;
use crate::canonical::{Decoder, Encoder, Malformed};
use crate::error::{Error, Result};

const CHECKPOINT_VERSION: u16 = 1;
const KEY: &[u8] = b"c";

/// A place between two records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Number and salt of the extent; an extent of the same number and another salt is another store's.
    pub(crate) extent: u64,
    pub(crate) salt: [u8; 32],
    /// Offset behind the last record that the index has.
    pub(crate) offset: u64,
    pub(crate) next_sequence: u64,
}

impl Checkpoint {
    pub(crate) fn encode(&self) -> Vec<u8> {
        Encoder::new()
            .u16(CHECKPOINT_VERSION)
            .u64(self.extent)
            .bytes(&self.salt)
            .u64(self.offset)
            .u64(self.next_sequence)
            .finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> std::result::Result<Self, Malformed> {
        let mut decoder = Decoder::new(bytes);
        if decoder.u16("checkpoint version")? != CHECKPOINT_VERSION {
            return Err(Malformed("checkpoint version"));
        }
        let checkpoint = Self {
            extent: decoder.u64("extent")?,
            salt: decoder.array("salt")?,
            offset: decoder.u64("offset")?,
            next_sequence: decoder.u64("next sequence")?,
        };
        decoder.finish()?;
        Ok(checkpoint)
    }
}

impl Index {
    pub(crate) fn checkpoint(&self) -> Result<Option<Checkpoint>> {
        let Some(value) = self.db.get(KEY)? else {
            return Ok(None);
        };
        Checkpoint::decode(&value)
            .map(Some)
            .map_err(|_| Error::IndexValue {
                what: "a checkpoint",
            })
    }

    /// Flushes, then notes that all before `checkpoint` is in the index.
    pub(crate) fn set_checkpoint(&self, checkpoint: &Checkpoint) -> Result<()> {
        self.flush()?;
        self.db.insert(KEY, checkpoint.encode())?;
        Ok(())
    }
}
