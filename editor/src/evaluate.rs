//! What an edit did: probabilities, winners, and perplexity, under the served weights or under an overlay.
//!
//! Never changes weights. All probabilities are of token ids behind token ids, as in the optimisation.

use addenda_model::tensor::NoGrad;
use addenda_model::tokenizer::Tokenizer;
use addenda_model::{Overlay, Pass, Transformer};
use tch::{Kind, Tensor};

use crate::corpus::FIXED_TEXT;
use crate::error::{Error, Result};
use crate::fact::Fact;
use crate::pace::{Pace, Phase, Progress};
use crate::questions::Questions;
use crate::rows::{index, padded, pick};

const ACTION: &str = "measuring the edit";
/// Rows of one forward over prompts.
const ROWS: usize = 16;
/// Tokens of one row of the fixed text.
const TEXT_ROW: usize = 256;

/// Weights to measure under.
#[derive(Clone, Copy)]
pub(crate) enum Under<'a> {
    /// As installed in the model.
    Served,
    /// Base plus the overlay's changes.
    Overlay(&'a Overlay),
}

impl<'a> Under<'a> {
    fn pass(self) -> Pass<'a> {
        match self {
            Self::Served => Pass::new(),
            Self::Overlay(overlay) => Pass::new().under(overlay),
        }
    }
}

/// Measures under one set of weights.
#[derive(Clone, Copy)]
pub(crate) struct Meter<'a> {
    pub(crate) model: &'a Transformer,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) under: Under<'a>,
}

/// A continuation's score.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Score {
    /// Mean log-probability per token, nats.
    pub(crate) mean: f64,
    /// Every token is the likeliest at its place.
    pub(crate) top1: bool,
}

/// What was there before the edit, that the edit is compared with.
#[derive(Debug)]
pub(crate) struct Before {
    pub(crate) target: Score,
    old_answer: Vec<u32>,
    neighbours: Vec<u32>,
}

/// What the answers are afterwards.
#[derive(Debug)]
pub(crate) struct After {
    pub(crate) target: Score,
    pub(crate) before: f64,
    pub(crate) paraphrase: Option<f64>,
    pub(crate) locality: Option<f64>,
    pub(crate) chat: Option<Score>,
}

impl Meter<'_> {
    /// The answers as they are, to be compared with later; in the questions' order.
    pub(crate) fn before(&self, asked: &[&Questions]) -> Result<Vec<Before>> {
        let pairs: Vec<_> = asked.iter().map(|q| (&q.prompt, &q.target)).collect();
        let targets = self.score(&pairs)?;
        // The old answer is only needed to compare paraphrases with.
        let probed = asked.iter().filter(|q| !q.paraphrases.is_empty());
        let prompts: Vec<_> = probed.map(|q| (&q.prompt, q.target.len())).collect();
        let mut old_answers = self.greedy(&prompts)?.into_iter();
        let neighbours: Vec<&Vec<u32>> = asked.iter().flat_map(|q| &q.neighbours).collect();
        let mut next = self.next_tokens(&neighbours)?.into_iter();
        let answers = asked.iter().zip(targets).map(|(q, target)| Before {
            target,
            old_answer: match q.paraphrases.is_empty() {
                true => Vec::new(),
                false => old_answers.next().unwrap_or_default(),
            },
            neighbours: next.by_ref().take(q.neighbours.len()).collect(),
        });
        Ok(answers.collect())
    }

    /// The answers now, against those before.
    pub(crate) fn after(&self, asked: &[&Questions], before: &[&Before]) -> Result<Vec<After>> {
        let mut pairs: Vec<(&Vec<u32>, &Vec<u32>)> = Vec::new();
        for (q, before) in asked.iter().zip(before) {
            pairs.push((&q.prompt, &q.target));
            for paraphrase in &q.paraphrases {
                pairs.push((paraphrase, &q.target));
                pairs.push((paraphrase, &before.old_answer));
            }
            pairs.extend(q.chat.iter().map(|chat| (chat, &q.target)));
        }
        let mut scores = self.score(&pairs)?.into_iter();
        let neighbours: Vec<&Vec<u32>> = asked.iter().flat_map(|q| &q.neighbours).collect();
        let mut next = self.next_tokens(&neighbours)?.into_iter();
        let answers = asked.iter().zip(before).map(|(q, before)| {
            let own: Vec<Score> = scores.by_ref().take(1 + 2 * q.paraphrases.len()).collect();
            let (pairs, _) = own.get(1..).unwrap_or_default().as_chunks::<2>();
            let won = pairs.iter().map(|[new, old]| new.mean >= old.mean);
            let chat = scores.by_ref().take(usize::from(q.chat.is_some())).next();
            let now: Vec<u32> = next.by_ref().take(q.neighbours.len()).collect();
            let kept = now.iter().zip(&before.neighbours).map(|(a, b)| a == b);
            Ok(After {
                target: one(&own)?,
                before: before.target.mean.exp(),
                paraphrase: share(won),
                locality: share(kept),
                chat,
            })
        });
        answers.collect()
    }

    /// The share of these facts whose target is the likeliest answer; none without facts.
    pub(crate) fn holding(&self, facts: &[&Fact]) -> Result<Option<f64>> {
        let questions = facts
            .iter()
            .map(|fact| Questions::of(self.tokenizer, fact))
            .collect::<Result<Vec<_>>>()?;
        let asked: Vec<_> = questions
            .iter()
            .map(|questions| (&questions.prompt, &questions.target))
            .collect();
        Ok(share(self.score(&asked)?.iter().map(|score| score.top1)))
    }

    /// Scores continuations behind prompts.
    pub(crate) fn score(&self, asked: &[(&Vec<u32>, &Vec<u32>)]) -> Result<Vec<Score>> {
        let mut scores = Vec::with_capacity(asked.len());
        for chunk in asked.chunks(ROWS) {
            let rows: Vec<Vec<u32>> = chunk
                .iter()
                .map(|(prompt, answer)| [prompt.as_slice(), answer].concat())
                .collect();
            let mut places = Vec::new();
            for (row, (prompt, answer)) in chunk.iter().enumerate() {
                places.extend(
                    (0..answer.len())
                        .map(|n| (index(row), index((prompt.len() + n).saturating_sub(1)))),
                );
            }
            let log_probabilities = self.log_probabilities(&rows, &places)?;
            let mut answers = chunk.iter().map(|(_, answer)| answer.as_slice());
            scores
                .extend(scores_of(&log_probabilities, &mut answers).map_err(Error::torch(ACTION))?);
        }
        Ok(scores)
    }

    /// The likeliest next token behind each prompt.
    fn next_tokens<R: AsRef<[u32]>>(&self, prompts: &[R]) -> Result<Vec<u32>> {
        let mut next = Vec::with_capacity(prompts.len());
        for chunk in prompts.chunks(ROWS) {
            let places: Vec<(i64, i64)> = chunk
                .iter()
                .enumerate()
                .map(|(row, ids)| (index(row), index(ids.as_ref().len().saturating_sub(1))))
                .collect();
            let best = self
                .log_probabilities(chunk, &places)?
                .f_argmax(1, false)
                .map_err(Error::torch(ACTION))?;
            let best = Vec::<i64>::try_from(best).map_err(Error::torch(ACTION))?;
            next.extend(best.into_iter().map(|id| u32::try_from(id).unwrap_or(0)));
        }
        Ok(next)
    }

    /// Behind each prompt, the likeliest so many tokens, one after the other.
    fn greedy(&self, prompts: &[(&Vec<u32>, usize)]) -> Result<Vec<Vec<u32>>> {
        let mut rows: Vec<Vec<u32>> = prompts.iter().map(|(ids, _)| (*ids).clone()).collect();
        let most = prompts.iter().map(|(_, tokens)| *tokens).max().unwrap_or(0);
        for _ in 0..most {
            for (row, next) in self.next_tokens(&rows)?.into_iter().enumerate() {
                if let Some(row) = rows.get_mut(row) {
                    row.push(next);
                }
            }
        }
        let answers = rows.into_iter().zip(prompts).map(|(row, (ids, tokens))| {
            let answer = row.get(ids.len()..ids.len() + tokens);
            answer.map(<[u32]>::to_vec).unwrap_or_default()
        });
        Ok(answers.collect())
    }

    /// Perplexity on the fixed text, in rows of 256 tokens that each begin as a text begins.
    pub(crate) fn perplexity(&self, pace: &mut Pace<'_>) -> Result<f64> {
        let tokens = self.tokenizer.encode(FIXED_TEXT)?.ids;
        let rows: Vec<Vec<u32>> = tokens
            .chunks(TEXT_ROW - 1)
            .map(|row| {
                self.tokenizer
                    .text_start()
                    .into_iter()
                    .chain(row.iter().copied())
                    .collect()
            })
            .collect();
        let (mut sum, mut count) = (0.0, 0.0);
        for (done, row) in rows.iter().enumerate() {
            pace(Progress {
                phase: Phase::Verify,
                done: done as u64,
                total: rows.len() as u64,
            })?;
            let Some((first, rest)) = row.split_first().filter(|(_, rest)| !rest.is_empty()) else {
                continue;
            };
            let score = self.score(&[(&vec![*first], &rest.to_vec())])?;
            sum += one(&score)?.mean * rest.len() as f64;
            count += rest.len() as f64;
        }
        Ok((-sum / count).exp())
    }

    /// f32 `[places, V]` over right-padded rows.
    fn log_probabilities<R: AsRef<[u32]>>(
        &self,
        rows: &[R],
        places: &[(i64, i64)],
    ) -> Result<Tensor> {
        let _no_grad = NoGrad::new();
        let hidden = self
            .model
            .forward_batch(&padded(rows, self.model)?, &mut self.under.pass())?;
        let picked = pick(&hidden, places).map_err(Error::torch(ACTION))?;
        self.model
            .logits(&picked)?
            .f_log_softmax(-1, Kind::Float)
            .map_err(Error::torch(ACTION))
    }
}

fn one(scores: &[Score]) -> Result<Score> {
    scores
        .first()
        .copied()
        .ok_or(Error::NotFinite("the target's probability"))
}

fn share(hits: impl ExactSizeIterator<Item = bool>) -> Option<f64> {
    let all = hits.len();
    (all > 0).then(|| hits.filter(|hit| *hit).count() as f64 / all as f64)
}

fn scores_of(
    log_probabilities: &Tensor,
    answers: &mut dyn Iterator<Item = &[u32]>,
) -> std::result::Result<Vec<Score>, tch::TchError> {
    let (best, winners) = log_probabilities.f_max_dim(1, false)?;
    drop(best);
    let mut scores = Vec::new();
    let mut from = 0;
    for answer in answers {
        let ids: Vec<i64> = answer.iter().map(|id| i64::from(*id)).collect();
        let length = index(ids.len());
        let ids = Tensor::f_from_slice(&ids)?.f_to_device(log_probabilities.device())?;
        let rows = log_probabilities.f_narrow(0, from, length)?;
        let mean = rows
            .f_gather(1, &ids.f_unsqueeze(1)?, false)?
            .f_mean(Kind::Double)?;
        let top1 = winners
            .f_narrow(0, from, length)?
            .f_eq_tensor(&ids)?
            .f_all()?;
        scores.push(Score {
            mean: f64::try_from(mean)?,
            top1: i64::try_from(top1)? != 0,
        });
        from += length;
    }
    Ok(scores)
}
