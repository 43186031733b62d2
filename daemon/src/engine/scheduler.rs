//! The order of work on the engine's thread: rounds over running sequences, with steps of packets
//! and edits between them.
//!
//! Owns everything that runs but the weights. Invariants: a request that fails, panics, expires or
//! loses its client ends alone; at most one packet is computed at a time; an edit starts only from
//! the thread's own loop, never from within another edit.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use addenda_model::{Tokenizer, Transformer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::engine::batch::{Pace, Round};
use crate::engine::build::Building;
use crate::engine::command::{Command, Forget, Ticket, Under, View, Waiting};
use crate::engine::decode;
use crate::engine::prefix::Prefixes;
use crate::engine::primer::PrimerKv;
use crate::engine::queue::Queue;
use crate::engine::sequence::{Outcome, Phase, Sequence, Stage};
use crate::engine::{EngineState, Health};
use crate::error::{Error, Result};
use crate::limits;
use crate::metrics::Metrics;
use crate::packets::{PacketSource, Shelf};

/// Longest time that others are served between two steps of an edit that is itself quick.
const LEAST_TURN: Duration = Duration::from_millis(20);
/// While sequences run, packets get one part in so many of the time.
const BUILD_SHARE: u32 = 4;

/// By what the rest of the daemon and the engine's thread know of each other.
pub(crate) struct Outside {
    pub(crate) queue: Arc<Queue<Waiting>>,
    pub(crate) state: watch::Sender<EngineState>,
    /// Cancelled when those that run may run no longer.
    pub(crate) abort: CancellationToken,
    pub(crate) metrics: Arc<Metrics>,
}

/// Everything that runs, beside the weights.
pub(crate) struct Floor {
    pub(crate) queue: Arc<Queue<Waiting>>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) shelf: Shelf,
    pub(crate) prefixes: Prefixes,
    /// Bytes that contexts and kept beginnings may have together.
    pub(crate) kv_budget: usize,
    pub(crate) state: watch::Sender<EngineState>,
    /// Cancelled when those that run may run no longer.
    pub(crate) abort: CancellationToken,
    pub(crate) metrics: Arc<Metrics>,
    /// Tokens of a prefill step where nothing else runs.
    pub(crate) chunk: usize,
    pub(crate) sequences: Vec<Sequence>,
    building: Option<Building>,
    pub(crate) primer: PrimerKv,
    /// While sequences run, the packet is not stepped before this.
    build_after: Instant,
    /// Whether the rounds are those between two steps of an edit.
    pub(crate) beside_edit: bool,
    /// The place that prefilled last.
    pub(crate) turn: usize,
    pub(crate) pace: Pace,
    under: Under,
}

impl Floor {
    pub(crate) fn new(
        outside: Outside,
        tokenizer: Arc<Tokenizer>,
        (shelf, prefixes, primer): (Shelf, Prefixes, PrimerKv),
        (chunk, kv_budget): (usize, usize),
    ) -> Self {
        let under = outside.state.borrow().under;
        Self {
            queue: outside.queue,
            tokenizer,
            shelf,
            prefixes,
            kv_budget,
            state: outside.state,
            abort: outside.abort,
            metrics: outside.metrics,
            chunk,
            sequences: Vec::new(),
            building: None,
            primer,
            build_after: Instant::now(),
            beside_edit: false,
            turn: 0,
            pace: Pace::default(),
            under,
        }
    }

    /// Whether nothing runs.
    pub(crate) fn is_idle(&self) -> bool {
        self.sequences.is_empty() && self.building.is_none()
    }

    /// Computes the beginnings that the daemon itself puts before documents, for everybody: no first
    /// request waits for them, nor for what libtorch does at its first pass.
    ///
    /// # Errors
    /// The model's.
    pub(crate) fn begin(&mut self, model: &Transformer, beginnings: &[Vec<u32>]) -> Result<()> {
        for ids in beginnings.iter().filter(|ids| !ids.is_empty()) {
            let mut kv = model.new_kv()?;
            drop(model.prefill(ids, &mut kv)?);
            self.prefixes.share(self.under.revision, ids, &mut kv)?;
        }
        Ok(())
    }

    /// One round: takes in what came, drops what is unwanted, steps what runs. True if anything
    /// was computed.
    pub(crate) fn round(&mut self, view: View<'_>) -> bool {
        self.sweep();
        self.take_in(view);
        let round = self.choose(view.model);
        let worked = !round.is_empty() || self.building.is_some();
        self.step_sequences(view.model, &round);
        self.step_building(view, &round);
        worked
    }

    /// Serves others between two steps of an edit, about as long as its last step took.
    pub(crate) fn serve(&mut self, view: View<'_>, spent: Duration) {
        let until = Instant::now() + spent.max(LEAST_TURN);
        self.beside_edit = true;
        while self.round(view) && Instant::now() < until {}
        self.beside_edit = false;
    }

    /// The next edit that waits, or change of adapter, with its ticket.
    pub(crate) fn next_edit(&self) -> Option<Waiting> {
        let is_edit =
            |waiting: &Waiting| matches!(waiting.command, Command::Edit(_) | Command::Adapt(_));
        self.queue.take_first(is_edit)
    }

    /// Sleeps until something may have changed.
    pub(crate) fn rest(&self) {
        let mut first: Option<Instant> = None;
        let mut look = |ticket: &Ticket| {
            if let Some(deadline) = ticket.deadline {
                first = Some(first.map_or(deadline, |first| first.min(deadline)));
            }
        };
        self.sequences
            .iter()
            .for_each(|sequence| look(&sequence.ticket));
        self.queue.each(|waiting| look(&waiting.ticket));
        self.queue.wait(first);
    }

    /// Makes new weights known: to what runs, and to the rest of the daemon.
    pub(crate) fn weights_changed(
        &mut self,
        model: &Transformer,
        under: Under,
        ledger: (u64, Option<u64>),
    ) {
        self.under = under;
        self.state.send_modify(|state| {
            state.under = under;
            (state.ledger, state.next_turn) = ledger;
        });
        let mut kept = Vec::with_capacity(self.sequences.len());
        for mut sequence in self.sequences.drain(..) {
            match sequence.weights_changed(under, model) {
                Ok(()) => kept.push(sequence),
                Err(error) => sequence.end(&self.metrics, Err(error)),
            }
        }
        self.sequences = kept;
        if let Some(building) = &mut self.building {
            building.weights_changed(under);
        }
    }

    /// The same for another adapter, or none, and its bridge.
    pub(crate) fn adapter_changed(
        &mut self,
        model: &Transformer,
        (under, bridge): (Under, Option<PacketSource>),
        ledger: (u64, Option<u64>),
    ) {
        self.state.send_modify(|state| state.bridge = bridge);
        self.weights_changed(model, under, ledger);
    }

    /// Makes known that the ledger says more, and the weights are what they were.
    pub(crate) fn ledger_grew(&self, ledger: (u64, Option<u64>)) {
        self.state
            .send_modify(|state| (state.ledger, state.next_turn) = ledger);
    }

    /// Takes no more work but consultations: the weights are in doubt.
    pub(crate) fn poison(&mut self, reason: String) {
        tracing::error!(%reason, "the weights are in doubt; every request is refused until a restart");
        self.state
            .send_modify(|state| state.health = Health::Poisoned(reason));
        self.sweep();
    }

    /// Ends what is unwanted, running or waiting.
    fn sweep(&mut self) {
        let verdict = self.verdict();
        for waiting in self
            .queue
            .take_all(|waiting| unwanted(waiting, verdict.as_ref()))
        {
            let error = waiting.ticket.check().err();
            waiting
                .command
                .refuse(error.or_else(|| self.verdict()).unwrap_or(Error::Cancelled));
        }
        let mut kept = Vec::with_capacity(self.sequences.len());
        for sequence in self.sequences.drain(..) {
            match sequence.check() {
                Ok(()) if verdict.is_none() => kept.push(sequence),
                Ok(()) => {
                    let verdict = verdict_of(&self.state, &self.abort);
                    sequence.end(&self.metrics, Err(verdict));
                }
                Err(error) => sequence.end(&self.metrics, Err(error)),
            }
        }
        self.sequences = kept;
        if let Some(building) = self.building.take() {
            match building.check() {
                Ok(()) if verdict.is_none() => self.building = Some(building),
                Ok(()) => building.end(Err(verdict_of(&self.state, &self.abort))),
                Err(error) => building.end(Err(error)),
            }
        }
    }

    /// Why nothing may run any more, if so.
    pub(crate) fn verdict(&self) -> Option<Error> {
        let poisoned = matches!(self.state.borrow().health, Health::Poisoned(_));
        (poisoned || self.abort.is_cancelled()).then(|| verdict_of(&self.state, &self.abort))
    }

    /// Admits what waits and may run now.
    fn take_in(&mut self, view: View<'_>) {
        let forgets = |waiting: &Waiting| matches!(waiting.command, Command::Forget(_));
        while let Some(waiting) = self.queue.take_first(forgets) {
            if let Command::Forget(forget) = waiting.command {
                self.forget(forget);
            }
        }
        let consults = |waiting: &Waiting| matches!(waiting.command, Command::Consult(_));
        while let Some(waiting) = self.queue.take_first(consults) {
            if let Command::Consult(consult) = waiting.command {
                let _span = waiting.ticket.span.enter();
                // A panicking consultation drops its reply, which its caller notices.
                drop(guard(|| {
                    consult(Ok(view));
                    Ok(())
                }));
            }
        }
        while self.sequences.len() < limits::RUNNING
            && let Some(waiting) = self.next(view.model)
        {
            let waited = waiting.ticket.received.elapsed();
            self.metrics.queue_wait.observe(waited.as_secs_f64());
            let admitted = Sequence::admit(waiting, view.model, &self.tokenizer, self.under);
            let Some(sequence) = admitted else {
                continue;
            };
            match self.check_size(view.model, &sequence) {
                Ok(()) => self.sequences.push(sequence),
                Err(error) => sequence.end(&self.metrics, Err(error)),
            }
        }
        let builds = |waiting: &Waiting| matches!(waiting.command, Command::Build(_));
        if self.building.is_none()
            && let Some(waiting) = self.queue.take_first(builds)
            && let Command::Build(build) = waiting.command
        {
            self.building = Some(Building::begin(waiting.ticket, *build, self.under));
        }
    }

    /// Lets go of all that was computed of texts that are no more, and sees to it that nothing of them is kept
    /// when what runs or waits now has ended.
    fn forget(&mut self, forget: Forget) {
        self.prefixes.forget(&forget);
        self.shelf.forget(&forget.packets);
        for sequence in &mut self.sequences {
            sequence.forget(&forget);
        }
        self.queue.each_mut(|waiting| {
            if let Some(prompt) = waiting.command.prompt_mut() {
                prompt.forget(&forget);
            }
        });
        // Whoever asked may be gone.
        drop(forget.reply.send(Ok(())));
    }

    fn step_sequences(&mut self, model: &Transformer, round: &Round) {
        if let Some(place) = round.prefill {
            self.turn = place;
        }
        let held = (model.kv_bytes(), self.prefixes.bytes());
        self.metrics.holds(self.sequences.len(), held);
        let both = (model, &*self.tokenizer, &*self.metrics);
        let started = Instant::now();
        let (stepped, others) = decode::step(&mut self.sequences, &round.decode, both);
        if !round.decode.is_empty() {
            self.pace.decoded(started.elapsed());
        }
        let mut ended = Vec::new();
        let mut look = |place: usize, result: Result<Option<Outcome>>| match result {
            Ok(None) => {}
            Ok(Some(outcome)) => ended.push((place, Ok(outcome))),
            Err(error) => ended.push((place, Err(error))),
        };
        for (place, result) in stepped {
            look(place, result);
        }
        let chunk = round.chunk(self.chunk, self.beside_edit, &self.pace);
        let mut stage = Stage {
            model,
            tokenizer: &self.tokenizer,
            shelf: &mut self.shelf,
            prefixes: &mut self.prefixes,
            chunk,
        };
        for &place in others.iter().chain(&round.prefill) {
            let Some(sequence) = self.sequences.get_mut(place) else {
                continue;
            };
            let span = sequence.ticket.span.clone();
            let _span = span.enter();
            let started = Instant::now();
            let prefills = sequence.phase() == Phase::Prefill;
            look(place, guard(|| sequence.step(&mut stage)));
            if prefills && sequence.phase() != Phase::Prefill {
                // For whoever asks the same beside it, such as another answer to one request. A failure here
                // costs that one time, and this one nothing.
                drop(guard(|| sequence.keep(stage.prefixes)));
            }
            // A prompt's last step may be of any length.
            let whole = round.prefill == Some(place) && sequence.phase() == Phase::Prefill;
            if whole && !round.decode.is_empty() {
                self.pace.prefilled(chunk, started.elapsed());
            }
        }
        // From the back, so that the places before stay right.
        ended.sort_by_key(|(place, _)| std::cmp::Reverse(*place));
        for (place, result) in ended {
            let mut sequence = self.sequences.remove(place);
            if result.is_ok() {
                // A failure here costs the next request time, and this one nothing.
                drop(guard(|| sequence.keep(&mut self.prefixes)));
            }
            sequence.end(&self.metrics, result);
        }
    }

    fn step_building(&mut self, view: View<'_>, round: &Round) {
        let busy = !round.is_empty();
        let started = Instant::now();
        if busy && started < self.build_after {
            return;
        }
        let Some(mut building) = self.building.take() else {
            return;
        };
        let chunk = round.chunk(self.chunk, self.beside_edit || busy, &self.pace);
        let span = building.ticket.span.clone();
        let _span = span.enter();
        match guard(|| building.step(view, &mut self.primer, chunk)) {
            Ok(false) => self.building = Some(building),
            Ok(true) => {
                // A panic here drops the reply, which its caller notices.
                drop(guard(|| {
                    building.end(Ok(view.model));
                    Ok(())
                }));
            }
            Err(error) => building.end(Err(error)),
        }
        self.build_after = started + started.elapsed() * BUILD_SHARE;
    }
}

/// Whether a waiting request is to be refused now.
fn unwanted(waiting: &Waiting, verdict: Option<&Error>) -> bool {
    let may_stay = match (&waiting.command, verdict) {
        (_, None) | (Command::Consult(_), Some(Error::Poisoned { .. })) => true,
        (_, Some(_)) => false,
    };
    !may_stay || waiting.ticket.check().is_err()
}

fn verdict_of(state: &watch::Sender<EngineState>, abort: &CancellationToken) -> Error {
    match &state.borrow().health {
        Health::Poisoned(reason) if !abort.is_cancelled() => Error::Poisoned {
            reason: reason.clone(),
        },
        _ => Error::Stopping,
    }
}

/// Turns a panic into an error of the one request that caused it.
pub(crate) fn guard<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic without words".to_owned());
        tracing::error!(%message, "a request panicked on the engine's thread");
        Err(Error::Panicked { message })
    })
}
