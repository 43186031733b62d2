//! How a vocabulary spells bytes, and the way back.
//!
//! Two spellings are in use. Byte-level vocabularies (GPT-2 and after) write
//! each byte as one printable character. SentencePiece vocabularies write text
//! as it is, a space as `▁`, and a byte that no piece covers as `<0xE2>`. This
//! file owns both and decides which one a `tokenizer.json` uses; it knows no
//! ids.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

use crate::error::{Error, Result};

/// What stands for a space in SentencePiece vocabularies.
pub(super) const SPACE: char = '▁';

/// How tokens are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// One printable character for each byte.
    ByteLevel,
    /// `▁` for space, `<0xE2>` for single bytes.
    SentencePiece {
        /// Whether encoding puts a space before the text, which decoding a
        /// whole text takes away.
        begins_with_space: bool,
    },
}

impl Spelling {
    /// The spelling that the `decoder` of a `tokenizer.json` undoes.
    pub(super) fn of_decoder(decoder: &Value) -> Result<Self> {
        let mut steps = Vec::new();
        collect_steps(decoder, &mut steps);
        let named = |name: &str| steps.iter().copied().find(|step| kind(step) == Some(name));
        if named("ByteLevel").is_some() {
            return Ok(Self::ByteLevel);
        }
        if let Some(metaspace) = named("Metaspace") {
            let scheme = metaspace.get("prepend_scheme").and_then(Value::as_str);
            return Ok(Self::SentencePiece {
                begins_with_space: scheme != Some("never"),
            });
        }
        if named("ByteFallback").is_some() {
            return Ok(Self::SentencePiece {
                begins_with_space: named("Strip").is_some(),
            });
        }
        let found: Vec<&str> = steps.iter().copied().filter_map(kind).collect();
        Err(Error::Invalid(format!(
            "tokenizer.json decodes with {found:?}, which is not supported; supported are \
             byte-level vocabularies and SentencePiece vocabularies with byte fallback"
        )))
    }

    pub(super) fn begins_with_space(self) -> bool {
        matches!(
            self,
            Self::SentencePiece {
                begins_with_space: true
            }
        )
    }

    /// Appends the bytes that a token stands for.
    pub(super) fn push_bytes(self, token: &str, bytes: &mut Vec<u8>) {
        match self {
            Self::ByteLevel => {
                let start = bytes.len();
                for character in token.chars() {
                    if let Some(byte) = BYTES.get(&character) {
                        bytes.push(*byte);
                    } else {
                        // An added token is written as it is.
                        bytes.truncate(start);
                        bytes.extend_from_slice(token.as_bytes());
                        return;
                    }
                }
            }
            Self::SentencePiece { .. } => match single_byte(token) {
                Some(byte) => bytes.push(byte),
                None => {
                    let mut buffer = [0; 4];
                    for character in token.chars() {
                        let plain = if character == SPACE { ' ' } else { character };
                        bytes.extend_from_slice(plain.encode_utf8(&mut buffer).as_bytes());
                    }
                }
            },
        }
    }
}

fn kind(step: &Value) -> Option<&str> {
    step.get("type").and_then(Value::as_str)
}

fn collect_steps<'a>(decoder: &'a Value, steps: &mut Vec<&'a Value>) {
    match decoder.get("decoders").and_then(Value::as_array) {
        Some(inner) => inner.iter().for_each(|step| collect_steps(step, steps)),
        None => steps.push(decoder),
    }
}

/// The byte of a token such as `<0xE2>`.
fn single_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

/// Character → byte of GPT-2's alphabet: printable Latin-1 stands for itself,
/// and the 68 other bytes, in order, for the characters from U+0100.
static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let mut next = 0x100;
    (0..=u8::MAX)
        .filter_map(|byte| {
            let itself = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let code = if itself { u32::from(byte) } else { next };
            next += u32::from(!itself);
            Some((char::from_u32(code)?, byte))
        })
        .collect()
});
