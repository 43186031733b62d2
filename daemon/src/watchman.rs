//! What the daemon does for its data directory without being asked: a slow scrub of all packets, and once a lap of
//! the ledger; compaction where much is dead.
//!
//! Owns how fast and how often. Never holds up a request: one short stretch at a time, on a thread of its own, with
//! pauses. Invariant: an error costs a stretch and is logged; the next one goes on where this one began.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use addenda_cache::{Effort, Store};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::documents::blocking;
use crate::error::Result;
use crate::grpc::Daemon;
use crate::jobs::{Jobs, now_ms};
use crate::limits;
use crate::metrics::Metrics;

/// Works until the daemon ends.
pub(crate) async fn watch(daemon: Arc<Daemon>) {
    let work = async {
        let mut compacted = Instant::now();
        loop {
            let begun = Instant::now();
            let scrubbed = blocking(scrub(&daemon)).await;
            let rest = daemon.config.scrub_bytes_per_second;
            let rest = scrubbed.map_or(limits::WATCH, |bytes| pause(bytes, rest));
            if compacted.elapsed() >= limits::COMPACT_EVERY {
                if let Err(error) = blocking(compact(&daemon)).await {
                    tracing::warn!(%error, "the store could not be compacted; it is tried again");
                }
                compacted = Instant::now();
            }
            sleep_until(begun + rest).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = daemon.stop.cancelled() => {}
    }
}

/// How long after the beginning of a stretch of so many bytes the next one begins.
fn pause(bytes: u64, bytes_per_second: u64) -> Duration {
    let due = Duration::from_millis(bytes.saturating_mul(1000) / bytes_per_second.max(1));
    due.max(limits::WATCH)
}

/// A stretch of the scrub, as work for another thread; gives the bytes that were read. A failure is logged here.
fn scrub(daemon: &Arc<Daemon>) -> impl FnOnce() -> Result<u64> + Send + 'static {
    let daemon = Arc::clone(daemon);
    move || {
        let stretch = Stretch {
            store: &daemon.store,
            ledger: &daemon.config.data_dir.join("ledger"),
            metrics: daemon.engine.metrics(),
            stop: &daemon.stop,
            bytes: daemon.config.scrub_bytes_per_second,
        };
        let done = stretch.walk(now_ms());
        if let Err(error) = &done {
            tracing::warn!(%error, "the scrub was broken off; it goes on later");
        }
        done
    }
}

/// What one stretch of the scrub works on.
struct Stretch<'a> {
    store: &'a Store,
    ledger: &'a Path,
    metrics: &'a Metrics,
    stop: &'a CancellationToken,
    /// Bytes at most, save that one packet is always verified; 0: none, the scrub is off.
    bytes: u64,
}

impl Stretch<'_> {
    /// Verifies the next packets where a lap runs or is due; gives their bytes.
    fn walk(&self, now_ms: u64) -> Result<u64> {
        let state = self.store.scrub_state()?;
        let every = u64::try_from(limits::SCRUB_EVERY.as_millis()).unwrap_or(u64::MAX);
        let rests = state.after.is_none()
            && state
                .lap_ended_at_ms
                .is_some_and(|ended| now_ms < ended.saturating_add(every));
        if self.bytes == 0 || rests {
            return Ok(0);
        }
        let done = self.store.scrub(self.bytes, &mut || {
            if self.stop.is_cancelled() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        self.metrics.scrubbed.inc_by(done.bytes);
        self.metrics.damaged.inc_by(done.damaged.len() as u64);
        if done.lap_ended {
            self.inspect_ledger();
            tracing::info!("all packets and the ledger were scrubbed");
        }
        Ok(done.bytes)
    }

    /// A damaged ledger stops the next start; whoever hears of it now can still take a backup.
    fn inspect_ledger(&self) {
        if !self.ledger.exists() {
            return;
        }
        if let Err(error) = addenda_editor::inspect_ledger(self.ledger) {
            self.metrics.damaged.inc();
            tracing::error!(%error, "the ledger is damaged on disk while the daemon still has it whole");
        }
    }
}

/// A compaction where it gives much for little, as work for another thread.
fn compact(daemon: &Arc<Daemon>) -> impl FnOnce() -> Result<()> + Send + 'static {
    let daemon = Arc::clone(daemon);
    move || compact_cheaply(&daemon.store, &daemon.jobs, &daemon.stop)
}

fn compact_cheaply(store: &Store, jobs: &Jobs, stop: &CancellationToken) -> Result<()> {
    if !store.needs_compaction(Effort::Cheap)? {
        return Ok(());
    }
    let cancelled = stop.child_token();
    let job = jobs.begin("compact", "bytes", cancelled.clone());
    let done = store.compact(Effort::Cheap, &mut |progress| {
        job.progress("", progress.bytes, progress.bytes_total);
        if cancelled.is_cancelled() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    let done = match done {
        Ok(report) if report.complete => Ok(()),
        Ok(_) => Err(crate::error::Error::Cancelled),
        Err(error) => Err(error.into()),
    };
    job.end(&done);
    match done {
        Err(crate::error::Error::Cancelled) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use addenda_cache::{
        Disk, Fault, Faults, IoPoint, KeyFields, PacketHeader, PacketKey, Store, StoreOptions,
    };
    use tokio_util::sync::CancellationToken;

    use super::{Stretch, compact_cheaply, pause};
    use crate::jobs::{JobState, Jobs};
    use crate::limits;
    use crate::metrics::Metrics;

    const BODY: usize = 100_000;

    fn options() -> StoreOptions {
        StoreOptions {
            free_floor: 0,
            ..StoreOptions::default()
        }
    }

    fn store(directory: &Path) -> Store {
        Store::open(directory, options()).unwrap()
    }

    fn put(store: &Store, number: u32, body: usize) {
        let fields = KeyFields {
            revision: &[1; 32],
            tokenizer: &[2; 32],
            adapter: &[0; 32],
            primer: &[0; 32],
            token_ids: &[number],
            dtype: "f32",
            rope: "default",
            namespace: "default",
        };
        let header = PacketHeader {
            key: PacketKey::derive(&fields),
            namespace: "default".to_owned(),
            document: "the same document".to_owned(),
            source: *blake3::hash(&number.to_le_bytes()).as_bytes(),
            revision: [1; 32],
            tokenizer: [2; 32],
            adapter: [0; 32],
            primer: [0; 32],
            tokens: 1,
            dtype: "f32".to_owned(),
            rope: "default".to_owned(),
            layers: 1,
            kv_heads: 1,
            head_dim: 1,
            created_at_ms: 0,
        };
        store.put(&header, &[number], &[&vec![7; body]]).unwrap();
    }

    #[test]
    fn a_lap_begins_at_once_goes_on_in_stretches_and_the_next_one_waits_for_a_day() {
        let directory = tempfile::tempdir().unwrap();
        let (store, metrics) = (store(directory.path()), Metrics::new());
        put(&store, 1, BODY);
        let stretch = Stretch {
            store: &store,
            ledger: &directory.path().join("ledger"),
            metrics: &metrics,
            stop: &CancellationToken::new(),
            bytes: 1,
        };
        let now = crate::jobs::now_ms();
        assert!(stretch.walk(now).unwrap() > BODY as u64);
        assert_eq!(stretch.walk(now).unwrap(), 0);
        assert!(store.scrub_state().unwrap().lap_ended_at_ms.is_some());
        assert_eq!(stretch.walk(now).unwrap(), 0);
        let tomorrow = now + 2 * u64::try_from(limits::SCRUB_EVERY.as_millis()).unwrap();
        assert!(stretch.walk(tomorrow).unwrap() > 0);
        let off = Stretch {
            bytes: 0,
            ..stretch
        };
        assert_eq!(off.walk(tomorrow).unwrap(), 0);
    }

    #[test]
    fn the_end_of_a_lap_finds_a_ledger_that_decayed() {
        let directory = tempfile::tempdir().unwrap();
        let (store, metrics) = (store(directory.path()), Metrics::new());
        let ledger = directory.path().join("ledger");
        std::fs::create_dir(&ledger).unwrap();
        std::fs::write(ledger.join("facts.ledger"), b"no ledger at all").unwrap();
        let stretch = Stretch {
            store: &store,
            ledger: &ledger,
            metrics: &metrics,
            stop: &CancellationToken::new(),
            bytes: 1,
        };
        stretch.walk(crate::jobs::now_ms()).unwrap();
        assert_eq!(metrics.damaged.get(), 1);
    }

    #[test]
    fn a_stretch_is_followed_by_a_pause_that_keeps_the_rate() {
        assert_eq!(pause(0, 4 << 20), limits::WATCH);
        assert_eq!(pause(40 << 20, 4 << 20), Duration::from_secs(10));
    }

    #[test]
    fn what_was_replaced_over_and_over_gives_its_disk_back_without_being_asked() {
        let directory = tempfile::tempdir().unwrap();
        let (faults, jobs) = (Arc::new(Faults::default()), Jobs::default());
        let disk = Disk::with(Arc::clone(&faults));
        let store = Store::open_on(directory.path(), options(), disk).unwrap();
        // Without holes only a compaction gives anything back.
        faults.arm(IoPoint::Punch, 0, Fault::Broken, u64::MAX);
        for number in 0..70 {
            put(&store, number, 1 << 20);
        }
        let before = store.stats().unwrap().disk_bytes;
        compact_cheaply(&store, &jobs, &CancellationToken::new()).unwrap();
        let after = store.stats().unwrap();
        assert!(
            before > 64 << 20 && after.disk_bytes < 3 << 20,
            "{before} {after:?}"
        );
        assert_eq!(after.packets, 1);
        let listed = jobs.list(true);
        assert!(
            listed
                .iter()
                .all(|job| job.kind == "compact" && job.state == JobState::Done)
        );
        compact_cheaply(&store, &jobs, &CancellationToken::new()).unwrap();
        assert_eq!(jobs.list(true).len(), listed.len());
    }
}
