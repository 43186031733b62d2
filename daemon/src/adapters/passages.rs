//! Passages: the user's own documents, cut at sentences to lengths that fit a lesson.
//!
//! Owns the cutting. Reads texts back from the token ids that packets carry. Bounded: of a large
//! store, the first passages in the order of names.

use std::collections::BTreeSet;

use crate::documents::Documents;
use crate::error::{Error, Result};
use crate::limits;

/// Words of a passage at most.
const WORDS: usize = 160;
/// Passages of one training at most.
const PASSAGES: usize = 4096;
/// Packets that are looked at, at most.
const PACKETS: usize = 4096;

/// Passages of the named documents of a namespace, or of all for no names. Touches the disk.
///
/// # Errors
/// A document that is not there, or the store's.
pub(crate) fn of(documents: &Documents, namespace: &str, names: &[String]) -> Result<Vec<String>> {
    let store = documents.packets.store();
    let mut missing: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let mut seen = BTreeSet::new();
    let mut passages = Vec::new();
    let mut after = None;
    let mut looked = 0;
    while looked < PACKETS {
        let page = store.list(namespace, after.as_ref(), limits::LARGEST_PAGE as usize)?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        looked += page.len();
        for manifest in &page {
            let name = manifest.header.document.as_str();
            let wanted = names.is_empty() || names.iter().any(|one| one == name);
            missing.remove(name);
            // One document may have packets of several weights.
            if !wanted || !seen.insert(manifest.header.source) {
                continue;
            }
            let ids = store.read(&manifest.id)?.token_ids();
            cut(&documents.tokenizer.decode(&ids)?, &mut passages);
            if passages.len() >= PASSAGES {
                passages.truncate(PASSAGES);
                return Ok(passages);
            }
        }
    }
    match missing.first() {
        None => Ok(passages),
        Some(name) => Err(Error::NotFound {
            what: "document",
            id: (*name).to_owned(),
            hint: "put it first; `addenda packet list` shows those there are",
        }),
    }
}

/// Appends a text's passages: whole sentences, as many as fit.
fn cut(text: &str, passages: &mut Vec<String>) {
    let mut passage = String::new();
    let mut words = 0;
    for sentence in text.split_inclusive(['.', '!', '?', '\n']) {
        let own = sentence.split_whitespace().count();
        if words > 0 && words + own > WORDS {
            passages.push(std::mem::take(&mut passage));
            words = 0;
        }
        // A sentence without end is cut all the same.
        let text: Vec<&str> = sentence.split_whitespace().take(WORDS).collect();
        if !text.is_empty() {
            passage.push_str(&text.join(" "));
            passage.push(if sentence.ends_with('\n') { '\n' } else { ' ' });
            words += own.min(WORDS);
        }
    }
    if words > 0 {
        passages.push(passage);
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::{WORDS, cut};

    #[test]
    fn a_long_text_is_cut_at_its_sentences_and_nothing_is_lost() {
        let sentence = "The key hangs in the glass case of the office. ";
        let mut passages = Vec::new();
        cut(&sentence.repeat(50), &mut passages);
        assert!(passages.len() >= 3);
        for passage in &passages {
            assert!(passage.split_whitespace().count() <= WORDS);
            assert!(passage.trim_end().ends_with("office."));
        }
        assert_eq!(passages.concat().split_whitespace().count(), 500);
        passages.clear();
        cut(&"word ".repeat(400), &mut passages);
        assert_eq!(passages[0].split_whitespace().count(), WORDS);
    }
}
