//! One prompt as it is traced: clean, disturbed, and with clean states put back.

use std::ops::Range;

use addenda_model::tensor::NoGrad;
use addenda_model::tokenizer::Tokenizer;
use addenda_model::{Action, Overlay, Pass, Site, Tap, Transformer};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use super::{Effects, ROLES, Restored, Tracing};
use crate::error::{Error, Result};
use crate::fact::{Fact, PLACEHOLDER};
use crate::rows::{index, pick};
use crate::subject::target_tokens;

const ACTION: &str = "tracing a fact";

/// A prompt whose answer the model knows.
pub(super) struct Scene<'a> {
    model: &'a Transformer,
    tokens: usize,
    subject: Range<usize>,
    answer: i64,
    /// The token that stands for each role: the first that has it.
    roles: [Option<usize>; ROLES.len()],
    /// `[1, S, d]`.
    embedded: Tensor,
    /// `[draws, S, d]`.
    disturbed: Tensor,
    /// What each layer gave in the clean run, `[S, d]`, for each thing that can be put back.
    states: Vec<Vec<Tensor>>,
    /// Probability of the answer's first token as it is, and with noise, mean over draws.
    pub(super) clean: f64,
    /// See above.
    pub(super) noisy: f64,
}

impl Restored {
    fn site(self) -> Site {
        match self {
            Self::Hidden => Site::Residual,
            Self::Mlp => Site::MlpOut,
            Self::Attention => Site::AttentionOut,
        }
    }

    fn place(self) -> usize {
        match self {
            Self::Hidden => 0,
            Self::Mlp => 1,
            Self::Attention => 2,
        }
    }
}

/// Three standard deviations of the embeddings of these subjects' tokens (Meng et al. 2022, appendix B).
pub(super) fn noise_for(model: &Transformer, tokenizer: &Tokenizer, facts: &[Fact]) -> Result<f64> {
    let _no_grad = NoGrad::new();
    let mut ids = Vec::new();
    for fact in facts {
        let encoded = tokenizer.encode(fact.subject.trim())?.ids;
        ids.extend(encoded.into_iter().map(i64::from));
    }
    let ids = Tensor::f_from_slice(&ids)
        .and_then(|ids| ids.f_to_device(model.device()))
        .map_err(Error::torch(ACTION))?;
    let spread = model.embed(&ids)?;
    let spread = spread
        .f_to_kind(Kind::Float)
        .and_then(|embeddings| embeddings.f_std(true))
        .and_then(f64::try_from)
        .map_err(Error::torch(ACTION))?;
    Ok(3.0 * spread)
}

impl<'a> Scene<'a> {
    /// The clean run; none where the model does not give the fact's target.
    pub(super) fn of(
        model: &'a Transformer,
        tokenizer: &Tokenizer,
        fact: &Fact,
    ) -> Result<Option<Self>> {
        let _no_grad = NoGrad::new();
        let text = fact.filled_prompt();
        let start = fact.prompt.find(PLACEHOLDER).unwrap_or(0);
        let end = start + fact.subject.len();
        let encoding = tokenizer.encode(&text)?;
        let shares = |(from, to): &(usize, usize)| from < to && *from < end && *to > start;
        let first = encoding.offsets.iter().position(shares);
        let last = encoding.offsets.iter().rposition(shares);
        let (Some(first), Some(last)) = (first, last) else {
            return Ok(None);
        };
        let begin = tokenizer.text_start();
        let lead = usize::from(begin.is_some());
        let ids = begin.into_iter().chain(encoding.ids).map(i64::from);
        let ids: Vec<i64> = ids.collect();
        let subject = first + lead..last + lead + 1;
        let answer = target_tokens(tokenizer, &text, &fact.target)?;
        let embedded = Tensor::f_from_slice(&ids)
            .and_then(|ids| ids.f_unsqueeze(0)?.f_to_device(model.device()))
            .map_err(Error::torch(ACTION))?;
        let embedded = model.embed(&embedded)?;
        let mut scene = Self {
            model,
            tokens: ids.len(),
            roles: roles(&subject, ids.len()),
            subject,
            answer: answer.first().map_or(0, |id| i64::from(*id)),
            disturbed: Tensor::new(),
            embedded,
            states: Vec::new(),
            clean: 0.0,
            noisy: 0.0,
        };
        Ok(scene.read()?.then_some(scene))
    }

    /// Reads all states of the clean run; whether the answer is the likeliest.
    fn read(&mut self) -> Result<bool> {
        let layers = self.model.config().num_layers;
        let everywhere: Vec<(i64, i64)> = (0..index(self.tokens)).map(|n| (0, n)).collect();
        let taps: Vec<Tap> = Restored::ALL
            .into_iter()
            .flat_map(|restored| (0..layers).map(move |layer| (restored.site(), layer)))
            .map(|(site, layer)| Tap {
                layer,
                site,
                at: everywhere.clone(),
                action: Action::Read,
            })
            .collect();
        let base = Overlay::base();
        let mut pass = Pass::new().under(&base).with_taps(&taps);
        let (answers, winners) = self.run(&self.embedded, &mut pass)?;
        let mut reads = pass.reads.into_iter().flatten();
        self.states = (Restored::ALL.iter())
            .map(|_| reads.by_ref().take(layers).collect())
            .collect();
        self.clean = mean(&answers);
        Ok(winners.first() == Some(&self.answer))
    }

    /// Puts noise on the subject, as many draws as are asked for, and looks what is left of the answer.
    pub(super) fn disturb(&mut self, noise: f64, tracing: Tracing, fact: u64) -> Result<()> {
        let _no_grad = NoGrad::new();
        let draws = index(tracing.draws);
        let disturbed = || {
            let (_, tokens, d) = self.embedded.size3()?;
            let rows = self.embedded.f_repeat([draws, 1, 1])?;
            let (from, count) = (index(self.subject.start), index(self.subject.len()));
            let mut random = ChaCha8Rng::seed_from_u64(tracing.seed.wrapping_add(fact));
            let numbers: Vec<f32> = (0..draws * count * d)
                .map(|_| normal(&mut random) * noise as f32)
                .collect();
            let noise = Tensor::f_from_slice(&numbers)?
                .f_reshape([draws, count, d])?
                .f_to_device(rows.device())?
                .f_to_kind(rows.kind())?;
            let before = rows.f_narrow(1, 0, from)?;
            let subject = rows.f_narrow(1, from, count)?.f_add(&noise)?;
            let behind = rows.f_narrow(1, from + count, tokens - from - count)?;
            Tensor::f_cat(&[before, subject, behind], 1)
        };
        self.disturbed = disturbed().map_err(Error::torch(ACTION))?;
        let base = Overlay::base();
        let (answers, _) = self.run(&self.disturbed, &mut Pass::new().under(&base))?;
        self.noisy = mean(&answers);
        Ok(())
    }

    /// What putting a window's clean states back brings, at each role's token: all roles in one forward.
    pub(super) fn effects(&self, restored: Restored, window: Range<usize>) -> Result<Effects> {
        let _no_grad = NoGrad::new();
        let present: Vec<usize> = self.roles.iter().copied().flatten().collect();
        let draws = self.disturbed.size().first().copied().unwrap_or(1);
        let rows = self
            .disturbed
            .f_repeat([index(present.len()), 1, 1])
            .map_err(Error::torch(ACTION))?;
        let places = present.iter().enumerate().flat_map(|(place, token)| {
            (0..draws).map(move |draw| (index(place) * draws + draw, index(*token)))
        });
        let at: Vec<(i64, i64)> = places.collect();
        let tokens: Vec<i64> = at.iter().map(|(_, token)| *token).collect();
        let mut taps = Vec::new();
        let states = self.states.get(restored.place()).map(Vec::as_slice);
        let clean = states.unwrap_or_default().iter().enumerate();
        for (layer, clean) in clean.filter(|(layer, _)| window.contains(layer)) {
            let value = Tensor::f_from_slice(&tokens)
                .and_then(|tokens| tokens.f_to_device(clean.device()))
                .and_then(|tokens| clean.f_index_select(0, &tokens))
                .map_err(Error::torch(ACTION))?;
            taps.push(Tap {
                layer,
                site: restored.site(),
                at: at.clone(),
                action: Action::Replace(value),
            });
        }
        let base = Overlay::base();
        let mut pass = Pass::new().under(&base).with_taps(&taps);
        let (answers, _) = self.run(&rows, &mut pass)?;
        let draws = usize::try_from(draws).unwrap_or(1).max(1);
        let mut means = answers.chunks(draws).map(|draws| mean(draws) - self.noisy);
        Ok(self.roles.map(|token| token.and_then(|_| means.next())))
    }

    /// Of each row, the answer's probability and the likeliest token.
    fn run(&self, embedded: &Tensor, pass: &mut Pass<'_>) -> Result<(Vec<f64>, Vec<i64>)> {
        let hidden = self.model.forward_embeddings(embedded, pass)?;
        let rows = embedded.size().first().copied().unwrap_or(0);
        let last = index(self.tokens) - 1;
        let ends: Vec<(i64, i64)> = (0..rows).map(|row| (row, last)).collect();
        let logits = (self.model).logits(&pick(&hidden, &ends).map_err(Error::torch(ACTION))?)?;
        let read = || {
            let probabilities = logits.f_softmax(-1, Kind::Double)?;
            let answers = Vec::<f64>::try_from(probabilities.f_select(1, self.answer)?)?;
            Ok((answers, Vec::<i64>::try_from(logits.f_argmax(-1, false)?)?))
        };
        read().map_err(Error::torch(ACTION))
    }
}

fn roles(subject: &Range<usize>, tokens: usize) -> [Option<usize>; ROLES.len()] {
    let end = tokens.saturating_sub(1);
    [
        (subject.len() > 1).then_some(subject.start),
        (subject.len() > 2).then_some(subject.start + 1),
        Some(subject.end - 1),
        (subject.end < end).then_some(subject.end),
        (subject.end <= end).then_some(end),
    ]
}

/// A normal number by Box and Muller (1958): libtorch's generator belongs to the whole process.
fn normal(random: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    let angle = std::f64::consts::TAU * random.random::<f64>();
    (radius * angle.cos()) as f32
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::roles;

    #[test]
    fn each_role_has_its_token_and_roles_without_one_have_none() {
        assert_eq!(
            roles(&(1..4), 7),
            [Some(1), Some(2), Some(3), Some(4), Some(6)]
        );
        assert_eq!(roles(&(1..2), 3), [None, None, Some(1), None, Some(2)]);
        assert_eq!(roles(&(1..3), 3), [Some(1), None, Some(2), None, None]);
    }
}
