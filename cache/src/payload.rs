//! The digest of a payload: BLAKE3 in a context of its own, of the bytes as they are stored.
//!
//! Owns how it is computed: piece by piece while a payload is written, on all cores when a large one is read back.
//! Never decides what becomes of a mismatch. Reads rather than maps, so that a failing disk is an error and not a
//! signal; the pages are in the cache when they are mapped.

use std::thread;

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, hash_derive_key_context, left_subtree_len,
    merge_subtrees_non_root, merge_subtrees_root,
};

use crate::error::Result;
use crate::file::ExtentFile;

const CONTEXT: &str = "addenda 2025 extent payload";

/// Read at once: little enough to stay in the CPU's cache.
const CHUNK: usize = 1 << 17;
/// No thread is worth starting for less.
const LEAST_SHARE: u64 = 1 << 20;
/// Threads that read one payload at most; more wait for memory.
const MOST_THREADS: u64 = 16;

/// Hashes a payload as it is stored, piece by piece.
pub(crate) fn payload_hasher() -> blake3::Hasher {
    blake3::Hasher::new_derive_key(CONTEXT)
}

/// The digest of `length` bytes from `start` on, as [`payload_hasher`] computes it.
pub(crate) fn digest(file: &ExtentFile, start: u64, length: u64) -> Result<[u8; 32]> {
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    // Twice as many pieces as cores, for they are of unequal lengths.
    let share = length / (2 * cores.min(MOST_THREADS));
    let share = share.max(LEAST_SHARE);
    if cores == 1 || length <= share {
        let mut hasher = payload_hasher();
        feed(&mut hasher, file, start, length)?;
        return Ok(*hasher.finalize().as_bytes());
    }
    let tree = Tree { file, start, share };
    let (left, right) = tree.halves(0, length)?;
    let key = hash_derive_key_context(CONTEXT);
    Ok(merge_subtrees_root(&left, &right, Mode::DeriveKeyMaterial(&key)).into())
}

/// A payload that is hashed as the tree that BLAKE3 is.
#[derive(Clone, Copy)]
struct Tree<'a> {
    file: &'a ExtentFile,
    /// Where the payload begins in its extent.
    start: u64,
    /// Longest piece that one thread hashes alone.
    share: u64,
}

impl Tree<'_> {
    /// Both subtrees of the bytes `from .. from + length` of the payload.
    fn halves(self, from: u64, length: u64) -> Result<(ChainingValue, ChainingValue)> {
        let left = left_subtree_len(length);
        thread::scope(|scope| {
            let beside = scope.spawn(move || self.subtree(from, left));
            let right = self.subtree(from + left, length - left)?;
            match beside.join() {
                Ok(left) => Ok((left?, right)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn subtree(self, from: u64, length: u64) -> Result<ChainingValue> {
        if length > self.share {
            let (left, right) = self.halves(from, length)?;
            let key = hash_derive_key_context(CONTEXT);
            let mode = Mode::DeriveKeyMaterial(&key);
            return Ok(merge_subtrees_non_root(&left, &right, mode));
        }
        let mut hasher = payload_hasher();
        hasher.set_input_offset(from);
        feed(&mut hasher, self.file, self.start + from, length)?;
        Ok(hasher.finalize_non_root())
    }
}

fn feed(hasher: &mut blake3::Hasher, file: &ExtentFile, start: u64, length: u64) -> Result<()> {
    let end = start.saturating_add(length);
    let mut buffer = vec![0; usize::try_from(length).unwrap_or(CHUNK).min(CHUNK)];
    let mut at = start;
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        let chunk = buffer.get_mut(..length).unwrap_or_default();
        file.read_at(chunk, at)?;
        hasher.update(chunk);
        at = at.saturating_add(length as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use super::{LEAST_SHARE, digest, payload_hasher};
    use crate::file::{ExtentFile, FIRST_RECORD};

    #[test]
    fn a_payload_of_any_length_has_the_digest_that_it_was_written_with() {
        let directory = tempfile::tempdir().unwrap();
        let file = ExtentFile::create(directory.path(), 1, [3; 32]).unwrap();
        let mut bytes = vec![0; usize::try_from(LEAST_SHARE * 9).unwrap()];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        let start = FIRST_RECORD + 64;
        file.write_at(&bytes, start).unwrap();
        let share = usize::try_from(LEAST_SHARE).unwrap();
        for length in [
            0,
            1,
            1024,
            1025,
            share,
            share + 1,
            2 * share,
            5 * share + 777,
            bytes.len(),
        ] {
            let expected = payload_hasher()
                .update(bytes.get(..length).unwrap())
                .finalize();
            let found = digest(&file, start, length as u64).unwrap();
            assert_eq!(found, *expected.as_bytes(), "{length} bytes");
        }
        assert!(
            digest(&file, start, 10 * LEAST_SHARE).is_err(),
            "beyond the end"
        );
    }
}
