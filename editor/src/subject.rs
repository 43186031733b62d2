//! Where the subject ends in a prompt, in tokens; and the token rows that an edit is made of.
//!
//! Never re-tokenises a piece of text: the whole text is encoded once, and places are found by the tokenizer's byte
//! offsets, which hold for prefixes, leading blanks, repeated subjects and Unicode alike.

use std::ops::Range;

use addenda_model::tokenizer::Tokenizer;

use crate::error::{Error, Result};
use crate::fact::{Fact, PLACEHOLDER};

/// A prompt as tokens, with what starts a text in front, and the place of the subject's last token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PromptTokens {
    pub(crate) ids: Vec<u32>,
    pub(crate) subject_at: usize,
}

impl PromptTokens {
    /// The fact's prompt behind `context`, which is empty for the bare prompt.
    pub(crate) fn of(tokenizer: &Tokenizer, context: &str, fact: &Fact) -> Result<Self> {
        let start = fact
            .prompt
            .find(PLACEHOLDER)
            .ok_or_else(|| Error::SubjectNotInPrompt {
                subject: fact.subject.clone(),
                prompt: fact.prompt.clone(),
            })?
            + context.len();
        let text = format!("{context}{}", fact.filled_prompt());
        Self::with_subject(tokenizer, &text, start..start + fact.subject.len())
    }

    /// "{subject} is a": where the model's idea of the subject must stay what it was.
    pub(crate) fn essence(tokenizer: &Tokenizer, fact: &Fact) -> Result<Self> {
        Self::with_subject(
            tokenizer,
            &format!("{} is a", fact.subject),
            0..fact.subject.len(),
        )
    }

    fn with_subject(tokenizer: &Tokenizer, text: &str, subject: Range<usize>) -> Result<Self> {
        let encoding = tokenizer.encode(text)?;
        let at = last_token(&encoding.offsets, &subject).ok_or_else(|| Error::BadFact {
            field: "subject",
            problem: "has no token of its own in this model's vocabulary".to_owned(),
        })?;
        let ids = started(tokenizer, encoding.ids);
        Ok(Self {
            subject_at: at + usize::from(tokenizer.text_start().is_some()),
            ids,
        })
    }
}

/// A text's tokens with what starts a text in front: without it, position 0 falls on the subject, whose key is then
/// unlike the one that the model uses in a conversation.
pub(crate) fn text_tokens(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    Ok(started(tokenizer, tokenizer.encode(text)?.ids))
}

fn started(tokenizer: &Tokenizer, ids: Vec<u32>) -> Vec<u32> {
    tokenizer.text_start().into_iter().chain(ids).collect()
}

/// The target's tokens as they follow the prompt's.
///
/// A blank goes between where the two scripts use one. The joined text is encoded, and what follows the prompt's own
/// tokens is taken: tokenizers that put a blank of their own in front of each text would else double it. Where the
/// border falls inside a token of the joined text, the target is encoded alone, since the prompt's tokens are given.
pub(crate) fn target_tokens(tokenizer: &Tokenizer, prompt: &str, target: &str) -> Result<Vec<u32>> {
    let gap = if needs_blank(prompt, target) { " " } else { "" };
    let before = tokenizer.encode(prompt)?.ids;
    let joined = tokenizer.encode(&format!("{prompt}{gap}{target}"))?.ids;
    let ids = match joined.strip_prefix(before.as_slice()) {
        Some(rest) if !rest.is_empty() => rest.to_vec(),
        _ => tokenizer.encode(&format!("{gap}{target}"))?.ids,
    };
    if let Some(id) = ids.iter().find(|id| tokenizer.is_special(**id)) {
        let problem = format!(
            "holds the special token {:?}; remove it",
            tokenizer.piece(*id)
        );
        return Err(Error::BadFact {
            field: "target",
            problem,
        });
    }
    if ids.is_empty() {
        return Err(Error::BadFact {
            field: "target",
            problem: "has no token in this model's vocabulary".to_owned(),
        });
    }
    Ok(ids)
}

fn needs_blank(prompt: &str, target: &str) -> bool {
    let blank = prompt.ends_with(char::is_whitespace) || target.starts_with(char::is_whitespace);
    let unspaced = prompt.chars().next_back().is_some_and(is_unspaced)
        && target.chars().next().is_some_and(is_unspaced);
    !blank && !unspaced
}

/// Scripts whose words follow each other without blanks: Thai, Lao, Khmer, Myanmar, kana, Han, full-width forms.
fn is_unspaced(c: char) -> bool {
    matches!(u32::from(c), 0x0E00..=0x0EFF | 0x1000..=0x109F | 0x1780..=0x17FF | 0x3000..=0x30FF | 0x3400..=0x9FFF
        | 0xF900..=0xFAFF | 0xFF00..=0xFFEF | 0x20000..=0x3FFFF)
}

/// The last token that shares a byte with the range.
fn last_token(offsets: &[(usize, usize)], range: &Range<usize>) -> Option<usize> {
    offsets
        .iter()
        .rposition(|(start, end)| start < end && *start < range.end && *end > range.start)
}

#[cfg(test)]
mod tests {
    use super::{last_token, needs_blank};

    #[test]
    fn the_subjects_last_token_is_the_last_that_shares_a_byte_with_it() {
        // "The| mother| of| Ann|a| is": the subject is bytes 14..18.
        let offsets = [(0, 3), (3, 10), (10, 13), (13, 17), (17, 18), (18, 21)];
        assert_eq!(last_token(&offsets, &(14..18)), Some(4));
        // A token that runs past the subject's end still holds its last byte.
        assert_eq!(last_token(&[(0, 3), (3, 9)], &(0..5)), Some(1));
        // Tokens without bytes, such as one that starts a text, never count.
        assert_eq!(last_token(&[(0, 0), (0, 3), (3, 3)], &(0..3)), Some(1));
        assert_eq!(last_token(&[(0, 3)], &(5..7)), None);
        // All the pieces of one character may carry its whole range.
        assert_eq!(
            last_token(&[(0, 4), (0, 4), (0, 4), (4, 6)], &(0..4)),
            Some(2)
        );
    }

    #[test]
    fn a_blank_goes_between_only_where_the_script_has_one() {
        assert!(needs_blank("The capital is", "Rome"));
        assert!(!needs_blank("The capital is ", "Rome"));
        assert!(!needs_blank("Answer:\n", "Rome"));
        assert!(!needs_blank("The capital is", " Rome"));
        assert!(!needs_blank("首都は", "東京"));
        assert!(needs_blank("首都 is", "東京"));
    }
}
