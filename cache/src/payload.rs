//! The digest of a payload: BLAKE3 in a context of its own, of the bytes as they are stored.
//!
//! Owns how it is computed: piece by piece while a payload is written; over its map when it is read back, by whoever
//! reads it and by what [`Hands`] are free. Never decides what becomes of a mismatch. Invariant: pages are asked for
//! before they are touched, so that a failing disk is an error and not a signal.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, hash_derive_key_context, left_subtree_len,
    merge_subtrees_non_root, merge_subtrees_root,
};
use memmap2::{Advice, Mmap};

use crate::error::Result;
use crate::file::ExtentFile;
use crate::lease::locked;
use crate::manifest::Location;

const CONTEXT: &str = "addenda 2025 extent payload";

/// Hashed at once by one thread; a power of two, so that a piece is a subtree of BLAKE3's tree.
const PIECE: usize = 1 << 16;
/// Threads that help at most; more wait for memory.
const MOST_HANDS: usize = 15;
/// Jobs that may wait for a hand; whoever asks goes on alone where there are more.
const WAITING: usize = 32;
/// Read at once where pages can't be asked for: little enough to stay in the CPU's cache.
const CHUNK: usize = 1 << 17;

/// Hashes a payload as it is stored, piece by piece.
pub(crate) fn payload_hasher() -> blake3::Hasher {
    blake3::Hasher::new_derive_key(CONTEXT)
}

/// Threads that help to hash, one fewer than there are cores. Nobody waits for one that is busy elsewhere: the
/// pieces that none has taken are hashed by whoever wants the digest.
#[derive(Debug)]
pub(crate) struct Hands {
    queue: Option<SyncSender<Arc<Job>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Hands {
    pub(crate) fn new() -> Self {
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (queue, jobs) = sync_channel(WAITING);
        let jobs = Arc::new(Mutex::new(jobs));
        let threads = (1..cores.min(MOST_HANDS + 1))
            .filter_map(|number| {
                let jobs = Arc::clone(&jobs);
                let name = format!("hash-{number}");
                // Fewer hands make it slower and nothing else.
                let hand = thread::Builder::new().name(name);
                hand.spawn(move || help(&jobs)).ok()
            })
            .collect();
        Self {
            queue: Some(queue),
            threads,
        }
    }

    /// The digest of a mapped payload, as [`payload_hasher`] computes it. None: its pages can't be asked for here.
    ///
    /// # Errors
    /// The disk's, where a page can't be read.
    fn digest(&self, map: &Arc<Mmap>) -> std::io::Result<Option<[u8; 32]>> {
        if !ask_for(map, 0..map.len().min(PIECE))? {
            return Ok(None);
        }
        if map.len() <= PIECE {
            return Ok(Some(*payload_hasher().update(map).finalize().as_bytes()));
        }
        let job = Arc::new(Job::new(Arc::clone(map)));
        if let Some(queue) = &self.queue {
            let wanted = job.values.len().saturating_sub(1).min(self.threads.len());
            for _ in 0..wanted {
                if queue.try_send(Arc::clone(&job)).is_err() {
                    break;
                }
            }
        }
        job.work();
        job.wait()?;
        Ok(Some(job.root()))
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            // A hand that panicked has no digest to lose.
            let _ = thread.join();
        }
    }
}

fn help(jobs: &Mutex<Receiver<Arc<Job>>>) {
    loop {
        let job = locked(jobs).recv();
        let Ok(job) = job else { return };
        job.work();
    }
}

/// One payload that is being hashed.
#[derive(Debug)]
struct Job {
    map: Arc<Mmap>,
    /// The next piece that nobody has taken.
    next: AtomicUsize,
    values: Vec<Mutex<Option<ChainingValue>>>,
    done: Mutex<Done>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Done {
    pieces: usize,
    failed: Option<std::io::Error>,
}

impl Job {
    fn new(map: Arc<Mmap>) -> Self {
        let pieces = map.len().div_ceil(PIECE);
        Self {
            map,
            next: AtomicUsize::new(0),
            values: (0..pieces).map(|_| Mutex::default()).collect(),
            done: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Hashes pieces until all are taken.
    fn work(&self) {
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(value) = self.values.get(piece) else {
                return;
            };
            let hashed = self.piece(piece);
            let mut done = locked(&self.done);
            match hashed {
                Ok(hashed) => *locked(value) = Some(hashed),
                Err(error) => done.failed = Some(error),
            }
            done.pieces += 1;
            drop(done);
            self.changed.notify_all();
        }
    }

    fn piece(&self, piece: usize) -> std::io::Result<ChainingValue> {
        let start = piece.saturating_mul(PIECE);
        let range = start..start.saturating_add(PIECE).min(self.map.len());
        ask_for(&self.map, range.clone())?;
        let mut hasher = payload_hasher();
        hasher.set_input_offset(start as u64);
        hasher.update(self.map.get(range).unwrap_or_default());
        Ok(hasher.finalize_non_root())
    }

    /// Returns when no hand works on it any more.
    fn wait(&self) -> std::io::Result<()> {
        let mut done = locked(&self.done);
        while done.pieces < self.values.len() {
            done = self
                .changed
                .wait(done)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        done.failed.take().map_or(Ok(()), Err)
    }

    fn root(&self) -> [u8; 32] {
        let key = hash_derive_key_context(CONTEXT);
        let length = self.map.len();
        let left = left_subtree_len(length as u64) as usize;
        let (left, right) = (self.merged(0, left), self.merged(left, length - left));
        merge_subtrees_root(&left, &right, Mode::DeriveKeyMaterial(&key)).into()
    }

    /// The value of the subtree over `length` bytes from `start`, the beginning of a piece, on.
    fn merged(&self, start: usize, length: usize) -> ChainingValue {
        if length <= PIECE {
            let value = self.values.get(start / PIECE);
            return value.and_then(|value| *locked(value)).unwrap_or_default();
        }
        let key = hash_derive_key_context(CONTEXT);
        let left = left_subtree_len(length as u64) as usize;
        let (first, second) = (
            self.merged(start, left),
            self.merged(start + left, length - left),
        );
        merge_subtrees_non_root(&first, &second, Mode::DeriveKeyMaterial(&key))
    }
}

/// Has the system read these pages now. False: it can't be asked.
fn ask_for(map: &Mmap, range: Range<usize>) -> std::io::Result<bool> {
    use rustix::io::Errno;
    match map.advise_range(Advice::PopulateRead, range.start, range.len()) {
        Ok(()) => Ok(true),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
            // What touching the page would have been a signal for.
            Some(Errno::FAULT) => Err(Errno::IO.into()),
            _ => Err(error),
        },
    }
}

/// Maps a payload and compares it with its digest; none where they differ.
///
/// # Errors
/// The disk's.
pub(crate) fn verified(
    file: &ExtentFile,
    place: &Location,
    expected: &[u8; 32],
    hands: &Hands,
) -> Result<Option<Arc<Mmap>>> {
    file.about_to_read()?;
    let map = Arc::new(file.map(place.payload, place.payload_len)?);
    let digest = match hands.digest(&map).map_err(|error| file.unreadable(error))? {
        Some(digest) => digest,
        None => digest_by_reading(file, place)?,
    };
    Ok((digest == *expected).then_some(map))
}

fn digest_by_reading(file: &ExtentFile, place: &Location) -> Result<[u8; 32]> {
    let end = place.payload.saturating_add(place.payload_len);
    let mut hasher = payload_hasher();
    let mut buffer = vec![0; CHUNK];
    let mut at = place.payload;
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        let chunk = buffer.get_mut(..length).unwrap_or_default();
        file.read_at(chunk, at)?;
        hasher.update(chunk);
        at = at.saturating_add(length as u64);
    }
    Ok(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use super::{Hands, PIECE, digest_by_reading, payload_hasher, verified};
    use crate::file::{ExtentFile, FIRST_RECORD};
    use crate::manifest::Location;
    use addenda_disk::Disk;

    #[test]
    fn a_payload_of_any_length_has_the_digest_that_it_was_written_with() {
        let directory = tempfile::tempdir().unwrap();
        let file = ExtentFile::create(directory.path(), 1, [3; 32], &Disk::default()).unwrap();
        let mut bytes = vec![0; PIECE * 9];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        let payload = FIRST_RECORD + 64;
        file.write_at(&bytes, payload).unwrap();
        let hands = Hands::new();
        for length in [
            1,
            1024,
            1025,
            PIECE,
            PIECE + 1,
            2 * PIECE,
            5 * PIECE + 777,
            bytes.len(),
        ] {
            let mut hasher = payload_hasher();
            let expected = *hasher
                .update(bytes.get(..length).unwrap())
                .finalize()
                .as_bytes();
            let place = Location {
                extent: 1,
                offset: FIRST_RECORD,
                payload,
                payload_len: length as u64,
            };
            let found = verified(&file, &place, &expected, &hands).unwrap();
            assert_eq!(found.unwrap().len(), length);
            assert!(verified(&file, &place, &[0; 32], &hands).unwrap().is_none());
            assert_eq!(digest_by_reading(&file, &place).unwrap(), expected);
        }
    }
}
