//! What an edit would do, worked out and measured without changing anything.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::time::Instant;

use addenda_model::Overlay;

use crate::context;
use crate::entry::{Edit, Recipe};
use crate::error::{Error, Result};
use crate::evaluate::{Figures, Meter, Questions, Under};
use crate::fact::{Fact, FactId};
use crate::joint::{Desk, Solver};
use crate::pace::Pace;
use crate::patch::{Patch, overlay};
use crate::register::{Added, FactRecord, Register};
use crate::settings::Settings;
use crate::subject::PromptTokens;
use crate::value::{self, Problem};

/// Tokens of a target at most: z has to bring them all about.
const MAX_TARGET: usize = 64;
/// Perplexities that are remembered.
const REMEMBERED: usize = 16;

/// An addition that was worked out and met its bars; nothing was changed yet.
#[derive(Debug)]
pub struct Planned {
    pub(crate) outcome: Outcome,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    /// It was answered before, or is in the weights already.
    Known(Box<Added>),
    New(Box<Novelty>),
}

#[derive(Debug)]
pub(crate) struct Novelty {
    pub(crate) fact: Fact,
    pub(crate) request_id: String,
    pub(crate) supersedes: Option<FactId>,
    pub(crate) edit: Edit,
    pub(crate) figures: Figures,
    pub(crate) seconds: f64,
    pub(crate) weights: Weights,
}

impl Planned {
    /// What the edit measured; none if it is in the weights already.
    #[must_use]
    pub fn figures(&self) -> Option<&Figures> {
        match &self.outcome {
            Outcome::Known(_) => None,
            Outcome::New(novelty) => Some(&novelty.figures),
        }
    }
}

/// A retirement that was worked out; nothing was changed yet.
#[derive(Debug)]
pub struct PlannedRetirement {
    pub(crate) id: FactId,
    /// None if the fact has left the weights before.
    pub(crate) weights: Option<Weights>,
    pub(crate) known: Option<FactRecord>,
}

/// Weights that are ready to be installed, and the ledger's head that they were worked out behind.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) head: [u8; 32],
    pub(crate) patches: Vec<Patch>,
    pub(crate) overlay: Overlay,
}

/// Works edits out.
#[derive(Debug)]
pub(crate) struct Planner {
    pub(crate) settings: Settings,
    pub(crate) solver: Solver,
    pub(crate) fingerprint: [u8; 32],
    contexts: OnceCell<Vec<String>>,
    perplexities: RefCell<BTreeMap<[u8; 32], f64>>,
}

impl Planner {
    pub(crate) fn new(settings: Settings, solver: Solver, fingerprint: [u8; 32]) -> Self {
        Self {
            settings,
            solver,
            fingerprint,
            contexts: OnceCell::new(),
            perplexities: RefCell::default(),
        }
    }

    /// The recipe of new edits.
    pub(crate) fn recipe(&self) -> Recipe {
        Recipe {
            solve: self.settings.solve.clone(),
            moment: self.solver.spec(),
        }
    }

    /// Works out an addition of a checked fact that is not active.
    pub(crate) fn add(
        &self,
        desk: Desk<'_>,
        register: &Register,
        (fact, request_id): (Fact, String),
        head: [u8; 32],
        pace: &mut Pace<'_>,
    ) -> Result<Novelty> {
        let begun = Instant::now();
        let questions = self.questions(desk, &fact)?;
        self.solver.prepare(desk, &self.recipe(), pace)?;
        let edit = self.seek(desk, &fact, &questions, pace)?;
        let id = fact.id();
        let supersedes = register
            .active_facts()
            .find(|(_, other)| other.asks_the_same(&fact))
            .map(|(id, _)| id);
        let mut edits: BTreeMap<FactId, &Edit> = register
            .active()
            .iter()
            .map(|(id, edit)| (*id, edit))
            .collect();
        if let Some(old) = supersedes {
            edits.remove(&old);
        }
        edits.insert(id, &edit);
        let patches = self.solver.patches(desk, &edits, pace)?;
        let weights = Weights {
            head,
            overlay: overlay(desk.model, &patches)?,
            patches,
        };
        let others: Vec<&Fact> = register
            .active_facts()
            .filter(|(other, fact_)| Some(*other) != supersedes && fact_.subject == fact.subject)
            .map(|(_, fact)| fact)
            .collect();
        let figures = self.verify(
            desk,
            register.revision(),
            &questions,
            &others,
            &weights.overlay,
            pace,
        )?;
        let failures = figures.failures(&self.settings.bars);
        if !failures.is_empty() {
            return Err(Error::BarsNotMet {
                reasons: failures.join("; "),
                figures: Box::new(figures),
            });
        }
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Novelty {
            fact,
            request_id,
            supersedes,
            edit,
            figures,
            seconds,
            weights,
        })
    }

    /// The weights of the register's facts without one of them, or of all.
    pub(crate) fn without(
        &self,
        desk: Desk<'_>,
        register: &Register,
        gone: Option<FactId>,
        head: [u8; 32],
        pace: &mut Pace<'_>,
    ) -> Result<Weights> {
        let edits: BTreeMap<FactId, &Edit> = register
            .active()
            .iter()
            .filter(|(id, _)| Some(**id) != gone)
            .map(|(id, edit)| (*id, edit))
            .collect();
        let patches = self.solver.patches(desk, &edits, pace)?;
        Ok(Weights {
            head,
            overlay: overlay(desk.model, &patches)?,
            patches,
        })
    }

    fn questions(&self, desk: Desk<'_>, fact: &Fact) -> Result<Questions> {
        let questions = Questions::of(desk.tokenizer, fact)?;
        if questions.target.len() > MAX_TARGET {
            let problem = format!("is {} tokens; {MAX_TARGET} at most", questions.target.len());
            return Err(Error::BadFact {
                field: "target",
                problem,
            });
        }
        let room = desk.model.config().context;
        if let Some(tokens) = questions
            .longest()
            .checked_add(2 * MAX_TARGET)
            .filter(|tokens| *tokens > room)
        {
            let problem = format!(
                "needs {tokens} tokens with its contexts, and the model reads {room}: shorten it"
            );
            return Err(Error::BadFact {
                field: "prompt",
                problem,
            });
        }
        Ok(questions)
    }

    fn seek(
        &self,
        desk: Desk<'_>,
        fact: &Fact,
        questions: &Questions,
        pace: &mut Pace<'_>,
    ) -> Result<Edit> {
        let contexts = match self.contexts.get() {
            Some(contexts) => contexts,
            None => {
                let sampled =
                    context::sample(desk.model, desk.tokenizer, &self.settings.value, pace)?;
                self.contexts.get_or_init(|| sampled)
            }
        };
        let prompts = contexts
            .iter()
            .map(|context| PromptTokens::of(desk.tokenizer, context, fact))
            .collect::<Result<Vec<_>>>()?;
        let essence = PromptTokens::essence(desk.tokenizer, fact)?;
        let problem = Problem {
            prompts: &prompts,
            target: &questions.target,
            essence: &essence,
        };
        let sought = value::seek(
            desk.model,
            &problem,
            &self.settings.solve,
            &self.settings.value,
            pace,
        )?;
        let bare = prompts.into_iter().next().unwrap_or(essence);
        Ok(Edit {
            base: self.fingerprint,
            recipe: self.recipe(),
            prompt_ids: bare.ids,
            subject_at: bare.subject_at,
            value: self.settings.value.clone(),
            contexts: contexts.clone(),
            steps: sought.steps,
            delta_norm: sought.delta_norm,
            hidden_norm: sought.hidden_norm,
            z: sought.z,
        })
    }

    fn verify(
        &self,
        desk: Desk<'_>,
        served: [u8; 32],
        questions: &Questions,
        others: &[&Fact],
        overlay: &Overlay,
        pace: &mut Pace<'_>,
    ) -> Result<Figures> {
        let meter = |under| Meter {
            model: desk.model,
            tokenizer: desk.tokenizer,
            under,
        };
        let edited = meter(Under::Overlay(overlay));
        let after = edited.after(questions, &meter(Under::Served).before(questions)?)?;
        let figures = Figures {
            target_probability: after.target.mean.exp(),
            target_probability_before: after.before,
            target_is_top1: after.target.top1,
            paraphrase: after.paraphrase,
            locality: after.locality,
            same_subject: edited.holding(others)?,
            perplexity_base: self.base_perplexity(desk, pace)?,
            perplexity_before: self.perplexity(meter(Under::Served), served, pace)?,
            perplexity_after: edited.perplexity(pace)?,
        };
        if figures.is_finite() {
            Ok(figures)
        } else {
            Err(Error::NotFinite("a figure of the edit"))
        }
    }

    /// Measures an active fact under the served weights, against the base weights.
    pub(crate) fn check(
        &self,
        desk: Desk<'_>,
        register: &Register,
        fact: &Fact,
        pace: &mut Pace<'_>,
    ) -> Result<Figures> {
        let questions = self.questions(desk, fact)?;
        let base = Overlay::base();
        let meter = |under| Meter {
            model: desk.model,
            tokenizer: desk.tokenizer,
            under,
        };
        let served = meter(Under::Served);
        let after = served.after(
            &questions,
            &meter(Under::Overlay(&base)).before(&questions)?,
        )?;
        let others: Vec<&Fact> = register
            .active_facts()
            .map(|(_, other)| other)
            .filter(|other| other.subject == fact.subject && !other.asks_the_same(fact))
            .collect();
        let perplexity_base = self.base_perplexity(desk, pace)?;
        Ok(Figures {
            target_probability: after.target.mean.exp(),
            target_probability_before: after.before,
            target_is_top1: after.target.top1,
            paraphrase: after.paraphrase,
            locality: after.locality,
            same_subject: served.holding(&others)?,
            perplexity_base,
            perplexity_before: perplexity_base,
            perplexity_after: self.perplexity(served, register.revision(), pace)?,
        })
    }

    fn base_perplexity(&self, desk: Desk<'_>, pace: &mut Pace<'_>) -> Result<f64> {
        let base = Overlay::base();
        let revision =
            addenda_model::revision(&self.fingerprint, &std::collections::BTreeSet::new());
        let meter = Meter {
            model: desk.model,
            tokenizer: desk.tokenizer,
            under: Under::Overlay(&base),
        };
        self.perplexity(meter, revision, pace)
    }

    /// The perplexity of a revision, measured once.
    fn perplexity(&self, meter: Meter<'_>, revision: [u8; 32], pace: &mut Pace<'_>) -> Result<f64> {
        if let Some(known) = self.perplexities.borrow().get(&revision) {
            return Ok(*known);
        }
        let measured = meter.perplexity(pace)?;
        self.remember(revision, measured);
        Ok(measured)
    }

    /// The perplexity of a revision that was measured before it was one.
    pub(crate) fn remember(&self, revision: [u8; 32], perplexity: f64) {
        let mut perplexities = self.perplexities.borrow_mut();
        if perplexities.len() >= REMEMBERED {
            perplexities.clear();
        }
        perplexities.insert(revision, perplexity);
    }
}
