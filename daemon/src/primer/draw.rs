//! A primer's file out of documents.
//!
//! Owns which documents stand in it, and what of each: its first sentences. A few short ones do better than many, or than
//! long ones: measured in ARCHITECTURE.md, "The primer". Knows no model.

use crate::split::beginning;

/// Characters of a document in a primer, at most: some 40 tokens of English.
const MOST_CHARACTERS: usize = 160;
/// Documents of a primer, at most.
const MOST_DOCUMENTS: usize = 16;

/// Whether the document of this number, from 0, of so many is one of a primer's: all are, or evenly as many as it
/// has at most.
#[must_use]
pub fn takes(number: usize, of: usize) -> bool {
    let most = MOST_DOCUMENTS.min(of);
    number * most % of.max(1) < most
}

/// What of a document stands in a primer: its first sentences, without empty lines; `None` of one without words.
#[must_use]
pub fn excerpt(document: &str) -> Option<String> {
    let lines = document.lines().map(str::trim_end);
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    let text = lines.join("\n");
    let text = beginning(text.trim_start(), MOST_CHARACTERS).trim_end();
    (!text.is_empty()).then(|| text.to_owned())
}

/// A primer's file: a paragraph of each excerpt.
#[must_use]
pub fn file(excerpts: &[String]) -> String {
    excerpts.join("\n\n") + "\n"
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::prompt::paragraphs;

    #[test]
    fn a_document_gives_its_first_sentences_and_no_more_than_fit() {
        let visiting =
            "Visiting hours are from two to six.\r\n\r\nChildren need the ward's consent. ";
        assert_eq!(
            excerpt(visiting).unwrap(),
            "Visiting hours are from two to six.\nChildren need the ward's consent."
        );
        let long = visiting.repeat(3);
        let short = excerpt(&long).unwrap();
        assert!(short.chars().count() <= MOST_CHARACTERS && short.len() > 120);
        assert!(
            short.ends_with('.') && paragraphs(&short).count() == 1,
            "{short:?}"
        );
    }

    #[test]
    fn without_sentences_it_gives_whole_words_and_without_those_whole_characters() {
        let text = "ward level ".repeat(40);
        let words = excerpt(&text).unwrap();
        assert!(words.len() > 150 && words.len() <= MOST_CHARACTERS);
        assert!(text.strip_prefix(&words).unwrap().starts_with(' '));
        let characters = excerpt(&"病".repeat(400)).unwrap();
        assert_eq!(characters.chars().count(), MOST_CHARACTERS);
        assert_eq!(excerpt(" \n\t\r\n"), None);
    }

    #[test]
    fn of_many_documents_some_are_taken_evenly_and_of_few_all() {
        assert!((0..MOST_DOCUMENTS).all(|number| takes(number, MOST_DOCUMENTS)));
        let taken: Vec<usize> = (0..1600).filter(|&number| takes(number, 1600)).collect();
        assert!(taken.into_iter().eq((0..1600).step_by(100)));
    }

    #[test]
    fn a_file_has_a_paragraph_of_each() {
        let excerpts = ["One.\nTwo.".to_owned(), "Three.".to_owned()];
        assert!(paragraphs(file(&excerpts).trim_end()).eq(&excerpts));
    }
}
