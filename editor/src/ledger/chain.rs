//! The ledger's bytes: what a frame is, where it ends, and how the next one is chained to it. Owns no file.
//!
//! ```text
//! file   "ADDLEDGR"  version u32  0 u32  frame*
//! frame  "FRM1"  length u32  digest of the frame before [32]  content  digest [32]  mark [16]
//! ```
//!
//! All numbers are little-endian. The digest is BLAKE3 over the frame's number, the digest before and the
//! content; the first frame's digest before is that of the file's head. A frame is written and fsynced, and only
//! then gets its mark, which is fsynced too. Hence the one rule of reading: *bytes that are no whole frame are a
//! torn tail if no mark follows them, and damage if one does.* A torn tail was never acknowledged and is cut off;
//! damage stops the start, for to go on would forget or alter facts that were acknowledged. That holds for the frames
//! that a snapshot stands for as well: they are verified, and only not replayed.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest::{Canonical, as_hex};
use crate::error::{Error, Result};

const FILE_MAGIC: &[u8; 8] = b"ADDLEDGR";
const VERSION: u32 = 1;
/// Bytes of the file's head.
pub(super) const HEAD: usize = 16;
const FRAME_MAGIC: &[u8; 4] = b"FRM1";
const FRAME_HEAD: usize = 4 + 4 + 32;
/// Stands behind a frame that is durable. No text in a frame can hold it: texts are JSON, where line ends are escaped.
pub(super) const MARK: &[u8; 16] = b"addenda-commit\r\n";

/// A frame as it was read.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) sequence: u64,
    pub(crate) digest: [u8; 32],
    pub(crate) content: Vec<u8>,
}

/// A place between two frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Frames before it.
    pub(crate) frames: u64,
    /// Digest of the last of them.
    #[serde(with = "as_hex")]
    pub(crate) head: [u8; 32],
    /// Bytes before it.
    pub(crate) end: u64,
}

impl Place {
    /// Before the first frame.
    pub(super) fn start() -> Self {
        Self {
            frames: 0,
            head: head_digest(),
            end: HEAD as u64,
        }
    }
}

/// What was read of the chain so far.
pub(super) struct Chain {
    /// Frames up to here are verified and not kept.
    behind: Place,
    pub(super) frames: Vec<Frame>,
    pub(super) end: Place,
    /// The last frame is whole, but the crash came before its mark.
    pub(super) unmarked: bool,
}

impl Chain {
    pub(super) fn behind(place: Place) -> Self {
        Self {
            behind: place,
            frames: Vec::new(),
            end: Place::start(),
            unmarked: false,
        }
    }

    /// Goes on with the bytes behind its end, as far as whole frames go. `is_last`: the file has no more of them.
    pub(super) fn read(&mut self, bytes: &[u8], is_last: bool, path: &Path) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let sequence = self.end.frames + 1;
            let whole = whole_frame(rest, sequence, &self.end.head);
            let behind = whole.as_ref().and_then(|(_, size)| rest.get(*size..));
            let marked = behind.and_then(|behind| behind.strip_prefix(MARK));
            if marked.is_none() && !is_last {
                return Ok(());
            }
            if marked.is_none() && rest.windows(MARK.len()).any(|window| window == MARK) {
                return Err(Error::DamagedLedger {
                    path: path.to_path_buf(),
                    frame: sequence,
                    offset: self.end.end,
                });
            }
            let Some((frame, size)) = whole else { break };
            self.end = Place {
                frames: sequence,
                head: frame.digest,
                end: self.end.end + size as u64,
            };
            if sequence > self.behind.frames {
                self.frames.push(frame);
            }
            let Some(next) = marked else {
                self.unmarked = true;
                break;
            };
            self.end.end += MARK.len() as u64;
            rest = next;
        }
        Ok(())
    }
}

/// A frame without its mark, and its digest; none where the content is longer than 4 GiB.
pub(super) fn encode(
    sequence: u64,
    before: &[u8; 32],
    content: &[u8],
) -> Option<(Vec<u8>, [u8; 32])> {
    let length = u32::try_from(content.len()).ok()?;
    let digest = frame_digest(sequence, before, content);
    let mut frame = Vec::with_capacity(FRAME_HEAD + content.len() + digest.len());
    frame.extend_from_slice(FRAME_MAGIC);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(before);
    frame.extend_from_slice(content);
    frame.extend_from_slice(&digest);
    Some((frame, digest))
}

/// The frame that `bytes` begin with, and its size without the mark; none unless each byte of it fits.
fn whole_frame(bytes: &[u8], sequence: u64, before: &[u8; 32]) -> Option<(Frame, usize)> {
    let rest = bytes.strip_prefix(FRAME_MAGIC)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let rest = rest.strip_prefix(before)?;
    let (content, rest) = rest.split_at_checked(length)?;
    let digest = frame_digest(sequence, before, content);
    rest.starts_with(&digest).then(|| {
        (
            Frame {
                sequence,
                digest,
                content: content.to_vec(),
            },
            FRAME_HEAD + length + 32,
        )
    })
}

fn frame_digest(sequence: u64, before: &[u8; 32], content: &[u8]) -> [u8; 32] {
    let mut canonical = Canonical::new("addenda 2026-01 ledger frame");
    canonical.number(sequence).bytes(before).bytes(content);
    canonical.finish()
}

pub(super) fn file_head() -> Vec<u8> {
    let mut head = FILE_MAGIC.to_vec();
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&[0; 4]);
    head
}

fn head_digest() -> [u8; 32] {
    let mut canonical = Canonical::new("addenda 2026-01 ledger head");
    canonical.bytes(&file_head());
    canonical.finish()
}

pub(super) fn check_head(bytes: &[u8], path: &Path) -> Result<()> {
    let not = |problem: String| {
        Err(Error::NotALedger {
            path: path.to_path_buf(),
            problem,
        })
    };
    let Some((version, rest)) = bytes
        .strip_prefix(FILE_MAGIC)
        .and_then(<[u8]>::split_first_chunk::<4>)
    else {
        return not(
            "is no ledger: its first bytes are other than `ADDLEDGR`; restore it from a backup"
                .to_owned(),
        );
    };
    match u32::from_le_bytes(*version) {
        VERSION if rest.starts_with(&[0; 4]) => Ok(()),
        VERSION => not(
            "has a damaged head: bytes 12 to 15 are not zero; restore it from a backup".to_owned(),
        ),
        newer => not(format!(
            "is a ledger of version {newer}, and this program knows version {VERSION}: use a newer program"
        )),
    }
}
