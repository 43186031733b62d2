//! What stays the same from step to step while δ is sought, for several facts at once.
//!
//! What lies below the edited layer, or before the subject's end, does not change with δ and is computed once.
//! Rows are laid out fact by fact: its prompts in their contexts, then "{subject} is a" where that has a weight.

use addenda_model::tensor::NoGrad;
use addenda_model::{Action, Beginnings, Overlay, Pass, Site, Tap, Transformer};
use tch::{Kind, Tensor};

use super::{ACTION, Problem};
use crate::error::{Error, Result};
use crate::key::state_site;
use crate::rows::{index, padded, pick};
use crate::settings::{Place, SolveSettings};
use crate::subject::PromptTokens;

type Torch<T> = std::result::Result<T, tch::TchError>;

pub(super) struct Bench<'a> {
    model: &'a Transformer,
    base: Overlay,
    place: Place,
    layer: usize,
    /// Rows of each fact.
    rows: usize,
    asked: Vec<Asked>,
    /// The rows up to the subject's last token, which their ends begin with; base weights.
    beginnings: Beginnings,
    /// f32 `[n, V]`: log-probabilities at the essences' ends, base weights; none where they have no rows.
    essence: Option<Tensor>,
    /// f32 `[n, d]`: the states that δ is added to, in the bare prompts.
    pub(super) states: Tensor,
}

/// Where one fact's logits are looked at; tokens count from the ends' first.
#[derive(Clone)]
struct Asked {
    /// Of each prompt, its last token: the one before the target's first.
    lasts: Vec<usize>,
    /// The target's tokens.
    target: Vec<i64>,
    /// The essence's last token.
    essence: Option<usize>,
    /// Tokens of the longest end.
    end: usize,
}

/// One step's gradient over δ `[n, d]`; and, fact by fact and prompt by prompt, by how many nats the target's weakest
/// token beats the runner-up.
pub(super) struct Step {
    pub(super) gradient: Tensor,
    pub(super) margins: Vec<Vec<f64>>,
}

impl Asked {
    fn of(problem: &Problem<'_>) -> Self {
        let last = |prompt: &PromptTokens| prompt.ids.len() - 1 - prompt.subject_at;
        Self {
            lasts: problem.prompts.iter().map(last).collect(),
            target: problem.target.iter().map(|id| i64::from(*id)).collect(),
            essence: problem.essence.map(last),
            end: problem.end(),
        }
    }

    /// (row, token) before each token of the target, prompt by prompt; rows count from the fact's first.
    fn places(&self) -> impl Iterator<Item = (i64, i64)> {
        let rows = self.lasts.iter().enumerate();
        rows.flat_map(|(row, last)| {
            (0..self.target.len()).map(move |n| (index(row), index(last + n)))
        })
    }

    /// The tokens that are the answers at those.
    fn answers(&self) -> impl Iterator<Item = i64> {
        (0..self.lasts.len()).flat_map(|_| self.target.iter().copied())
    }

    /// With some of its prompts only.
    fn part(&self, prompts: &[usize]) -> Self {
        let lasts = prompts
            .iter()
            .filter_map(|prompt| self.lasts.get(*prompt).copied());
        Self {
            lasts: lasts.collect(),
            ..self.clone()
        }
    }
}

/// The token rows of a fact, and for each the token its end begins with and its length.
fn rows_of(problem: &Problem<'_>) -> (Vec<Vec<u32>>, Vec<(usize, usize)>) {
    // The target's last token is only ever an answer, never read.
    let read = problem
        .target
        .split_last()
        .map_or(&[][..], |(_, rest)| rest);
    let mut rows: Vec<Vec<u32>> = problem
        .prompts
        .iter()
        .map(|prompt| [&prompt.ids, read].concat())
        .collect();
    rows.extend(problem.essence.map(|essence| essence.ids.clone()));
    let starts = problem.prompts.iter().chain(problem.essence);
    let spans = starts
        .zip(&rows)
        .map(|(prompt, row)| (prompt.subject_at, row.len()))
        .collect();
    (rows, spans)
}

impl<'a> Bench<'a> {
    pub(super) fn set_up(
        model: &'a Transformer,
        problems: &[&Problem<'_>],
        solve: &SolveSettings,
    ) -> Result<Self> {
        let _no_grad = NoGrad::new();
        let (layer, base) = (solve.last_layer(), Overlay::base());
        let (mut rows, mut spans) = (Vec::new(), Vec::new());
        for problem in problems {
            let (own, starts) = rows_of(problem);
            rows.extend(own);
            spans.extend(starts);
        }
        let each = problems.first().map_or(0, |problem| problem.rows());
        let ids = padded(&rows, model)?;
        let bare = spans.iter().enumerate().step_by(each.max(1));
        let taps = [Tap {
            layer,
            site: state_site(solve.place),
            at: bare
                .map(|(row, span)| (index(row), index(span.0)))
                .collect(),
            action: Action::Read,
        }];
        let mut pass = Pass::new().under(&base).with_taps(&taps);
        let leaving = model.forward_to(layer, &ids, &mut pass)?;
        let states = pass
            .read(0)?
            .f_to_kind(Kind::Float)
            .map_err(Error::torch(ACTION))?;
        let (below, stream) = match solve.place {
            Place::Residual => (layer, leaving),
            Place::MlpOut => {
                let below = layer.saturating_sub(1);
                let mut pass = Pass::new().under(&base);
                (below, model.forward_to(below, &ids, &mut pass)?)
            }
        };
        let beginnings = model.beginnings(below, &stream, &spans, &Pass::new().under(&base))?;
        let mut bench = Self {
            model,
            base,
            place: solve.place,
            layer,
            rows: each,
            asked: problems.iter().map(|problem| Asked::of(problem)).collect(),
            beginnings,
            essence: None,
            states,
        };
        if bench.asked.iter().all(|asked| asked.essence.is_some()) {
            let zero = bench.states.f_zeros_like().map_err(Error::torch(ACTION))?;
            let all = bench.log_probabilities(&zero)?;
            let facts = index(bench.asked.len());
            let essence = all
                .size2()
                .and_then(|(places, _)| all.f_narrow(0, places - facts, facts));
            bench.essence = Some(essence.map_err(Error::torch(ACTION))?);
        }
        Ok(bench)
    }

    /// The same facts, asked in some of their prompts only.
    pub(super) fn part(&self, prompts: &[usize]) -> Result<Self> {
        let essence = self.essence.as_ref().map(|_| self.rows - 1);
        let each = prompts.iter().copied().chain(essence);
        let rows: Vec<i64> = (0..self.asked.len())
            .flat_map(|fact| each.clone().map(move |row| index(fact * self.rows + row)))
            .collect();
        let end = self.asked.iter().map(|asked| asked.end).max().unwrap_or(0);
        Ok(Self {
            model: self.model,
            base: Overlay::base(),
            place: self.place,
            layer: self.layer,
            rows: prompts.len() + usize::from(essence.is_some()),
            asked: self.asked.iter().map(|asked| asked.part(prompts)).collect(),
            beginnings: self.beginnings.keep(&rows, end)?,
            essence: self.essence.as_ref().map(Tensor::shallow_clone),
            states: self.states.shallow_clone(),
        })
    }

    /// Goes on with some of the facts, by their places among those there are.
    pub(super) fn keep(&mut self, facts: &[usize]) -> Result<()> {
        let rows: Vec<i64> = facts
            .iter()
            .flat_map(|fact| (fact * self.rows..(fact + 1) * self.rows).map(index))
            .collect();
        let places: Vec<i64> = facts.iter().map(|fact| index(*fact)).collect();
        let mut asked: Vec<Option<Asked>> = self.asked.drain(..).map(Some).collect();
        self.asked = facts
            .iter()
            .filter_map(|fact| asked.get_mut(*fact).and_then(Option::take))
            .collect();
        let end = self.asked.iter().map(|asked| asked.end).max().unwrap_or(0);
        self.beginnings = self.beginnings.keep(&rows, end)?;
        let keep = |tensor: &Tensor| {
            Tensor::f_from_slice(&places)
                .and_then(|places| places.f_to_device(tensor.device()))
                .and_then(|places| tensor.f_index_select(0, &places))
                .map_err(Error::torch(ACTION))
        };
        self.essence = self.essence.as_ref().map(&keep).transpose()?;
        self.states = keep(&self.states)?;
        Ok(())
    }

    /// f32 `[places + n, V]` with δ `[n, d]` added: every fact's places, then every fact's essence if it has one.
    fn log_probabilities(&self, delta: &Tensor) -> Result<Tensor> {
        let spread = delta
            .f_to_kind(self.model.kind())
            .and_then(|delta| delta.f_repeat_interleave_self_int(index(self.rows), 0, None))
            .map_err(Error::torch(ACTION))?;
        let rows = index(self.rows * self.asked.len());
        let ends = self.beginnings.ends();
        let hidden = match self.place {
            Place::Residual => {
                let ends = added(ends, &spread).map_err(Error::torch(ACTION))?;
                let mut pass = Pass::new().under(&self.base);
                self.model
                    .forward_ends(&self.beginnings, &ends, &mut pass)?
            }
            Place::MlpOut => {
                let taps = [Tap {
                    layer: self.layer,
                    site: Site::MlpOut,
                    at: (0..rows).map(|row| (row, 0)).collect(),
                    action: Action::Add(spread),
                }];
                let mut pass = Pass::new().under(&self.base).with_taps(&taps);
                self.model.forward_ends(&self.beginnings, ends, &mut pass)?
            }
        };
        let picked = pick(&hidden, &self.places()).map_err(Error::torch(ACTION))?;
        self.model
            .logits(&picked)?
            .f_log_softmax(-1, Kind::Float)
            .map_err(Error::torch(ACTION))
    }

    fn places(&self) -> Vec<(i64, i64)> {
        let first = |fact: usize| index(fact * self.rows);
        let targets = self.asked.iter().enumerate().flat_map(|(fact, asked)| {
            let places = asked.places();
            places.map(move |(row, token)| (first(fact) + row, token))
        });
        let essences = self
            .asked
            .iter()
            .enumerate()
            .filter_map(|(fact, asked)| Some((first(fact + 1) - 1, index(asked.essence?))));
        targets.chain(essences).collect()
    }

    pub(super) fn step(&self, delta: &Tensor, kl: f64) -> Result<Step> {
        let delta = delta
            .f_detach()
            .and_then(|delta| delta.f_set_requires_grad(true))
            .map_err(Error::torch(ACTION))?;
        let log_probabilities = self.log_probabilities(&delta)?;
        self.backward(&delta, &log_probabilities, kl)
            .map_err(Error::torch(ACTION))
    }

    /// The loss is the sum over facts, whose δ don't meet: each row of the gradient is that of its own fact's loss.
    fn backward(&self, delta: &Tensor, log_probabilities: &Tensor, kl: f64) -> Torch<Step> {
        let device = log_probabilities.device();
        let answers: Vec<i64> = self.asked.iter().flat_map(Asked::answers).collect();
        let shares = self.asked.iter().flat_map(|asked| {
            let count = asked.lasts.len() * asked.target.len();
            std::iter::repeat_n(1.0 / count as f32, count)
        });
        let shares: Vec<f32> = shares.collect();
        let (facts, count) = (index(self.asked.len()), index(answers.len()));
        let answers = Tensor::f_from_slice(&answers)?
            .f_to_device(device)?
            .f_unsqueeze(1)?;
        let shares = Tensor::f_from_slice(&shares)?
            .f_to_device(device)?
            .f_unsqueeze(1)?;
        let targets = log_probabilities.f_narrow(0, 0, count)?;
        let chosen = targets.f_gather(1, &answers, false)?;
        let mut loss = (&chosen * shares).f_sum(Kind::Float)?.f_neg()?;
        if let Some(base) = &self.essence {
            let essence = log_probabilities.f_narrow(0, count, facts)?;
            let divergence = (base.f_exp()? * (base - essence)).f_sum(Kind::Float)?;
            loss += divergence * kl;
        }
        let gradient = Tensor::f_run_backward(&[&loss], &[delta], false, false)?.pop();
        let gradient =
            gradient.ok_or_else(|| tch::TchError::Torch("autograd gave no gradient".to_owned()))?;
        let _no_grad = NoGrad::new();
        let dim = [1_i64];
        let rivals = targets
            .f_detach()?
            .f_scatter_value(1, &answers, f64::NEG_INFINITY)?
            .f_amax(dim.as_slice(), true)?;
        let ahead = Vec::<f32>::try_from((chosen.f_detach()? - rivals).f_reshape([-1])?)?;
        let mut ahead = ahead.iter();
        let margins = self.asked.iter().map(|asked| {
            let prompts = asked.lasts.iter().map(|_| {
                let own = ahead.by_ref().take(asked.target.len());
                own.map(|ahead| f64::from(*ahead))
                    .fold(f64::INFINITY, f64::min)
            });
            prompts.collect()
        });
        Ok(Step {
            gradient,
            margins: margins.collect(),
        })
    }
}

/// `ends [B, E, d]` with `spread [B, d]` added to each row's first token.
fn added(ends: &Tensor, spread: &Tensor) -> Torch<Tensor> {
    let (rows, tokens, _) = ends.size3()?;
    let first = ends.f_narrow(1, 0, 1)?.f_add(&spread.f_unsqueeze(1)?)?;
    let rest = ends.f_narrow(1, 1, tokens - 1)?;
    debug_assert_eq!(spread.size().first(), Some(&rows));
    Tensor::f_cat(&[first, rest], 1)
}
