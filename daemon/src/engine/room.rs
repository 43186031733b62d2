//! Memory for contexts: a budget that running sequences and kept beginnings have together.
//!
//! Owns who gives up memory when a round needs more of it. Kept beginnings go first, then the context of the sequence
//! that came last, or whose client does not read: it waits, and computes its context anew before it goes on, so nobody
//! fails. Invariants: of those that have something to compute, the one that came first keeps its context; nobody is
//! taken in before those who wait have theirs back.

use addenda_model::{SequenceKv, Transformer};

use crate::engine::batch::Round;
use crate::engine::command::{Prompt, Waiting};
use crate::engine::scheduler::{Floor, guard};
use crate::engine::sequence::{Phase, Sequence};
use crate::error::{Error, Result};

impl Floor {
    /// Chooses the next round, whose steps stay within the budget.
    pub(crate) fn choose(&mut self, model: &Transformer) -> Round {
        self.resume(model);
        loop {
            let round = Round::choose(&self.sequences, &self.prefixes, self.turn);
            let chunk = round.chunk(self.chunk, self.beside_edit, &self.pace);
            let steps = round.decode.iter().chain(&round.prefill);
            let steps = steps.filter_map(|&place| self.sequences.get(place));
            let needed: usize = steps.map(|sequence| sequence.needs(chunk)).sum();
            let fits = model.kv_bytes().saturating_add(needed) <= self.kv_budget;
            if fits || !(self.prefixes.let_go() || self.park_one(model)) {
                return round;
            }
        }
    }

    /// The next request that waits and has room beside those that run: of the namespace that has least running, the
    /// oldest.
    pub(crate) fn next(&mut self, model: &Transformer) -> Option<Waiting> {
        loop {
            let rank = |waiting: &Waiting| {
                let prompt = waiting.command.prompt()?;
                let running = self.sequences.iter();
                let own = running.filter(|one| one.namespace() == prompt.namespace());
                Some(own.count())
            };
            let mut somebody_waits = false;
            let admits = |waiting: &Waiting| {
                somebody_waits = true;
                let tokens = waiting.command.prompt().map_or(0, Prompt::own_tokens);
                !self.sequences.iter().any(Sequence::is_waiting) && self.has_room(model, tokens)
            };
            let next = self.queue.take_least_if(rank, admits);
            if next.is_some() || !(somebody_waits && !self.somebody_runs() && self.park_one(model))
            {
                return next;
            }
        }
    }

    /// # Errors
    /// The sequence would not fit into the budget even if it ran alone.
    pub(crate) fn check_size(&self, model: &Transformer, sequence: &Sequence) -> Result<()> {
        let (_, most) = sequence.tokens();
        let chunk = self.chunk.min(most) + SequenceKv::BLOCK;
        let needed = most
            .saturating_add(chunk)
            .saturating_mul(model.kv_token_bytes());
        match needed <= self.kv_budget {
            true => Ok(()),
            false => Err(Error::TooMuchKv {
                needed,
                budget: self.kv_budget,
            }),
        }
    }

    /// Lets parked sequences go on, in the order in which they came, as far as there is room.
    fn resume(&mut self, model: &Transformer) {
        while let Some(place) = self.sequences.iter().position(Sequence::is_waiting) {
            let begins = self.sequences.get(place).map_or(0, |one| one.tokens().0);
            if self.has_room(model, begins) {
                if let Some(sequence) = self.sequences.get_mut(place) {
                    sequence.resume();
                }
            } else if self.somebody_runs() || !self.park_one(model) {
                return;
            }
        }
    }

    /// Whether anybody has something to compute and the memory for it.
    fn somebody_runs(&self) -> bool {
        let mut phases = self.sequences.iter().map(Sequence::phase);
        phases.any(|phase| phase != Phase::Paused)
    }

    /// Whether a context that begins with so many tokens, and goes on for a block, has room beside the others'
    /// contexts.
    fn has_room(&self, model: &Transformer, tokens: usize) -> bool {
        let held = model.kv_bytes().saturating_sub(self.prefixes.bytes());
        let coming: usize = self.sequences.iter().map(Sequence::coming).sum();
        let tokens = tokens + coming + SequenceKv::BLOCK;
        let needed = tokens.saturating_mul(model.kv_token_bytes());
        !self.sequences.iter().any(Sequence::holds) || held.saturating_add(needed) <= self.kv_budget
    }

    /// Parks the last of those whose clients don't read, else the sequence that came last; false where the one that
    /// came first is alone.
    fn park_one(&mut self, model: &Transformer) -> bool {
        let rests = |one: &Sequence| one.holds() && one.phase() == Phase::Paused;
        let resting = self.sequences.iter().rposition(rests);
        let first = self.sequences.iter().position(Sequence::holds);
        let last = self.sequences.iter().rposition(Sequence::holds);
        let Some(place) = resting.or(last.filter(|_| first < last)) else {
            return false;
        };
        let Some(sequence) = self.sequences.get_mut(place) else {
            return false;
        };
        let span = sequence.ticket.span.clone();
        let _span = span.enter();
        self.metrics.parked.inc();
        tracing::debug!(
            "memory for contexts is short: this one is given up, and computed anew later"
        );
        if let Err(error) = guard(|| sequence.park(model)) {
            self.sequences.remove(place).end(&self.metrics, Err(error));
        }
        true
    }
}
