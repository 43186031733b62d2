//! What can go wrong in this crate, as sentences that say what to do next.
//!
//! Owns [`Error`] and [`Result`]. It never decides how an error is shown to a
//! caller: the daemon maps each variant to a gRPC status in one file. Sources
//! are kept, so that a log can hold what a client should not read.

use std::path::PathBuf;

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong while a model's files were read or its tensors computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read or mapped.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// The path holds nothing that this crate can load.
    #[error("{} is not a model: {reason}", path.display())]
    NotAModel {
        /// The path as it was given.
        path: PathBuf,
        /// What was looked for and not found.
        reason: String,
    },

    /// A JSON file is not JSON.
    #[error("{} is not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's complaint with its line.
        source: serde_json::Error,
    },

    /// A safetensors file is cut short or malformed.
    #[error(
        "{} is damaged or not a safetensors file ({source}); fetch or copy it again",
        path.display()
    )]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The reader's complaint.
        source: safetensors::SafeTensorError,
    },

    /// A GGUF file is cut short, malformed, or of a version that is not read.
    #[error(
        "{} is damaged or not a readable GGUF file ({source}); fetch or copy it again",
        path.display()
    )]
    Gguf {
        /// The file.
        path: PathBuf,
        /// The reader's complaint.
        source: anamnesis::AnamnesisError,
    },

    /// The model's architecture is not one that this crate computes.
    #[error("the architecture `{found}` is not supported; supported are {supported}")]
    UnsupportedArchitecture {
        /// The name as it stands in the model's files.
        found: String,
        /// The names that would have been accepted.
        supported: String,
    },

    /// The configuration asks for something that this crate does not compute,
    /// or contradicts itself.
    #[error("the model's configuration cannot be used: {reason}")]
    Config {
        /// Which field, its value, and what would have been accepted.
        reason: String,
    },

    /// A tensor that the configuration needs is not in the files.
    #[error("the tensor `{name}` is missing from {file}; the model's files are incomplete")]
    MissingTensor {
        /// The tensor, under its Hugging Face name.
        name: String,
        /// Where it was looked for.
        file: String,
    },

    /// A tensor has another shape than it must have.
    #[error("{what} has shape {found:?}, but {expected:?} was expected")]
    Shape {
        /// Which tensor, and from where.
        what: String,
        /// The shape that was asked for.
        expected: Vec<i64>,
        /// The shape that was found.
        found: Vec<i64>,
    },

    /// A tensor is stored in a number format that this crate does not read.
    #[error("the tensor `{name}` of {file} is stored as {found}, which is not supported; {advice}")]
    UnsupportedDtype {
        /// The tensor, under the name that it has in the file.
        name: String,
        /// The file.
        file: String,
        /// The format.
        found: String,
        /// What to use instead.
        advice: &'static str,
    },

    /// The tokenizer could not be built, or could not encode or decode.
    #[error("{what}: {source}")]
    Tokenizer {
        /// What was attempted.
        what: String,
        /// The tokenizer library's reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The chat template could not be compiled or rendered.
    #[error("the model's chat template {what}: {}", template_reason(source))]
    Template {
        /// "does not compile", "refused these messages".
        what: &'static str,
        /// The template engine's reason, with its line.
        source: minijinja::Error,
    },

    /// libtorch refused an operation. Display holds the first line only; the
    /// source holds the C++ backtrace.
    #[error("libtorch failed while {what}: {}", first_line(source))]
    Libtorch {
        /// What was being computed.
        what: String,
        /// libtorch's own error.
        source: tch::TchError,
    },

    /// A sequence would grow past the model's context.
    #[error(
        "{tokens} tokens do not fit into the model's context of {context}; send a shorter text"
    )]
    TooLong {
        /// How many tokens the sequence would have.
        tokens: usize,
        /// How many the model can hold.
        context: usize,
    },

    /// A name is neither a path, nor in the catalogue, nor a repository's.
    #[error(
        "there is no model `{name}`: give the path of a directory or GGUF file, a repository as \
         `owner/name`, or one of {known}"
    )]
    UnknownModel {
        /// The name as it was given.
        name: String,
        /// The names of the catalogue.
        known: String,
    },

    /// A model is known by name and its files are not on this machine.
    #[error(
        "`{name}` is no file or directory here, and no model of that name was fetched into {} \
         yet: run `addenda model fetch {name}`",
        cache.display()
    )]
    NotFetched {
        /// The name as it was given.
        name: String,
        /// Where it was looked for.
        cache: PathBuf,
    },

    /// A model could not be fetched.
    #[error("{what} could not be fetched: {reason}")]
    Fetch {
        /// The model or repository.
        what: String,
        /// What failed and what to do.
        reason: String,
    },

    /// A file is another one than it should be.
    #[error(
        "{what} has SHA-256 {found} and should have {expected}: {} was not kept; fetch it again, \
         and if that fails too, from another mirror",
        path.display()
    )]
    WrongDigest {
        /// The model or file.
        what: String,
        /// Where it lay.
        path: PathBuf,
        /// The digest that it should have, in hexadecimal.
        expected: String,
        /// The digest that it has.
        found: String,
    },

    /// A disk is full, or too full for what is to be fetched.
    #[error(
        "there is no space under {}{}: free some, or choose a cache directory on another disk",
        path.display(),
        needed_space(*needed)
    )]
    NoSpace {
        /// What could not be written.
        path: PathBuf,
        /// Bytes that are needed and bytes that are free, where that is known.
        needed: Option<(u64, u64)>,
    },

    /// A file could not be written, moved or removed.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// The caller asked for something that makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Fails where so many tokens are more than a context holds.
    pub(crate) fn unless_within(tokens: usize, context: usize) -> Result<()> {
        match tokens > context {
            true => Err(Self::TooLong { tokens, context }),
            false => Ok(()),
        }
    }
}

impl From<tch::TchError> for Error {
    fn from(source: tch::TchError) -> Self {
        Self::Libtorch {
            what: "computing".to_owned(),
            source,
        }
    }
}

/// The line that tells a person what failed: libtorch appends a backtrace.
fn first_line(source: &tch::TchError) -> String {
    let text = source.to_string();
    text.lines().next().unwrap_or("no reason given").to_owned()
}

/// The reason that the template itself gave, without the engine's prefix.
fn template_reason(source: &minijinja::Error) -> String {
    source
        .detail()
        .map_or_else(|| source.to_string(), str::to_owned)
}

/// How much space is missing, for a person.
fn needed_space(needed: Option<(u64, u64)>) -> String {
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    needed.map_or_else(String::new, |(needed, free)| {
        format!(
            " ({} MB are needed and {} MB are free)",
            megabytes(needed),
            megabytes(free)
        )
    })
}
