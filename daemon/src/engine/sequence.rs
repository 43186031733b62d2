//! One running sequence: its context, and what is done with it.
//!
//! Owns the KV of one request from its first chunk to its end. Invariants: everything that a
//! sequence says comes from the weights that it names, or it says that they changed; dropping it
//! frees its memory. A sequence that is *parked* has given its context up to others, and computes it
//! anew before it goes on.

use addenda_model::{SequenceKv, Tokenizer, Transformer};
use tch::Tensor;

use crate::engine::command::{Command, Finish, Forget, Segment, Ticket, Under, Waiting};
use crate::engine::generate::Generating;
use crate::engine::prefill::Prefill;
use crate::engine::prefix::Prefixes;
use crate::engine::score::Scoring;
use crate::engine::trace::Tracing;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::packets::Shelf;

/// What a step works with.
pub(crate) struct Stage<'a> {
    pub(crate) model: &'a Transformer,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) shelf: &'a mut Shelf,
    pub(crate) prefixes: &'a mut Prefixes,
    /// Tokens that a prefill step computes at most.
    pub(crate) chunk: usize,
}

/// What a sequence does at its next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Computes a chunk of its prompt.
    Prefill,
    /// Computes one token, or scores one continuation.
    Decode,
    /// Waits for its client to read.
    Paused,
}

/// How a sequence ended well.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Outcome {
    Generated(Finish),
    Scored,
    Traced,
}

/// One running sequence.
pub(crate) struct Sequence {
    pub(crate) ticket: Ticket,
    prefill: Prefill,
    kv: SequenceKv,
    task: Task,
    under: Under,
    /// Whether its context was given up, and waits for memory.
    parked: bool,
    /// Whether its context is computed anew, up to where the answer is.
    catching_up: bool,
}

enum Task {
    Generate(Box<Generating>),
    Score(Box<Scoring>),
    Trace(Box<Tracing>),
}

impl Sequence {
    /// Admits a request, or answers it with what is wrong.
    pub(crate) fn admit(
        waiting: Waiting,
        model: &Transformer,
        tokenizer: &Tokenizer,
        under: Under,
    ) -> Option<Self> {
        let Waiting { ticket, command } = waiting;
        let (prompt, task) = match command {
            Command::Generate(request) => {
                let (prompt, generating) = Generating::new(*request, tokenizer).ok()?;
                (prompt, Task::Generate(Box::new(generating)))
            }
            Command::Score(request) => {
                let (prompt, scoring) = Scoring::new(*request);
                (prompt, Task::Score(Box::new(scoring)))
            }
            Command::Trace(request) => {
                let (prompt, tracing) = Tracing::new(*request);
                (prompt, Task::Trace(Box::new(tracing)))
            }
            other => {
                other.refuse(Error::invalid("command", "is not for a sequence"));
                return None;
            }
        };
        let mut packets = prompt.segments.iter().flat_map(Segment::packets);
        let stale = packets.any(|packet| packet.origin().revision != under.revision);
        let prefill = Prefill::new(prompt);
        let kv = match model.new_kv() {
            Ok(kv) if !stale => kv,
            Ok(_) => {
                task.end(&ticket, (under, 0), Err(Error::Stale));
                return None;
            }
            Err(error) => {
                task.end(&ticket, (under, 0), Err(error.into()));
                return None;
            }
        };
        Some(Self {
            ticket,
            prefill,
            kv,
            task,
            under,
            parked: false,
            catching_up: false,
        })
    }

    /// What it would do now.
    pub(crate) fn phase(&self) -> Phase {
        match &self.task {
            _ if self.parked => Phase::Paused,
            _ if self.catching_up => Phase::Prefill,
            Task::Generate(generating) if !generating.has_room() => Phase::Paused,
            Task::Generate(generating) if generating.has_begun() => Phase::Decode,
            Task::Score(scoring) if scoring.has_begun() => Phase::Decode,
            Task::Trace(tracing) if tracing.has_begun() => Phase::Decode,
            _ => Phase::Prefill,
        }
    }

    /// Whether it had better wait until the prompt of `other` is computed: both begin alike, and at most twice as many
    /// tokens of that one are left as it then finds kept.
    pub(crate) fn waits_for(&self, other: &Self, prefixes: &Prefixes) -> bool {
        let revision = self.under.revision;
        let theirs = (&other.prefill, &other.kv);
        let gain = || self.prefill.gains(theirs, prefixes, revision);
        other.phase() == Phase::Prefill
            && other.under.revision == revision
            && (1..=gain().saturating_mul(2)).contains(&other.coming())
    }

    /// Whether somebody still wants it.
    ///
    /// # Errors
    /// The reason why not.
    pub(crate) fn check(&self) -> Result<()> {
        let abandoned = match &self.task {
            Task::Generate(generating) => generating.is_abandoned(),
            Task::Score(scoring) => scoring.is_abandoned(),
            Task::Trace(tracing) => tracing.is_abandoned(),
        };
        if abandoned {
            return Err(Error::Cancelled);
        }
        self.ticket.check()
    }

    /// One step of the present phase; an outcome when it was the last.
    ///
    /// # Errors
    /// The model's; the sequence is to be ended with it.
    pub(crate) fn step(&mut self, stage: &mut Stage<'_>) -> Result<Option<Outcome>> {
        let (model, tokenizer) = (stage.model, stage.tokenizer);
        if self.phase() == Phase::Prefill {
            let (kv, revision) = (&mut self.kv, self.under.revision);
            self.prefill.begin(stage.prefixes, revision, kv)?;
            let hidden = self.prefill.step(model, stage.shelf, kv, stage.chunk)?;
            if self.catching_up {
                self.catching_up = hidden.is_none();
                return Ok(None);
            }
            return match (hidden, &mut self.task) {
                (None, _) => Ok(None),
                (Some(hidden), Task::Generate(generating)) => {
                    let logits = model.decode_logits(&hidden)?;
                    let finish = generating.begin(tokenizer, &logits, kv)?;
                    Ok(finish.map(Outcome::Generated))
                }
                (Some(hidden), Task::Score(scoring)) => {
                    scoring.begin(hidden);
                    Ok(None)
                }
                (Some(hidden), Task::Trace(tracing)) => {
                    let done = tracing.begin(model, tokenizer, &hidden)?;
                    Ok(done.then_some(Outcome::Traced))
                }
            };
        }
        match &mut self.task {
            // Decodes with all others (see `decode`) while there is something to compute.
            Task::Generate(generating) => {
                let finish = generating.report(tokenizer)?;
                Ok(finish.map(Outcome::Generated))
            }
            Task::Score(scoring) => {
                let done = scoring.step(model, &mut self.kv)?;
                Ok(done.then_some(Outcome::Scored))
            }
            Task::Trace(tracing) => {
                let done = tracing.step(model, tokenizer, &mut self.kv)?;
                Ok(done.then_some(Outcome::Traced))
            }
        }
    }

    /// The last tokens of an answer that is being written, each with its context: one, or one of each beam;
    /// none where something else is done.
    pub(crate) fn pending(&mut self) -> Vec<(u32, &mut SequenceKv)> {
        match &mut self.task {
            Task::Generate(generating) => generating.pending(&mut self.kv),
            Task::Score(_) | Task::Trace(_) => Vec::new(),
        }
    }

    /// Takes the logits `[n, V]` behind [`Self::pending`]; an outcome when the answer ends with them.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn take(
        &mut self,
        tokenizer: &Tokenizer,
        logits: &Tensor,
        metrics: &Metrics,
    ) -> Result<Option<Outcome>> {
        match &mut self.task {
            Task::Generate(generating) => {
                if let Some(since) = generating.since_last() {
                    metrics.itl.observe(since.as_secs_f64());
                }
                let finish = generating.take(tokenizer, logits)?;
                Ok(finish.map(Outcome::Generated))
            }
            Task::Score(_) | Task::Trace(_) => Ok(None),
        }
    }

    /// Takes notice of new weights. What nobody has seen yet begins again; an answer that has
    /// begun goes on and will say so.
    ///
    /// # Errors
    /// It reads packets of the old weights, or libtorch's.
    pub(crate) fn weights_changed(&mut self, now: Under, model: &Transformer) -> Result<()> {
        if now.revision == self.under.revision {
            return Ok(());
        }
        if let Task::Generate(generating) = &self.task
            && generating.has_begun()
        {
            self.under.changed = true;
            return Ok(());
        }
        let mut segments = self.prefill.prompt().segments.iter();
        if segments.any(|segment| !segment.packets().is_empty()) {
            return Err(Error::Stale);
        }
        // Nothing was answered yet, so all of it goes on.
        self.start_over(model)?;
        self.under = now;
        Ok(())
    }

    /// Keeps nothing for others where a text that is no more stands in the prompt.
    pub(crate) fn forget(&mut self, forget: &Forget) {
        self.prefill.prompt_mut().forget(forget);
    }

    /// Keeps what others may begin with; to be called once the prompt is computed, and at the end.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn keep(&mut self, prefixes: &mut Prefixes) -> Result<()> {
        if self.under.changed {
            return Ok(());
        }
        let answered = match &self.task {
            Task::Generate(generating) => generating.computed(),
            Task::Score(_) | Task::Trace(_) => &[],
        };
        let context = (&mut self.kv, answered);
        self.prefill.keep(prefixes, self.under.revision, context)
    }

    pub(crate) fn namespace(&self) -> &str {
        self.prefill.prompt().namespace()
    }

    /// Whether it has a context that others could have the memory of.
    pub(crate) fn holds(&self) -> bool {
        self.kv.bytes() > 0
    }

    /// Whether it would go on if there were memory for its context.
    pub(crate) fn is_waiting(&self) -> bool {
        self.parked
            && match &self.task {
                Task::Generate(generating) => generating.has_room(),
                Task::Score(_) | Task::Trace(_) => true,
            }
    }

    /// Gives its context up, to compute it anew later: what was answered stays answered.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn park(&mut self, model: &Transformer) -> Result<()> {
        self.parked = self.start_over(model)?;
        let begun = match &self.task {
            Task::Generate(generating) => generating.has_begun(),
            Task::Score(_) | Task::Trace(_) => false,
        };
        self.catching_up = self.parked && begun;
        Ok(())
    }

    /// Begins with an empty context again; whether there is anything to compute in it.
    fn start_over(&mut self, model: &Transformer) -> Result<bool> {
        self.kv = model.new_kv()?;
        let (answered, goes_on) = match &mut self.task {
            Task::Generate(generating) => generating.restart()?,
            Task::Score(scoring) => {
                scoring.restart();
                (&[][..], true)
            }
            Task::Trace(tracing) => {
                tracing.restart();
                (&[][..], true)
            }
        };
        self.prefill.restart(answered);
        Ok(goes_on)
    }

    /// Goes on, now that there is memory for its context.
    pub(crate) fn resume(&mut self) {
        self.parked = false;
    }

    /// Bytes that its next step needs at most, beside what is held, with such a `chunk` of a prompt.
    pub(crate) fn needs(&self, chunk: usize) -> usize {
        match (self.phase(), &self.task) {
            (Phase::Paused, _) => 0,
            (Phase::Prefill, _) => self.kv.growth(self.prefill.next(chunk)),
            (Phase::Decode, Task::Generate(generating)) => generating.needs(&self.kv),
            (Phase::Decode, Task::Score(scoring)) => self.kv.growth(scoring.growth()),
            (Phase::Decode, Task::Trace(tracing)) => self.kv.growth(tracing.growth()),
        }
    }

    /// Tokens of its own that its context is still to begin with.
    pub(crate) fn coming(&self) -> usize {
        match self.parked {
            true => 0,
            false => self.prefill.computed().saturating_sub(self.kv.own_tokens()),
        }
    }

    /// Tokens of its own that its context begins with, and that it may have in the end.
    pub(crate) fn tokens(&self) -> (usize, usize) {
        let begins = self.prefill.computed();
        let growth = match &self.task {
            Task::Generate(generating) => generating.growth(),
            Task::Score(scoring) => scoring.growth(),
            Task::Trace(tracing) => tracing.growth(),
        };
        (begins, begins + growth)
    }

    /// Counts an answer that ends like this.
    fn count(&self, metrics: &Metrics, result: &Result<Outcome>) {
        let Task::Generate(generating) = &self.task else {
            return;
        };
        metrics.ended(match result {
            Ok(_) => "well",
            Err(Error::Cancelled | Error::Deadline) => "cancelled",
            Err(_) => "failed",
        });
        if let Some(first_at) = generating.first_at() {
            let ttft = first_at.duration_since(self.ticket.received);
            metrics.ttft.observe(ttft.as_secs_f64());
        }
        let prompt = self.prefill.prompt();
        let from_packets = prompt.packet_tokens();
        let reused = self.prefill.reused();
        metrics.tokens("packet", from_packets);
        metrics.tokens("prefix", reused);
        metrics.tokens(
            "computed",
            prompt.tokens().saturating_sub(from_packets + reused),
        );
        metrics.tokens("generated", generating.generated());
    }

    /// Answers for the last time, counts it, and frees the context.
    pub(crate) fn end(self, metrics: &Metrics, result: Result<Outcome>) {
        self.count(metrics, &result);
        let reused = self.prefill.reused();
        self.task.end(&self.ticket, (self.under, reused), result);
    }
}

impl Task {
    fn end(self, ticket: &Ticket, (under, reused): (Under, usize), result: Result<Outcome>) {
        match self {
            Self::Generate(generating) => {
                let finish = result.map(|outcome| match outcome {
                    Outcome::Generated(finish) => finish,
                    Outcome::Scored | Outcome::Traced => Finish::End,
                });
                generating.end(ticket, (under, reused), finish);
            }
            Self::Score(scoring) => scoring.end(under, result.map(|_| ())),
            Self::Trace(tracing) => tracing.end(result.map(|_| ())),
        }
    }
}
