//! The extents of a store: append-only files that together hold every event in order.
//!
//! Owns which extent grows, when the next one begins, and that a batch of records is durable before anyone hears
//! of it. Knows neither the index nor who reads. Invariants: records that are no copies lie in the order of their sequences; after a
//! failed write what was written is cut away, and where that or a sync fails the extent is never written again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Error, Result};
use crate::event::Event;
use crate::file::{ExtentFile, FIRST_RECORD, sync_directory};
use crate::manifest::Location;
use crate::record::{COPY_VERSION, Frame, RECORD_VERSION, align};
use addenda_disk::{Disk, IoPoint};

/// A payload that is to be written: pieces, one behind the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Payload<'a> {
    pub(crate) pieces: &'a [&'a [u8]],
    pub(crate) length: u64,
    pub(crate) digest: [u8; 32],
}

impl Payload<'_> {
    /// What an event without a payload carries.
    pub(crate) const NONE: Self = Self {
        pieces: &[],
        length: 0,
        digest: [0; 32],
    };
}

/// Whether a record says something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    New,
    /// It takes the place of a record that a compaction removes.
    Copy {
        sequence: u64,
    },
}

/// A record that is to be appended.
#[derive(Debug)]
pub(crate) struct Pending<'a> {
    pub(crate) event: Event,
    pub(crate) payload: Payload<'a>,
    pub(crate) origin: Origin,
}

impl Pending<'_> {
    pub(crate) fn event(event: Event) -> Self {
        Self {
            event,
            payload: Payload::NONE,
            origin: Origin::New,
        }
    }

    /// What is left to say of a record once its payload is written.
    pub(crate) fn written(self) -> Pending<'static> {
        Pending {
            payload: Payload {
                pieces: &[],
                ..self.payload
            },
            ..self
        }
    }
}

/// Where a record came to lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed {
    pub(crate) sequence: u64,
    pub(crate) location: Location,
}

/// A batch that is in its extent and not yet durable.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) file: Arc<ExtentFile>,
    /// Where its first record begins.
    pub(crate) start: u64,
    pub(crate) placed: Vec<Placed>,
}

/// Where the next record goes. Only one writer holds it.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    /// The extent that grows and its end; none before the first record and after an extent failed.
    pub(crate) active: Option<(Arc<ExtentFile>, u64)>,
    pub(crate) next_extent: u64,
    pub(crate) next_sequence: u64,
}

/// All extents of a store.
#[derive(Debug)]
pub(crate) struct Extents {
    directory: PathBuf,
    limit: u64,
    disk: Disk,
    files: RwLock<BTreeMap<u64, Arc<ExtentFile>>>,
}

/// What was found when the directory was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) extents: Extents,
    /// Extents whose header is damaged in both copies. They are left alone.
    pub(crate) unreadable: Vec<PathBuf>,
    /// The number behind the highest that is taken.
    pub(crate) next_extent: u64,
}

impl Extents {
    /// Opens all extents of a directory, which is made where it is missing.
    pub(crate) fn open(directory: &Path, limit: u64, disk: &Disk) -> Result<Opened> {
        std::fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
        if let Some(parent) = directory.parent() {
            sync_directory(parent, disk)?;
        }
        let mut files = BTreeMap::new();
        let mut unreadable = Vec::new();
        let mut next_extent = 1;
        let entries = std::fs::read_dir(directory).map_err(Error::io("list", directory))?;
        for entry in entries {
            let path = entry.map_err(Error::io("list", directory))?.path();
            let Some(number) = ExtentFile::number_of(&path) else {
                continue;
            };
            next_extent = next_extent.max(number.saturating_add(1));
            match ExtentFile::open(&path, number, disk)? {
                Some(file) => drop(files.insert(number, Arc::new(file))),
                // The process ended while it made this extent: records come only after the header is durable.
                None if file_len(&path)? <= FIRST_RECORD => {
                    std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                }
                None => unreadable.push(path),
            }
        }
        let extents = Self {
            directory: directory.to_path_buf(),
            limit,
            disk: disk.clone(),
            files: RwLock::new(files),
        };
        Ok(Opened {
            extents,
            unreadable,
            next_extent,
        })
    }

    /// The extent with this number.
    pub(crate) fn get(&self, number: u64) -> Option<Arc<ExtentFile>> {
        self.files
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&number)
            .cloned()
    }

    /// All extents, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<ExtentFile>> {
        self.files
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Bytes that all extents take on the file system.
    pub(crate) fn allocated(&self) -> Result<u64> {
        self.all()
            .iter()
            .try_fold(0u64, |sum, file| Ok(sum.saturating_add(file.allocated()?)))
    }

    /// Appends records as one batch; durable, all of them, when this returns. On an error none is visible now,
    /// though some may be found whole after a restart.
    pub(crate) fn append(&self, tail: &mut Tail, batch: &[Pending<'_>]) -> Result<Vec<Placed>> {
        let written = self.write(tail, batch)?;
        if let Err(error) = written.file.sync() {
            self.abandon(tail, (&written.file, written.start), &error);
            return Err(error);
        }
        Ok(written.placed)
    }

    /// Writes records as one batch; durable only after a sync of their extent. On an error nothing of it is there.
    pub(crate) fn write(&self, tail: &mut Tail, batch: &[Pending<'_>]) -> Result<Written> {
        let length = batch.iter().map(record_len).fold(0, u64::saturating_add);
        let (file, start) = self.room(tail, length)?;
        let first = tail.next_sequence;
        // Numbers that a failed write may have left on the disk are not given out again.
        let new = batch.iter().filter(|one| one.origin == Origin::New);
        tail.next_sequence = first.saturating_add(new.count() as u64);
        match write_batch(&file, start, first, batch) {
            Ok((placed, end)) => {
                tail.active = Some((Arc::clone(&file), end));
                Ok(Written {
                    file,
                    start,
                    placed,
                })
            }
            Err(error) if file.is_given_up() => {
                self.abandon(tail, (&file, start), &error);
                Err(error)
            }
            Err(error) => {
                if let Err(second) = file.cut(start) {
                    tracing::error!(extent = %file.path().display(), %second, "the extent is given up: a failed write could not be undone");
                    tail.active = None;
                }
                Err(error)
            }
        }
    }

    /// Ends an extent whose sync failed. What was not acknowledged, all from `start` on, is cut away where that can
    /// still be done, so that no rebuild finds it; nothing is written to the extent again.
    pub(crate) fn abandon(
        &self,
        tail: &mut Tail,
        (file, start): (&ExtentFile, u64),
        error: &Error,
    ) {
        tracing::error!(extent = %file.path().display(), %error, "the extent is given up: a sync failed");
        if let Err(second) = file.cut(start) {
            tracing::error!(extent = %file.path().display(), %second, "what was not acknowledged stays in it");
        }
        tail.active
            .take_if(|(active, _)| active.number() == file.number());
    }

    /// Whether `length` more bytes go to the extent that grows.
    pub(crate) fn fits(&self, tail: &Tail, length: u64) -> bool {
        tail.active.as_ref().is_some_and(|(file, end)| {
            let room = end.saturating_add(length) <= self.limit || *end == FIRST_RECORD;
            room && !file.is_given_up()
        })
    }

    /// The extent and offset at which `length` more bytes go; a new extent where the present one is full.
    fn room(&self, tail: &mut Tail, length: u64) -> Result<(Arc<ExtentFile>, u64)> {
        match &tail.active {
            Some((file, end)) if self.fits(tail, length) => Ok((Arc::clone(file), *end)),
            _ => Ok((self.roll(tail)?, FIRST_RECORD)),
        }
    }

    /// Begins the next extent.
    pub(crate) fn roll(&self, tail: &mut Tail) -> Result<Arc<ExtentFile>> {
        let number = tail.next_extent;
        tail.next_extent = number.saturating_add(1);
        let file = Arc::new(ExtentFile::create(
            &self.directory,
            number,
            rand::random(),
            &self.disk,
        )?);
        self.files
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, Arc::clone(&file));
        tail.active = Some((Arc::clone(&file), FIRST_RECORD));
        Ok(file)
    }

    /// Removes an extent that nothing counts on. Maps of it stay readable.
    pub(crate) fn remove(&self, number: u64) -> Result<()> {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&number) {
            self.disk
                .step(IoPoint::Remove)
                .and_then(|()| std::fs::remove_file(file.path()))
                .map_err(Error::io("remove", file.path()))?;
            files.remove(&number);
        }
        drop(files);
        sync_directory(&self.directory, &self.disk)
    }
}

/// Bytes that a record will take.
pub(crate) fn record_len(pending: &Pending<'_>) -> u64 {
    let meta = pending.event.encode().len() as u64;
    align(crate::record::FRAME as u64 + meta).saturating_add(align(pending.payload.length))
}

fn write_batch(
    file: &ExtentFile,
    start: u64,
    first_sequence: u64,
    batch: &[Pending<'_>],
) -> Result<(Vec<Placed>, u64)> {
    let mut placed = Vec::with_capacity(batch.len());
    let mut at = start;
    let mut sequence = first_sequence;
    let mut before: Option<&Pending<'_>> = None;
    for pending in batch {
        if before.is_some_and(|before| takes_the_place_of(before, pending, batch)) {
            file.sync()?;
        }
        before = Some(pending);
        let own = match pending.origin {
            Origin::New => {
                let own = sequence;
                sequence = sequence.saturating_add(1);
                own
            }
            Origin::Copy { sequence } => sequence,
        };
        let (location, end) = write_record(file, at, own, pending)?;
        placed.push(Placed {
            sequence: own,
            location,
        });
        at = end;
    }
    Ok((placed, at))
}

/// Whether what comes before must be on the disk first: where a batch ends packets, a machine that loses power must
/// not keep that end and lose what takes their place.
fn takes_the_place_of(before: &Pending<'_>, pending: &Pending<'_>, batch: &[Pending<'_>]) -> bool {
    let ends = |one: &Pending<'_>| {
        one.origin == Origin::New && matches!(one.event, Event::Tombstone { .. })
    };
    before.event.kind() != pending.event.kind() && batch.iter().any(ends)
}

/// Frame and meta of a new record at this place (key of its extent, offset, sequence) with a payload of this length
/// and digest.
pub(crate) fn sealed(
    event: &Event,
    (key, offset, sequence): ([u8; 32], u64, u64),
    (payload_len, payload_digest): (u64, [u8; 32]),
) -> Vec<u8> {
    let meta = event.encode();
    let frame = Frame {
        version: RECORD_VERSION,
        kind: event.kind(),
        meta_len: u32::try_from(meta.len()).unwrap_or(u32::MAX),
        payload_len,
        sequence,
        id: event.id(),
        payload_digest,
    };
    frame.seal(&key, offset, &meta)
}

fn write_record(
    file: &ExtentFile,
    offset: u64,
    sequence: u64,
    pending: &Pending<'_>,
) -> Result<(Location, u64)> {
    let meta = pending.event.encode();
    let frame = Frame {
        version: match pending.origin {
            Origin::New => RECORD_VERSION,
            Origin::Copy { .. } => COPY_VERSION,
        },
        kind: pending.event.kind(),
        meta_len: u32::try_from(meta.len()).unwrap_or(u32::MAX),
        payload_len: pending.payload.length,
        sequence,
        id: pending.event.id(),
        payload_digest: pending.payload.digest,
    };
    let mut head = frame.seal(file.key(), offset, &meta);
    head.resize(
        usize::try_from(frame.payload_start()).unwrap_or(head.len()),
        0,
    );
    file.write_at(&head, offset)?;
    let payload = offset.saturating_add(frame.payload_start());
    let mut at = payload;
    for piece in pending.payload.pieces {
        file.write_at(piece, at)?;
        at = at.saturating_add(piece.len() as u64);
    }
    let end = offset.saturating_add(frame.record_len());
    file.write_at(
        &vec![0; usize::try_from(end.saturating_sub(at)).unwrap_or(0)],
        at,
    )?;
    let location = Location {
        extent: file.number(),
        offset,
        payload,
        payload_len: pending.payload.length,
    };
    Ok((location, end))
}

fn file_len(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path)
        .map_err(Error::io("inspect", path))?
        .len())
}
