//! The ledger's file: an append-only chain of frames, whose form is in `chain`. Owns bytes and their order; never knows
//! what they say. A torn tail was never acknowledged and is cut off; damage stops the start, for to go on would forget or
//! alter facts that were acknowledged. That holds for the frames that a snapshot stands for as well: they are verified, and
//! only not replayed.

mod chain;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use addenda_disk::{Disk, IoPoint};

use crate::error::{Error, Result};
use chain::{Chain, HEAD, MARK, check_head, file_head};
pub(crate) use chain::{Frame, Place};

const FILE_NAME: &str = "facts.ledger";
/// Read at once.
const STRETCH: usize = 16 << 20;

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
        let frame = chain::encode(sequence, &self.end.head, content);
        let (frame, digest) = frame.ok_or_else(|| Error::Io {
            action: "write a frame of more than 4 GiB to",
            path: self.path.clone(),
            source: std::io::ErrorKind::FileTooLarge.into(),
        })?;
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

#[cfg(test)]
mod tests;
