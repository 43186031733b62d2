//! The wanted state z: what must stand at the subject's last token so that the model says the target.
//!
//! δ is added there to the residual stream as it leaves the last edited layer (Meng et al. 2023), or, where a norm
//! follows the MLP, to the down-projection's output, through that norm. Adam on
//! `mean NLL(target) + kl · KL(base ‖ edited at "{subject} is a") + decay · ‖δ‖/‖h‖²`, with ‖δ‖ ≤ clamp · ‖h‖ after each
//! step; the end is every token of the target winning by the margin in every context. Always on the base weights, so
//! that z does not depend on what else was edited. What lies below the edited layer, or before the subject's end, does
//! not change with δ and is computed once.

use addenda_model::tensor::NoGrad;
use addenda_model::{Action, Beginnings, Overlay, Pass, Site, Tap, Transformer};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::key::state_site;
use crate::pace::{Pace, Phase, Progress};
use crate::rows::{floats, index, padded, pick};
use crate::settings::{Place, SolveSettings, ValueSettings};
use crate::subject::PromptTokens;

/// The texts that z is sought on.
#[derive(Debug)]
pub(crate) struct Problem<'a> {
    /// The prompt in its contexts, the bare one first.
    pub(crate) prompts: &'a [PromptTokens],
    /// The target's tokens behind each prompt.
    pub(crate) target: &'a [u32],
    /// "{subject} is a".
    pub(crate) essence: &'a PromptTokens,
}

/// A wanted state, and how it was found.
#[derive(Debug)]
pub(crate) struct Sought {
    pub(crate) z: Vec<f32>,
    pub(crate) steps: usize,
    pub(crate) delta_norm: f64,
    pub(crate) hidden_norm: f64,
}

type Torch<T> = std::result::Result<T, tch::TchError>;
const ACTION: &str = "seeking the wanted state";

/// Seeks z.
pub(crate) fn seek(
    model: &Transformer,
    problem: &Problem<'_>,
    solve: &SolveSettings,
    settings: &ValueSettings,
    pace: &mut Pace<'_>,
) -> Result<Sought> {
    let base = Overlay::base();
    let bench = Bench::set_up(model, &base, problem, solve)?;
    let state = floats(&bench.state).map_err(Error::torch(ACTION))?;
    let hidden_norm = norm(&state);
    if !(hidden_norm.is_finite() && hidden_norm > 0.0) {
        return Err(Error::NotFinite("the hidden state at the subject"));
    }
    let rms = hidden_norm / (state.len() as f64).sqrt();
    let mut delta = Adam::new(&bench.state.size(), settings.learning_rate * rms, model)
        .map_err(Error::torch(ACTION))?;
    let mut steps = 0;
    while steps < settings.steps {
        pace(Progress {
            phase: Phase::Value,
            done: steps as u64,
            total: settings.steps as u64,
        })?;
        let step = tch::with_grad(|| bench.step(&delta.value, settings))?;
        if step.margin >= settings.margin {
            break;
        }
        delta
            .descend(&step.gradient, settings.decay / hidden_norm.powi(2))
            .map_err(Error::torch(ACTION))?;
        delta
            .clamp(settings.clamp * hidden_norm)
            .map_err(Error::torch(ACTION))?;
        steps += 1;
    }
    let delta = floats(&delta.value).map_err(Error::torch(ACTION))?;
    let z: Vec<f32> = state.iter().zip(&delta).map(|(h, d)| h + d).collect();
    if z.iter().any(|value| !value.is_finite()) {
        return Err(Error::NotFinite("the wanted state"));
    }
    Ok(Sought {
        z,
        steps,
        delta_norm: norm(&delta),
        hidden_norm,
    })
}

fn norm(values: &[f32]) -> f64 {
    values
        .iter()
        .map(|value| f64::from(*value).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// What stays the same from step to step.
struct Bench<'a> {
    model: &'a Transformer,
    base: &'a Overlay,
    place: Place,
    layer: usize,
    /// The rows up to the subject's last token, which their ends begin with; base weights.
    beginnings: Beginnings,
    /// (row, token of the end) of the subject's last token in each row.
    subjects: Vec<(i64, i64)>,
    /// (row, token of the end) before each token of the target, context by context; then the essence's last.
    places: Vec<(i64, i64)>,
    /// i64 `[contexts · target]`.
    targets: Tensor,
    /// f32 `[V]`: log-probabilities at the essence's end, base weights.
    essence: Tensor,
    /// f32 `[d]`: the state that δ is added to, in the bare prompt.
    state: Tensor,
}

struct Step {
    gradient: Tensor,
    /// Nats by which the target's weakest token beats the runner-up; negative if it does not.
    margin: f64,
}

impl<'a> Bench<'a> {
    fn set_up(
        model: &'a Transformer,
        base: &'a Overlay,
        problem: &Problem<'_>,
        solve: &SolveSettings,
    ) -> Result<Self> {
        let _no_grad = NoGrad::new();
        let layer = solve.last_layer();
        // The target's last token is only ever an answer, never read.
        let read = problem
            .target
            .get(..problem.target.len().saturating_sub(1))
            .unwrap_or_default();
        let mut rows: Vec<Vec<u32>> = problem
            .prompts
            .iter()
            .map(|prompt| [&prompt.ids, read].concat())
            .collect();
        rows.push(problem.essence.ids.clone());
        let starts = problem.prompts.iter().chain([problem.essence]);
        let spans: Vec<(usize, usize)> = starts
            .zip(&rows)
            .map(|(prompt, row)| (prompt.subject_at, row.len()))
            .collect();
        let mut places: Vec<(i64, i64)> = Vec::new();
        for (row, prompt) in problem.prompts.iter().enumerate() {
            let last = prompt.ids.len() - 1 - prompt.subject_at;
            places.extend((0..problem.target.len()).map(|n| (index(row), index(last + n))));
        }
        let last = problem.essence.ids.len() - 1 - problem.essence.subject_at;
        places.push((index(problem.prompts.len()), index(last)));

        let ids = padded(&rows, model)?;
        let bare = spans.iter().take(1).map(|span| (0, index(span.0)));
        let taps = [Tap {
            layer,
            site: state_site(solve.place),
            at: bare.collect(),
            action: Action::Read,
        }];
        let mut pass = Pass::new().under(base).with_taps(&taps);
        let leaving = model.forward_to(layer, &ids, &mut pass)?;
        let state = pass.reads.into_iter().flatten().next();
        let state =
            state.ok_or_else(|| Error::Unsupported(format!("layer {layer} gave no state")))?;
        let (below, stream) = match solve.place {
            Place::Residual => (layer, leaving),
            Place::MlpOut => {
                let below = layer.saturating_sub(1);
                let mut pass = Pass::new().under(base);
                (below, model.forward_to(below, &ids, &mut pass)?)
            }
        };
        let beginnings = model.beginnings(below, &stream, &spans, &Pass::new().under(base))?;
        let answers: Vec<i64> = problem
            .prompts
            .iter()
            .flat_map(|_| problem.target.iter().map(|id| i64::from(*id)))
            .collect();
        let on_device = |tensor: Torch<Tensor>| {
            tensor
                .and_then(|tensor| tensor.f_to_device(model.device()))
                .map_err(Error::torch(ACTION))
        };
        let mut bench = Self {
            model,
            base,
            place: solve.place,
            layer,
            beginnings,
            subjects: (0..index(rows.len())).map(|row| (row, 0)).collect(),
            places,
            targets: on_device(Tensor::f_from_slice(&answers))?,
            essence: Tensor::new(),
            state: on_device(
                state
                    .f_reshape([-1])
                    .and_then(|state| state.f_to_kind(Kind::Float)),
            )?,
        };
        let zero = bench.state.f_zeros_like().map_err(Error::torch(ACTION))?;
        bench.essence = bench
            .log_probabilities(&zero)?
            .f_select(0, -1)
            .map_err(Error::torch(ACTION))?;
        Ok(bench)
    }

    /// f32 `[places, V]` with δ `[d]` added.
    fn log_probabilities(&self, delta: &Tensor) -> Result<Tensor> {
        let rows = index(self.subjects.len());
        let width = delta.size1().map_err(Error::torch(ACTION))?;
        let spread = delta
            .f_to_kind(self.model.kind())
            .and_then(|delta| delta.f_expand([rows, width], false))
            .map_err(Error::torch(ACTION))?;
        let ends = self.beginnings.ends();
        let hidden = match self.place {
            Place::Residual => {
                let ends = self.added(&spread).map_err(Error::torch(ACTION))?;
                let mut pass = Pass::new().under(self.base);
                self.model
                    .forward_ends(&self.beginnings, &ends, &mut pass)?
            }
            Place::MlpOut => {
                let taps = [Tap {
                    layer: self.layer,
                    site: Site::MlpOut,
                    at: self.subjects.clone(),
                    action: Action::Add(spread),
                }];
                let mut pass = Pass::new().under(self.base).with_taps(&taps);
                self.model.forward_ends(&self.beginnings, ends, &mut pass)?
            }
        };
        let picked = pick(&hidden, &self.places).map_err(Error::torch(ACTION))?;
        self.model
            .logits(&picked)?
            .f_log_softmax(-1, Kind::Float)
            .map_err(Error::torch(ACTION))
    }

    fn added(&self, spread: &Tensor) -> Torch<Tensor> {
        let (rows, tokens): (Vec<i64>, Vec<i64>) = self.subjects.iter().copied().unzip();
        let device = self.model.device();
        let rows = Tensor::f_from_slice(&rows)?.f_to_device(device)?;
        let tokens = Tensor::f_from_slice(&tokens)?.f_to_device(device)?;
        self.beginnings
            .ends()
            .f_index_put(&[Some(rows), Some(tokens)], spread, true)
    }

    fn step(&self, delta: &Tensor, settings: &ValueSettings) -> Result<Step> {
        let delta = delta
            .f_detach()
            .and_then(|delta| delta.f_set_requires_grad(true))
            .map_err(Error::torch(ACTION))?;
        let log_probabilities = self.log_probabilities(&delta)?;
        self.backward(&delta, &log_probabilities, settings)
            .map_err(Error::torch(ACTION))
    }

    fn backward(
        &self,
        delta: &Tensor,
        log_probabilities: &Tensor,
        settings: &ValueSettings,
    ) -> Torch<Step> {
        let count = self.targets.size1()?;
        let answers = log_probabilities.f_narrow(0, 0, count)?;
        let chosen = answers.f_gather(1, &self.targets.f_unsqueeze(1)?, false)?;
        let essence = log_probabilities.f_select(0, -1)?;
        let divergence = (self.essence.f_exp()? * (&self.essence - essence)).f_sum(Kind::Float)?;
        let loss = chosen.f_mean(Kind::Float)?.f_neg()? + divergence * settings.kl;
        let gradient = Tensor::f_run_backward(&[&loss], &[delta], false, false)?.pop();
        let gradient =
            gradient.ok_or_else(|| tch::TchError::Torch("autograd gave no gradient".to_owned()))?;
        Ok(Step {
            gradient,
            margin: margin(&answers.f_detach()?, &chosen.f_detach()?)?,
        })
    }
}

/// The smallest of (chosen − best other) over the rows of `answers` `[n, V]`.
fn margin(answers: &Tensor, chosen: &Tensor) -> Torch<f64> {
    let (best, _) = answers.f_topk(2, 1, true, true)?;
    let (first, second) = (best.f_narrow(1, 0, 1)?, best.f_narrow(1, 1, 1)?);
    // Where the chosen one is the best itself, the runner-up is the second.
    let rival = second.f_where_self(&chosen.f_ge_tensor(&first)?, &first)?;
    f64::try_from((chosen - rival).f_min()?)
}

/// Adam (Kingma and Ba 2015) over δ, f32 `[d]`.
struct Adam {
    value: Tensor,
    first: Tensor,
    second: Tensor,
    steps: i32,
    rate: f64,
}

impl Adam {
    const DECAY: (f64, f64) = (0.9, 0.999);

    fn new(shape: &[i64], rate: f64, model: &Transformer) -> Torch<Self> {
        let zeros = || Tensor::f_zeros(shape, (Kind::Float, model.device()));
        Ok(Self {
            value: zeros()?,
            first: zeros()?,
            second: zeros()?,
            steps: 0,
            rate,
        })
    }

    /// One step; `decay` is the weight of ‖δ‖, whose gradient is δ/‖δ‖ and at 0 none.
    fn descend(&mut self, gradient: &Tensor, decay: f64) -> Torch<()> {
        let _no_grad = NoGrad::new();
        let size = f64::try_from(self.value.f_norm()?)?;
        let pull = if size > 0.0 { decay / size } else { 0.0 };
        let gradient = gradient.f_to_kind(Kind::Float)? + &self.value * pull;
        let (one, two) = Self::DECAY;
        self.steps += 1;
        self.first = &self.first * one + &gradient * (1.0 - one);
        self.second = &self.second * two + gradient.f_square()? * (1.0 - two);
        let first = &self.first / (1.0 - one.powi(self.steps));
        let second = &self.second / (1.0 - two.powi(self.steps));
        self.value = &self.value - first / (second.f_sqrt()? + 1e-8) * self.rate;
        Ok(())
    }

    /// Shortens δ to `most`.
    fn clamp(&mut self, most: f64) -> Torch<()> {
        let size = f64::try_from(self.value.f_norm()?)?;
        if size > most {
            self.value = &self.value * (most / size);
        }
        Ok(())
    }
}
