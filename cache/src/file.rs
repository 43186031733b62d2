//! One extent file: every system call on it is here.
//!
//! ```text
//! offset  bytes
//! 0       8     magic "ADDEXTNT"
//! 8       4     version of the extent's layout
//! 12      4     zeros
//! 16      8     the extent's number
//! 24      32    salt: random, the key of the records' digests is derived from it
//! 56      32    BLAKE3 of the 56 bytes above
//! 4096    88    the same again, so that one damaged block does not take the extent with it
//! 8192          records
//! ```
//! Owns reading, writing, syncing, cutting, hole punching and mapping. Knows no record's meaning, and when to do
//! which is for others to say. Invariant: bytes before a record's end never change once it is synced, save that the
//! payload of a dead record that nobody reads may become zeros.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::{Mmap, MmapOptions};

use crate::error::{Error, Result};
use addenda_disk::{Disk, IoPoint};

/// Newest layout that is known here.
const EXTENT_VERSION: u32 = 1;
/// Where records begin.
pub(crate) const FIRST_RECORD: u64 = 8192;

const MAGIC: &[u8; 8] = b"ADDEXTNT";
const COPIES: [u64; 2] = [0, 4096];
const HEADER: usize = 88;
const HEADER_CONTEXT: &str = "addenda 2025 extent header";
const KEY_CONTEXT: &str = "addenda 2025 extent record key";

/// An open extent.
#[derive(Debug)]
pub(crate) struct ExtentFile {
    file: File,
    path: PathBuf,
    number: u64,
    salt: [u8; 32],
    key: [u8; 32],
    disk: Disk,
    /// A sync failed: what is on the disk is unknown from then on, and nothing more is written.
    given_up: AtomicBool,
}

impl ExtentFile {
    /// Name of the extent with this number.
    pub(crate) fn name(number: u64) -> String {
        format!("{number:010}.extent")
    }

    /// The number in an extent's file name.
    pub(crate) fn number_of(path: &Path) -> Option<u64> {
        let number = path
            .file_name()?
            .to_str()?
            .strip_suffix(".extent")?
            .parse()
            .ok()?;
        (path.file_name()?.to_str()? == Self::name(number)).then_some(number)
    }

    /// Makes a new, empty extent; durable when this returns.
    pub(crate) fn create(
        directory: &Path,
        number: u64,
        salt: [u8; 32],
        disk: &Disk,
    ) -> Result<Self> {
        let path = directory.join(Self::name(number));
        disk.step(IoPoint::Create)
            .map_err(Error::io("create", &path))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        let block = head(number, &salt);
        let made = Self::with(file, path, number, salt, disk);
        let written = made.write_at(&block, 0).and_then(|()| made.sync());
        if let Err(error) = written.and_then(|()| sync_directory(directory, disk)) {
            // A half-made extent holds nothing; if it can't be removed it is recognised as empty at the next open.
            let _ = std::fs::remove_file(made.path());
            return Err(error);
        }
        Ok(made)
    }

    /// Opens an extent. None: neither copy of the header is intact, so nothing in it can be trusted.
    pub(crate) fn open(path: &Path, number: u64, disk: &Disk) -> Result<Option<Self>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(Error::io("open", path))?;
        for at in COPIES {
            let mut bytes = [0; HEADER];
            match file.read_exact_at(&mut bytes, at) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                Err(error) => return Err(Error::io("read", path)(error)),
            }
            if let Some((version, salt)) = parse_header(&bytes, number) {
                if version > EXTENT_VERSION {
                    return Err(Error::NewerFormat {
                        path: path.to_path_buf(),
                        found: version,
                        known: EXTENT_VERSION,
                    });
                }
                let path = path.to_path_buf();
                return Ok(Some(Self::with(file, path, number, salt, disk)));
            }
        }
        Ok(None)
    }

    fn with(file: File, path: PathBuf, number: u64, salt: [u8; 32], disk: &Disk) -> Self {
        let key = Self::key_of(&salt);
        Self {
            file,
            path,
            number,
            salt,
            key,
            disk: disk.clone(),
            given_up: AtomicBool::new(false),
        }
    }

    /// Key of the records' digests in an extent of this salt.
    pub(crate) fn key_of(salt: &[u8; 32]) -> [u8; 32] {
        blake3::derive_key(KEY_CONTEXT, salt)
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The salt tells this extent from any other that ever had its number.
    pub(crate) fn salt(&self) -> &[u8; 32] {
        &self.salt
    }

    /// Key of its records' digests.
    pub(crate) fn key(&self) -> &[u8; 32] {
        &self.key
    }

    pub(crate) fn len(&self) -> Result<u64> {
        Ok(self
            .file
            .metadata()
            .map_err(Error::io("inspect", &self.path))?
            .len())
    }

    /// Bytes that it takes on the file system, holes not counted.
    pub(crate) fn allocated(&self) -> Result<u64> {
        let metadata = self
            .file
            .metadata()
            .map_err(Error::io("inspect", &self.path))?;
        Ok(metadata.blocks().saturating_mul(512))
    }

    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.disk
            .step(IoPoint::Read)
            .and_then(|()| self.file.read_exact_at(buffer, offset))
            .map_err(Error::io("read", &self.path))
    }

    /// The error of a page that could not be read through a map.
    pub(crate) fn unreadable(&self, source: io::Error) -> Error {
        Error::io("read", &self.path)(source)
    }

    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.try_write(bytes, offset)
            .map_err(Error::io("write", &self.path))
    }

    fn try_write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let write = |bytes: &[u8]| self.file.write_all_at(bytes, offset);
        self.disk.write_all(bytes, write)
    }

    /// Returns when all that was written is on the disk. After an error nothing may be written any more: the system
    /// may have dropped what it could not write, and the next sync would not say so.
    pub(crate) fn sync(&self) -> Result<()> {
        let synced = self.disk.step(IoPoint::Sync);
        let synced = synced.and_then(|()| self.file.sync_data());
        if synced.is_err() {
            self.given_up.store(true, Ordering::Release);
        }
        synced.map_err(Error::io("sync", &self.path))
    }

    /// Whether a sync failed.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    /// To be asked before pages of a map are.
    pub(crate) fn about_to_read(&self) -> Result<()> {
        self.disk
            .step(IoPoint::Read)
            .map_err(Error::io("read", &self.path))
    }

    pub(crate) fn cut(&self, length: u64) -> Result<()> {
        self.disk
            .step(IoPoint::Cut)
            .and_then(|()| self.file.set_len(length))
            .map_err(Error::io("cut", &self.path))
    }

    /// Gives a dead range back to the file system. False: the file system cannot.
    pub(crate) fn punch(&self, offset: u64, length: u64) -> Result<bool> {
        use rustix::fs::{FallocateFlags, fallocate};
        self.disk
            .step(IoPoint::Punch)
            .map_err(Error::io("give space back from", &self.path))?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, offset, length) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(false),
            Err(error) => Err(Error::io("give space back from", &self.path)(error.into())),
        }
    }

    /// Maps a range for reading. The range must lie within the file.
    pub(crate) fn map(&self, offset: u64, length: u64) -> Result<Mmap> {
        self.disk
            .step(IoPoint::Map)
            .map_err(Error::io("map", &self.path))?;
        let length = usize::try_from(length)
            .map_err(|_| Error::io("map", &self.path)(io::ErrorKind::OutOfMemory.into()))?;
        // SAFETY: a map is sound as long as its bytes neither change nor go away. Extents are append-only; the
        // range is that of a synced record, so nothing writes to it again; a hole is punched only where the lease
        // registry knows of no reader; files are cut only behind the last synced record, where no map reaches. The
        // data directory is locked, so no second Addenda can do otherwise. Another program that writes to or cuts
        // the file breaks this, which is why the crate's documentation says that the directory is Addenda's alone.
        unsafe {
            MmapOptions::new()
                .offset(offset)
                .len(length)
                .map(&self.file)
        }
        .map_err(Error::io("map", &self.path))
    }
}

/// Makes the creation and removal of a directory's files durable.
pub(crate) fn sync_directory(directory: &Path, disk: &Disk) -> Result<()> {
    disk.sync_directory(directory)
        .map_err(Error::io("sync", directory))
}

/// Bytes that an unprivileged process can still write to the file system of this directory.
pub(crate) fn free_bytes(directory: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(directory)
        .map_err(|error| Error::io("measure the free space of", directory)(error.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// All that comes before an extent's first record.
pub(crate) fn head(number: u64, salt: &[u8; 32]) -> Vec<u8> {
    let header = header(number, salt);
    let mut block = vec![0; usize::try_from(FIRST_RECORD).unwrap_or(8192)];
    for (at, byte) in block.iter_mut().enumerate() {
        if let Some(value) = header.get(at % 4096) {
            *byte = *value;
        }
    }
    block
}

fn header(number: u64, salt: &[u8; 32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&EXTENT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(salt);
    let digest = blake3::derive_key(HEADER_CONTEXT, &bytes);
    bytes.extend_from_slice(&digest);
    bytes
}

/// Version and salt of an intact header of this extent.
fn parse_header(bytes: &[u8; HEADER], number: u64) -> Option<(u32, [u8; 32])> {
    let (fields, digest) = bytes.split_last_chunk::<32>()?;
    if blake3::derive_key(HEADER_CONTEXT, fields) != *digest {
        return None;
    }
    let (magic, rest) = fields.split_first_chunk::<8>()?;
    let (version, rest) = rest.split_first_chunk::<4>()?;
    let (_, rest) = rest.split_first_chunk::<4>()?;
    let (found, rest) = rest.split_first_chunk::<8>()?;
    let (salt, _) = rest.split_first_chunk::<32>()?;
    let ours = magic == MAGIC && u64::from_le_bytes(*found) == number;
    ours.then_some((u32::from_le_bytes(*version), *salt))
}
