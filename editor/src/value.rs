//! The wanted state z: what must stand at the subject's last token so that the model says the target.
//!
//! δ is added there to the residual stream as it leaves the last edited layer (Meng et al. 2023), or, where a norm
//! follows the MLP, to the down-projection's output, through that norm. Adam on
//! `mean NLL(target) + kl · KL(base ‖ edited at "{subject} is a") + decay · ‖δ‖/‖h‖²`, with ‖δ‖ ≤ clamp · ‖h‖ after each
//! step; the end is every token of the target winning by the margin in every context. A step may ask some of the contexts
//! only, in turn. Always on the base weights, so that z does not depend on what else was edited.
//!
//! Several facts are sought in one forward, each with its own δ; one that has found its z leaves the batch. Several such
//! groups are sought at once (`crew`). Rows see nothing of each other: what a fact's z is depends on its company by
//! rounding only.

mod adam;
mod bench;

use addenda_model::Transformer;

use crate::crew::{Crew, Rest};
use crate::error::{Error, Result};
use crate::pace::{Pace, Phase};
use crate::rows::{floats, index};
use crate::settings::{SolveSettings, ValueSettings};
use crate::subject::PromptTokens;
use adam::Adam;
use bench::Bench;

/// The texts that a fact's z is sought on.
#[derive(Debug)]
pub(crate) struct Problem<'a> {
    /// The prompt in its contexts, the bare one first; of every fact equally many.
    pub(crate) prompts: &'a [PromptTokens],
    /// The target's tokens behind each prompt.
    pub(crate) target: &'a [u32],
    /// "{subject} is a", where its divergence has a weight; of all facts or of none.
    pub(crate) essence: Option<&'a PromptTokens>,
}

/// A wanted state, and how it was found.
#[derive(Debug)]
pub(crate) struct Sought {
    pub(crate) z: Vec<f32>,
    pub(crate) steps: usize,
    pub(crate) delta_norm: f64,
    pub(crate) hidden_norm: f64,
}

const ACTION: &str = "seeking the wanted state";
/// Tokens of one forward over the rows' ends, about: enough to keep the processor busy, and few enough that others
/// are served soon.
const TOKENS: usize = 320;
/// Logits of one forward at most: their memory is four bytes times some copies.
const LOGITS: usize = 1 << 25;

impl Problem<'_> {
    /// Tokens of the longest end: from the subject's last token to the one before the target's last.
    fn end(&self) -> usize {
        let prompts = self.prompts.iter().map(|prompt| {
            let behind = prompt.ids.len() - prompt.subject_at;
            behind + self.target.len().saturating_sub(1)
        });
        let essence = self.essence.map(|own| own.ids.len() - own.subject_at);
        prompts.chain(essence).max().unwrap_or(0)
    }

    fn rows(&self) -> usize {
        self.prompts.len() + usize::from(self.essence.is_some())
    }

    /// Places where logits are looked at.
    fn places(&self) -> usize {
        self.prompts.len() * self.target.len() + usize::from(self.essence.is_some())
    }
}

/// Seeks the z of every problem, some groups of them at once; an error is that problem's alone.
pub(crate) fn seek(
    model: &Transformer,
    problems: &[Problem<'_>],
    solve: &SolveSettings,
    settings: &ValueSettings,
    pace: &mut Pace<'_>,
) -> Result<Vec<Result<Sought>>> {
    let mut crew = Crew::of(model, problems.len(), || {
        Ok(model.base_in_kind(model.kind())?)
    })?;
    let groups = groups(problems, model.config().vocab_size, crew.size());
    let steps = (Phase::Value, settings.steps as u64);
    let of_groups = crew.share(&groups, steps, pace, |model, group, rest| {
        let members: Vec<&Problem<'_>> = group.iter().filter_map(|at| problems.get(*at)).collect();
        seek_together(model, &members, solve, settings, rest)
    })?;
    let places = groups.iter().flatten().copied();
    let mut found: Vec<_> = places.zip(of_groups.into_iter().flatten()).collect();
    found.sort_by_key(|(place, _)| *place);
    Ok(found.into_iter().map(|(_, sought)| sought).collect())
}

/// Seeks the z of problems in one forward a step.
fn seek_together(
    model: &Transformer,
    problems: &[&Problem<'_>],
    solve: &SolveSettings,
    settings: &ValueSettings,
    rest: &mut Rest<'_>,
) -> Result<Vec<Result<Sought>>> {
    let nothing = || Err(Error::NotFinite("the wanted state"));
    let mut found: Vec<Result<Sought>> = problems.iter().map(|_| nothing()).collect();
    let mut bench = Bench::set_up(model, problems, solve)?;
    let mut delta =
        Adam::new(&bench.states, settings.learning_rate).map_err(Error::torch(ACTION))?;
    let mut left: Vec<usize> = (0..problems.len()).collect();
    let mut rota = Rota::of(problems, settings);
    for step in 0..=settings.steps {
        let taken = if step == settings.steps {
            None
        } else {
            rest()?;
            let taken = match rota.turn(step) {
                None => tch::with_grad(|| bench.step(&delta.value, settings.kl))?,
                Some(turn) => {
                    let part = bench.part(&turn)?;
                    tch::with_grad(|| part.step(&delta.value, settings.kl))?
                }
            };
            rota.note(step, &taken.margins);
            Some(taken)
        };
        let ends = |row: usize| taken.is_none() || rota.margin(row) >= settings.margin;
        let (done, going): (Vec<usize>, Vec<usize>) = (0..left.len()).partition(|row| ends(*row));
        for row in done {
            let sought = sought(&bench, &delta, row, step)?;
            if let Some(slot) = left.get(row).and_then(|at| found.get_mut(*at)) {
                *slot = sought;
            }
        }
        let Some(taken) = taken.filter(|_| !going.is_empty()) else {
            break;
        };
        let mut gradient = taken.gradient;
        if going.len() < left.len() {
            let rows: Vec<i64> = going.iter().map(|row| index(*row)).collect();
            let stay = going.iter().filter_map(|row| left.get(*row).copied());
            left = stay.collect();
            bench.keep(&going)?;
            rota.keep(&going);
            gradient = tch::Tensor::f_from_slice(&rows)
                .and_then(|rows| rows.f_to_device(gradient.device()))
                .and_then(|rows| {
                    delta.keep(&rows)?;
                    gradient.f_index_select(0, &rows)
                })
                .map_err(Error::torch(ACTION))?;
        }
        delta
            .descend(&gradient, settings.decay)
            .and_then(|()| delta.clamp(settings.clamp))
            .map_err(Error::torch(ACTION))?;
    }
    Ok(found)
}

/// Whose turn it is: the bare prompt is asked at each step, and of its contexts some, in turn. Each step's gradient is
/// then an estimate of that over all of them, for a part of the price; a fact is done when it last won in each.
struct Rota {
    contexts: usize,
    each: usize,
    /// Fact by fact and prompt by prompt, the margin when it was last asked.
    margins: Vec<Vec<f64>>,
}

impl Rota {
    fn of(problems: &[&Problem<'_>], settings: &ValueSettings) -> Self {
        let prompts = problems.first().map_or(1, |problem| problem.prompts.len());
        let contexts = prompts.saturating_sub(1);
        let each = match settings.contexts_a_step {
            0 => contexts,
            each => each.min(contexts),
        };
        Self {
            contexts,
            each,
            margins: vec![vec![f64::NEG_INFINITY; prompts]; problems.len()],
        }
    }

    /// The prompts of a step; none if all are asked at each.
    fn turn(&self, step: usize) -> Option<Vec<usize>> {
        (self.each < self.contexts).then(|| {
            let next = (0..self.each).map(|n| 1 + (step * self.each + n) % self.contexts);
            std::iter::once(0).chain(next).collect()
        })
    }

    fn note(&mut self, step: usize, margins: &[Vec<f64>]) {
        let turn = self
            .turn(step)
            .unwrap_or_else(|| (0..=self.contexts).collect());
        for (known, new) in self.margins.iter_mut().zip(margins) {
            for (prompt, margin) in turn.iter().zip(new) {
                if let Some(slot) = known.get_mut(*prompt) {
                    *slot = *margin;
                }
            }
        }
    }

    /// The least of a fact's margins.
    fn margin(&self, fact: usize) -> f64 {
        let margins = self.margins.get(fact).into_iter().flatten().copied();
        margins.fold(f64::INFINITY, f64::min)
    }

    fn keep(&mut self, facts: &[usize]) {
        let kept = facts
            .iter()
            .filter_map(|fact| self.margins.get(*fact).cloned());
        self.margins = kept.collect();
    }
}

/// Which problems go together: those whose ends are about equally long, in groups of about as much work, as many as
/// `at_once` can share evenly.
fn groups(problems: &[Problem<'_>], vocabulary: usize, at_once: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<(usize, &Problem<'_>)> = problems.iter().enumerate().collect();
    order.sort_by_key(|(_, problem)| problem.end());
    let tokens = |problem: &Problem<'_>| problem.rows() * problem.end();
    let all: usize = problems.iter().map(tokens).sum();
    let share = all / all.div_ceil(TOKENS).next_multiple_of(at_once).max(1);
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let (mut filled, mut places) = (0, 0);
    for (at, problem) in order {
        let own = tokens(problem);
        places += problem.places();
        let full = filled + own / 2 > share || places.saturating_mul(vocabulary) > LOGITS;
        match groups.last_mut().filter(|_| !full) {
            Some(group) => {
                filled += own;
                group.push(at);
            }
            None => {
                (filled, places) = (own, problem.places());
                groups.push(vec![at]);
            }
        }
    }
    groups
}

/// What the fact in this row has found.
fn sought(bench: &Bench<'_>, delta: &Adam, row: usize, steps: usize) -> Result<Result<Sought>> {
    let numbers = |tensor: &tch::Tensor| {
        tensor
            .f_select(0, index(row))
            .and_then(|row| floats(&row))
            .map_err(Error::torch(ACTION))
    };
    let (state, delta) = (numbers(&bench.states)?, numbers(&delta.value)?);
    let z: Vec<f32> = state.iter().zip(&delta).map(|(h, d)| h + d).collect();
    if z.iter().any(|value| !value.is_finite()) {
        return Ok(Err(Error::NotFinite("the wanted state")));
    }
    Ok(Ok(Sought {
        z,
        steps,
        delta_norm: norm(&delta),
        hidden_norm: norm(&state),
    }))
}

fn norm(values: &[f32]) -> f64 {
    values
        .iter()
        .map(|value| f64::from(*value).powi(2))
        .sum::<f64>()
        .sqrt()
}
