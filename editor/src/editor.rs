//! The editor: the ledger, what it adds up to, and the weights that follow from it.
//!
//! Planning changes nothing; committing writes the ledger first and the weights second. Invariants: what is served is
//! what the ledger says; the frame is durable before the weights change; the weights are base plus the joint solve over
//! the set of active facts, whatever their history.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use addenda_disk::Disk;
use addenda_model::tokenizer::Tokenizer;
use addenda_model::{ChatTemplate, Transformer};

use crate::batch::{self, Planned, Request, Slot};
use crate::calendar::Clock;
use crate::corpus::Corpus;
use crate::desk::Copies;
use crate::digest::hex;
use crate::entry::{Addition, Entry, Retirement};
use crate::error::{Error, Result};
use crate::fact::{Fact, FactId};
use crate::figures::Figures;
use crate::installed::InstalledPatches;
use crate::joint::Solver;
use crate::ledger::{Ledger, Opened};
use crate::moment::MomentStore;
use crate::pace::Pace;
use crate::patch::Patch;
use crate::plan::{Novelty, PlannedRetirement, Planner, Weights};
use crate::register::{Added, FactRecord, LedgerEvent, Register};
use crate::settings::{Method, Settings};
use crate::snapshot::{Snapshot, Snapshots};

/// Where an editor keeps what it keeps, and how it edits.
#[derive(Debug, Clone)]
pub struct EditorOptions {
    /// The ledger's folder.
    pub ledger_dir: PathBuf,
    /// The second moments' folder; models and data directories may share it.
    pub moment_dir: PathBuf,
    /// The base weights' fingerprint.
    pub fingerprint: [u8; 32],
    /// Hyper-parameters; [`Settings::for_model`] has those that ship.
    pub settings: Settings,
    /// The text that second moments are measured on.
    pub corpus: Corpus,
    /// Frames behind the last snapshot of the ledger after which the next one is written.
    pub snapshot_every: u64,
    /// The disk that the ledger lies on.
    pub disk: Disk,
}

/// What [`EditorOptions::snapshot_every`] is where nobody has a reason for another number.
pub const SNAPSHOT_EVERY: u64 = 256;

/// What was found when the editor was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// Frames in the ledger.
    pub frames: u64,
    /// Facts that are in the weights again.
    pub active: usize,
    /// Of these, frames that a snapshot stood for; the others were replayed.
    pub snapshot: u64,
    /// Bytes of a torn tail that were cut off; they were never acknowledged.
    pub torn_bytes: u64,
}

/// Writes facts into a model's weights, and takes them out again.
#[derive(Debug)]
pub struct Editor {
    pub(crate) planner: Planner,
    pub(crate) ledger: Ledger,
    pub(crate) register: Register,
    pub(crate) clock: Clock,
    patches: Vec<Patch>,
    installed: InstalledPatches,
    opening: Opening,
    snapshots: Snapshots,
}

impl Editor {
    /// Opens the ledger, verifies it, and installs the active facts into `model`.
    ///
    /// Takes seconds. Where the patches that were kept are gone, it takes a solve for all active facts; and as long as
    /// measuring second moments takes where those are gone as well.
    pub fn open(
        options: EditorOptions,
        model: &mut Transformer,
        tokenizer: &Tokenizer,
        pace: &mut Pace<'_>,
    ) -> Result<Self> {
        options.settings.check(model.config())?;
        let (opened, mut register) = read_ledger(&options)?;
        for frame in &opened.frames {
            Entry::decode(&frame.content)
                .and_then(|entry| register.apply(frame, entry))
                .map_err(|problem| Error::InconsistentLedger {
                    path: opened.ledger.path().to_path_buf(),
                    frame: frame.sequence,
                    problem,
                })?;
        }
        if let Some(edit) = register
            .active()
            .values()
            .find(|edit| edit.base != options.fingerprint)
        {
            return Err(Error::OtherModel {
                ledger: hex(&edit.base),
                model: hex(&options.fingerprint),
            });
        }
        let opening = Opening {
            frames: opened.ledger.frames(),
            active: register.active().len(),
            snapshot: opened.from.frames,
            torn_bytes: opened.torn,
        };
        if opening.torn_bytes > 0 {
            tracing::warn!(
                bytes = opening.torn_bytes,
                "cut a torn tail off the ledger; it was never acknowledged"
            );
        }
        let store = MomentStore::new(&options.moment_dir, options.fingerprint);
        let solver = Solver::new(store, options.corpus, options.settings.moment.clone());
        let planner = Planner::new(options.settings, solver, options.fingerprint);
        let mut editor = Self {
            planner,
            ledger: opened.ledger,
            register,
            clock: Clock::default(),
            patches: Vec::new(),
            opening,
            installed: InstalledPatches::new(&options.ledger_dir),
            snapshots: Snapshots {
                dir: options.ledger_dir,
                disk: options.disk,
                every: options.snapshot_every,
                last: opened.from.frames,
            },
        };
        let weights = editor.weights_at_start(model, tokenizer, pace)?;
        editor.install(model, weights)?;
        editor.snapshots.keep(&editor.ledger, &editor.register);
        Ok(editor)
    }

    /// The weights of the active facts: as they were kept, or worked out anew from what the ledger holds.
    fn weights_at_start(
        &self,
        model: &Transformer,
        tokenizer: &Tokenizer,
        pace: &mut Pace<'_>,
    ) -> Result<Weights> {
        let head = self.ledger.head();
        if let Some(patches) = self.installed.of(self.revision(), model.config()) {
            return Weights::of(model, patches, head);
        }
        let copies = match self.register.active().len() {
            0 => Copies::default(),
            _ => Copies::to_solve(model)?,
        };
        let desk = copies.desk(model, tokenizer);
        let none = BTreeSet::new();
        (self.planner).without(desk, &self.register, &none, head, pace)
    }

    /// What was found when it was opened.
    #[must_use]
    pub fn opening(&self) -> Opening {
        self.opening
    }

    /// Works an addition out, on top of the facts that are active, and verifies it; changes nothing.
    ///
    /// `pace` is called between small steps; its error ends the work.
    pub fn plan_add(
        &self,
        model: &Transformer,
        tokenizer: &Tokenizer,
        request: Request,
        pace: &mut Pace<'_>,
    ) -> Result<Planned> {
        self.plan_adds(model, tokenizer, vec![request], pace)?
            .sole()
    }

    /// Works many additions out together; each is answered for itself.
    ///
    /// An error of the whole is one that has nothing to do with a single fact; then no fact was worked out.
    pub fn plan_adds(
        &self,
        model: &Transformer,
        tokenizer: &Tokenizer,
        requests: Vec<Request>,
        pace: &mut Pace<'_>,
    ) -> Result<Planned> {
        let (mut slots, new) = batch::sort(requests, |fact, id| self.known(fact, id));
        let mut weights = None;
        let now = self.clock.now_ms();
        let waits = |request: &Request| request.fact.valid_from_ms.is_some_and(|from| from > now);
        let (later, new): (Vec<_>, Vec<_>) = (new.into_iter()).partition(|(_, r)| waits(r));
        for (place, request) in later {
            // Alone, as it will come into the weights; what they are then is solved for then.
            let planned = self.plan_later(model, tokenizer, request, pace);
            if let Some(slot) = slots.get_mut(place) {
                *slot = Some(match planned {
                    Err(error @ Error::Cancelled) => return Err(error),
                    Err(error) => Slot::Refused(error),
                    Ok(novelty) => Slot::New(Box::new(novelty)),
                });
            }
        }
        if !new.is_empty() {
            let copies = Copies::to_seek(model)?;
            let desk = copies.desk(model, tokenizer);
            let answers;
            (answers, weights) =
                self.planner
                    .add(desk, &self.register, new, self.ledger.head(), pace)?;
            for (place, answer) in answers {
                if let Some(slot) = slots.get_mut(place) {
                    *slot = Some(match answer {
                        Ok(novelty) => Slot::New(Box::new(novelty)),
                        Err(error) => Slot::Refused(error),
                    });
                }
            }
        }
        let unanswered = || Slot::Refused(Error::Cancelled);
        let slots = slots
            .into_iter()
            .map(|slot| slot.unwrap_or_else(unanswered));
        Ok(Planned {
            slots: slots.collect(),
            weights,
        })
    }

    /// The answer to a request that was answered before, or whose fact is active already.
    pub(crate) fn known(&self, fact: &Fact, request_id: &str) -> Result<Option<Added>> {
        let id = fact.id();
        if let Some(added) = self.register.answered(request_id) {
            return if added.record.id == id {
                Ok(Some(added.clone()))
            } else {
                Err(Error::RequestIdReused(request_id.to_owned()))
            };
        }
        let (active, waiting) = (self.register.active(), self.register.waiting());
        let there = self.register.get(id);
        let there = there.filter(|_| active.contains_key(&id) || waiting.contains_key(&id));
        let dates = |fact: &Fact| (fact.valid_from_ms, fact.valid_until_ms);
        if there.is_some_and(|record| dates(&record.fact) != dates(fact)) {
            return Err(Error::OtherDates(id));
        }
        let over = |until| until <= self.clock.now_ms();
        if there.is_none() && fact.valid_until_ms.is_some_and(over) {
            return Err(Error::BadFact {
                field: "valid_until_ms",
                problem: "has passed".to_owned(),
            });
        }
        Ok(there.map(|record| Added {
            record: record.clone(),
            revision: self.revision(),
            superseded: None,
            seconds: 0.0,
        }))
    }

    /// Writes an addition to the ledger, then installs its weights.
    pub fn commit_add(&mut self, model: &mut Transformer, planned: Planned) -> Result<Added> {
        let answer = self.commit_adds(model, planned)?.pop();
        answer.unwrap_or(Err(Error::Cancelled))
    }

    /// Writes the additions to the ledger, one frame each, then installs the weights that hold them all.
    ///
    /// The answers are in the requests' order. A crash in between leaves each fact wholly in or wholly out.
    pub fn commit_adds(
        &mut self,
        model: &mut Transformer,
        planned: Planned,
    ) -> Result<Vec<Result<Added>>> {
        let Planned { slots, weights } = planned;
        // A second plan of the same request, made before the first was committed, is answered like the first.
        if slots.len() == 1
            && let Some(Slot::New(novelty)) = slots.first()
            && let Some(added) = self.known(&novelty.fact, &novelty.request_id)?
        {
            return Ok(vec![Ok(added)]);
        }
        if weights
            .as_ref()
            .is_some_and(|weights| weights.head != self.ledger.head())
        {
            return Err(Error::Stale);
        }
        let mut answers: Vec<Result<Added>> = Vec::with_capacity(slots.len());
        let (mut written, mut perplexity) = (0, None);
        for slot in slots {
            let answer = match slot {
                Slot::Known(added) => Ok(*added),
                Slot::Refused(error) => Err(error),
                Slot::Like(first) => match answers.get(first) {
                    Some(Ok(added)) => Ok(added.clone()),
                    _ => Err(Error::BadFact {
                        field: "answer",
                        problem: "is that of an equal one earlier in the batch, which was refused"
                            .to_owned(),
                    }),
                },
                Slot::New(novelty) => {
                    if !novelty.waits {
                        perplexity = Some(novelty.figures.perplexity_after);
                    }
                    match self.write(*novelty) {
                        Ok(added) => {
                            written += 1;
                            Ok(added)
                        }
                        Err(error) if written == 0 => return Err(error),
                        Err(error) => return Err(Error::HalfBatch(Box::new(error))),
                    }
                }
            };
            answers.push(answer);
        }
        if let Some(weights) = weights {
            self.install(model, weights)?;
        }
        if let Some(perplexity) = perplexity {
            self.planner.remember(self.revision(), perplexity);
        }
        Ok(answers)
    }

    /// One addition into ledger and register.
    fn write(&mut self, novelty: Novelty) -> Result<Added> {
        let Novelty {
            fact,
            request_id,
            supersedes,
            edit,
            figures,
            seconds,
            waits,
        } = novelty;
        let id = fact.id();
        // What it takes the place of is known when its day has come.
        let supersedes = supersedes.filter(|_| !waits);
        let addition = Addition {
            fact,
            request_id,
            at_ms: self.clock.now_ms(),
            supersedes,
            waits,
            seconds,
            figures,
            edit,
        };
        self.record(&Entry::Added(Box::new(addition)))?;
        let record = self.get(id)?.clone();
        Ok(Added {
            seconds: record.seconds,
            record,
            revision: self.revision(),
            superseded: supersedes,
        })
    }

    /// [`Self::plan_add`] and [`Self::commit_add`] in one.
    pub fn add(
        &mut self,
        model: &mut Transformer,
        tokenizer: &Tokenizer,
        request: Request,
        pace: &mut Pace<'_>,
    ) -> Result<Added> {
        let planned = self.plan_add(model, tokenizer, request, pace)?;
        self.commit_add(model, planned)
    }

    /// [`Self::plan_adds`] and [`Self::commit_adds`] in one.
    pub fn add_all(
        &mut self,
        model: &mut Transformer,
        tokenizer: &Tokenizer,
        requests: Vec<Request>,
        pace: &mut Pace<'_>,
    ) -> Result<Vec<Result<Added>>> {
        let planned = self.plan_adds(model, tokenizer, requests, pace)?;
        self.commit_adds(model, planned)
    }

    /// Works out the weights without these facts; changes nothing.
    pub fn plan_retire(
        &self,
        model: &Transformer,
        tokenizer: &Tokenizer,
        ids: &[FactId],
        pace: &mut Pace<'_>,
    ) -> Result<PlannedRetirement> {
        for id in ids {
            self.get(*id)?;
        }
        let active = self.register.active();
        let gone: BTreeSet<FactId> = ids
            .iter()
            .copied()
            .filter(|id| active.contains_key(id) || self.register.waiting().contains_key(id))
            .collect();
        let weights = if gone.is_empty() {
            None
        } else {
            let copies = Copies::to_solve(model)?;
            let desk = copies.desk(model, tokenizer);
            let head = self.ledger.head();
            Some(
                self.planner
                    .without(desk, &self.register, &gone, head, pace)?,
            )
        };
        Ok(PlannedRetirement {
            ids: ids.to_vec(),
            gone,
            weights,
        })
    }

    /// Writes the retirements to the ledger, then installs the weights. Retiring twice changes nothing.
    pub fn commit_retire(
        &mut self,
        model: &mut Transformer,
        planned: PlannedRetirement,
    ) -> Result<Vec<FactRecord>> {
        if let Some(weights) = planned.weights {
            if weights.head != self.ledger.head() {
                return Err(Error::Stale);
            }
            for (written, fact_id) in planned.gone.into_iter().enumerate() {
                let at_ms = self.clock.now_ms();
                let entry = Entry::Retired(Retirement {
                    fact_id,
                    at_ms,
                    expired: false,
                });
                self.record(&entry).map_err(|error| match written {
                    0 => error,
                    _ => Error::HalfBatch(Box::new(error)),
                })?;
            }
            self.install(model, weights)?;
        }
        planned
            .ids
            .iter()
            .map(|id| self.get(*id).cloned())
            .collect()
    }

    /// [`Self::plan_retire`] and [`Self::commit_retire`] in one, for one fact.
    pub fn retire(
        &mut self,
        model: &mut Transformer,
        tokenizer: &Tokenizer,
        id: FactId,
        pace: &mut Pace<'_>,
    ) -> Result<FactRecord> {
        let planned = self.plan_retire(model, tokenizer, &[id], pace)?;
        let record = self.commit_retire(model, planned)?.pop();
        record.ok_or(Error::UnknownFact(id))
    }

    /// Takes an entry into ledger and register. The order that makes a crash harmless: durable frame, register,
    /// weights.
    pub(crate) fn record(&mut self, entry: &Entry) -> Result<()> {
        let path = self.ledger.path().to_path_buf();
        let inconsistent = |frame, problem| Error::InconsistentLedger {
            path,
            frame,
            problem,
        };
        let content = match entry.encode() {
            Ok(content) => content,
            Err(problem) => return Err(inconsistent(self.ledger.frames() + 1, problem)),
        };
        let frame = self.ledger.append(&content)?;
        // What is remembered is what a restart will read, to the last bit of each figure.
        Entry::decode(&frame.content)
            .and_then(|entry| self.register.apply(&frame, entry))
            .map_err(|problem| inconsistent(frame.sequence, problem))?;
        self.snapshots.keep(&self.ledger, &self.register);
        Ok(())
    }

    pub(crate) fn install(&mut self, model: &mut Transformer, weights: Weights) -> Result<()> {
        model.install(&weights.overlay).map_err(Error::Install)?;
        self.patches = weights.patches;
        self.installed.keep(self.revision(), &self.patches);
        Ok(())
    }

    /// Verifies from now on that an edit holds as an answer in a chat of this form, too.
    pub fn set_chat(&mut self, template: Arc<ChatTemplate>) {
        self.planner.chat = Some(template);
    }

    /// Tells the time by this clock from now on.
    pub fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// A fact, whatever its state.
    pub fn get(&self, id: FactId) -> Result<&FactRecord> {
        self.register.get(id).ok_or(Error::UnknownFact(id))
    }

    /// Facts in the order of adding, behind the one whose [`FactRecord::sequence`] is `after`; 0 is from the beginning.
    pub fn list(&self, include_ended: bool, after: u64) -> impl Iterator<Item = &FactRecord> {
        self.register.list(include_ended, after)
    }

    /// Measures an active fact now; its figures "before" are those of the base weights.
    pub fn check(
        &self,
        model: &Transformer,
        tokenizer: &Tokenizer,
        id: FactId,
        pace: &mut Pace<'_>,
    ) -> Result<Figures> {
        let record = self.get(id)?;
        if !self.register.active().contains_key(&id) {
            return Err(Error::NotActive(id));
        }
        self.planner.check(
            Copies::default().desk(model, tokenizer),
            &self.register,
            &record.fact,
            pace,
        )
    }

    /// The ledger's events of the frames behind `after`; 0 is from the beginning.
    #[must_use]
    pub fn events(&self, after: u64) -> &[LedgerEvent] {
        self.register.events(after)
    }

    /// The weights revision: base fingerprint and the set of active edits.
    #[must_use]
    pub fn revision(&self) -> [u8; 32] {
        self.register.revision()
    }

    /// How many facts are in the weights.
    #[must_use]
    pub fn active(&self) -> usize {
        self.register.active().len()
    }

    /// The changes that are installed, in their order.
    #[must_use]
    pub fn patches(&self) -> &[Patch] {
        &self.patches
    }

    /// The hyper-parameters in use.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.planner.settings
    }

    /// Whether the second moments of new edits are there, so that the first of them need not measure them.
    #[must_use]
    pub fn is_prepared(&self, model: &Transformer) -> bool {
        self.planner
            .solver
            .missing(model, &self.planner.recipe(None))
            .is_empty()
    }

    /// Measures the second moments that a method needs and that are not there yet, and AlphaEdit's projections; says of
    /// how many layers. What is broken off is gone on with.
    pub fn prepare(
        &self,
        model: &Transformer,
        tokenizer: &Tokenizer,
        method: Option<Method>,
        pace: &mut Pace<'_>,
    ) -> Result<usize> {
        let copies = Copies::default();
        let desk = copies.desk(model, tokenizer);
        let recipe = self.planner.recipe(method);
        let measured = self.planner.solver.prepare(desk, &recipe, pace)?;
        self.planner.solver.project(model, &recipe, pace)?;
        Ok(measured)
    }
}

/// The ledger, read from its snapshot on, and what the snapshot stands for.
fn read_ledger(options: &EditorOptions) -> Result<(Opened, Register)> {
    let (dir, base) = (&options.ledger_dir, options.fingerprint);
    let snapshot = Snapshot::read(dir, base, &options.disk);
    let place = snapshot.as_ref().map(|snapshot| snapshot.place);
    let opened = Ledger::open(dir, &options.disk, place)?;
    let register = match snapshot {
        Some(snapshot) if opened.from == snapshot.place => snapshot.register,
        Some(_) => {
            tracing::warn!("the ledger is replayed in full: its snapshot is that of another one");
            Register::new(base)
        }
        None => Register::new(base),
    };
    Ok((opened, register))
}
