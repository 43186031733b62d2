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
//! damage stops the start, for to go on would forget or alter facts that were acknowledged. That holds for the frames
//! that a snapshot stands for as well: they are verified, and only not replayed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use addenda_disk::{Disk, IoPoint};
use serde::{Deserialize, Serialize};

use crate::digest::{Canonical, as_hex};
use crate::error::{Error, Result};

const FILE_NAME: &str = "facts.ledger";
const FILE_MAGIC: &[u8; 8] = b"ADDLEDGR";
const VERSION: u32 = 1;
const HEAD: usize = 16;
const FRAME_MAGIC: &[u8; 4] = b"FRM1";
const FRAME_HEAD: usize = 4 + 4 + 32;
/// Read at once.
const STRETCH: usize = 16 << 20;
// No text that a frame holds can contain it: texts are JSON, where line ends are escaped.
const MARK: &[u8; 16] = b"addenda-commit\r\n";

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
    fn start() -> Self {
        Self {
            frames: 0,
            head: head_digest(),
            end: HEAD as u64,
        }
    }
}

/// The open ledger; its end is known and durable.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    file: File,
    disk: Disk,
    end: Place,
    stuck: bool,
}

/// What was found in the file.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) ledger: Ledger,
    /// The frames behind `from`.
    pub(crate) frames: Vec<Frame>,
    /// Where reading began: at the place that was asked for, or at the first frame where the file does not hold it.
    pub(crate) from: Place,
    /// Bytes of a torn tail that were cut off.
    pub(crate) torn: u64,
}

impl Ledger {
    /// Opens or makes the ledger in `dir`, verifies its whole chain, and cuts a torn tail. The frames before `from`
    /// are verified like the others, and not kept.
    pub(crate) fn open(dir: &Path, disk: &Disk, from: Option<Place>) -> Result<Opened> {
        std::fs::create_dir_all(dir).map_err(Error::io("make the folder", dir))?;
        let path = dir.join(FILE_NAME);
        let open = || {
            disk.step(IoPoint::Create)?;
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
        };
        let file = open().map_err(Error::io("open the ledger", &path))?;
        let mut ledger = Self {
            path,
            file,
            disk: disk.clone(),
            end: Place::start(),
            stuck: false,
        };
        let mut head = ledger.read(0, HEAD)?;
        if head.len() < HEAD && file_head().starts_with(&head) {
            ledger.begin(dir)?;
            head = file_head();
        }
        check_head(&head, &ledger.path)?;
        let from = match from {
            Some(place) if ledger.holds(&place)? => place,
            _ => Place::start(),
        };
        let mut chain = Chain::behind(from);
        let length = ledger.follow(&mut chain, STRETCH)?;
        ledger.end = chain.end;
        let torn = length.saturating_sub(chain.end.end);
        if torn > 0 {
            ledger
                .cut_back()
                .map_err(Error::io("cut the torn tail of", &ledger.path))?;
        }
        if chain.unmarked {
            ledger
                .write(MARK)
                .map_err(Error::io("write to", &ledger.path))?;
            ledger.end.end += MARK.len() as u64;
        }
        Ok(Opened {
            ledger,
            frames: chain.frames,
            from,
            torn,
        })
    }

    /// Number of the last frame; 0 while there is none.
    pub(crate) fn frames(&self) -> u64 {
        self.end.frames
    }

    /// Digest of the last frame: what the next one is chained to.
    pub(crate) fn head(&self) -> [u8; 32] {
        self.end.head
    }

    /// Behind the last frame.
    pub(crate) fn end(&self) -> Place {
        self.end
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a frame; it is durable when this returns. After an error nothing was appended.
    pub(crate) fn append(&mut self, content: &[u8]) -> Result<Frame> {
        if self.stuck {
            return Err(Error::LedgerStuck);
        }
        let sequence = self.end.frames + 1;
        let digest = frame_digest(sequence, &self.end.head, content);
        let length = u32::try_from(content.len()).map_err(|_| Error::Io {
            action: "write a frame of more than 4 GiB to",
            path: self.path.clone(),
            source: std::io::ErrorKind::FileTooLarge.into(),
        })?;
        let mut frame = Vec::with_capacity(FRAME_HEAD + content.len() + 32);
        frame.extend_from_slice(FRAME_MAGIC);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(&self.end.head);
        frame.extend_from_slice(content);
        frame.extend_from_slice(&digest);
        if let Err(source) = self.write(&frame).and_then(|()| self.write(MARK)) {
            self.stuck |= self.cut_back().is_err();
            return Err(Error::Io {
                action: "write to the ledger",
                path: self.path.clone(),
                source,
            });
        }
        self.end = Place {
            frames: sequence,
            head: digest,
            end: self.end.end + (frame.len() + MARK.len()) as u64,
        };
        Ok(Frame {
            sequence,
            digest,
            content: content.to_vec(),
        })
    }

    /// Writes at the end of the file; durable when this returns. After a sync that failed nothing is written any
    /// more: the system may have dropped what it could not write, and the next sync would not say so.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.seek(SeekFrom::End(0))?;
        self.disk
            .write_all(bytes, |bytes| self.file.write_all(bytes))?;
        self.sync()
    }

    fn sync(&mut self) -> std::io::Result<()> {
        let synced = self.disk.step(IoPoint::Sync);
        let synced = synced.and_then(|()| self.file.sync_data());
        self.stuck |= synced.is_err();
        synced
    }

    fn cut_back(&mut self) -> std::io::Result<()> {
        self.disk.step(IoPoint::Cut)?;
        self.file.set_len(self.end.end)?;
        self.sync()
    }

    /// Verifies all frames, reading so many bytes at once where no frame is longer; gives the file's length.
    fn follow(&mut self, chain: &mut Chain, stretch: usize) -> Result<u64> {
        let mut most = stretch;
        loop {
            let begin = chain.end.end;
            let bytes = self.read(begin, most)?;
            let is_last = bytes.len() < most;
            chain.read(&bytes, is_last, &self.path)?;
            if is_last {
                return Ok(begin + bytes.len() as u64);
            }
            // A frame that is longer than what was read is read again with more behind it.
            most = if chain.end.end == begin {
                most.saturating_mul(2)
            } else {
                stretch
            };
        }
    }

    /// So many bytes from an offset on, or as many as there are.
    fn read(&mut self, offset: u64, most: usize) -> Result<Vec<u8>> {
        let mut read = || {
            self.disk.step(IoPoint::Read)?;
            self.file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::new();
            (&self.file).take(most as u64).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(Error::io("read the ledger", &self.path))
    }

    /// Whether the frame before this place is the one whose digest it names.
    fn holds(&mut self, place: &Place) -> Result<bool> {
        let ending = [&place.head[..], MARK].concat();
        let Some(offset) = place.end.checked_sub(ending.len() as u64) else {
            return Ok(false);
        };
        Ok(self.read(offset, ending.len())? == ending)
    }

    /// Writes the head of an empty ledger.
    fn begin(&mut self, dir: &Path) -> Result<()> {
        self.file
            .set_len(0)
            .and_then(|()| self.write(&file_head()))
            .map_err(Error::io("write the ledger", &self.path))?;
        // The name itself is durable only once the folder is.
        sync_directory(dir, &self.disk)
    }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_directory(dir: &Path, disk: &Disk) -> Result<()> {
    disk.sync_directory(dir)
        .map_err(Error::io("sync the folder", dir))
}

/// Reads the ledger in `dir` and checks its chain, without changing it; gives the number of whole frames.
///
/// # Errors
/// When there is none, it cannot be read, or it is damaged.
pub fn inspect_ledger(dir: &Path) -> Result<u64> {
    let path = dir.join(FILE_NAME);
    let file = File::open(&path).map_err(Error::io("read the ledger", &path))?;
    let mut ledger = Ledger {
        path,
        file,
        disk: Disk::default(),
        end: Place::start(),
        stuck: true,
    };
    check_head(&ledger.read(0, HEAD)?, &ledger.path)?;
    let mut chain = Chain::behind(Place {
        frames: u64::MAX,
        ..Place::start()
    });
    ledger.follow(&mut chain, STRETCH)?;
    Ok(chain.end.frames)
}

/// What was read of the chain so far.
struct Chain {
    /// Frames up to here are verified and not kept.
    behind: Place,
    frames: Vec<Frame>,
    end: Place,
    /// The last frame is whole, but the crash came before its mark.
    unmarked: bool,
}

impl Chain {
    fn behind(place: Place) -> Self {
        Self {
            behind: place,
            frames: Vec::new(),
            end: Place::start(),
            unmarked: false,
        }
    }

    /// Goes on with the bytes behind its end, as far as whole frames go. `is_last`: the file has no more of them.
    fn read(&mut self, bytes: &[u8], is_last: bool, path: &Path) -> Result<()> {
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
    use std::sync::Arc;

    use addenda_disk::{Disk, Fault, Faults, IoPoint};

    use super::{Chain, FILE_NAME, HEAD, Ledger, MARK, Opened, Place};
    use crate::error::Error;

    fn open(dir: &Path) -> Opened {
        Ledger::open(dir, &Disk::default(), None).unwrap()
    }

    fn ledger_of(dir: &Path, contents: &[&[u8]]) -> Vec<u64> {
        let mut ledger = open(dir).ledger;
        contents
            .iter()
            .map(|content| {
                ledger.append(content).unwrap();
                ledger.end.end
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
        let opened = open(dir.path());
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
            let mut opened = open(dir.path());
            let whole = cut >= bytes.len() - MARK.len();
            assert_eq!(
                opened.frames.len(),
                if whole { 2 } else { 1 },
                "cut at {cut}"
            );
            opened.ledger.append(b"after").unwrap();
            let again = open(dir.path());
            assert_eq!(
                (again.frames.len(), again.torn),
                (if whole { 3 } else { 2 }, 0),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_chain_is_the_same_in_whatever_stretches_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let contents: Vec<Vec<u8>> = (0..40).map(|n| vec![n; usize::from(n) * 37]).collect();
        let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
        ledger_of(dir.path(), &contents);
        let whole = open(dir.path()).ledger.end;
        let path = dir.path().join(FILE_NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        for stretch in [1, 17, 100, 1_000, 5_000] {
            let mut chain = Chain::behind(Place::start());
            let mut ledger = open(dir.path()).ledger;
            let length = ledger.follow(&mut chain, stretch).unwrap();
            assert_eq!((chain.end, length), (whole, bytes.len() as u64));
            assert_eq!(chain.frames.len(), 40);
        }
        // Damage in the middle is named by its frame, however little is read at once.
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let mut ledger = open(dir.path()).ledger;
        std::fs::write(&path, &bytes).unwrap();
        let frame = |stretch| {
            let error = ledger.follow(&mut Chain::behind(Place::start()), stretch);
            match error.unwrap_err() {
                Error::DamagedLedger { frame, .. } => frame,
                other => panic!("{other}"),
            }
        };
        let frames: Vec<u64> = [1, 100, 5_000, 1 << 20].map(frame).to_vec();
        assert!(frames[0] > 1 && frames.iter().all(|frame| *frame == frames[0]));
    }

    #[test]
    fn what_lies_before_a_place_is_verified_and_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        ledger_of(dir.path(), &[b"one", b"two"]);
        let place = open(dir.path()).ledger.end();
        ledger_of(dir.path(), &[b"three"]);
        let from = |place| Ledger::open(dir.path(), &Disk::default(), Some(place));
        let opened = from(place).unwrap();
        assert_eq!(
            (opened.from, contents(&opened)),
            (place, vec![b"three".to_vec()])
        );
        assert_eq!(opened.frames[0].sequence, 3);
        // A place in another ledger, or behind the end of a shorter one, is none.
        let head = [7; 32];
        for other in [
            Place { head, ..place },
            Place {
                end: place.end + 9,
                ..place
            },
            Place {
                end: 1 << 40,
                ..place
            },
        ] {
            let opened = from(other).unwrap();
            assert_eq!((opened.from, opened.frames.len()), (Place::start(), 3));
        }
        let path = dir.path().join(FILE_NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEAD + 45] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(
            from(place).unwrap_err(),
            Error::DamagedLedger { frame: 1, .. }
        ));
    }

    #[test]
    fn a_failing_disk_refuses_the_frame_and_what_was_acknowledged_stays() {
        for point in [IoPoint::Write, IoPoint::Sync, IoPoint::Cut] {
            for (fault, after) in [
                (Fault::Full, 0),
                (Fault::Short, 0),
                (Fault::Broken, 0),
                (Fault::Broken, 1),
                (Fault::Short, 1),
            ] {
                let dir = tempfile::tempdir().unwrap();
                let faults = Arc::new(Faults::default());
                let disk = Disk::with(Arc::clone(&faults));
                let mut ledger = Ledger::open(dir.path(), &disk, None).unwrap().ledger;
                ledger.append(b"one").unwrap();
                faults.arm(point, after, fault, 2);
                let case = format!("{fault:?} at {point:?} behind {after}");
                let refused = ledger.append(b"two").is_err();
                assert_eq!(refused, point != IoPoint::Cut, "{case}");
                let met = faults.disarm();
                assert_eq!(met > 0, refused, "{case}");
                let again = ledger.append(b"three");
                // After a sync that failed only a restart may write.
                let stuck = matches!(again, Err(Error::LedgerStuck));
                assert_eq!(stuck, point == IoPoint::Sync, "{case}: {again:?}");
                let mut expected = vec![b"one".to_vec()];
                if !refused {
                    expected.push(b"two".to_vec());
                }
                if again.is_ok() {
                    expected.push(b"three".to_vec());
                }
                drop(ledger);
                let opened = open(dir.path());
                assert_eq!(contents(&opened), expected, "{case}");
            }
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
        let opened = open(dir.path());
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
            match Ledger::open(dir.path(), &Disk::default(), None).unwrap_err() {
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
        } = Ledger::open(dir.path(), &Disk::default(), None).unwrap_err()
        else {
            panic!()
        };
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(offset)
            .unwrap();
        assert_eq!(contents(&open(dir.path())), [b"one".to_vec()]);
    }

    #[test]
    fn a_file_that_is_no_ledger_or_a_newer_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        std::fs::write(&path, b"something else altogether").unwrap();
        assert!(
            Ledger::open(dir.path(), &Disk::default(), None)
                .unwrap_err()
                .to_string()
                .contains("is no ledger")
        );
        std::fs::write(&path, b"ADDLEDGR\x07\0\0\0\0\0\0\0").unwrap();
        assert!(
            Ledger::open(dir.path(), &Disk::default(), None)
                .unwrap_err()
                .to_string()
                .contains("version 7")
        );
    }
}
