//! Text to token ids and back.
//!
//! Owns [`Tokenizer`], built from a `tokenizer.json` or from GGUF metadata
//! (`tokenizer/gguf.rs`), and [`TextStream`], which turns generated tokens into
//! text as they come. Encoding adds nothing to the text: a caller that wants
//! the token before raw text asks [`Tokenizer::text_start`]. Special tokens
//! spelled out in a text become those tokens, as in Transformers. Decoding goes
//! by each token's bytes, so that a stream and a whole decode agree.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::error::{Error, Result};

mod gguf;
mod spelling;
mod stream;

use spelling::Spelling;
pub use stream::TextStream;

/// Token ids, and for each the bytes of the text that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// The token ids.
    pub ids: Vec<u32>,
    /// For each token its byte range in the text, always on character
    /// boundaries; tokens that share a character have the whole of it.
    pub offsets: Vec<(usize, usize)>,
}

/// A tokenizer; cloning shares it, and it may be used from any thread.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    backend: tokenizers::Tokenizer,
    spelling: Spelling,
    text_start: Option<u32>,
    ends: Vec<u32>,
    fingerprint: [u8; 32],
}

/// The token that some vocabularies put between texts in pre-training.
const END_OF_TEXT: &str = "<|endoftext|>";

impl Tokenizer {
    /// Builds a tokenizer from the content of a `tokenizer.json`.
    ///
    /// `adds_bos` is what the model's other files say about a token before raw
    /// text: `Some(Some(id))` it is added, `Some(None)` it is not, `None`
    /// nothing, and then the file's own post-processor decides. `ends` are the
    /// tokens that end an answer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the file is malformed, or spells tokens in
    /// neither of the two ways that are understood.
    pub fn from_json(json: &[u8], adds_bos: Option<Option<u32>>, ends: &[u32]) -> Result<Self> {
        let parsed: Value = serde_json::from_slice(json)
            .map_err(|source| failed("reading tokenizer.json", source))?;
        let mut backend =
            tokenizers::Tokenizer::from_bytes(json).map_err(|source| Error::Tokenizer {
                what: "reading tokenizer.json".to_owned(),
                source,
            })?;
        let spelling = Spelling::of_decoder(parsed.get("decoder").unwrap_or(&Value::Null))?;
        let template = template_start(parsed.get("post_processor").unwrap_or(&Value::Null))
            .and_then(|token| backend.token_to_id(token));
        // Padding and truncation would change ids; the post-processor would
        // trim offsets.
        backend.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        backend.with_padding(None);
        backend
            .with_truncation(None)
            .map_err(|source| Error::Tokenizer {
                what: "reading tokenizer.json".to_owned(),
                source,
            })?;
        let fingerprint = blake3::derive_key("addenda.v1 tokenizer.json", json);
        let text_start = adds_bos.unwrap_or(template);
        Ok(Self::assemble(
            backend,
            spelling,
            text_start,
            ends,
            fingerprint,
        ))
    }

    fn assemble(
        backend: tokenizers::Tokenizer,
        spelling: Spelling,
        bos: Option<u32>,
        ends: &[u32],
        fingerprint: [u8; 32],
    ) -> Self {
        let text_start = bos.or_else(|| backend.token_to_id(END_OF_TEXT));
        let ends = ends.to_vec();
        Self {
            inner: Arc::new(Inner {
                backend,
                spelling,
                text_start,
                ends,
                fingerprint,
            }),
        }
    }

    /// Encodes a text. Nothing is added; special tokens spelled out in the text
    /// become those tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Encoding> {
        let encoding =
            self.inner
                .backend
                .encode(text, false)
                .map_err(|source| Error::Tokenizer {
                    what: "encoding a text".to_owned(),
                    source,
                })?;
        Ok(Encoding {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
        })
    }

    /// Decodes token ids, leaving special tokens out. Bytes that are no UTF-8
    /// become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut bytes = Vec::new();
        for id in ids {
            self.inner.push_bytes(*id, &mut bytes)?;
        }
        let text = String::from_utf8_lossy(&bytes);
        let whole = if self.inner.spelling.begins_with_space() {
            text.strip_prefix(' ').unwrap_or(&text)
        } else {
            &text
        };
        Ok(whole.to_owned())
    }

    /// One token as a person would read it, special tokens included; for
    /// display only, because a token may hold part of a character.
    #[must_use]
    pub fn piece(&self, id: u32) -> String {
        let mut bytes = Vec::new();
        match self.inner.push_bytes(id, &mut bytes) {
            Ok(()) if !self.is_special(id) => String::from_utf8_lossy(&bytes).into_owned(),
            _ => self.inner.backend.id_to_token(id).unwrap_or_default(),
        }
    }

    /// The id of a token spelled as in the vocabulary, special tokens included.
    #[must_use]
    pub fn token_id(&self, spelling: &str) -> Option<u32> {
        self.inner.backend.token_to_id(spelling)
    }

    /// The token to put before raw text: BOS if the tokenizer is made to add
    /// one, else `<|endoftext|>` if the vocabulary has it, else none.
    #[must_use]
    pub fn text_start(&self) -> Option<u32> {
        self.inner.text_start
    }

    /// Whether a token ends an answer.
    #[must_use]
    pub fn is_end(&self, id: u32) -> bool {
        self.inner.ends.contains(&id)
    }

    /// Whether a token is special: never part of a decoded text.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.is_special(id)
    }

    /// A digest of everything that decides which ids a text becomes.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        self.inner.fingerprint
    }

    /// How many ids there are, added tokens included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.backend.get_vocab_size(true)
    }

    /// A decoder for tokens that come one by one and continue a text.
    #[must_use]
    pub fn stream(&self) -> TextStream {
        TextStream::new(Arc::clone(&self.inner))
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn is_special(&self, id: u32) -> bool {
        self.backend
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .get(&id)
            .is_some_and(|token| token.special)
    }

    /// Appends the bytes that a token stands for; none for a special token.
    fn push_bytes(&self, id: u32, bytes: &mut Vec<u8>) -> Result<()> {
        let token = self.backend.id_to_token(id).ok_or_else(|| {
            Error::Invalid(format!(
                "the token {id} lies outside the vocabulary of {}",
                self.backend.get_vocab_size(true)
            ))
        })?;
        if !self.is_special(id) {
            self.spelling.push_bytes(&token, bytes);
        }
        Ok(())
    }
}

/// The special token that a post-processor puts before a single text.
fn template_start(processor: &Value) -> Option<&str> {
    match processor.get("type")?.as_str()? {
        "Sequence" => processor
            .get("processors")?
            .as_array()?
            .iter()
            .find_map(template_start),
        "TemplateProcessing" => processor
            .get("single")?
            .as_array()?
            .first()?
            .get("SpecialToken")?
            .get("id")?
            .as_str(),
        _ => None,
    }
}

fn failed(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Tokenizer {
        what: what.to_owned(),
        source: Box::new(source),
    }
}
