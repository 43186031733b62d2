//! Where an answer to a question is over, for the answers that are compared and learned from.
//!
//! Owns the rule. A model with a chat template ends its turn; one without, which is only given a text to go on with,
//! goes on with questions of its own, so that its answer is over with its first line.

use addenda_model::{ChatTemplate, Tokenizer};

/// How a model's answers end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With a token that ends the turn.
    Turn,
    /// With such a token, or the end of the first line that is not empty.
    Line,
}

impl Ending {
    /// Of answers to what [`crate::prompt::Ask::question`] makes of questions.
    pub(crate) fn of(template: Option<&ChatTemplate>) -> Self {
        template.map_or(Self::Line, |_| Self::Turn)
    }

    /// Whether these tokens of an answer are all of it.
    pub(crate) fn is_met(self, answer: &[u32], tokenizer: &Tokenizer) -> bool {
        let Some(&last) = answer.last() else {
            return false;
        };
        if tokenizer.is_end(last) {
            return true;
        }
        if self == Self::Turn || !tokenizer.piece(last).contains('\n') {
            return false;
        }
        let text: String = answer.iter().map(|&id| tokenizer.piece(id)).collect();
        text.trim_start().contains('\n')
    }
}

#[cfg(test)]
mod tests {
    use addenda_model::Tokenizer;

    use super::Ending;

    /// A token a word and one for the end of a line, and one that ends a turn.
    fn tokenizer() -> addenda_model::Result<Tokenizer> {
        let json = br#"{
            "added_tokens": [{"id": 3, "content": "<end>", "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": {"yes": 0, "\u010a": 1, ".\u010a": 2}, "merges": []}
        }"#;
        Tokenizer::from_json(json, None, &[3])
    }

    #[test]
    fn an_answer_ends_with_its_first_line_or_with_its_turn() -> addenda_model::Result<()> {
        let tokenizer = tokenizer()?;
        let over = |ending: Ending, ids: &[u32]| ending.is_met(ids, &tokenizer);
        for lines in [&[0, 1][..], &[1, 1, 0, 1], &[2], &[0, 3], &[3]] {
            assert!(over(Ending::Line, lines), "{lines:?}");
        }
        for none in [&[][..], &[0], &[1], &[1, 1, 0]] {
            assert!(!over(Ending::Line, none), "{none:?}");
        }
        assert!(over(Ending::Turn, &[0, 3]));
        assert!(!over(Ending::Turn, &[0, 1]));
        Ok(())
    }
}
