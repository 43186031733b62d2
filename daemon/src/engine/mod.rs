//! The engine: one OS thread that owns libtorch, and the handle by which all others talk to it.
//!
//! Owns the thread's start, loop and end. Nothing outside this module holds a tensor. Invariants:
//! the queue is bounded; what the handle promises to answer is answered, also when the engine ends.

pub(crate) mod batch;
mod beams;
pub(crate) mod build;
pub(crate) mod command;
mod decode;
pub(crate) mod edit;
pub(crate) mod generate;
pub(crate) mod load;
pub(crate) mod prefill;
pub(crate) mod prefix;
mod primer;
pub(crate) mod queue;
mod room;
pub(crate) mod scheduler;
pub(crate) mod score;
pub(crate) mod sequence;
pub(crate) mod stops;
pub(crate) mod trace;
pub(crate) mod wear;

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::digest::Digest;
use crate::engine::command::{Command, NO_ADAPTER, Ticket, Under, View, Waiting};
use crate::engine::edit::Bench;
use crate::engine::load::{Loaded, Setup};
use crate::engine::prefix::Prefixes;
use crate::engine::primer::PrimerKv;
use crate::engine::queue::{Queue, Refused};
use crate::engine::scheduler::{Floor, Outside};
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::packets::{PacketSource, Shelf};

/// Whether the engine can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    Starting,
    Ready,
    /// The weights are in doubt, because of this.
    Poisoned(String),
}

/// What the engine makes known of itself.
#[derive(Debug, Clone)]
pub(crate) struct EngineState {
    pub(crate) health: Health,
    pub(crate) under: Under,
    /// The active adapter's bridge, which stands behind the packets of a context.
    pub(crate) bridge: Option<PacketSource>,
    /// Entries of the ledger.
    pub(crate) ledger: u64,
    /// When a fact next comes or goes by its dates, milliseconds since 1970-01-01T00:00:00Z.
    pub(crate) next_turn: Option<u64>,
}

/// The handle. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Engine {
    queue: Arc<Queue<Waiting>>,
    state: watch::Receiver<EngineState>,
    abort: CancellationToken,
    metrics: Arc<Metrics>,
}

/// An engine whose thread was started.
pub(crate) struct Started {
    pub(crate) engine: Engine,
    /// What was loaded, or why it could not be.
    pub(crate) loaded: oneshot::Receiver<Result<Loaded>>,
    /// Closed when the thread has let go of everything.
    pub(crate) ended: oneshot::Receiver<()>,
}

/// Starts the engine's thread, which loads the model first.
///
/// # Errors
/// The system gives no thread.
pub(crate) fn start(setup: Setup) -> Result<Started> {
    let queue = Arc::new(Queue::new(setup.config.queue));
    let abort = CancellationToken::new();
    let (state, watched) = watch::channel(EngineState {
        health: Health::Starting,
        under: Under {
            revision: Digest([0; 32]),
            adapter: NO_ADAPTER,
            wrapping: NO_ADAPTER,
            active_facts: 0,
            changed: false,
        },
        bridge: None,
        ledger: 0,
        next_turn: None,
    });
    let metrics = Arc::new(Metrics::new());
    let (tell, loaded) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let engine = Engine {
        queue: Arc::clone(&queue),
        state: watched,
        abort: abort.clone(),
        metrics: Arc::clone(&metrics),
    };
    let work = move || {
        let _end = End {
            queue: Arc::clone(&queue),
            _ended: end,
        };
        let chunk = setup.config.prefill_chunk;
        let (mapped, kept) = (setup.config.max_mapped_bytes, setup.config.max_prefix_bytes);
        let kv_budget = usize::try_from(setup.config.max_kv_bytes).unwrap_or(usize::MAX);
        let (bench, loaded) = match scheduler::guard(|| load::load(&setup)) {
            Ok(done) => done,
            Err(error) => {
                drop(tell.send(Err(error)));
                return;
            }
        };
        let under = bench.under();
        let tokenizer = Arc::clone(&bench.tokenizer);
        let primer = PrimerKv::new(loaded.primer.clone());
        state.send_modify(|state| {
            state.health = Health::Ready;
            state.under = under;
            state.bridge = bench.bridge();
            (state.ledger, state.next_turn) = bench.ledger();
        });
        let shelf = Shelf::new(bench.model.device(), mapped);
        let prefixes = Prefixes::new(usize::try_from(kept).unwrap_or(usize::MAX));
        let outside = Outside {
            queue,
            state,
            abort,
            metrics,
        };
        let mut floor = Floor::new(
            outside,
            tokenizer,
            (shelf, prefixes, primer),
            (chunk, kv_budget),
        );
        if let Err(error) = scheduler::guard(|| floor.begin(&bench.model, &loaded.beginnings)) {
            drop(tell.send(Err(error)));
            return;
        }
        // Only now: whoever hears of it may ask at once.
        drop(tell.send(Ok(loaded)));
        run(bench, floor);
    };
    std::thread::Builder::new()
        .name("engine".to_owned())
        // Backward passes recurse in libtorch; the default of 2 MiB is scarce for deep models.
        .stack_size(16 << 20)
        .spawn(work)
        .map_err(|source| Error::Io {
            path: "/proc/self/task".into(),
            source,
        })?;
    Ok(Started {
        engine,
        loaded,
        ended,
    })
}

/// The thread's loop. Ends when the queue is closed and all is done.
fn run(mut bench: Bench, mut floor: Floor) {
    loop {
        let worked = floor.round(bench.view());
        if let Some(waiting) = floor.next_edit() {
            let is_edit = matches!(waiting.command, Command::Edit(_));
            let started = Instant::now();
            bench.edit(&mut floor, waiting);
            if is_edit {
                let seconds = started.elapsed().as_secs_f64();
                floor.metrics.edit.observe(seconds);
            }
        } else if !bench.train(&mut floor, worked) && !worked {
            if floor.queue.is_closed() && floor.is_idle() && floor.queue.len() == 0 {
                return;
            }
            floor.rest();
        }
    }
}

/// Refuses whoever still waits when the thread ends, however it ends.
struct End {
    queue: Arc<Queue<Waiting>>,
    /// Its drop tells whoever waits for the end.
    _ended: oneshot::Sender<()>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.queue.close();
        for waiting in self.queue.take_all(|_| true) {
            waiting.command.refuse(Error::EngineGone);
        }
    }
}

impl Engine {
    /// Puts a command into the queue; a patient ticket waits for a place.
    ///
    /// # Errors
    /// The queue is full, or the daemon is starting, stopping or poisoned.
    pub(crate) async fn submit(&self, ticket: &Ticket, command: Command) -> Result<()> {
        let mut waiting = Waiting {
            ticket: ticket.clone(),
            command,
        };
        loop {
            self.check(&waiting.command)?;
            let room = self.queue.room();
            match self.queue.push(waiting) {
                Ok(()) => return Ok(()),
                Err(Refused::Closed(_)) => return Err(Error::Stopping),
                Err(Refused::Full(refused)) if ticket.patient => waiting = refused,
                Err(Refused::Full(_)) => {
                    let capacity = self.queue.capacity();
                    return Err(Error::QueueFull { capacity });
                }
            }
            tokio::select! {
                () = room => {}
                () = ticket.cancel.cancelled() => return Err(Error::Cancelled),
            }
        }
    }

    /// Whether the engine takes such a command now.
    fn check(&self, command: &Command) -> Result<()> {
        match &self.state.borrow().health {
            Health::Ready => Ok(()),
            Health::Starting => Err(Error::Starting),
            Health::Poisoned(_) if matches!(command, Command::Consult(_)) => Ok(()),
            Health::Poisoned(reason) => Err(Error::Poisoned {
                reason: reason.clone(),
            }),
        }
    }

    /// Submits a command and waits for its one answer, until the ticket's deadline.
    ///
    /// # Errors
    /// The command's own, or those of [`Engine::submit`].
    pub(crate) async fn ask<T>(
        &self,
        ticket: &Ticket,
        command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.submit(ticket, command(reply)).await?;
        until(ticket, answer).await
    }

    /// Looks at the engine's state between two of its steps.
    ///
    /// # Errors
    /// `look`'s own, or those of [`Engine::submit`].
    pub(crate) async fn consult<T: Send + 'static>(
        &self,
        ticket: &Ticket,
        look: impl FnOnce(View<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.ask(ticket, |reply| {
            Command::Consult(Box::new(move |view| {
                drop(reply.send(view.and_then(look)));
            }))
        })
        .await
    }

    /// What the engine last made known.
    pub(crate) fn state(&self) -> EngineState {
        self.state.borrow().clone()
    }

    /// What the engine makes known, as it changes.
    pub(crate) fn watch(&self) -> watch::Receiver<EngineState> {
        self.state.clone()
    }

    /// What is counted.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn queue(&self) -> &Arc<Queue<Waiting>> {
        &self.queue
    }

    /// Makes the engine look around: something it may wait for has changed.
    pub(crate) fn ring(&self) {
        self.queue.ring();
    }

    /// Lets nothing more in; what is in is finished.
    pub(crate) fn close(&self) {
        self.queue.close();
    }

    /// Ends what still runs.
    pub(crate) fn abort(&self) {
        self.abort.cancel();
        self.queue.ring();
    }
}

/// Waits for an answer until the ticket's deadline. The engine notices by itself that nobody
/// waits any more.
async fn until<T>(ticket: &Ticket, answer: oneshot::Receiver<Result<T>>) -> Result<T> {
    let answer = match ticket.deadline {
        None => answer.await,
        Some(deadline) => tokio::time::timeout_at(deadline.into(), answer)
            .await
            .map_err(|_| Error::Deadline)?,
    };
    answer.map_err(|_| Error::EngineGone)?
}
