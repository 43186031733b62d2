//! What a command says when it fails: one sentence, and one hint what to do.
//!
//! Owns the mapping from gRPC status to hint. Never prints.

use std::path::PathBuf;

use tonic::Code;

use crate::config::ConfigError;

/// A result of a command.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nobody listens there.
    #[error("no daemon answers at {endpoint}")]
    NoDaemon {
        /// Where it was looked for.
        endpoint: String,
    },
    /// The daemon refused or failed.
    #[error("{}", status_sentence(.0))]
    Status(Box<tonic::Status>),
    /// The stream ended before its last message.
    #[error("the daemon ended its answer early: {what} is missing")]
    Incomplete {
        /// The message that did not come.
        what: &'static str,
    },
    /// A model could not be found or fetched.
    #[error(transparent)]
    Model(#[from] addenda_model::Error),
    /// The daemon could not start, or broke.
    #[error(transparent)]
    Daemon(#[from] crate::error::Error),
    /// A file or directory of the user's.
    #[error("cannot read {path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Standard output is closed or broken.
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
    /// The async runtime could not be started.
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
    /// An answer could not be shown as JSON.
    #[error("cannot show the answer as JSON: {0}")]
    Json(String),
    /// Anything that the arguments ask and cannot be done.
    #[error("{sentence}")]
    Refused {
        /// What is wrong.
        sentence: String,
        /// What to do about it.
        hint: String,
    },
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl Error {
    /// A refusal with its hint.
    pub(crate) fn refused(sentence: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused {
            sentence: sentence.into(),
            hint: hint.into(),
        }
    }

    /// What to do about it; empty where the sentence says it all.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NoDaemon { .. } => {
                "start it with `addenda serve`, or say where it is with --connect HOST:PORT".into()
            }
            Self::Status(status) => status_hint(status.code()).into(),
            Self::Incomplete { .. } => "look at the daemon's log, or run `addenda doctor`".into(),
            Self::Refused { hint, .. } => hint.clone(),
            _ => String::new(),
        }
    }

    /// 2 for what the caller wrote, 1 for everything else.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            _ => 1,
        }
    }
}

fn status_sentence(status: &tonic::Status) -> String {
    if broken_connection(status) {
        return "the connection to the daemon broke before it answered".to_owned();
    }
    match (status.code(), status.message()) {
        (Code::Unimplemented, "") => "this daemon does not know the command".to_owned(),
        (code, "") => format!("the daemon answered only {code:?}"),
        (_, message) => message.to_owned(),
    }
}

/// Whether tonic made the status from a transport error rather than the daemon from a refusal.
fn broken_connection(status: &tonic::Status) -> bool {
    std::error::Error::source(status).is_some()
}

fn status_hint(code: Code) -> &'static str {
    match code {
        Code::NotFound => {
            "`addenda fact list`, `addenda packet list` and `addenda job list` show what there is"
        }
        Code::FailedPrecondition => {
            "`addenda model info` shows the model, tokenizer and revision that are served"
        }
        Code::ResourceExhausted => {
            "try again in a moment; `addenda doctor` shows queue, memory and disk"
        }
        Code::Unavailable => "it may be starting or stopping: try again, or run `addenda doctor`",
        Code::DataLoss => {
            "the damaged record was set aside and is not served; put the document again"
        }
        Code::Internal | Code::Unknown => "the daemon's log has the details",
        Code::Unimplemented => {
            "the daemon may be of another version: `addenda model info` shows it"
        }
        Code::DeadlineExceeded => "give it more time, or a smaller task",
        _ => "",
    }
}
