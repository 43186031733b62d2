//! What can go wrong in the daemon, as sentences that say what to do next.
//!
//! Owns [`Error`]. It does not decide how an error is shown on the wire: `grpc/status.rs` does.

use std::net::SocketAddr;
use std::path::PathBuf;

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong while the daemon started, served or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of a request, or a setting, has a value that is not taken.
    #[error("{field} {reason}")]
    Invalid {
        /// The field, as the .proto file or the configuration names it.
        field: &'static str,
        /// What is wrong with it and what would be right; continues the field's name.
        reason: String,
    },
    /// Nothing has that id or name.
    #[error("there is no {what} {id:?}; {hint}")]
    NotFound {
        /// "fact", "packet", "document", "job".
        what: &'static str,
        /// As the caller wrote it.
        id: String,
        /// How to see what there is.
        hint: &'static str,
    },
    /// The request is right, but not for this model, these weights or this state.
    #[error("{field} {reason}")]
    Precondition {
        /// What differs.
        field: &'static str,
        /// How, and what to do; continues the field's name.
        reason: String,
    },
    /// As many requests wait as may wait.
    #[error(
        "the queue is full: {capacity} requests are waiting; try again later, or raise the setting `queue`"
    )]
    QueueFull {
        /// How many may wait.
        capacity: usize,
    },
    /// A request's own tokens would not fit into the memory for contexts.
    #[error(
        "the prompt and answer may take {needed} bytes of KV, and contexts have {budget} in all; ask for fewer tokens, put the text as a document, or raise the setting `max_kv_bytes`"
    )]
    TooMuchKv {
        /// Bytes at most.
        needed: usize,
        /// All that there is.
        budget: usize,
    },
    /// The caller went away or asked to stop.
    #[error("cancelled by the caller")]
    Cancelled,
    /// The request's deadline passed before it was done.
    #[error("the deadline passed; allow more time, or ask for fewer tokens")]
    Deadline,
    /// The model is not loaded yet.
    #[error("the daemon is starting: the model is being loaded; try again shortly")]
    Starting,
    /// The daemon was told to stop.
    #[error("the daemon is stopping and takes no new requests")]
    Stopping,
    /// A weight write failed half way, so no answer could be trusted.
    #[error(
        "the weights are in doubt after a failed write ({reason}); restart the daemon: it restores them from the ledger"
    )]
    Poisoned {
        /// What failed.
        reason: String,
    },
    /// Packets of a request were made under other weights than those that now serve.
    #[error("the weights changed while the request was being prepared; try again")]
    Stale,
    /// A request made the engine panic; it alone failed.
    #[error("the request failed inside the engine; the daemon's log says more")]
    Panicked {
        /// The panic's message, for the log.
        message: String,
    },
    /// The engine's thread is gone.
    #[error("the engine has ended; restart the daemon")]
    EngineGone,
    /// The model crate failed.
    #[error(transparent)]
    Model(#[from] addenda_model::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] addenda_cache::Error),
    /// The editor failed or refused.
    #[error(transparent)]
    Editor(#[from] addenda_editor::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The server broke while it ran.
    #[error("the gRPC server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The reflection service could not be built.
    #[error("the descriptors of the gRPC face are unreadable: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// Signal handlers cannot be installed.
    #[error("cannot watch for SIGINT and SIGTERM: {0}")]
    Signals(std::io::Error),
    /// A file or directory of the daemon's own cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The device that was asked for is not there.
    #[error("device {device} cannot be used: {reason}")]
    Device {
        /// The device.
        device: String,
        /// Why, and what to do.
        reason: String,
    },
}

impl Error {
    /// A field that is wrong, with the words that follow its name.
    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field,
            reason: reason.into(),
        }
    }
}

impl From<tch::TchError> for Error {
    fn from(source: tch::TchError) -> Self {
        Self::Model(source.into())
    }
}
