//! From logits to several beams: the continuations that are likeliest as a whole.
//!
//! Owns the choice; contexts are the caller's, who is told which beam each new one goes on from. Order and
//! ending are those of Hugging Face Transformers (`early_stopping=False`): of twice as many candidates as
//! there are beams, an end counts among the first so many only, and the search is over once no live beam
//! that ended here could be better than the worst that is kept.

use crate::error::{Error, Result};
use crate::sampler::Sampled;
use tch::{Device, Kind, Tensor};

/// How a search goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BeamParams {
    /// Continuations that are followed at once, from 1.
    pub beams: usize,
    /// A continuation of n tokens (its end counted) scores Σ log p / n ^ this: 0 does not look at lengths,
    /// 1 compares the means.
    pub length_penalty: f32,
}

/// A search that goes on.
pub struct BeamSearch {
    params: BeamParams,
    max_tokens: usize,
    live: Vec<Beam>,
    ended: Vec<Beam>,
}

/// A continuation.
#[derive(Clone, Debug, Default)]
struct Beam {
    tokens: Vec<Sampled>,
    /// Σ log p.
    sum: f64,
}

/// A token that one of the beams might go on with.
struct Candidate {
    beam: usize,
    token: Sampled,
    sum: f64,
}

impl BeamSearch {
    /// A search behind a prompt for a continuation of at most `max_tokens`: one beam that is empty yet.
    ///
    /// # Errors
    /// No beams, or no tokens to be found.
    pub fn new(params: BeamParams, max_tokens: usize) -> Result<Self> {
        if params.beams == 0 || max_tokens == 0 {
            return Err(Error::Invalid(
                "a search needs at least one beam and one token".to_owned(),
            ));
        }
        Ok(Self {
            params,
            max_tokens,
            live: vec![Beam::default()],
            ended: Vec::new(),
        })
    }

    /// Goes on by the logits `[beams, vocab]` behind each live beam. `ends` says of a continuation's ids
    /// whether it ends there. Returns which of the beams each new one goes on from; nobody where the search
    /// is over.
    ///
    /// # Errors
    /// Logits of another number of beams, or that hold a NaN; libtorch's.
    pub fn step(
        &mut self,
        logits: &Tensor,
        mut ends: impl FnMut(&[u32]) -> Result<bool>,
    ) -> Result<Vec<usize>> {
        let mut parents = Vec::with_capacity(self.params.beams);
        let mut live = Vec::with_capacity(self.params.beams);
        for (rank, candidate) in self.candidates(logits)?.into_iter().enumerate() {
            let Some(parent) = self.live.get(candidate.beam) else {
                continue;
            };
            let mut beam = parent.clone();
            beam.tokens.push(candidate.token);
            beam.sum = candidate.sum;
            if ends(&beam.ids())? {
                if rank < self.params.beams {
                    self.ended.push(beam);
                }
            } else {
                parents.push(candidate.beam);
                live.push(beam);
            }
            if live.len() == self.params.beams {
                break;
            }
        }
        self.live = live;
        self.keep_best();
        if self.is_over() {
            self.ended.append(&mut self.live);
            self.keep_best();
            return Ok(Vec::new());
        }
        Ok(parents)
    }

    /// The last token of each live beam.
    #[must_use]
    pub fn last(&self) -> Vec<u32> {
        let last = self.live.iter().filter_map(|beam| beam.tokens.last());
        last.map(|token| token.id).collect()
    }

    /// The tokens of the best continuation that has ended.
    #[must_use]
    pub fn best(self) -> Vec<Sampled> {
        let best = self.ended.into_iter().next();
        best.unwrap_or_default().tokens
    }

    /// The likeliest ways on, twice as many as there are beams, the best first; of two alike that of the
    /// earlier beam, then the lower id.
    fn candidates(&self, logits: &Tensor) -> Result<Vec<Candidate>> {
        let own = logits.f_log_softmax(-1, Kind::Float)?;
        let (rows, vocab) = own.size2()?;
        let beams = self.live.len();
        if usize::try_from(rows).ok() != Some(beams) {
            return Err(Error::Invalid(format!(
                "logits of {rows} beams for {beams}"
            )));
        }
        let wanted = 2 * self.params.beams;
        let most = i64::try_from(wanted).unwrap_or(i64::MAX).min(vocab);
        let (logprobs, ids) = own.f_topk(most, -1, true, true)?;
        let logprobs = Vec::<f32>::try_from(&logprobs.f_to_device(Device::Cpu)?.f_reshape([-1])?)?;
        let ids = Vec::<i64>::try_from(&ids.f_to_device(Device::Cpu)?.f_reshape([-1])?)?;
        if logprobs.is_empty() || logprobs.iter().any(|logprob| logprob.is_nan()) {
            return Err(Error::Invalid(
                "the model gave no numbers to choose from".to_owned(),
            ));
        }
        let row = logprobs.len() / beams.max(1);
        let all = logprobs.iter().zip(ids).enumerate();
        let all = all.map(|(place, (&logprob, id))| {
            let beam = place / row.max(1);
            let before = self.live.get(beam).map_or(0.0, |beam| beam.sum);
            Candidate {
                beam,
                token: Sampled {
                    id: u32::try_from(id).unwrap_or(0),
                    logprob,
                    top: Vec::new(),
                },
                sum: before + f64::from(logprob),
            }
        });
        let mut all: Vec<Candidate> = all.collect();
        all.sort_by(|a, b| {
            let order = b.sum.total_cmp(&a.sum);
            order.then((a.beam, a.token.id).cmp(&(b.beam, b.token.id)))
        });
        all.truncate(wanted);
        Ok(all)
    }

    fn is_over(&self) -> bool {
        let Some(best) = self.live.first() else {
            return true;
        };
        let worst = self.ended.last().map(|beam| self.score(beam));
        let full = self.ended.len() >= self.params.beams;
        best.tokens.len() >= self.max_tokens
            || full && worst.is_some_and(|worst| worst >= self.score(best))
    }

    /// Keeps as many of those that have ended as there are beams, the best first.
    fn keep_best(&mut self) {
        let mut ended = std::mem::take(&mut self.ended);
        ended.sort_by(|a, b| self.score(b).total_cmp(&self.score(a)));
        ended.truncate(self.params.beams);
        self.ended = ended;
    }

    fn score(&self, beam: &Beam) -> f64 {
        let tokens = beam.tokens.len().max(1) as f64;
        beam.sum / tokens.powf(f64::from(self.params.length_penalty))
    }
}

impl Beam {
    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]
mod tests {
    use super::{BeamParams, BeamSearch};
    use tch::Tensor;

    const VOCAB: u32 = 5;
    /// The token that ends a continuation.
    const END: u32 = 4;

    /// log p of each token behind `ids`, of a language that nobody speaks: it follows from the ids alone.
    fn language(ids: &[u32]) -> Vec<f32> {
        let seed = ids.iter().fold(17_u32, |seed, id| {
            seed.wrapping_mul(31).wrapping_add(id + 1)
        });
        let number = |id: u32| seed.wrapping_add(id * 7).wrapping_mul(2_654_435_761) >> 20;
        let logits: Vec<f32> = (0..VOCAB).map(|id| number(id) as f32 / 1200.0).collect();
        let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
        logits.iter().map(|logit| logit - sum.ln()).collect()
    }

    fn search(params: BeamParams, max_tokens: usize) -> (Vec<u32>, usize) {
        let mut search = BeamSearch::new(params, max_tokens).unwrap();
        let (mut live, mut steps) = (vec![Vec::new()], 0);
        while !live.is_empty() {
            let rows: Vec<f32> = live.iter().flat_map(|ids| language(ids)).collect();
            let rows = Tensor::from_slice(&rows).reshape([-1, i64::from(VOCAB)]);
            let parents = search.step(&rows, |ids| Ok(ids.last() == Some(&END)));
            let last = search.last();
            let grown = parents.unwrap().into_iter().zip(last);
            live = grown
                .map(|(parent, id): (usize, u32)| [&live[parent][..], &[id]].concat())
                .collect();
            steps += 1;
        }
        let best = search.best();
        (best.iter().map(|token| token.id).collect(), steps)
    }

    fn score(ids: &[u32], penalty: f32) -> f32 {
        let sum: f32 = (0..ids.len())
            .map(|n| language(&ids[..n])[ids[n] as usize])
            .sum();
        sum / (ids.len() as f32).powf(penalty)
    }

    /// The best of all continuations of at most `most` tokens.
    fn exhaustive(most: usize, penalty: f32) -> Vec<u32> {
        let (mut open, mut whole) = (vec![Vec::new()], Vec::new());
        for _ in 0..most {
            let longer = open
                .iter()
                .flat_map(|ids: &Vec<u32>| (0..VOCAB).map(move |id| [&ids[..], &[id]].concat()));
            let (ended, rest): (Vec<_>, Vec<_>) =
                longer.partition(|ids: &Vec<u32>| ids.last() == Some(&END));
            whole.extend(ended);
            open = rest;
        }
        whole.extend(open);
        let by_score = |a: &Vec<u32>, b: &Vec<u32>| score(a, penalty).total_cmp(&score(b, penalty));
        whole.into_iter().max_by(by_score).unwrap()
    }

    #[test]
    fn with_room_for_all_of_them_the_best_continuation_is_found() {
        for length_penalty in [0.0, 1.0] {
            let params = BeamParams {
                beams: 700,
                length_penalty,
            };
            let (found, _) = search(params, 4);
            assert_eq!(found, exhaustive(4, length_penalty), "{length_penalty}");
        }
    }

    #[test]
    fn one_beam_takes_the_likeliest_token_each_time_and_more_beams_do_no_worse() {
        let params = |beams| BeamParams {
            beams,
            length_penalty: 0.0,
        };
        let (found, steps) = search(params(1), 6);
        let mut greedy = Vec::new();
        while greedy.len() < 6 && greedy.last() != Some(&END) {
            let row = language(&greedy);
            let best = (0..VOCAB).max_by(|&a, &b| row[a as usize].total_cmp(&row[b as usize]));
            greedy.push(best.unwrap());
        }
        assert_eq!((&found, steps), (&greedy, greedy.len()));
        let (better, _) = search(params(4), 6);
        assert!(score(&better, 0.0) >= score(&found, 0.0));
    }

    #[test]
    fn logits_of_another_number_of_beams_and_numbers_that_are_none_are_refused() {
        let params = BeamParams {
            beams: 2,
            length_penalty: 1.0,
        };
        let mut search = BeamSearch::new(params, 3).unwrap();
        let never = |_: &[u32]| Ok(false);
        assert!(
            search
                .step(&Tensor::from_slice2(&[[0.0_f32; 5]; 2]), never)
                .is_err()
        );
        assert!(
            search
                .step(&Tensor::from_slice2(&[[f32::NAN; 5]]), never)
                .is_err()
        );
        assert_eq!(
            search
                .step(&Tensor::from_slice2(&[[0.0_f32; 5]]), never)
                .unwrap(),
            [0, 0]
        );
        for (beams, max_tokens) in [(0, 3), (3, 0)] {
            let params = BeamParams { beams, ..params };
            assert!(BeamSearch::new(params, max_tokens).is_err());
        }
    }
}
