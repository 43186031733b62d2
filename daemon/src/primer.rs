//! What packets are computed behind, in tokens: what usually stands before documents, and some documents.
//!
//! Owns which documents of the primer stand before which text. Models tell alike things apart by their order, so
//! documents that are all computed as the fifth are mistaken for each other. A text's own tokens decide as the how-many'th
//! it is computed: it is the same packet wherever it stands, and another text is most likely another number.

pub mod draw;

use addenda_cache::token_bytes;

use crate::digest::Digest;

/// Domain of a primer's digest.
const DIGEST_CONTEXT: &str = "addenda 2026-11 primer v2";
/// Domain of a text's number.
const NUMBER_CONTEXT: &str = "addenda 2026-11 primer number v1";

/// Tokens at the end of a primer's document that need not be in a longer text at the same place: tokenizers join the
/// empty line with the full stop before it.
const CLOSING_TOKENS: usize = 2;

/// A primer: a text's packet is computed behind one of its beginnings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Primer {
    ids: Vec<u32>,
    /// Where its first document begins.
    begin: usize,
    /// Where its beginnings end: after each document.
    ends: Vec<usize>,
}

impl Primer {
    /// What stands before `documents`, and those.
    pub(crate) fn new(before: Vec<u32>, documents: &[Vec<u32>]) -> Self {
        let begin = before.len();
        let mut ids = before;
        let mut ends = Vec::with_capacity(documents.len());
        for document in documents {
            ids.extend(document);
            ends.push(ids.len());
        }
        Self { ids, begin, ends }
    }

    /// All its tokens; may be none.
    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// How many documents it has.
    pub(crate) fn documents(&self) -> usize {
        self.ends.len()
    }

    /// Behind how many of its first tokens a text of these is computed. One that is among the documents, or that one
    /// of them is the beginning of, has its place: it is never computed behind itself.
    pub(crate) fn before(&self, text: &[u32]) -> usize {
        let begins = std::iter::once(&self.begin).chain(&self.ends);
        let mut each = begins.zip(&self.ends);
        let own = each.find(|(begin, end)| {
            let document = self.ids.get(**begin..**end).unwrap_or_default();
            begins_with(text, document)
        });
        if let Some((begin, _)) = own {
            return *begin;
        }
        let digest = blake3::derive_key(NUMBER_CONTEXT, &token_bytes(text));
        let number = digest
            .first_chunk()
            .map_or(0, |first| u64::from_le_bytes(*first));
        let place = number % self.ends.len().max(1) as u64;
        let place = usize::try_from(place).unwrap_or(0);
        self.ends.get(place).copied().unwrap_or(self.begin)
    }

    /// BLAKE3 of where its beginnings end and of its tokens; zeros for an empty one.
    pub(crate) fn digest(&self) -> Digest {
        if self.ids.is_empty() {
            return Digest([0; 32]);
        }
        let mut all = Vec::with_capacity(8 * self.ends.len() + 4 * self.ids.len() + 8);
        all.extend((self.ends.len() as u64).to_le_bytes());
        for end in &self.ends {
            all.extend((*end as u64).to_le_bytes());
        }
        all.extend(token_bytes(&self.ids));
        Digest(blake3::derive_key(DIGEST_CONTEXT, &all))
    }
}

/// Whether a text begins with the words of a primer's document, whose last tokens are the empty line that closes it.
fn begins_with(text: &[u32], document: &[u32]) -> bool {
    let shared = text.iter().zip(document).take_while(|(a, b)| a == b);
    let words = document.len().saturating_sub(CLOSING_TOKENS);
    text == document || (words > CLOSING_TOKENS && shared.count() >= words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn primer() -> Primer {
        Primer::new(vec![1, 2], &[vec![3], vec![4, 5], vec![6, 7, 8]])
    }

    #[test]
    fn a_text_always_stands_behind_the_same_documents_and_texts_use_all_of_them() {
        let primer = primer();
        assert_eq!(primer.ids(), [1, 2, 3, 4, 5, 6, 7, 8]);
        let ends = || (0..64).map(|id| primer.before(&[id, id + 1]));
        assert!(ends().eq(ends()));
        let mut seen: Vec<usize> = ends().collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [3, 5, 8]);
    }

    #[test]
    fn a_text_among_the_documents_or_begun_by_one_has_its_place_there() {
        let primer = Primer::new(vec![1, 2], &[vec![3], vec![4, 5], (6..12).collect()]);
        assert_eq!(primer.before(&[3]), 2);
        assert_eq!(primer.before(&[4, 5]), 3);
        assert_eq!(primer.before(&[6, 7, 8, 9, 10, 11]), 5);
        assert_eq!(primer.before(&[6, 7, 8, 9, 20, 21, 22]), 5);
        let others = (0..64).map(|id| primer.before(&[6, 7, 8, 30, id, 31, 32]));
        assert_eq!(others.max(), Some(11));
    }

    #[test]
    fn without_documents_all_stand_behind_what_is_there() {
        let bare = Primer::new(vec![1, 2], &[]);
        assert_eq!(bare.before(&[7]), 2);
        assert_eq!(Primer::default().before(&[7]), 0);
        assert_eq!(Primer::default().digest(), Digest([0; 32]));
    }

    #[test]
    fn the_digest_names_the_tokens_and_where_documents_end() {
        let other = Primer::new(vec![1, 2, 3], &[vec![4, 5], vec![6, 7, 8]]);
        assert_eq!(other.ids(), primer().ids());
        assert_ne!(other.digest(), primer().digest());
        assert_eq!(primer().digest(), primer().digest());
    }
}
