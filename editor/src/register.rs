//! What the ledger's frames add up to: which facts there are, which are active, what was answered to whom.
//!
//! Never touches files or weights. Invariant: it is a function of the frames in their order, so a restart gives the
//! same register; a frame that contradicts those before it is refused, never smoothed over.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use crate::digest::as_hex;
use crate::entry::{Addition, Beginning, Edit, Entry};
use crate::fact::{Fact, FactId};
use crate::figures::Figures;
use crate::ledger::Frame;
use crate::settings::Method;

/// Whether a fact is in the weights, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FactState {
    /// In the weights.
    Active,
    /// Another target took its place.
    Superseded,
    /// It was taken out.
    Retired,
    /// Its day is yet to come.
    Waiting,
    /// Its time is over.
    Expired,
}

/// A fact and its life. A fact that was added again shows its latest life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FactRecord {
    /// What it is.
    pub id: FactId,
    /// What it says.
    pub fact: Fact,
    /// Whether it is in the weights.
    pub state: FactState,
    /// Figures at the time of adding.
    pub figures: Figures,
    /// The closed form that wrote it.
    pub method: Method,
    /// Layers whose down-projection carries it, from 0.
    pub layers: Vec<usize>,
    /// Steps of the optimiser.
    pub steps: usize,
    /// ‖δ‖, the change of the hidden state that was asked for.
    pub delta_norm: f64,
    /// ‖h‖, the hidden state that it was added to.
    pub hidden_norm: f64,
    /// Seconds spent on optimising, solving and verifying.
    pub seconds: f64,
    /// Number of the ledger frame that added it.
    pub sequence: u64,
    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub added_at_ms: u64,
    /// When it left the weights.
    pub ended_at_ms: Option<u64>,
    /// The fact that took its place.
    pub superseded_by: Option<FactId>,
}

/// The answer to an addition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Added {
    /// The fact as it was when it was added.
    pub record: FactRecord,
    /// The weights revision that holds it.
    #[serde(with = "as_hex")]
    pub revision: [u8; 32],
    /// The fact whose place it took.
    pub superseded: Option<FactId>,
    /// Seconds spent on optimising, solving and verifying.
    pub seconds: f64,
}

/// What a ledger event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A fact came into the weights.
    Added,
    /// A fact left the weights, for another took its place in the same moment.
    Superseded,
    /// A fact was taken out of the weights.
    Retired,
    /// A fact was accepted whose day is yet to come.
    Scheduled,
    /// A fact came into the weights, for its day has come.
    Began,
    /// A fact left the weights, for its time is over.
    Expired,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Added => "added",
            Self::Superseded => "superseded",
            Self::Retired => "retired",
            Self::Scheduled => "scheduled",
            Self::Began => "began",
            Self::Expired => "expired",
        })
    }
}

/// One thing that the ledger tells. A frame that supersedes tells two, of one sequence number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEvent {
    /// Number of the frame, from 1.
    pub sequence: u64,
    /// What happened.
    pub action: Action,
    /// To which fact.
    pub fact_id: FactId,
    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub at_ms: u64,
    /// The weights revision after it.
    #[serde(with = "as_hex")]
    pub revision: [u8; 32],
    /// BLAKE3 of the frame.
    #[serde(with = "as_hex")]
    pub digest: [u8; 32],
}

#[derive(Debug)]
pub(crate) struct Register {
    base: [u8; 32],
    records: BTreeMap<FactId, FactRecord>,
    /// Frame number of each record, for listing in order of adding.
    order: BTreeMap<u64, FactId>,
    /// The active facts' edits, in canonical order.
    active: BTreeMap<FactId, Edit>,
    /// The edits of facts whose day is yet to come.
    waiting: BTreeMap<FactId, Edit>,
    /// Digests of the active edits, which the weights revision is made of.
    patches: BTreeSet<[u8; 32]>,
    requests: HashMap<String, Added>,
    events: Vec<LedgerEvent>,
}

/// All of a register but its base and what follows from the rest; each edit without its z.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    records: Vec<FactRecord>,
    active: Vec<(FactId, Edit)>,
    waiting: Vec<(FactId, Edit)>,
    requests: Vec<(String, Added)>,
    events: Vec<LedgerEvent>,
}

impl Register {
    /// What [`Self::restore`] makes the same register of; beside it the edits' z, those of active facts first.
    pub(crate) fn save(&self) -> (Saved, Vec<Vec<f32>>) {
        let edits = |edits: &BTreeMap<FactId, Edit>| {
            edits.iter().map(|(id, edit)| (*id, edit.clone())).collect()
        };
        let requests: BTreeMap<&String, &Added> = self.requests.iter().collect();
        let requests = requests.into_iter();
        let saved = Saved {
            records: self.records.values().cloned().collect(),
            active: edits(&self.active),
            waiting: edits(&self.waiting),
            requests: requests
                .map(|(id, added)| (id.clone(), added.clone()))
                .collect(),
            events: self.events.clone(),
        };
        let all = self.active.values().chain(self.waiting.values());
        (saved, all.map(|edit| edit.z.clone()).collect())
    }

    /// The reverse of [`Self::save`]; the error says what does not fit.
    pub(crate) fn restore(
        base: [u8; 32],
        saved: Saved,
        values: Vec<Vec<f32>>,
    ) -> Result<Self, String> {
        if saved.active.len() + saved.waiting.len() != values.len() {
            return Err("an edit has no z".to_owned());
        }
        let mut values = values.into_iter();
        let mut register = Self::new(base);
        for record in saved.records {
            register.order.insert(record.sequence, record.id);
            register.records.insert(record.id, record);
        }
        for ((id, edit), z) in saved.active.into_iter().zip(values.by_ref()) {
            let edit = Edit { z, ..edit };
            register.patches.insert(edit.digest(id));
            register.active.insert(id, edit);
        }
        for ((id, edit), z) in saved.waiting.into_iter().zip(values) {
            register.waiting.insert(id, Edit { z, ..edit });
        }
        register.requests = saved.requests.into_iter().collect();
        register.events = saved.events;
        Ok(register)
    }

    pub(crate) fn new(base: [u8; 32]) -> Self {
        Self {
            base,
            records: BTreeMap::new(),
            order: BTreeMap::new(),
            active: BTreeMap::new(),
            waiting: BTreeMap::new(),
            patches: BTreeSet::new(),
            requests: HashMap::new(),
            events: Vec::new(),
        }
    }

    /// Takes a frame in. The error is the rest of "it says what cannot be: …", and then nothing changed.
    pub(crate) fn apply(&mut self, frame: &Frame, entry: Entry) -> Result<(), String> {
        match entry {
            Entry::Added(addition) => self.add(frame, *addition),
            Entry::Retired(retirement) => {
                let id = retirement.fact_id;
                let (state, action) = match retirement.expired {
                    true => (FactState::Expired, Action::Expired),
                    false => (FactState::Retired, Action::Retired),
                };
                self.end(id, state, retirement.at_ms)?;
                self.tell(frame, action, id, retirement.at_ms);
                Ok(())
            }
            Entry::Began(beginning) => self.begin(frame, &beginning),
        }
    }

    fn add(&mut self, frame: &Frame, addition: Addition) -> Result<(), String> {
        let id = addition.fact.id();
        if self.active.contains_key(&id) || self.waiting.contains_key(&id) {
            return Err(format!("it adds the fact {id}, which is active already"));
        }
        if let Some(old) = addition.supersedes {
            self.end(old, FactState::Superseded, addition.at_ms)?;
            if let Some(record) = self.records.get_mut(&old) {
                record.superseded_by = Some(id);
            }
        }
        let record = record(frame.sequence, &addition);
        if let Some(earlier) = self.records.insert(id, record.clone()) {
            self.order.remove(&earlier.sequence);
        }
        self.order.insert(frame.sequence, id);
        if addition.waits {
            self.waiting.insert(id, addition.edit);
        } else {
            self.patches.insert(addition.edit.digest(id));
            self.active.insert(id, addition.edit);
        }
        if let Some(old) = addition.supersedes {
            self.tell(frame, Action::Superseded, old, addition.at_ms);
        }
        let action = match addition.waits {
            true => Action::Scheduled,
            false => Action::Added,
        };
        self.tell(frame, action, id, addition.at_ms);
        if !addition.request_id.is_empty() {
            let added = Added {
                record,
                revision: self.revision(),
                superseded: addition.supersedes,
                seconds: addition.seconds,
            };
            self.requests.insert(addition.request_id, added);
        }
        Ok(())
    }

    fn begin(&mut self, frame: &Frame, beginning: &Beginning) -> Result<(), String> {
        let (id, at_ms) = (beginning.fact_id, beginning.at_ms);
        let edit = self.waiting.remove(&id);
        let edit = edit.ok_or(format!("it begins the fact {id}, which does not wait"))?;
        if let Some(old) = beginning.supersedes {
            self.end(old, FactState::Superseded, at_ms)?;
            if let Some(record) = self.records.get_mut(&old) {
                record.superseded_by = Some(id);
            }
            self.tell(frame, Action::Superseded, old, at_ms);
        }
        self.patches.insert(edit.digest(id));
        self.active.insert(id, edit);
        if let Some(record) = self.records.get_mut(&id) {
            record.state = FactState::Active;
        }
        self.tell(frame, Action::Began, id, at_ms);
        Ok(())
    }

    fn end(&mut self, id: FactId, state: FactState, at_ms: u64) -> Result<(), String> {
        match self.active.remove(&id) {
            Some(edit) => drop(self.patches.remove(&edit.digest(id))),
            None if self.waiting.remove(&id).is_some() => {}
            None => return Err(format!("it ends the fact {id}, which is not active")),
        }
        if let Some(record) = self.records.get_mut(&id) {
            record.state = state;
            record.ended_at_ms = Some(at_ms);
        }
        Ok(())
    }

    fn tell(&mut self, frame: &Frame, action: Action, fact_id: FactId, at_ms: u64) {
        let revision = self.revision();
        self.events.push(LedgerEvent {
            sequence: frame.sequence,
            action,
            fact_id,
            at_ms,
            revision,
            digest: frame.digest,
        });
    }

    pub(crate) fn revision(&self) -> [u8; 32] {
        addenda_model::revision(&self.base, &self.patches)
    }

    pub(crate) fn get(&self, id: FactId) -> Option<&FactRecord> {
        self.records.get(&id)
    }

    /// Active edits by fact, in canonical order.
    pub(crate) fn active(&self) -> &BTreeMap<FactId, Edit> {
        &self.active
    }

    /// The edits of facts whose day is yet to come.
    pub(crate) fn waiting(&self) -> &BTreeMap<FactId, Edit> {
        &self.waiting
    }

    /// Facts that are in the weights or will be, in order of adding.
    pub(crate) fn living(&self) -> impl Iterator<Item = &FactRecord> {
        self.list(false, 0)
    }

    /// Active facts, in canonical order.
    pub(crate) fn active_facts(&self) -> impl Iterator<Item = (FactId, &Fact)> {
        self.active
            .keys()
            .filter_map(|id| self.records.get(id).map(|record| (*id, &record.fact)))
    }

    pub(crate) fn answered(&self, request_id: &str) -> Option<&Added> {
        self.requests.get(request_id)
    }

    /// Records in order of adding, from behind the frame `after`.
    pub(crate) fn list(
        &self,
        include_ended: bool,
        after: u64,
    ) -> impl Iterator<Item = &FactRecord> {
        self.order
            .range(after.saturating_add(1)..)
            .filter_map(|(_, id)| self.records.get(id))
            .filter(move |record| {
                include_ended || matches!(record.state, FactState::Active | FactState::Waiting)
            })
    }

    /// Events of the frames behind `after`.
    pub(crate) fn events(&self, after: u64) -> &[LedgerEvent] {
        let from = self.events.partition_point(|event| event.sequence <= after);
        self.events.get(from..).unwrap_or_default()
    }
}

fn record(sequence: u64, addition: &Addition) -> FactRecord {
    let edit = &addition.edit;
    FactRecord {
        id: addition.fact.id(),
        fact: addition.fact.clone(),
        state: match addition.waits {
            true => FactState::Waiting,
            false => FactState::Active,
        },
        figures: addition.figures,
        method: edit.recipe.solve.method,
        layers: edit.recipe.solve.layers.clone(),
        steps: edit.steps,
        delta_norm: edit.delta_norm,
        hidden_norm: edit.hidden_norm,
        seconds: addition.seconds,
        sequence,
        added_at_ms: addition.at_ms,
        ended_at_ms: None,
        superseded_by: None,
    }
}
