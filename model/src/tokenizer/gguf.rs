//! A tokenizer from GGUF metadata.
//!
//! Two kinds are built, as Transformers builds them: `gpt2`, byte-level BPE
//! with the file's merges and the pre-tokenizer that `tokenizer.ggml.pre`
//! names; and `llama`, SentencePiece BPE, whose merges follow from the
//! vocabulary. A pre-tokenizer that is not known here is refused by name: a
//! wrong one gives wrong ids without any sign of it.

use std::collections::HashMap;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::Tokenizer;
use super::spelling::{SPACE, Spelling};
use crate::error::{Error, Result};
use crate::gguf::GgufFile;

/// GPT-2's own split, as llama.cpp writes it.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What llama.cpp splits by, one after the other, where a file names `default`.
const DEFAULT: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];

/// `llama_token_type` of llama.cpp.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file's metadata describes. `ends` are
    /// the tokens that end an answer.
    ///
    /// # Errors
    /// [`Error::Config`] for a kind of tokenizer or a pre-tokenizer that is not
    /// supported, or metadata that is missing; [`Error::Tokenizer`] for merges
    /// that do not fit the vocabulary.
    pub fn from_gguf(file: &GgufFile, ends: &[u32]) -> Result<Self> {
        let vocabulary = Vocabulary::read(file)?;
        let (mut backend, spelling, adds_bos) = match file.need_text("tokenizer.ggml.model")? {
            "gpt2" => (byte_level(file, &vocabulary)?, Spelling::ByteLevel, false),
            "llama" => {
                let (backend, spelling) = sentence_piece(file, &vocabulary)?;
                (backend, spelling, true)
            }
            other => {
                return Err(unsupported(&format!(
                    "the tokenizer `{other}`; supported are gpt2 (byte-level BPE) and llama \
                     (SentencePiece)"
                )));
            }
        };
        add_tokens(&mut backend, &vocabulary);
        let adds_bos = file
            .flag("tokenizer.ggml.add_bos_token")?
            .unwrap_or(adds_bos);
        let bos = file
            .token("tokenizer.ggml.bos_token_id")?
            .filter(|_| adds_bos);
        Ok(Self::assemble(
            backend,
            spelling,
            bos,
            ends,
            fingerprint(file, &vocabulary)?,
        ))
    }
}

struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: Vec<i64>,
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a GgufFile) -> Result<Self> {
        let tokens = file
            .texts("tokenizer.ggml.tokens")?
            .ok_or_else(|| Error::Config {
                reason: format!("{} holds no tokenizer", file.path().display()),
            })?;
        let kinds = file
            .wholes("tokenizer.ggml.token_type")?
            .unwrap_or_default();
        if !kinds.is_empty() && kinds.len() != tokens.len() {
            return Err(Error::Config {
                reason: format!("{} token types for {} tokens", kinds.len(), tokens.len()),
            });
        }
        if u32::try_from(tokens.len()).is_err() {
            return Err(Error::Config {
                reason: "the vocabulary is too large".to_owned(),
            });
        }
        Ok(Self { tokens, kinds })
    }

    fn ids(&self) -> Vocab {
        (0u32..)
            .zip(self.tokens)
            .map(|(id, token)| (token.clone(), id))
            .collect()
    }
}

fn byte_level(file: &GgufFile, vocabulary: &Vocabulary<'_>) -> Result<tokenizers::Tokenizer> {
    let lines = file
        .texts("tokenizer.ggml.merges")?
        .ok_or_else(|| Error::Config {
            reason: format!("{} lacks `tokenizer.ggml.merges`", file.path().display()),
        })?;
    let merges: Option<Merges> = lines
        .iter()
        .map(|line| {
            line.split_once(' ')
                .map(|(left, right)| (left.to_owned(), right.to_owned()))
        })
        .collect();
    let merges = merges.ok_or_else(|| Error::Config {
        reason: "a line of `tokenizer.ggml.merges` is no pair".to_owned(),
    })?;
    let pre = file.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let whole_words = matches!(pre, "llama-bpe" | "llama3" | "llama-v3" | "tekken");
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.ids(), merges)
        .ignore_merges(whole_words)
        .build()
        .map_err(broken)?;
    let mut backend = tokenizers::Tokenizer::new(model);
    backend.with_pre_tokenizer(Some(pre_tokenizer(pre)?));
    if is_qwen(pre) {
        backend.with_normalizer(Some(NFC));
    }
    Ok(backend)
}

fn is_qwen(pre: &str) -> bool {
    matches!(pre, "qwen2" | "deepseek-r1-qwen")
}

fn pre_tokenizer(pre: &str) -> Result<Sequence> {
    let own_split = ByteLevel::new(false, true, true);
    let bytes_only = ByteLevel::new(false, true, false);
    let splits: &[&str] = match pre {
        // SmolLM2's own tokenizer.json: every digit alone, then GPT-2's split.
        "smollm" => {
            return Ok(Sequence::new(vec![
                Digits::new(true).into(),
                own_split.into(),
            ]));
        }
        "gpt-2" | "gpt2" => return Ok(Sequence::new(vec![own_split.into()])),
        "default" => &DEFAULT,
        "llama-bpe" | "llama3" | "llama-v3" => &[LLAMA3],
        "tekken" => &[TEKKEN],
        _ if is_qwen(pre) => &[QWEN2],
        other => {
            return Err(unsupported(&format!(
                "the pre-tokenizer `{other}`; supported are smollm, llama-bpe, qwen2, \
                 deepseek-r1-qwen, tekken, gpt-2 and default. Use the model's Hugging Face \
                 directory instead"
            )));
        }
    };
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for split in splits {
        let pattern = SplitPattern::Regex((*split).to_owned());
        let step = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(broken)?;
        steps.push(step.into());
    }
    steps.push(bytes_only.into());
    Ok(Sequence::new(steps))
}

/// SentencePiece BPE. Gemma puts no space before a text and knows `▁` runs;
/// the Llama 2 family puts one.
fn sentence_piece(
    file: &GgufFile,
    vocabulary: &Vocabulary<'_>,
) -> Result<(tokenizers::Tokenizer, Spelling)> {
    let gemma = file.architecture()?.starts_with("gemma");
    let begins_with_space = !gemma
        && file
            .flag("tokenizer.ggml.add_space_prefix")?
            .unwrap_or(true);
    // llama.cpp writes runs of spaces as they are; the text is matched after
    // its spaces have become `▁`.
    let respelled: Vec<String> = vocabulary
        .tokens
        .iter()
        .map(|token| respell(token))
        .collect();
    let ids: HashMap<&str, u32> = respelled.iter().map(String::as_str).zip(0u32..).collect();
    let mut order: Vec<usize> = (0..respelled.len()).collect();
    if !gemma {
        // Gemma's merges follow the order of its vocabulary; elsewhere the
        // scores say which merge comes first.
        let scores = file.numbers("tokenizer.ggml.scores")?.unwrap_or_default();
        let score = |index: &usize| scores.get(*index).copied().unwrap_or(f32::MIN);
        order.sort_by(|left, right| score(right).total_cmp(&score(left)));
    }
    let merges = order
        .iter()
        .filter_map(|index| respelled.get(*index))
        .flat_map(|token| pairs(token, &ids))
        .collect();
    let mut model = BPE::builder()
        .vocab_and_merges(
            (0u32..)
                .zip(&respelled)
                .map(|(id, token)| (token.clone(), id))
                .collect::<Vocab>(),
            merges,
        )
        .fuse_unk(true)
        .byte_fallback(true);
    if let Some(unknown) = file
        .token("tokenizer.ggml.unknown_token_id")?
        .and_then(|id| respelled.get(usize::try_from(id).ok()?))
    {
        model = model.unk_token(unknown.clone());
    }
    let mut backend = tokenizers::Tokenizer::new(model.build().map_err(broken)?);
    if begins_with_space {
        let metaspace = Metaspace::new(SPACE, PrependScheme::First, false);
        backend.with_pre_tokenizer(Some(metaspace));
    } else {
        backend.with_normalizer(Some(Replace::new(" ", SPACE.to_string()).map_err(broken)?));
    }
    // Decoding is done by `Spelling`; the backend's own decoder only has to be
    // one of the same kind.
    backend.with_decoder(Some(ByteFallback::new()));
    Ok((backend, Spelling::SentencePiece { begins_with_space }))
}

fn respell(token: &str) -> String {
    if !token.is_empty() && token.chars().all(|character| character == ' ') {
        SPACE.to_string().repeat(token.len())
    } else {
        token.to_owned()
    }
}

/// The ways to make a token of two others, the longest left part first.
fn pairs<'a>(
    token: &'a str,
    ids: &'a HashMap<&str, u32>,
) -> impl Iterator<Item = (String, String)> + 'a {
    token
        .char_indices()
        .rev()
        .filter(|(at, _)| *at > 0)
        .filter_map(move |(at, _)| {
            let (left, right) = token.split_at(at);
            (ids.contains_key(left) && ids.contains_key(right))
                .then(|| (left.to_owned(), right.to_owned()))
        })
}

/// Control and user-defined tokens are found whole in a text; only control
/// tokens are left out of decoded text.
fn add_tokens(backend: &mut tokenizers::Tokenizer, vocabulary: &Vocabulary<'_>) {
    let added: Vec<AddedToken> = vocabulary
        .tokens
        .iter()
        .zip(&vocabulary.kinds)
        .filter(|(token, kind)| {
            // A respelled run of spaces is found by its merges.
            [CONTROL, USER_DEFINED].contains(kind) && backend.token_to_id(token).is_some()
        })
        .map(|(token, kind)| AddedToken::from(token.clone(), *kind == CONTROL).normalized(false))
        .collect();
    backend.add_tokens(&added);
}

fn fingerprint(file: &GgufFile, vocabulary: &Vocabulary<'_>) -> Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new_derive_key("addenda.v1 tokenizer gguf");
    let mut field = |bytes: &[u8]| {
        hasher.update(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
        hasher.update(bytes);
    };
    field(file.architecture()?.as_bytes());
    field(file.need_text("tokenizer.ggml.model")?.as_bytes());
    field(
        file.text("tokenizer.ggml.pre")?
            .unwrap_or("default")
            .as_bytes(),
    );
    let prefix = file.flag("tokenizer.ggml.add_space_prefix")?;
    field(&[u8::from(prefix.unwrap_or(true))]);
    for list in [
        vocabulary.tokens,
        file.texts("tokenizer.ggml.merges")?.unwrap_or_default(),
    ] {
        field(&u64::try_from(list.len()).unwrap_or(u64::MAX).to_le_bytes());
        list.iter().for_each(|text| field(text.as_bytes()));
    }
    let kinds: Vec<u8> = vocabulary
        .kinds
        .iter()
        .flat_map(|kind| kind.to_le_bytes())
        .collect();
    field(&kinds);
    let scores = file.numbers("tokenizer.ggml.scores")?.unwrap_or_default();
    let scores: Vec<u8> = scores
        .iter()
        .flat_map(|score| score.to_le_bytes())
        .collect();
    field(&scores);
    Ok(*hasher.finalize().as_bytes())
}

fn unsupported(what: &str) -> Error {
    Error::Config {
        reason: format!("{what} is not among what this program can tokenize with"),
    }
}

fn broken(source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::Tokenizer {
        what: "building the tokenizer of a GGUF file".to_owned(),
        source,
    }
}
