//! Where the daemon's own words go: `tracing` events, as text on standard error.
//!
//! Owns the subscriber. Never logs prompts, documents or answers: they may be about patients.

use tracing_subscriber::EnvFilter;

use crate::error::{Error, Result};

/// Installs the process's subscriber for these directives (`info`, `warn,addenda=debug`).
/// A second call in one process changes nothing, so that tests may start several daemons.
///
/// # Errors
/// When the directives cannot be read.
pub fn init(directives: &str) -> Result<()> {
    let filter = EnvFilter::try_new(directives).map_err(|error| Error::Invalid {
        field: "log",
        reason: format!("is not a list of tracing directives: {error}"),
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(true)
        .finish();
    // The only failure is that another subscriber is there already.
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        tracing::debug!("a log subscriber is installed already; it stays");
    }
    Ok(())
}
