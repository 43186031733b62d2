//! A model as it lies on disk: a Hugging Face directory or one GGUF file.
//!
//! Owns [`ModelFiles`], which reads configuration, tokenizer and chat template
//! and opens the weights without reading them. The fingerprint covers the
//! configuration and every byte of the weights: it is the base of the weights
//! revision, so a path or a name never is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::chat::ChatTemplate;
use crate::config::{ModelConfig, token_ids};
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::tokenizer::Tokenizer;
use crate::weights::{Weights, safetensors_files};

/// Everything that a model's files hold.
pub struct ModelFiles {
    /// The directory or GGUF file.
    pub path: PathBuf,
    /// What the forward pass needs to know.
    pub config: ModelConfig,
    /// The tensors, not yet read.
    pub weights: Weights,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template, if the model has one.
    pub chat_template: Option<ChatTemplate>,
    /// BLAKE3 of the configuration and the weights.
    pub fingerprint: [u8; 32],
}

/// The names of special tokens in `tokenizer_config.json`, which are also those
/// that a chat template may use.
const SPECIAL_TOKENS: [&str; 6] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
];

impl ModelFiles {
    /// Opens a Hugging Face directory, a GGUF file, or a directory that holds
    /// one GGUF file and no `config.json`.
    ///
    /// # Errors
    /// Every way in which the files can be missing, damaged or unsupported, as
    /// a sentence that names the file.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
        if metadata.is_dir() {
            if path.join("config.json").exists() {
                return Self::open_directory(path);
            }
            return Self::open_gguf(&only_gguf(path)?);
        }
        if path.file_name().is_some_and(|name| name == "config.json")
            || path
                .extension()
                .is_some_and(|extension| extension == "safetensors")
        {
            return Err(Error::NotAModel {
                path: path.to_owned(),
                reason: "name the directory that holds config.json and the weights".to_owned(),
            });
        }
        Self::open_gguf(path)
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let config = ModelConfig::from_gguf(&file)?;
        let tokenizer = Tokenizer::from_gguf(&file, &config.eos)?;
        let chat_template = file
            .text("tokenizer.chat_template")?
            .map(|source| ChatTemplate::new(source, gguf_special_tokens(&file)?))
            .transpose()?;
        let mut hasher = fingerprint_hasher();
        add_file(&mut hasher, "gguf", path)?;
        let weights = Weights::from_gguf(file, &config);
        let fingerprint = *hasher.finalize().as_bytes();
        Ok(Self {
            path: path.to_owned(),
            config,
            weights,
            tokenizer,
            chat_template,
            fingerprint,
        })
    }

    fn open_directory(path: &Path) -> Result<Self> {
        let config_path = path.join("config.json");
        let mut config = ModelConfig::from_hf_json(&read_json(&config_path)?)?;
        if let Some(generation) = read_json_if_there(&path.join("generation_config.json"))?
            && let Some(eos) = generation.get("eos_token_id")
        {
            config.eos.extend(token_ids(eos, "eos_token_id")?);
            config.eos.sort_unstable();
            config.eos.dedup();
            config.validate()?;
        }
        let settings = TokenizerSettings::read(path)?;
        let tokenizer = directory_tokenizer(path, &settings, &config)?;
        let chat_template = settings.chat_template(path)?;
        let weights = Weights::from_safetensors(path)?;
        let mut hasher = fingerprint_hasher();
        add_file(&mut hasher, "config.json", &config_path)?;
        for file in safetensors_files(path)? {
            let name = file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            add_file(&mut hasher, &name, &file)?;
        }
        let fingerprint = *hasher.finalize().as_bytes();
        Ok(Self {
            path: path.to_owned(),
            config,
            weights,
            tokenizer,
            chat_template,
            fingerprint,
        })
    }
}

fn only_gguf(directory: &Path) -> Result<PathBuf> {
    let io = |source| Error::Io {
        path: directory.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "gguf")
        {
            found.push(path);
        }
    }
    let count = found.len();
    match (found.pop(), count) {
        (Some(path), 1) => Ok(path),
        (None, _) => Err(Error::NotAModel {
            path: directory.to_owned(),
            reason: "it holds neither config.json nor a .gguf file".to_owned(),
        }),
        _ => Err(Error::NotAModel {
            path: directory.to_owned(),
            reason: format!("it holds {count} .gguf files; name one of them"),
        }),
    }
}

fn gguf_special_tokens(file: &GgufFile) -> Result<BTreeMap<String, String>> {
    let tokens = file.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
    let mut named = BTreeMap::new();
    for (name, key) in [
        ("bos_token", "bos_token_id"),
        ("eos_token", "eos_token_id"),
        ("unk_token", "unknown_token_id"),
        ("pad_token", "padding_token_id"),
    ] {
        let id = file.token(&format!("tokenizer.ggml.{key}"))?;
        let token = id.and_then(|id| tokens.get(usize::try_from(id).ok()?));
        named.extend(token.map(|token| (name.to_owned(), token.clone())));
    }
    Ok(named)
}

/// What `tokenizer_config.json` and `special_tokens_map.json` say.
struct TokenizerSettings {
    config: Value,
    special_tokens: BTreeMap<String, String>,
}

impl TokenizerSettings {
    fn read(directory: &Path) -> Result<Self> {
        let config =
            read_json_if_there(&directory.join("tokenizer_config.json"))?.unwrap_or(Value::Null);
        let map =
            read_json_if_there(&directory.join("special_tokens_map.json"))?.unwrap_or(Value::Null);
        let special_tokens = SPECIAL_TOKENS
            .into_iter()
            .filter_map(|name| {
                let spelled = spelling(config.get(name)).or_else(|| spelling(map.get(name)))?;
                Some((name.to_owned(), spelled.to_owned()))
            })
            .collect();
        Ok(Self {
            config,
            special_tokens,
        })
    }

    /// From `chat_template.jinja`, or `tokenizer_config.json`: one template, or
    /// a list of named ones, of which `default` is taken.
    fn chat_template(&self, directory: &Path) -> Result<Option<ChatTemplate>> {
        let path = directory.join("chat_template.jinja");
        let source = if path.exists() {
            Some(read_text(&path)?)
        } else {
            match self.config.get("chat_template") {
                Some(Value::String(source)) => Some(source.clone()),
                Some(Value::Array(named)) => named
                    .iter()
                    .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
                    .and_then(|entry| entry.get("template")?.as_str())
                    .map(str::to_owned),
                _ => None,
            }
        };
        source
            .map(|source| ChatTemplate::new(&source, self.special_tokens.clone()))
            .transpose()
    }
}

/// A special token is a text, or an object that holds one.
fn spelling(token: Option<&Value>) -> Option<&str> {
    let token = token?;
    token.as_str().or_else(|| token.get("content")?.as_str())
}

fn directory_tokenizer(
    directory: &Path,
    settings: &TokenizerSettings,
    config: &ModelConfig,
) -> Result<Tokenizer> {
    let path = directory.join("tokenizer.json");
    let json = std::fs::read(&path).map_err(|source| Error::Io { path, source })?;
    let adds_bos = match settings
        .config
        .get("add_bos_token")
        .and_then(Value::as_bool)
    {
        Some(true) => config.bos.map(Some),
        Some(false) => Some(None),
        None => None,
    };
    Tokenizer::from_json(&json, adds_bos, &config.eos)
}

fn fingerprint_hasher() -> blake3::Hasher {
    blake3::Hasher::new_derive_key("addenda.v1 model files")
}

/// Adds a file to the fingerprint: its name and its content, each with its
/// length before it.
fn add_file(hasher: &mut blake3::Hasher, name: &str, path: &Path) -> Result<()> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let length = std::fs::metadata(path).map_err(io)?.len();
    hasher.update(&u64::try_from(name.len()).unwrap_or(u64::MAX).to_le_bytes());
    hasher.update(name.as_bytes());
    hasher.update(&length.to_le_bytes());
    hasher.update_mmap(path).map_err(io)?;
    Ok(())
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })
}

fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_str(&read_text(path)?).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })
}

fn read_json_if_there(path: &Path) -> Result<Option<Value>> {
    if path.exists() {
        read_json(path).map(Some)
    } else {
        Ok(None)
    }
}
