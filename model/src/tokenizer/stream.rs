//! Generated tokens to text, as they come.
//!
//! A character's bytes may be spread over several tokens. A [`TextStream`]
//! holds such bytes back until the character is whole, so a client never sees
//! broken UTF-8, and what it gave out never changes.

use std::sync::Arc;

use super::Inner;
use crate::error::Result;

/// An incremental decoder. It continues a text, so a first token's leading
/// space is kept; special tokens give no text.
pub struct TextStream {
    tokenizer: Arc<Inner>,
    /// The bytes of a character that is not whole yet: at most three.
    held: Vec<u8>,
}

impl TextStream {
    pub(super) fn new(tokenizer: Arc<Inner>) -> Self {
        Self {
            tokenizer,
            held: Vec::new(),
        }
    }

    /// Takes the next token and returns the text that it completes, which may
    /// be empty. Bytes that can no longer become UTF-8 come as U+FFFD.
    ///
    /// # Errors
    /// [`crate::error::Error::Invalid`] for an id outside the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.tokenizer.push_bytes(id, &mut self.held)?;
        let mut text = String::new();
        let mut consumed = 0;
        for chunk in self.held.utf8_chunks() {
            text.push_str(chunk.valid());
            consumed += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            let last = consumed + invalid.len() == self.held.len();
            if last && may_continue(invalid) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            consumed += invalid.len();
        }
        self.held.drain(..consumed);
        Ok(text)
    }

    /// Ends the text and returns what was held back: nothing, or U+FFFD for a
    /// character that was never completed.
    #[must_use]
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.held).into_owned()
    }
}

/// Whether bytes are the beginning of a character rather than no UTF-8 at all.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
