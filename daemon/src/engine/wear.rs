//! The active adapter, and the training of one beside everything else.
//!
//! Owns both as the engine's thread has them. Invariants: an adapter that is worn is the served base
//! model's; serving goes before training, which is stepped where nothing else runs, or has waited
//! long; what training leaves behind is written by its client, never here.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use addenda_model::adapter::Primer;
use addenda_model::{Adapter, Tokenizer, Transformer};
use tokio::sync::mpsc;

use crate::adapters::training::{Course, Note, Training};
use crate::digest::Digest;
use crate::engine::command::{Adapt, Command, NO_ADAPTER, Origin, Ticket, Waiting};
use crate::engine::edit::Bench;
use crate::engine::scheduler::{Floor, guard};
use crate::error::{Error, Result};
use crate::packets::PacketSource;

/// How long training waits for a quiet moment before it takes one step all the same.
const PATIENCE: Duration = Duration::from_secs(30);
/// Notes that one step leaves at most.
const NOTES_OF_A_STEP: usize = 4;

/// The adapter that is worn.
pub(crate) struct Worn {
    pub(crate) adapter: Adapter,
    pub(crate) digest: Digest,
    /// Its bridge, to be read under any weights.
    bridge: Option<PacketSource>,
}

impl Worn {
    /// From its file.
    ///
    /// # Errors
    /// A file that is none, or of another model.
    pub(crate) fn new(file: &[u8], base: Digest, model: &Transformer) -> Result<Self> {
        let adapter = Adapter::from_bytes(file)?;
        if adapter.base() != base.0 || adapter.check_fits(model).is_err() {
            let reason = format!("\"{}\" was trained for another base model", adapter.name());
            return Err(Error::Precondition {
                field: "adapter",
                reason,
            });
        }
        let digest = Digest(adapter.digest()?);
        let origin = Origin {
            revision: base,
            adapter: digest,
        };
        let bridge = adapter.bridge_packet(model)?;
        let bridge = bridge.map(|bridge| PacketSource::of_bridge(&bridge, origin));
        Ok(Self {
            digest,
            bridge: bridge.transpose()?,
            adapter,
        })
    }

    /// What packets depend on: the digest of an adapter that wraps documents.
    pub(crate) fn wrapping(&self) -> Digest {
        self.adapter.soft().map_or(NO_ADAPTER, |_| self.digest)
    }
}

/// A training on the floor.
pub(crate) struct Working {
    ticket: Ticket,
    training: Training,
    notes: mpsc::Sender<Result<Note>>,
    /// Said, but not yet taken.
    waiting: VecDeque<Note>,
    last: Instant,
}

impl Bench {
    /// The bridge of the adapter that is worn.
    pub(crate) fn bridge(&self) -> Option<PacketSource> {
        self.worn.as_ref()?.bridge.clone()
    }

    /// Does what an adapter needs of the engine.
    pub(crate) fn adapt(&mut self, floor: &mut Floor, waiting: Waiting) {
        let Waiting { ticket, command } = waiting;
        let Command::Adapt(adapt) = command else {
            command.refuse(Error::invalid("command", "is not about adapters"));
            return;
        };
        let span = ticket.span.clone();
        let _span = span.enter();
        match *adapt {
            Adapt::Wear { file, reply } => {
                let base = Digest(self.base);
                let worn = guard(|| {
                    let file = file.as_deref();
                    file.map(|file| Worn::new(file, base, &self.model))
                        .transpose()
                });
                drop(reply.send(worn.map(|worn| {
                    self.worn = worn;
                    let now = (self.under(), self.bridge());
                    floor.adapter_changed(&self.model, now, self.ledger());
                })));
            }
            Adapt::Train { course, notes } => self.begin_training(ticket, *course, notes),
        }
    }

    fn begin_training(
        &mut self,
        ticket: Ticket,
        course: Course,
        notes: mpsc::Sender<Result<Note>>,
    ) {
        let begun = if self.working.is_some() {
            Err(Error::Precondition {
                field: "training",
                reason: "is running already; wait for its end, or cancel it (`addenda job list`)"
                    .to_owned(),
            })
        } else {
            guard(|| Training::begin(course, &self.model))
        };
        match begun {
            Ok(training) => {
                self.working = Some(Working {
                    ticket,
                    training,
                    notes,
                    waiting: VecDeque::new(),
                    last: Instant::now(),
                });
            }
            // The channel is new, so there is room.
            Err(error) => drop(notes.try_send(Err(error))),
        }
    }

    /// Steps the training where there is one and it is its turn: `busy` says that others worked in
    /// this round. True if it was stepped.
    pub(crate) fn train(&mut self, floor: &mut Floor, busy: bool) -> bool {
        let Some(mut working) = self.working.take() else {
            return false;
        };
        let ended = floor.verdict().or_else(|| {
            let closed = floor.queue.is_closed().then_some(Error::Stopping);
            closed.or_else(|| working.check().err())
        });
        if let Some(error) = ended {
            working.end(error);
            return false;
        }
        let early = busy && working.last.elapsed() < PATIENCE;
        if early || !working.say() {
            self.working = Some(working);
            return false;
        }
        let span = working.ticket.span.clone();
        let _span = span.enter();
        let (model, revision) = (&self.model, self.under().revision);
        let stepped = guard(|| {
            let under = (revision, model);
            floor.primer.study(under, floor.chunk, |primer| {
                working.step(under, primer, &self.tokenizer)
            })
        });
        match stepped {
            Ok(Some(true)) => {}
            Ok(Some(false) | None) => self.working = Some(working),
            Err(error) => working.end(error),
        }
        true
    }
}

impl Working {
    /// Whether somebody still wants it.
    fn check(&self) -> Result<()> {
        if self.notes.is_closed() {
            return Err(Error::Cancelled);
        }
        self.ticket.check()
    }

    /// Says what waits to be said; true if there is room for what another step says.
    fn say(&mut self) -> bool {
        while let Some(note) = self.waiting.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(Ok(note))) = self.notes.try_send(Ok(note)) {
                self.waiting.push_front(note);
                return false;
            }
        }
        self.notes.capacity() > NOTES_OF_A_STEP
    }

    /// One step; true after the last.
    fn step(
        &mut self,
        under: (Digest, &Transformer),
        primer: Option<Primer<'_>>,
        tokenizer: &Tokenizer,
    ) -> Result<bool> {
        let notes = self.training.step(under, primer, tokenizer)?;
        let done = notes.iter().any(|note| matches!(note, Note::Done(_)));
        self.waiting.extend(notes);
        self.say();
        self.last = Instant::now();
        Ok(done)
    }

    fn end(mut self, error: Error) {
        self.say();
        // One place more than a step's notes is always kept free.
        drop(self.notes.try_send(Err(error)));
    }
}
