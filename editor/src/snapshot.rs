//! The snapshot: what the ledger's first frames add up to, so that a start does not replay years of them.
//!
//! ```text
//! "ADDSNAPS"  version u32  0 u32  BLAKE3 of what follows [32]  JSON length u64  JSON  z of the active edits as f32
//! ```
//!
//! All numbers are little-endian. Owns the file and its encoding; never touches the ledger. Invariant: it is never the
//! only copy of anything. One that is missing, damaged, of another version or another ledger costs a full replay.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use addenda_disk::{Disk, IoPoint};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ledger::{Ledger, Place, sync_directory};
use crate::register::{Register, Saved};

const FILE_NAME: &str = "facts.snapshot";
const NEW_NAME: &str = "facts.snapshot.new";
const MAGIC: &[u8; 8] = b"ADDSNAPS";
const VERSION: u32 = 1;
pub(crate) const CONTEXT: &str = "addenda 2026-11 ledger snapshot";

/// What the frames before `place` add up to.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) place: Place,
    pub(crate) register: Register,
}

#[derive(Serialize, Deserialize)]
struct Content {
    place: Place,
    register: Saved,
    /// Length of each edit's z, in the register's order.
    widths: Vec<usize>,
}

impl Snapshot {
    /// The snapshot in `dir` for these base weights; none where there is none that can be used, and then why.
    pub(crate) fn read(dir: &Path, base: [u8; 32], disk: &Disk) -> Option<Self> {
        let path = dir.join(FILE_NAME);
        let read = || {
            disk.step(IoPoint::Read)?;
            std::fs::read(&path)
        };
        let bytes = match read() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the ledger is replayed in full: its snapshot cannot be read");
                return None;
            }
        };
        match Self::decode(&bytes, base) {
            Ok(snapshot) => Some(snapshot),
            Err(problem) => {
                tracing::warn!(path = %path.display(), problem, "the ledger is replayed in full: its snapshot cannot be used");
                None
            }
        }
    }

    /// Writes a snapshot in the place of the one before; durable, wholly, when this returns. On an error the one
    /// before is still there.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn write(dir: &Path, place: Place, register: &Register, disk: &Disk) -> Result<()> {
        let bytes = Self::encode(place, register).map_err(|problem| {
            Error::io("encode", &dir.join(NEW_NAME))(std::io::Error::other(problem))
        })?;
        let (new, path): (PathBuf, PathBuf) = (dir.join(NEW_NAME), dir.join(FILE_NAME));
        let write = || {
            disk.step(IoPoint::Create)?;
            let mut file = File::create(&new)?;
            disk.write_all(&bytes, |bytes| file.write_all(bytes))?;
            disk.step(IoPoint::Sync)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)
        };
        write().map_err(Error::io("write the ledger's snapshot", &path))?;
        sync_directory(dir, disk)
    }

    pub(crate) fn encode(
        place: Place,
        register: &Register,
    ) -> std::result::Result<Vec<u8>, String> {
        let (saved, values) = register.save();
        let content = Content {
            place,
            register: saved,
            widths: values.iter().map(Vec::len).collect(),
        };
        let json = serde_json::to_vec(&content).map_err(|error| error.to_string())?;
        let mut body = (json.len() as u64).to_le_bytes().to_vec();
        body.extend_from_slice(&json);
        for value in values.iter().flatten() {
            body.extend_from_slice(&value.to_le_bytes());
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&blake3::derive_key(CONTEXT, &body));
        bytes.extend_from_slice(&body);
        Ok(bytes)
    }

    /// The reverse of [`Self::encode`]; the error says why it is none.
    pub(crate) fn decode(bytes: &[u8], base: [u8; 32]) -> std::result::Result<Self, String> {
        let short = || "it ends too early".to_owned();
        let rest = bytes
            .strip_prefix(MAGIC)
            .ok_or("its first bytes are other than `ADDSNAPS`")?;
        let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(format!(
                "its version is {version}, and this program knows {VERSION}"
            ));
        }
        let rest = rest
            .strip_prefix(&[0; 4])
            .ok_or("bytes 12 to 15 are not zero")?;
        let (digest, body) = rest.split_first_chunk::<32>().ok_or_else(short)?;
        if blake3::derive_key(CONTEXT, body) != *digest {
            return Err("its bytes do not match their digest".to_owned());
        }
        let (length, rest) = body.split_first_chunk::<8>().ok_or_else(short)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| short())?;
        let (json, values) = rest.split_at_checked(length).ok_or_else(short)?;
        let content: Content = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let (numbers, []) = values.as_chunks::<4>() else {
            return Err("its numbers are cut".to_owned());
        };
        let mut numbers = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let mut values = Vec::new();
        for width in &content.widths {
            if *width > numbers.len() {
                return Err(short());
            }
            values.push(numbers.by_ref().take(*width).collect());
        }
        if numbers.len() > 0 {
            return Err("it has bytes behind its end".to_owned());
        }
        let register = Register::restore(base, content.register, values)?;
        Ok(Self {
            place: content.place,
            register,
        })
    }
}

/// Where and when snapshots of the ledger are written.
#[derive(Debug)]
pub(crate) struct Snapshots {
    pub(crate) dir: PathBuf,
    pub(crate) disk: Disk,
    /// Frames behind the last one after which the next is due.
    pub(crate) every: u64,
    /// Frames that the last one stands for.
    pub(crate) last: u64,
}

impl Snapshots {
    /// Writes one where it is due. A failure costs the next start time, and nothing else.
    pub(crate) fn keep(&mut self, ledger: &Ledger, register: &Register) {
        let end = ledger.end();
        if end.frames < self.last.saturating_add(self.every) {
            return;
        }
        self.last = end.frames;
        if let Err(error) = Snapshot::write(&self.dir, end, register, &self.disk) {
            tracing::warn!(%error, "no snapshot of the ledger was written; the next start replays more of it");
        }
    }
}
