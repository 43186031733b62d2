//! What an edit would do, worked out and measured without changing anything.

mod measure;

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use addenda_model::{ChatTemplate, Overlay, Transformer};

use crate::batch::Request;
use crate::context;
use crate::desk::Desk;
use crate::entry::{Edit, Recipe};
use crate::error::{Error, Result};
use crate::evaluate::{Before, Under};
use crate::fact::{Fact, FactId};
use crate::figures::Figures;
use crate::joint::Solver;
use crate::pace::Pace;
use crate::patch::{Patch, overlay};
use crate::probes::Probed;
use crate::questions::Questions;
use crate::register::Register;
use crate::settings::{Method, Settings, SolveSettings};
use crate::subject::PromptTokens;
use crate::value::{self, Problem};

/// Tokens of a target at most: z has to bring them all about.
const MAX_TARGET: usize = 64;
/// How often a batch is worked out again without those that failed.
const ROUNDS: usize = 3;

/// An addition that was worked out and met its bars; nothing was changed yet.
#[derive(Debug)]
pub(crate) struct Novelty {
    pub(crate) fact: Fact,
    /// Its day is yet to come: the weights that it was measured under are not kept.
    pub(crate) waits: bool,
    pub(crate) request_id: String,
    pub(crate) supersedes: Option<FactId>,
    pub(crate) edit: Edit,
    pub(crate) figures: Figures,
    /// Its share of the batch's time.
    pub(crate) seconds: f64,
}

/// A new fact on its way: its edit is known, and what it does is not yet.
struct Draft {
    place: usize,
    id: FactId,
    request: Request,
    questions: Questions,
    supersedes: Option<FactId>,
    before: Before,
    edit: Edit,
}

/// What became of the requests of a batch, by their places, and the weights with all that are new.
pub(crate) type Batch = (Vec<(usize, Result<Novelty>)>, Option<Weights>);

/// Retirements that were worked out; nothing was changed yet.
#[derive(Debug)]
pub struct PlannedRetirement {
    /// As asked for.
    pub(crate) ids: Vec<FactId>,
    /// Those of them that are in the weights.
    pub(crate) gone: BTreeSet<FactId>,
    /// None if all of them have left the weights before.
    pub(crate) weights: Option<Weights>,
}

impl Draft {
    fn novelty(self, figures: Figures, seconds: f64) -> Novelty {
        Novelty {
            waits: false,
            fact: self.request.fact,
            request_id: self.request.request_id,
            supersedes: self.supersedes,
            edit: self.edit,
            figures,
            seconds,
        }
    }
}

/// A fact's questions, its prompt in every context (the bare one first), and its essence.
type Texts = (Questions, Vec<PromptTokens>, PromptTokens);

/// A request with its texts and what the model says before it is edited.
type Asked = (usize, Request, Texts, Before);

/// The active fact that asks the same, and so has to leave.
fn rival(register: &Register, fact: &Fact) -> Option<FactId> {
    let mut active = register.active_facts();
    let found = active.find(|(_, other)| other.asks_the_same(fact));
    found.map(|(id, _)| id)
}

/// The methods that are asked for, each once.
fn methods<'a>(requests: impl IntoIterator<Item = &'a Request>) -> Vec<Option<Method>> {
    let mut methods = Vec::new();
    for request in requests {
        if !methods.contains(&request.method) {
            methods.push(request.method);
        }
    }
    methods
}

/// Weights that are ready to be installed, and the ledger's head that they were worked out behind.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) head: [u8; 32],
    pub(crate) patches: Vec<Patch>,
    pub(crate) overlay: Overlay,
}

impl Weights {
    pub(crate) fn of(model: &Transformer, patches: Vec<Patch>, head: [u8; 32]) -> Result<Self> {
        Ok(Self {
            head,
            overlay: overlay(model, &patches)?,
            patches,
        })
    }
}

/// Works edits out.
#[derive(Debug)]
pub(crate) struct Planner {
    pub(crate) settings: Settings,
    pub(crate) solver: Solver,
    pub(crate) fingerprint: [u8; 32],
    /// How the model is spoken to in a chat, where it can be.
    pub(crate) chat: Option<Arc<ChatTemplate>>,
    contexts: OnceCell<Vec<String>>,
    perplexities: RefCell<BTreeMap<[u8; 32], f64>>,
}

impl Planner {
    pub(crate) fn new(settings: Settings, solver: Solver, fingerprint: [u8; 32]) -> Self {
        Self {
            settings,
            solver,
            fingerprint,
            chat: None,
            contexts: OnceCell::new(),
            perplexities: RefCell::default(),
        }
    }

    /// The recipe of new edits by a method; of `auto` where none is named.
    pub(crate) fn recipe(&self, method: Option<Method>) -> Recipe {
        Recipe {
            solve: self.settings.solve_by(method),
            moment: self.solver.spec(),
        }
    }

    /// Works out additions of checked facts that are not active, together. One that fails its bars is left out, and
    /// the rest is worked out again without it.
    pub(crate) fn add(
        &self,
        desk: Desk<'_>,
        register: &Register,
        requests: Vec<(usize, Request)>,
        head: [u8; 32],
        pace: &mut Pace<'_>,
    ) -> Result<Batch> {
        let begun = Instant::now();
        for method in methods(requests.iter().map(|(_, request)| request)) {
            self.solver.prepare(desk, &self.recipe(method), pace)?;
        }
        let (drafts, answers) = self.drafts(desk, register, requests, pace)?;
        self.settle(desk, register, (drafts, answers), (begun, head), pace)
    }

    /// Works out additions whose edits are known already.
    pub(crate) fn adopt(
        &self,
        desk: Desk<'_>,
        register: &Register,
        requests: Vec<(usize, Request, Edit)>,
        head: [u8; 32],
        pace: &mut Pace<'_>,
    ) -> Result<Batch> {
        let begun = Instant::now();
        let mut questions = Vec::new();
        for (_, request, _) in &requests {
            questions.push(self.questions(desk, &request.fact)?);
        }
        let asked: Vec<&Questions> = questions.iter().collect();
        let before = self.meter(desk, Under::Served).before(&asked)?;
        let known = requests.into_iter().zip(questions).zip(before);
        let drafts = known.map(|(((place, request, edit), questions), before)| Draft {
            place,
            id: request.fact.id(),
            supersedes: rival(register, &request.fact),
            request,
            questions,
            before,
            edit,
        });
        let drafts = drafts.collect();
        self.settle(desk, register, (drafts, Vec::new()), (begun, head), pace)
    }

    /// From edits to weights that meet their bars.
    fn settle(
        &self,
        desk: Desk<'_>,
        register: &Register,
        (mut drafts, mut answers): (Vec<Draft>, Vec<(usize, Result<Novelty>)>),
        (begun, head): (Instant, [u8; 32]),
        pace: &mut Pace<'_>,
    ) -> Result<Batch> {
        let count = drafts.len() + answers.len();
        let mut weights = None;
        for round in 0.. {
            if drafts.is_empty() {
                break;
            }
            let tried = self.weights(desk, register, &drafts, head, pace)?;
            let figures = self.verify(desk, register, &drafts, &tried.overlay, pace)?;
            let allowed = self.settings.bars.of_batch(drafts.len());
            let failures: Vec<Vec<String>> = figures.iter().map(|f| f.failures(&allowed)).collect();
            let all_hold = failures.iter().all(Vec::is_empty);
            let mut rest = Vec::new();
            for ((draft, figures), failures) in drafts.into_iter().zip(figures).zip(failures) {
                if all_hold {
                    let seconds = begun.elapsed().as_secs_f64() / count as f64;
                    answers.push((draft.place, Ok(draft.novelty(figures, seconds))));
                } else if failures.is_empty() && round < ROUNDS {
                    rest.push(draft);
                } else {
                    let reasons = match failures.is_empty() {
                        true => {
                            "others of its batch failed time and again; add it alone".to_owned()
                        }
                        false => failures.join("; "),
                    };
                    let figures = Box::new(figures);
                    answers.push((draft.place, Err(Error::BarsNotMet { reasons, figures })));
                }
            }
            drafts = rest;
            weights = all_hold.then_some(tried);
        }
        Ok((answers, weights))
    }

    /// The new facts with their edits; and the answers to those that are refused at sight.
    #[expect(clippy::type_complexity, reason = "two lists, by place")]
    fn drafts(
        &self,
        desk: Desk<'_>,
        register: &Register,
        requests: Vec<(usize, Request)>,
        pace: &mut Pace<'_>,
    ) -> Result<(Vec<Draft>, Vec<(usize, Result<Novelty>)>)> {
        let mut answers = Vec::new();
        let mut sound = Vec::new();
        for (place, request) in requests {
            match self.texts(desk, &request.fact, pace) {
                Ok(texts) => sound.push((place, request, texts)),
                Err(error @ (Error::BadFact { .. } | Error::SubjectNotInPrompt { .. })) => {
                    answers.push((place, Err(error)));
                }
                Err(error) => return Err(error),
            }
        }
        let served = self.meter(desk, Under::Served);
        let questions: Vec<&Questions> = sound.iter().map(|(_, _, texts)| &texts.0).collect();
        let before = served.before(&questions)?;
        let said = self.said_already(desk, &sound, &before)?;
        let mut asked: Vec<Asked> = Vec::new();
        for (((place, request, texts), before), said) in sound.into_iter().zip(before).zip(said) {
            match said {
                Some(probability) => {
                    let target = request.fact.target.clone();
                    let error = Error::SaidAlready {
                        target,
                        probability,
                    };
                    answers.push((place, Err(error)));
                }
                None => asked.push((place, request, texts, before)),
            }
        }
        let mut drafts = Vec::new();
        for method in methods(asked.iter().map(|asked| &asked.1)) {
            let own = |asked: &Asked| asked.1.method == method;
            let (mine, others) = asked.into_iter().partition(own);
            asked = others;
            for (place, draft) in self.seek_all(desk, register, method, mine, pace)? {
                match draft {
                    Ok(draft) => drafts.push(draft),
                    Err(error) => answers.push((place, Err(error))),
                }
            }
        }
        Ok((drafts, answers))
    }

    /// The drafts of requests for one method.
    fn seek_all(
        &self,
        desk: Desk<'_>,
        register: &Register,
        method: Option<Method>,
        asked: Vec<Asked>,
        pace: &mut Pace<'_>,
    ) -> Result<Vec<(usize, Result<Draft>)>> {
        let recipe = self.recipe(method);
        let problems: Vec<Problem<'_>> = asked
            .iter()
            .map(|(_, _, (questions, prompts, essence), _)| Problem {
                prompts,
                target: &questions.target,
                essence: (self.settings.value.kl > 0.0).then_some(essence),
            })
            .collect();
        let found = self.seek(desk, &recipe.solve, &problems, pace)?;
        let mut drafts = Vec::new();
        for ((place, request, (questions, prompts, essence), before), sought) in
            asked.into_iter().zip(found)
        {
            let supersedes = rival(register, &request.fact);
            let draft = sought.map(|sought| Draft {
                place,
                id: request.fact.id(),
                supersedes,
                edit: self.edit(
                    prompts.split_first().unwrap_or((&essence, &[])),
                    recipe.clone(),
                    sought,
                ),
                request,
                questions,
                before,
            });
            drafts.push((place, draft));
        }
        Ok(drafts)
    }

    /// Of each, the probability of its target where the served weights say it, and the base weights do without an edit.
    fn said_already(
        &self,
        desk: Desk<'_>,
        sound: &[(usize, Request, Texts)],
        served: &[Before],
    ) -> Result<Vec<Option<f64>>> {
        let base = Overlay::base();
        let said = |at: &usize| served.get(*at).is_some_and(|before| before.target.top1);
        let suspects: Vec<usize> = (0..sound.len()).filter(said).collect();
        let pairs: Vec<_> = suspects
            .iter()
            .filter_map(|at| sound.get(*at))
            .map(|(_, _, (questions, _, _))| (&questions.prompt, &questions.target))
            .collect();
        let scores = self.meter(desk, Under::Overlay(&base)).score(&pairs)?;
        let mut answers = vec![None; sound.len()];
        for (at, score) in suspects.into_iter().zip(scores) {
            if let Some(answer) = answers.get_mut(at).filter(|_| score.top1) {
                *answer = Some(score.mean.exp());
            }
        }
        Ok(answers)
    }

    /// The weights of all active facts and the drafts, without those that the drafts supersede.
    fn weights(
        &self,
        desk: Desk<'_>,
        register: &Register,
        drafts: &[Draft],
        head: [u8; 32],
        pace: &mut Pace<'_>,
    ) -> Result<Weights> {
        let mut edits: BTreeMap<FactId, &Edit> = register
            .active()
            .iter()
            .map(|(id, edit)| (*id, edit))
            .collect();
        for draft in drafts {
            if let Some(old) = draft.supersedes {
                edits.remove(&old);
            }
            edits.insert(draft.id, &draft.edit);
        }
        self.with(desk, &edits, head, pace)
    }

    /// The weights of the register's facts without some of them.
    pub(crate) fn without(
        &self,
        desk: Desk<'_>,
        register: &Register,
        gone: &BTreeSet<FactId>,
        head: [u8; 32],
        pace: &mut Pace<'_>,
    ) -> Result<Weights> {
        let active = register.active().iter();
        let left = active.filter(|(id, _)| !gone.contains(id));
        let edits = left.map(|(id, edit)| (*id, edit)).collect();
        self.with(desk, &edits, head, pace)
    }

    /// The weights of a set of edits.
    pub(crate) fn with(
        &self,
        desk: Desk<'_>,
        edits: &BTreeMap<FactId, &Edit>,
        head: [u8; 32],
        pace: &mut Pace<'_>,
    ) -> Result<Weights> {
        let patches = self.solver.patches(desk, edits, pace)?;
        Weights::of(desk.model, patches, head)
    }

    fn questions(&self, desk: Desk<'_>, fact: &Fact) -> Result<Questions> {
        let mut questions = Questions::of(desk.tokenizer, &self.probed(fact).fact)?;
        if let Some(template) = &self.chat {
            questions = questions.in_chat(desk.tokenizer, template, fact)?;
        }
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

    /// The fact with what it is probed with.
    fn probed(&self, fact: &Fact) -> Probed {
        match self.settings.bars.make_probes {
            true => Probed::filled(fact),
            false => Probed::as_given(fact),
        }
    }

    /// The fact as tokens: its questions, its prompt in every context, and its essence.
    fn texts(&self, desk: Desk<'_>, fact: &Fact, pace: &mut Pace<'_>) -> Result<Texts> {
        let questions = self.questions(desk, fact)?;
        let prompts = self
            .contexts(desk, pace)?
            .iter()
            .map(|context| PromptTokens::of(desk.tokenizer, context, fact))
            .collect::<Result<Vec<_>>>()?;
        let essence = PromptTokens::essence(desk.tokenizer, fact)?;
        Ok((questions, prompts, essence))
    }

    fn contexts(&self, desk: Desk<'_>, pace: &mut Pace<'_>) -> Result<&[String]> {
        if let Some(contexts) = self.contexts.get() {
            return Ok(contexts);
        }
        let sampled = context::sample(desk.model, desk.tokenizer, &self.settings.value, pace)?;
        Ok(self.contexts.get_or_init(|| sampled))
    }

    fn seek(
        &self,
        desk: Desk<'_>,
        solve: &SolveSettings,
        problems: &[Problem<'_>],
        pace: &mut Pace<'_>,
    ) -> Result<Vec<Result<value::Sought>>> {
        if problems.is_empty() {
            return Ok(Vec::new());
        }
        value::seek(desk.seek, problems, solve, &self.settings.value, pace)
    }

    /// `bare` and the prompt in contexts.
    fn edit(
        &self,
        (bare, around): (&PromptTokens, &[PromptTokens]),
        recipe: Recipe,
        sought: value::Sought,
    ) -> Edit {
        let around = around.iter().take(recipe.solve.key_contexts);
        let upto = |prompt: &PromptTokens| {
            let read = prompt.ids.get(..=prompt.subject_at);
            read.unwrap_or(&prompt.ids).to_vec()
        };
        Edit {
            context_ids: around.map(upto).collect(),
            base: self.fingerprint,
            recipe,
            prompt_ids: bare.ids.clone(),
            subject_at: bare.subject_at,
            value: self.settings.value.clone(),
            contexts: self.contexts.get().cloned().unwrap_or_default(),
            steps: sought.steps,
            delta_norm: sought.delta_norm,
            hidden_norm: sought.hidden_norm,
            z: sought.z,
        }
    }
}
