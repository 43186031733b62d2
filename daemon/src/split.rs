//! A text cut into parts, each of which becomes a packet.
//!
//! Owns where the borders are. Knows no packet and no tokenizer but the one it is handed. Invariants:
//! the parts' texts, one behind the other, are the text, byte for byte; each part is tokenised alone
//! and has no more tokens than it may; a text that fits is one part.
//!
//! A part ends where a sentence ends (Unicode Standard Annex 29; the end of a line ends one too),
//! an empty line before all; where there is none, between two words; where there is none either,
//! between two characters. The spaces between two sentences belong to the later one, as tokenizers
//! have it.
//!
//! Of several borders in the last quarter of a part's room, the text before them decides and not
//! their distance from the beginning. So an insertion changes the parts around it, and those some way
//! further on begin and end where they did: their packets serve again.

use unicode_segmentation::UnicodeSegmentation;

use crate::error::Result;

/// The text before a border that decides whether it is taken, bytes.
const LOOK_BACK: usize = 48;

/// A tokenised text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    /// Where each token begins in the text, bytes.
    pub(crate) starts: Vec<usize>,
}

/// Cuts `text` into parts of at most `most` tokens each; their token ids, in order.
///
/// # Errors
/// The tokenizer's.
pub(crate) fn split(
    text: &str,
    most: usize,
    tokenize: impl Fn(&str) -> Result<Tokens>,
) -> Result<Vec<Vec<u32>>> {
    let most = most.max(1);
    let whole = tokenize(text)?;
    if whole.ids.len() <= most {
        return Ok(vec![whole.ids]);
    }
    let mut parts = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let (end, ids) = part(text, at, &whole.starts, most, &tokenize)?;
        parts.push(ids);
        at = end;
    }
    Ok(parts)
}

/// The first sentences of a text, `most` characters at most; where those are less than half of that, its first words.
pub(crate) fn beginning(text: &str, most: usize) -> &str {
    let Some((high, _)) = text.char_indices().nth(most) else {
        return text;
    };
    let end = sentence_ends(text, 0, high).last().copied();
    let end = end.filter(|end| *end > high / 2);
    let end = end.or_else(|| between_words(text, 0, high));
    text.get(..end.unwrap_or(high)).unwrap_or(text)
}

/// The part that begins at byte `at`: its end, and its token ids.
fn part(
    text: &str,
    at: usize,
    starts: &[usize],
    most: usize,
    tokenize: impl Fn(&str) -> Result<Tokens>,
) -> Result<(usize, Vec<u32>)> {
    let first = starts.partition_point(|start| *start < at);
    let left = starts.len().saturating_sub(first);
    let place = |tokens: usize| starts.get(first + tokens).copied().unwrap_or(text.len());
    let mut room = most;
    loop {
        let end = if left <= room {
            text.len()
        } else {
            // What is left over is no crumb.
            let high = room.min(left.saturating_sub(most / 4)).max(1);
            border(text, at, place(high - high / 4), place(high))
        };
        let ids = tokenize(text.get(at..end).unwrap_or_default())?.ids;
        let over = ids.len().saturating_sub(most);
        // Alone it may have more tokens than within its text; a single character is taken as it is.
        if over == 0 || room <= 1 {
            return Ok((end, ids));
        }
        room = room.min(left).saturating_sub(over).max(1);
    }
}

/// The best border in `(at, high]`, one behind `low` where there is one.
fn border(text: &str, at: usize, low: usize, high: usize) -> usize {
    let high = ceil(text, high.max(at + 1));
    let sentences = sentence_ends(text, at, high);
    let late = || sentences.iter().copied().filter(|end| *end > low);
    let empty_lines = late().filter(|end| ends_with_empty_line(text, *end));
    let chosen = empty_lines
        .min_by_key(|end| lot(text, *end))
        .or_else(|| late().min_by_key(|end| lot(text, *end)))
        .or_else(|| {
            sentences
                .iter()
                .copied()
                .rfind(|end| *end > at + (high - at) / 2)
        })
        .or_else(|| between_words(text, at, high));
    chosen.unwrap_or(high)
}

/// Where the sentences of `text[at..high]` end.
fn sentence_ends(text: &str, at: usize, high: usize) -> Vec<usize> {
    let run = text.get(at..high).unwrap_or_default();
    run.split_sentence_bound_indices()
        .map(|(start, sentence)| {
            let end = at + start + sentence.trim_end_matches([' ', '\t']).len();
            (end, start + sentence.len() == run.len())
        })
        // The last one may end only because the run was cut there.
        .filter(|(end, last)| *end > at && (!last || ends_one(text, *end)))
        .map(|(end, _)| end)
        .collect()
}

/// Whether a sentence ends at `end` whatever follows.
fn ends_one(text: &str, end: usize) -> bool {
    let (before, after) = text.split_at_checked(end).unwrap_or((text, ""));
    let stop = |c: char| matches!(c, '.' | '!' | '?' | '…' | '。' | '！' | '？' | '\n');
    before.ends_with(stop) && after.chars().next().is_none_or(char::is_whitespace)
}

fn ends_with_empty_line(text: &str, end: usize) -> bool {
    let before = text.get(..end).unwrap_or_default();
    before.ends_with("\n\n") || before.ends_with("\n\r\n")
}

/// A number that depends on nothing but the text before a border.
fn lot(text: &str, end: usize) -> [u8; 32] {
    let before = text.as_bytes().get(end.saturating_sub(LOOK_BACK)..end);
    *blake3::hash(before.unwrap_or_default()).as_bytes()
}

/// The last place in `(at, high]` where a word ends.
fn between_words(text: &str, at: usize, high: usize) -> Option<usize> {
    let run = text.get(at..high)?;
    let mut places = run.char_indices().rev();
    let space = places.find(|(place, c)| *place > 0 && c.is_whitespace());
    space.map(|(place, c)| {
        if c == '\n' {
            at + place + 1
        } else {
            at + place
        }
    })
}

/// The first border between characters at or behind `place`.
fn ceil(text: &str, place: usize) -> usize {
    let mut places = place..text.len();
    places
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a panic fails the test, which is what tests are for"
    )]
    use std::cell::RefCell;

    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::{Tokens, split};

    /// A token for each run of letters with the space before it, and for each other character.
    fn words(text: &str) -> Tokens {
        let mut tokens = Tokens::default();
        let mut before = ' ';
        for (start, c) in text.char_indices() {
            let joins =
                c.is_alphanumeric() && (before.is_alphanumeric() || before == ' ') && start > 0;
            if !joins {
                tokens.ids.push(u32::from(c));
                tokens.starts.push(start);
            }
            before = c;
        }
        tokens
    }

    /// The texts of the parts, in order; checked against the text.
    fn parts(text: &str, most: usize) -> Vec<String> {
        let seen = RefCell::new(Vec::new());
        let found = split(text, most, |part| {
            seen.borrow_mut().push(part.to_owned());
            Ok(words(part))
        })
        .unwrap();
        // The parts are among what was tokenised, in order; those that were too long are not.
        let mut texts = Vec::new();
        let mut at = 0;
        let seen = seen.into_inner();
        let mut tried = seen.iter().skip(usize::from(found.len() > 1)).peekable();
        for ids in &found {
            let part = tried
                .by_ref()
                .find(|part| text[at..].starts_with(part.as_str()) && words(part).ids == *ids)
                .unwrap();
            at += part.len();
            texts.push(part.clone());
        }
        assert_eq!(texts.concat(), text, "nothing is lost");
        texts
    }

    fn sentence(number: usize) -> String {
        format!(
            "Rule {number} says that ward {} opens at {} sharp.",
            number * 7,
            number % 24
        )
    }

    fn rules(numbers: impl Iterator<Item = usize>) -> String {
        let sentences: Vec<String> = numbers.map(sentence).collect();
        sentences.join(" ")
    }

    #[test]
    fn a_text_that_fits_is_one_part() {
        let text = rules(0..3);
        assert_eq!(parts(&text, words(&text).ids.len()), [text]);
    }

    #[test]
    fn parts_end_where_sentences_end_and_are_nearly_full() {
        let text = rules(0..200);
        let parts = parts(&text, 100);
        for part in &parts[..parts.len() - 1] {
            assert!(part.ends_with('.'), "{part:?}");
            assert!((70..=100).contains(&words(part).ids.len()), "{part:?}");
        }
        assert!(parts[1].starts_with(" Rule"), "{:?}", parts[1]);
        assert!(
            words(parts.last().unwrap()).ids.len() >= 20,
            "no crumb is left over"
        );
    }

    #[test]
    fn an_empty_line_is_preferred_and_lines_serve_where_there_are_no_sentences() {
        let paragraphs: Vec<String> = (0..40).map(|at| rules(at..at + 2)).collect();
        let cut = parts(&paragraphs.join("\n\n"), 110);
        for part in &cut[..cut.len() - 1] {
            assert!(part.ends_with("\n\n"), "{part:?}");
        }
        let lines: Vec<String> = (0..100).map(|at| format!("ward {at} bed {at}")).collect();
        for (text, most) in [(lines.join("\n"), 50), (lines.join("!\n"), 13)] {
            let cut = parts(&text, most);
            for part in &cut[..cut.len() - 1] {
                assert!(part.ends_with('\n'), "{part:?}");
            }
        }
    }

    #[test]
    fn words_then_characters_serve_where_there_are_no_lines() {
        let parts_of_words = parts(&"ward ".repeat(300), 40);
        for part in &parts_of_words[1..] {
            assert!(part.starts_with(' '), "{part:?}");
        }
        for part in parts(&"東".repeat(500), 1) {
            assert_eq!(part.chars().count() % 500, 0, "one word is one token here");
        }
        let signs = parts(&"€".repeat(501), 40);
        assert!(signs.iter().all(|part| part.chars().count() <= 40));
        assert!(signs.len() >= 13, "{}", signs.len());
    }

    #[test]
    fn an_insertion_changes_the_parts_around_it_only() {
        let before = parts(&rules(0..300), 100);
        let after = parts(&rules((0..20).chain(1000..1003).chain(20..300)), 100);
        let new = after.iter().filter(|part| !before.contains(part)).count();
        assert_eq!(before.last(), after.last());
        assert!(
            new * 3 <= after.len(),
            "{new} of {} parts are new",
            after.len()
        );
    }

    proptest! {
        #[test]
        fn any_text_is_cut_without_loss_into_parts_that_fit(
            text in "([a-zé東€ .!?\n]{0,30}|[A-Z][a-z]{1,9}( [a-z]{1,9}){0,9}[.!?] ?\n?){0,30}",
            most in 1usize..60,
        ) {
            let cut = parts(&text, most);
            prop_assert_eq!(cut.concat(), text);
            for part in &cut {
                let tokens = words(part).ids.len();
                prop_assert!(tokens <= most || part.chars().count() <= 2, "{:?}: {}", part, tokens);
            }
        }
    }
}
