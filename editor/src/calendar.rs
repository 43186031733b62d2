//! Facts that come and go by their dates.
//!
//! A fact whose day is yet to come is sought and verified when it is added, and waits in the ledger with its wanted
//! state; on its day an entry of its own brings it into the weights by the same joint solve as any other. So nothing is
//! optimised then, and what is served stays a function of the ledger alone: dates decide when an entry is written, never
//! what the entries mean. Never sleeps: whoever runs the editor asks [`Editor::next_turn`] when to come back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use addenda_model::Transformer;
use addenda_model::tokenizer::Tokenizer;

use crate::batch::Request;
use crate::desk::Copies;
use crate::editor::Editor;
use crate::entry::{Beginning, Edit, Entry, Retirement};
use crate::error::{Error, Result};
use crate::fact::FactId;
use crate::pace::Pace;
use crate::plan::{Novelty, Weights};
use crate::register::{FactRecord, FactState};

/// What tells the time: the system, or whoever set it by hand.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<AtomicU64>>);

impl Clock {
    /// A clock that stands at these milliseconds since 1970-01-01T00:00:00Z until it is set.
    #[must_use]
    pub fn by_hand(now_ms: u64) -> Self {
        Self(Some(Arc::new(AtomicU64::new(now_ms))))
    }

    /// Sets a clock that is set by hand; of no effect on the system's.
    pub fn set(&self, now_ms: u64) {
        if let Some(hand) = &self.0 {
            hand.store(now_ms, Ordering::Relaxed);
        }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        match &self.0 {
            Some(hand) => hand.load(Ordering::Relaxed),
            None => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH);
                u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
            }
        }
    }
}

/// Facts whose day has come or is over, and the weights that follow; nothing was changed yet.
#[derive(Debug)]
pub struct PlannedTurn {
    ends: Vec<FactId>,
    /// Each with the fact whose place it takes, in the order of their dates.
    begins: Vec<(FactId, Option<FactId>)>,
    weights: Weights,
}

/// When the next thing happens to a fact by itself.
fn turn_of(record: &FactRecord) -> Option<u64> {
    let fact = &record.fact;
    match record.state {
        FactState::Active => fact.valid_until_ms,
        FactState::Waiting => {
            let from = fact.valid_from_ms.unwrap_or(0);
            Some(from.min(fact.valid_until_ms.unwrap_or(from)))
        }
        FactState::Superseded | FactState::Retired | FactState::Expired => None,
    }
}

impl Editor {
    /// When a fact next comes or goes by its dates, milliseconds since 1970-01-01T00:00:00Z; none if none does.
    #[must_use]
    pub fn next_turn(&self) -> Option<u64> {
        self.register.living().filter_map(turn_of).min()
    }

    /// Works out the weights of the facts that hold now; none if nothing has come or gone by its dates.
    pub fn plan_turn(
        &self,
        model: &Transformer,
        tokenizer: &Tokenizer,
        pace: &mut Pace<'_>,
    ) -> Result<Option<PlannedTurn>> {
        let now = self.clock.now_ms();
        let due = |record: &&FactRecord| turn_of(record).is_some_and(|at| at <= now);
        let over = |record: &&FactRecord| record.fact.valid_until_ms.is_some_and(|at| at <= now);
        let due: Vec<&FactRecord> = self.register.living().filter(due).collect();
        if due.is_empty() {
            return Ok(None);
        }
        let (ended, mut coming): (Vec<_>, Vec<_>) = due.into_iter().partition(over);
        coming.sort_by_key(|record| (record.fact.valid_from_ms, record.sequence));
        let ends: Vec<FactId> = ended.iter().map(|record| record.id).collect();
        let gone: BTreeSet<FactId> = ends.iter().copied().collect();
        let active = self.register.active().iter();
        let mut edits: BTreeMap<FactId, &Edit> = active
            .filter(|(id, _)| !gone.contains(id))
            .map(|(id, edit)| (*id, edit))
            .collect();
        let mut begins = Vec::new();
        for record in coming {
            let Some(edit) = self.register.waiting().get(&record.id) else {
                continue;
            };
            let rival = edits.keys().copied().find(|id| {
                let other = self.register.get(*id);
                other.is_some_and(|other| other.fact.asks_the_same(&record.fact))
            });
            if let Some(rival) = rival {
                edits.remove(&rival);
            }
            edits.insert(record.id, edit);
            begins.push((record.id, rival));
        }
        let copies = Copies::to_solve(model)?;
        let desk = copies.desk(model, tokenizer);
        let weights = (self.planner).with(desk, &edits, self.ledger.head(), pace)?;
        Ok(Some(PlannedTurn {
            ends,
            begins,
            weights,
        }))
    }

    /// Writes who came and went to the ledger, then installs the weights; says how many facts it was.
    pub fn commit_turn(&mut self, model: &mut Transformer, planned: PlannedTurn) -> Result<usize> {
        if planned.weights.head != self.ledger.head() {
            return Err(Error::Stale);
        }
        let at_ms = self.clock.now_ms();
        let ends = planned.ends.into_iter().map(|fact_id| {
            Entry::Retired(Retirement {
                fact_id,
                at_ms,
                expired: true,
            })
        });
        let begins = planned.begins.into_iter().map(|(fact_id, supersedes)| {
            Entry::Began(Beginning {
                fact_id,
                at_ms,
                supersedes,
            })
        });
        let mut written = 0;
        for entry in ends.chain(begins) {
            self.record(&entry).map_err(|error| match written {
                0 => error,
                _ => Error::HalfBatch(Box::new(error)),
            })?;
            written += 1;
        }
        self.install(model, planned.weights)?;
        Ok(written)
    }

    /// [`Self::plan_turn`] and [`Self::commit_turn`] in one.
    pub fn turn(
        &mut self,
        model: &mut Transformer,
        tokenizer: &Tokenizer,
        pace: &mut Pace<'_>,
    ) -> Result<usize> {
        match self.plan_turn(model, tokenizer, pace)? {
            Some(planned) => self.commit_turn(model, planned),
            None => Ok(0),
        }
    }

    /// Seeks and verifies a fact whose day is yet to come, on top of the facts that are active now.
    pub(crate) fn plan_later(
        &self,
        model: &Transformer,
        tokenizer: &Tokenizer,
        request: Request,
        pace: &mut Pace<'_>,
    ) -> Result<Novelty> {
        let copies = Copies::to_seek(model)?;
        let desk = copies.desk(model, tokenizer);
        let head = self.ledger.head();
        let (answers, _) =
            (self.planner).add(desk, &self.register, vec![(0, request)], head, pace)?;
        let answer = answers.into_iter().next().map(|(_, answer)| answer);
        let novelty = answer.unwrap_or(Err(Error::Cancelled))?;
        Ok(Novelty {
            waits: true,
            ..novelty
        })
    }
}
