//! When the daemon ends: SIGINT, SIGTERM, or its owner asking.
//!
//! Owns the signal handlers. The first signal asks for an orderly end; a second one, of a person
//! who does not want to wait, ends the process at once. Nothing durable depends on an orderly end.

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// Cancels `stop` at the first SIGINT or SIGTERM, and exits with 130 at the second.
///
/// # Errors
/// When the handlers cannot be installed.
pub(crate) fn on_signals(stop: CancellationToken) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    tokio::spawn(async move {
        let mut asked = false;
        loop {
            let name = tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            };
            if asked {
                tracing::warn!("{name} again: ending at once");
                std::process::exit(130);
            }
            asked = true;
            tracing::info!("{name}: finishing running requests, then ending");
            stop.cancel();
        }
    });
    Ok(())
}
