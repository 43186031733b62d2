//! What can go wrong with a measurement. Then there is no figure, only a sentence.

/// What a failure of the system becomes: an [`Error::Io`] about `what`.
pub(crate) fn io(what: &(impl ToString + ?Sized)) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.to_string();
    move |source| Error::Io { what, source }
}

/// The one error of this crate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The daemon that is measured did not start, or ended.
    #[error("{0}")]
    Daemon(String),
    /// The daemon refused a request.
    #[error("the daemon answered: {0}")]
    Status(#[from] tonic::Status),
    /// The daemon could not be reached.
    #[error("the daemon can't be reached: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The model's.
    #[error(transparent)]
    Model(#[from] addenda_model::Error),
    /// The store's.
    #[error(transparent)]
    Store(#[from] addenda_cache::Error),
    /// The editor's.
    #[error(transparent)]
    Editor(#[from] addenda_editor::Error),
    /// A file does not say what it should.
    #[error("{0}")]
    Content(String),
    /// libtorch's.
    #[error("libtorch failed: {0}")]
    Torch(#[from] tch::TchError),
    /// A file or process could not be used.
    #[error("{what}: {source}")]
    Io {
        what: String,
        source: std::io::Error,
    },
    /// The settings of this machine can't be read.
    #[error("{0}")]
    Config(String),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;
