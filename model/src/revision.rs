//! The weights revision: which weights these are. A function of the base weights and of the
//! *set* of active patches, so that the order in which they came makes no difference.

use std::collections::BTreeSet;

/// Domain of the digest; a new format gets a new one.
const CONTEXT: &str = "addenda 2026-11 weights revision v1";

/// BLAKE3 of the base weights' fingerprint and the active patches' digests, sorted.
#[must_use]
pub fn revision(base: &[u8; 32], active: &BTreeSet<[u8; 32]>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(base);
    hasher.update(&(active.len() as u64).to_le_bytes());
    for patch in active {
        hasher.update(patch);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::revision;
    use std::collections::BTreeSet;

    #[test]
    fn the_order_of_patches_makes_no_difference_and_the_set_does() {
        let ab = revision(&[0; 32], &BTreeSet::from([[1; 32], [2; 32]]));
        assert_eq!(ab, revision(&[0; 32], &BTreeSet::from([[2; 32], [1; 32]])));
        assert_ne!(ab, revision(&[0; 32], &BTreeSet::from([[1; 32]])));
        assert_ne!(ab, revision(&[9; 32], &BTreeSet::from([[1; 32], [2; 32]])));
    }
}
