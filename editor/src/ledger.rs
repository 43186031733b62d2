//! The ledger's file: an append-only chain of frames. Owns bytes and their order; never knows what they say.
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
//! damage stops the start, for to go on would forget or alter facts that were acknowledged.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::digest::Canonical;
use crate::error::{Error, Result};

const FILE_NAME: &str = "facts.ledger";
const FILE_MAGIC: &[u8; 8] = b"ADDLEDGR";
const VERSION: u32 = 1;
const HEAD: usize = 16;
const FRAME_MAGIC: &[u8; 4] = b"FRM1";
const FRAME_HEAD: usize = 4 + 4 + 32;
// No text that a frame holds can contain it: texts are JSON, where line ends are escaped.
const MARK: &[u8; 16] = b"addenda-commit\r\n";

/// A frame as it was read.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) sequence: u64,
    pub(crate) digest: [u8; 32],
    pub(crate) content: Vec<u8>,
}

/// The open ledger; its end is known and durable.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    file: File,
    length: u64,
    frames: u64,
    head: [u8; 32],
    stuck: bool,
}

/// What was found in the file.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) ledger: Ledger,
    pub(crate) frames: Vec<Frame>,
    /// Bytes of a torn tail that were cut off.
    pub(crate) torn: u64,
}

impl Ledger {
    /// Opens or makes the ledger in `dir`, verifies its chain, and cuts a torn tail.
    pub(crate) fn open(dir: &Path) -> Result<Opened> {
        std::fs::create_dir_all(dir).map_err(Error::io("make the folder", dir))?;
        let path = dir.join(FILE_NAME);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open the ledger", &path))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(Error::io("read the ledger", &path))?;
        if bytes.len() < HEAD && file_head().starts_with(&bytes) {
            write_head(&mut file, &path, dir)?;
            bytes = file_head();
        }
        check_head(&bytes, &path)?;
        let chain = Chain::read(&bytes, &path)?;
        let mut ledger = Self {
            path,
            file,
            length: chain.end as u64,
            frames: chain.frames.len() as u64,
            head: chain.head,
            stuck: false,
        };
        let torn = bytes.len() - chain.end;
        if torn > 0 {
            ledger
                .cut_back()
                .map_err(Error::io("cut the torn tail of", &ledger.path))?;
        }
        if chain.unmarked {
            ledger
                .write(MARK)
                .map_err(Error::io("write to", &ledger.path))?;
            ledger.length += MARK.len() as u64;
        }
        Ok(Opened {
            ledger,
            frames: chain.frames,
            torn: torn as u64,
        })
    }

    /// Number of the last frame; 0 while there is none.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    /// Digest of the last frame: what the next one is chained to.
    pub(crate) fn head(&self) -> [u8; 32] {
        self.head
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a frame; it is durable when this returns. After an error nothing was appended.
    pub(crate) fn append(&mut self, content: &[u8]) -> Result<Frame> {
        if self.stuck {
            return Err(Error::LedgerStuck);
        }
        let sequence = self.frames + 1;
        let digest = frame_digest(sequence, &self.head, content);
        let length = u32::try_from(content.len()).map_err(|_| Error::Io {
            action: "write a frame of more than 4 GiB to",
            path: self.path.clone(),
            source: std::io::ErrorKind::FileTooLarge.into(),
        })?;
        let mut frame = Vec::with_capacity(FRAME_HEAD + content.len() + 32);
        frame.extend_from_slice(FRAME_MAGIC);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(&self.head);
        frame.extend_from_slice(content);
        frame.extend_from_slice(&digest);
        if let Err(source) = self.write(&frame).and_then(|()| self.write(MARK)) {
            self.stuck = self.cut_back().is_err();
            return Err(Error::Io {
                action: "write to the ledger",
                path: self.path.clone(),
                source,
            });
        }
        self.length += (frame.len() + MARK.len()) as u64;
        self.frames = sequence;
        self.head = digest;
        Ok(Frame {
            sequence,
            digest,
            content: content.to_vec(),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.seek(SeekFrom::End(0))?;
        self.file.write_all(bytes)?;
        self.file.sync_data()
    }

    fn cut_back(&mut self) -> std::io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.sync_all()
    }
}

/// Reads the ledger in `dir` and checks its chain, without changing it; gives the number of whole frames.
///
/// # Errors
/// When there is none, it cannot be read, or it is damaged.
pub fn inspect_ledger(dir: &Path) -> Result<u64> {
    let path = dir.join(FILE_NAME);
    let bytes = std::fs::read(&path).map_err(Error::io("read the ledger", &path))?;
    check_head(&bytes, &path)?;
    Ok(Chain::read(&bytes, &path)?.frames.len() as u64)
}

/// The frames of a file's bytes, from its head to the end of what is whole.
struct Chain {
    frames: Vec<Frame>,
    head: [u8; 32],
    end: usize,
    /// The last frame is whole, but the crash came before its mark.
    unmarked: bool,
}

impl Chain {
    fn read(bytes: &[u8], path: &Path) -> Result<Self> {
        let mut chain = Self {
            frames: Vec::new(),
            head: head_digest(),
            end: HEAD,
            unmarked: false,
        };
        while let Some(rest) = bytes.get(chain.end..).filter(|rest| !rest.is_empty()) {
            let sequence = chain.frames.len() as u64 + 1;
            let whole = whole_frame(rest, sequence, &chain.head);
            let marked = whole
                .as_ref()
                .and_then(|(_, size)| rest.get(*size..))
                .is_some_and(|behind| behind.starts_with(MARK));
            if !marked && rest.windows(MARK.len()).any(|window| window == MARK) {
                return Err(Error::DamagedLedger {
                    path: path.to_path_buf(),
                    frame: sequence,
                    offset: chain.end as u64,
                });
            }
            let Some((frame, size)) = whole else { break };
            chain.head = frame.digest;
            chain.frames.push(frame);
            chain.end += size;
            if !marked {
                chain.unmarked = true;
                break;
            }
            chain.end += MARK.len();
        }
        Ok(chain)
    }
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

fn file_head() -> Vec<u8> {
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

fn write_head(file: &mut File, path: &Path, dir: &Path) -> Result<()> {
    file.set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| file.write_all(&file_head()))
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write the ledger", path))?;
    // The name itself is durable only once the folder is.
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io("sync the folder", dir))
}

fn check_head(bytes: &[u8], path: &Path) -> Result<()> {
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

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a test may fail loudly"
    )]

    use std::path::Path;

    use super::{FILE_NAME, HEAD, Ledger, MARK, Opened};
    use crate::error::Error;

    fn ledger_of(dir: &Path, contents: &[&[u8]]) -> Vec<u64> {
        let mut ledger = Ledger::open(dir).unwrap().ledger;
        contents
            .iter()
            .map(|content| {
                ledger.append(content).unwrap();
                ledger.length
            })
            .collect()
    }

    fn contents(opened: &Opened) -> Vec<Vec<u8>> {
        opened
            .frames
            .iter()
            .map(|frame| frame.content.clone())
            .collect()
    }

    #[test]
    fn what_was_appended_is_read_again_in_order() {
        let dir = tempfile::tempdir().unwrap();
        ledger_of(dir.path(), &[b"one", b"two"]);
        ledger_of(dir.path(), &[b"three"]);
        let opened = Ledger::open(dir.path()).unwrap();
        assert_eq!(
            contents(&opened),
            [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]
        );
        assert_eq!((opened.torn, opened.ledger.frames()), (0, 3));
    }

    #[test]
    fn a_tail_torn_at_any_byte_leaves_the_last_frame_wholly_in_or_wholly_out() {
        let dir = tempfile::tempdir().unwrap();
        let ends = ledger_of(dir.path(), &[b"one", b"two"]);
        let path = dir.path().join(FILE_NAME);
        let bytes = std::fs::read(&path).unwrap();
        for cut in usize::try_from(ends[0]).unwrap()..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let mut opened = Ledger::open(dir.path()).unwrap();
            let whole = cut >= bytes.len() - MARK.len();
            assert_eq!(
                opened.frames.len(),
                if whole { 2 } else { 1 },
                "cut at {cut}"
            );
            opened.ledger.append(b"after").unwrap();
            let again = Ledger::open(dir.path()).unwrap();
            assert_eq!(
                (again.frames.len(), again.torn),
                (if whole { 3 } else { 2 }, 0),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_tail_of_garbage_that_was_never_acknowledged_is_cut_and_reported() {
        let dir = tempfile::tempdir().unwrap();
        ledger_of(dir.path(), &[b"one"]);
        let path = dir.path().join(FILE_NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(&[0; 300]);
        std::fs::write(&path, &bytes).unwrap();
        let opened = Ledger::open(dir.path()).unwrap();
        assert_eq!((opened.frames.len(), opened.torn), (1, 300));
    }

    #[test]
    fn a_flipped_bit_in_any_acknowledged_frame_stops_the_start_with_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let ends = ledger_of(dir.path(), &[b"one", b"two", b"three"]);
        let path = dir.path().join(FILE_NAME);
        let bytes = std::fs::read(&path).unwrap();
        let last_mark = bytes.len() - MARK.len();
        for at in HEAD..last_mark {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            let number = ends.iter().position(|end| (at as u64) < *end).unwrap() as u64 + 1;
            match Ledger::open(dir.path()).unwrap_err() {
                Error::DamagedLedger { frame, .. } => assert_eq!(frame, number, "byte {at}"),
                other => panic!("byte {at}: {other}"),
            }
            assert_eq!(
                std::fs::read(&path).unwrap(),
                damaged,
                "a damaged ledger is left as it is"
            );
        }
    }

    #[test]
    fn the_way_out_that_a_damaged_ledger_names_works() {
        let dir = tempfile::tempdir().unwrap();
        let ends = ledger_of(dir.path(), &[b"one", b"two", b"three"]);
        let path = dir.path().join(FILE_NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[usize::try_from(ends[0]).unwrap() + 45] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let Error::DamagedLedger {
            frame: 2, offset, ..
        } = Ledger::open(dir.path()).unwrap_err()
        else {
            panic!()
        };
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(offset)
            .unwrap();
        assert_eq!(
            contents(&Ledger::open(dir.path()).unwrap()),
            [b"one".to_vec()]
        );
    }

    #[test]
    fn a_file_that_is_no_ledger_or_a_newer_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        std::fs::write(&path, b"something else altogether").unwrap();
        assert!(
            Ledger::open(dir.path())
                .unwrap_err()
                .to_string()
                .contains("is no ledger")
        );
        std::fs::write(&path, b"ADDLEDGR\x07\0\0\0\0\0\0\0").unwrap();
        assert!(
            Ledger::open(dir.path())
                .unwrap_err()
                .to_string()
                .contains("version 7")
        );
    }
}
