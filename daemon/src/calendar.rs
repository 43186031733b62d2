//! Wakes the engine when a fact comes or goes by its dates.
//!
//! Owns the waiting and nothing else: which facts those are is the editor's to say, and the change goes the way of every
//! edit. Invariant: it looks again whenever the ledger has grown, and at least once a minute, since a system's clock may
//! be set.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::engine::command::{Command, Edit, Ticket};
use crate::error::Result;
use crate::jobs::now_ms;

/// The longest wait between two looks; also that after a failure.
const LOOK: Duration = Duration::from_secs(60);

/// Keeps the dates until the daemon stops. The engine is asked only when something is due: its queue is for clients.
pub(crate) async fn keep(engine: Engine, stop: CancellationToken) {
    let mut state = engine.watch();
    loop {
        let next = state.borrow_and_update().next_turn;
        let mut pause = pause(next, now_ms());
        if pause.is_zero() {
            if let Err(error) = turn(&engine, &stop).await {
                tracing::warn!(%error, "facts that should come or go by their dates have to wait");
            }
            // What could not be done now is not tried again at once.
            let stays = state.borrow().next_turn == next;
            pause = if stays { LOOK } else { Duration::ZERO };
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = state.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Does what is due.
async fn turn(engine: &Engine, stop: &CancellationToken) -> Result<()> {
    let ticket = Ticket {
        received: Instant::now(),
        deadline: None,
        cancel: stop.child_token(),
        patient: true,
        span: tracing::info_span!("calendar"),
    };
    let edit = |reply| Command::Edit(Box::new(Edit::Turn { reply }));
    let facts = engine.ask(&ticket, edit).await?;
    tracing::info!(facts, "facts came or went by their dates");
    Ok(())
}

/// How long to wait for the next turn.
fn pause(next: Option<u64>, now: u64) -> Duration {
    let until = next.map(|next| Duration::from_millis(next.saturating_sub(now)));
    until.unwrap_or(LOOK).min(LOOK)
}

#[cfg(test)]
mod tests {
    use super::{LOOK, pause};
    use std::time::Duration;

    #[test]
    fn the_calendar_wakes_at_the_next_date_and_once_a_minute() {
        assert_eq!(pause(None, 1_000), LOOK);
        assert_eq!(pause(Some(1_250), 1_000), Duration::from_millis(250));
        assert_eq!(pause(Some(900), 1_000), Duration::ZERO);
        assert_eq!(pause(Some(u64::MAX), 1_000), LOOK);
    }
}
