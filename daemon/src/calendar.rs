//! Wakes the engine when a fact comes or goes by its dates.
//!
//! Owns the waiting and nothing else: which facts those are is the editor's to say, and the change goes the way of every
//! edit. Invariant: it looks again whenever the ledger has grown, and at least once a minute, since a system's clock may
//! be set.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::engine::command::{Command, Edit, Ticket, View};
use crate::error::Result;
use crate::jobs::now_ms;

/// The longest wait between two looks; also that after a failure.
const LOOK: Duration = Duration::from_secs(60);

/// Keeps the dates until the daemon stops.
pub(crate) async fn keep(engine: Engine, stop: CancellationToken) {
    let mut state = engine.watch();
    loop {
        state.borrow_and_update();
        let pause = turn(&engine, &stop).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "facts that should come or go by their dates have to wait");
            LOOK
        });
        tokio::select! {
            () = stop.cancelled() => return,
            changed = state.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Does what is due, and says how long nothing else is.
async fn turn(engine: &Engine, stop: &CancellationToken) -> Result<Duration> {
    let ticket = Ticket {
        received: Instant::now(),
        deadline: None,
        cancel: stop.child_token(),
        patient: true,
        span: tracing::info_span!("calendar"),
    };
    let look = |view: View<'_>| Ok(view.editor.next_turn());
    let mut pause = pause(engine.consult(&ticket, look).await?, now_ms());
    if pause.is_zero() {
        let edit = |reply| Command::Edit(Box::new(Edit::Turn { reply }));
        let facts = engine.ask(&ticket, edit).await?;
        tracing::info!(facts, "facts came or went by their dates");
        let next = engine.consult(&ticket, |view: View<'_>| Ok(view.editor.next_turn()));
        pause = self::pause(next.await?, now_ms());
    }
    Ok(pause)
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
