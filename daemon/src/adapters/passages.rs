//! Passages: the user's own documents, cut at sentences to lengths that fit a lesson.
//!
//! Owns the cutting. Reads texts back from the token ids that packets carry. Bounded: of a large
//! store, the first passages in the order of names.

use addenda_cache::{Document, Edition};

use crate::documents::Documents;
use crate::error::{Error, Result};
use crate::limits;

/// Words of a passage at most.
const WORDS: usize = 160;
/// Passages of one training at most.
const PASSAGES: usize = 4096;

/// Passages of the named documents of a namespace, or of all for no names. Touches the disk.
///
/// # Errors
/// A document that is not there, or the store's.
pub(crate) fn of(documents: &Documents, namespace: &str, names: &[String]) -> Result<Vec<String>> {
    let store = documents.packets.store();
    let mut passages = Vec::new();
    for name in names {
        let found = store.document(namespace, name)?;
        let document = found.ok_or_else(|| Error::NotFound {
            what: "document",
            id: name.clone(),
            hint: "put it first; `addenda packet list` shows those there are",
        })?;
        add(documents, &document, &mut passages)?;
    }
    let mut after: Option<String> = None;
    while names.is_empty() && passages.len() < PASSAGES {
        let page = store.documents(namespace, after.as_deref(), limits::PAGE as usize)?;
        let Some(last) = page.last() else { break };
        after = Some(last.name.clone());
        for document in &page {
            add(documents, document, &mut passages)?;
        }
    }
    passages.truncate(PASSAGES);
    Ok(passages)
}

/// Appends the passages of a document: of its newest edition that is whole.
fn add(documents: &Documents, document: &Document, passages: &mut Vec<String>) -> Result<()> {
    let newest = document.editions.iter().rev().find_map(Edition::whole);
    let mut ids = Vec::new();
    for packet in newest.into_iter().flatten() {
        ids.extend(documents.packets.store().read(&packet)?.token_ids());
    }
    cut(&documents.tokenizer.decode(&ids)?, passages);
    Ok(())
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
