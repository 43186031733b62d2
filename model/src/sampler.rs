//! From logits to the next token.
//!
//! Order: repetition penalty, temperature, top-k, top-p, min-p, draw (as Hugging Face
//! Transformers orders them). Ties go to the lowest id, and the random numbers are ChaCha8's, so
//! that a seed gives the same answer everywhere.

use crate::error::{Error, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;
use tch::{Kind, Tensor};

/// How tokens are chosen. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Only the k likeliest; 0 keeps all.
    pub top_k: usize,
    /// Only the likeliest whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Only those with this share of the likeliest one's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive logits of tokens already seen and multiplies negative ones; 1 is none
    /// (Keskar et al. 2019).
    pub repetition_penalty: f32,
    /// Seeds the draw.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// # Errors
    /// A setting outside of its range, by name.
    pub fn validate(&self) -> Result<()> {
        let checks = [
            ("temperature", self.temperature, 0.0..=2.0),
            ("top_p", self.top_p, 0.0..=1.0),
            ("min_p", self.min_p, 0.0..=1.0),
            ("repetition_penalty", self.repetition_penalty, 0.1..=2.0),
        ];
        for (name, value, range) in checks {
            if !range.contains(&value) {
                let (low, high) = (range.start(), range.end());
                return Err(Error::Invalid(format!(
                    "{name} is {value}, and must be from {low} to {high}"
                )));
            }
        }
        Ok(())
    }
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub id: u32,
    /// The natural logarithm of its probability in the model's own distribution, before any
    /// setting.
    pub logprob: f32,
    /// The likeliest tokens of that distribution with their log-probabilities, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one sequence.
pub struct Sampler {
    params: SamplingParams,
    random: ChaCha8Rng,
    seen: BTreeSet<u32>,
}

impl Sampler {
    /// # Errors
    /// A setting outside of its range.
    pub fn new(params: SamplingParams) -> Result<Self> {
        params.validate()?;
        let random = ChaCha8Rng::seed_from_u64(params.seed);
        Ok(Self {
            params,
            random,
            seen: BTreeSet::new(),
        })
    }

    /// Counts tokens as seen, for the repetition penalty.
    pub fn observe(&mut self, ids: &[u32]) {
        self.seen.extend(ids);
    }

    /// Chooses from logits f32 `[vocab]` and observes what it chose; reports the `top`
    /// likeliest as well.
    ///
    /// # Errors
    /// The logits are no vector, are empty or hold a NaN.
    pub fn sample(&mut self, logits: &Tensor, top: usize) -> Result<Sampled> {
        let logits = logits.f_to_kind(Kind::Float)?.f_contiguous()?;
        let own: Vec<f32> = Vec::try_from(&logits.f_log_softmax(-1, Kind::Float)?)?;
        let logits: Vec<f32> = Vec::try_from(&logits)?;
        if own.is_empty() || own.iter().any(|logprob| logprob.is_nan()) {
            return Err(Error::Invalid(
                "the model gave no numbers to choose from".to_owned(),
            ));
        }
        let id = self.choose(logits);
        self.seen.insert(id);
        let logprob = own.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        Ok(Sampled {
            id,
            logprob,
            top: likeliest(&own, top),
        })
    }

    fn choose(&mut self, logits: Vec<f32>) -> u32 {
        let penalized = self.penalize(logits);
        if self.params.temperature == 0.0 {
            return likeliest(&penalized, 1).first().map_or(0, |best| best.0);
        }
        let keep = if self.params.top_k == 0 {
            penalized.len()
        } else {
            self.params.top_k
        };
        let mut candidates = likeliest(&penalized, keep);
        let best = candidates.first().map_or(0.0, |best| best.1);
        for candidate in &mut candidates {
            candidate.1 = ((candidate.1 - best) / self.params.temperature).exp();
        }
        self.cut(&mut candidates);
        let total: f32 = candidates.iter().map(|candidate| candidate.1).sum();
        let mut left = self.random.random::<f32>() * total;
        for &(id, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return id;
            }
        }
        candidates.last().map_or(0, |last| last.0)
    }

    fn penalize(&self, mut logits: Vec<f32>) -> Vec<f32> {
        #[expect(clippy::float_cmp, reason = "1 is the exact mark of no penalty")]
        if self.params.repetition_penalty == 1.0 {
            return logits;
        }
        for &id in &self.seen {
            if let Some(logit) = logits.get_mut(id as usize) {
                let penalty = self.params.repetition_penalty;
                *logit = if *logit > 0.0 {
                    *logit / penalty
                } else {
                    *logit * penalty
                };
            }
        }
        logits
    }

    /// Drops what top-p and min-p leave out; `candidates` are unnormalised and sorted.
    fn cut(&self, candidates: &mut Vec<(u32, f32)>) {
        let total: f32 = candidates.iter().map(|candidate| candidate.1).sum();
        let mut sum = 0.0;
        let mut kept = 0;
        for candidate in candidates.iter() {
            kept += 1;
            sum += candidate.1;
            if sum >= self.params.top_p * total {
                break;
            }
        }
        candidates.truncate(kept);
        let least = candidates
            .first()
            .map_or(0.0, |best| best.1 * self.params.min_p);
        candidates.retain(|candidate| candidate.1 >= least);
    }
}

/// The `count` largest values with their places, largest first; equal ones by place.
fn likeliest(values: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut ranked: Vec<(u32, f32)> = (0..).zip(values.iter().copied()).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count < ranked.len() {
        if count == 0 {
            return Vec::new();
        }
        ranked.select_nth_unstable_by(count - 1, order);
        ranked.truncate(count);
    }
    ranked.sort_unstable_by(order);
    ranked
}
