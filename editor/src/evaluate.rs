//! What an edit did: probabilities, winners, and perplexity, under the served weights or under an overlay.
//!
//! Never changes weights. All probabilities are of token ids behind token ids, as in the optimisation.

use addenda_model::tensor::NoGrad;
use addenda_model::tokenizer::Tokenizer;
use addenda_model::{ChatMessage, ChatTemplate, Overlay, Pass, Transformer};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::corpus::FIXED_TEXT;
use crate::error::{Error, Result};
use crate::fact::Fact;
use crate::pace::{Pace, Phase, Progress};
use crate::rows::{index, padded, pick};
use crate::settings::Bars;
use crate::subject::{target_tokens, text_tokens};

const ACTION: &str = "measuring the edit";
/// Rows of one forward over prompts.
const ROWS: usize = 16;
/// Tokens of one row of the fixed text.
const TEXT_ROW: usize = 256;

/// What an edit's verification measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Probability of the target after the prompt: geometric mean over its tokens.
    pub target_probability: f64,
    /// The same under the weights served before.
    pub target_probability_before: f64,
    /// Every token of the target is the likeliest at its place.
    pub target_is_top1: bool,
    /// Share of paraphrases after which the target is likelier than the old answer; none without paraphrases.
    pub paraphrase: Option<f64>,
    /// Share of neighbours whose next token is what it was before; none without neighbours.
    pub locality: Option<f64>,
    /// The paraphrases were made from templates, for the caller gave none.
    #[serde(default)]
    pub made_paraphrases: bool,
    /// The neighbours were made from templates, for the caller gave none.
    #[serde(default)]
    pub made_neighbours: bool,
    /// Probability of the target where the assistant, asked to complete the prompt in a chat, has repeated it; none
    /// without a chat template.
    #[serde(default)]
    pub chat_probability: Option<f64>,
    /// Whether every token of the target is the likeliest there.
    #[serde(default)]
    pub chat_is_top1: Option<bool>,
    /// Share of the other active facts about the same subject whose target is still the likeliest; none without.
    pub same_subject: Option<f64>,
    /// Perplexity on the fixed text under the weights served before.
    pub perplexity_before: f64,
    /// The same under the new weights.
    pub perplexity_after: f64,
    /// The same under the base weights.
    pub perplexity_base: f64,
}

impl Figures {
    /// The bars that these figures fail, as sentences; none if all are met.
    pub(crate) fn failures(&self, bars: &Bars) -> Vec<String> {
        let mut failures = Vec::new();
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        if bars.target_top1 && !self.target_is_top1 {
            failures.push("the target did not become the likeliest answer".to_owned());
        }
        let held = |share: Option<f64>, made: bool| share.filter(|_| !made || bars.made_probes);
        let at_least = [
            (
                "the target's probability",
                Some(self.target_probability),
                bars.target_probability,
            ),
            (
                "the share of paraphrases that prefer the target",
                held(self.paraphrase, self.made_paraphrases),
                bars.paraphrase,
            ),
            (
                "the share of neighbours that kept their answer",
                held(self.locality, self.made_neighbours),
                bars.locality,
            ),
            (
                "the target's probability as an answer in the chat",
                self.chat_probability,
                bars.chat_probability,
            ),
            (
                "the share of other facts about this subject that still hold",
                self.same_subject,
                1.0,
            ),
        ];
        for (what, figure, bar) in at_least {
            if let Some(figure) = figure.filter(|figure| *figure < bar) {
                failures.push(format!(
                    "{what} is {}, and {} is asked for",
                    percent(figure),
                    percent(bar)
                ));
            }
        }
        let rises = [
            ("this edit", self.perplexity_before, bars.perplexity),
            (
                "all active edits together",
                self.perplexity_base,
                bars.perplexity_total,
            ),
        ];
        for (whose, from, bar) in rises {
            let rise = self.perplexity_after / from - 1.0;
            if rise > bar {
                failures.push(format!(
                    "the perplexity rose by {} through {whose}, and {} is allowed",
                    percent(rise),
                    percent(bar)
                ));
            }
        }
        failures
    }

    pub(crate) fn is_finite(&self) -> bool {
        [
            self.target_probability,
            self.target_probability_before,
            self.perplexity_before,
            self.perplexity_after,
            self.perplexity_base,
        ]
        .iter()
        .all(|figure| figure.is_finite())
    }
}

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

/// A fact's questions as tokens.
#[derive(Debug)]
pub(crate) struct Questions {
    pub(crate) prompt: Vec<u32>,
    pub(crate) target: Vec<u32>,
    paraphrases: Vec<Vec<u32>>,
    neighbours: Vec<Vec<u32>>,
    /// The prompt as the assistant repeats it in a chat; none without a template.
    chat: Option<Vec<u32>>,
}

impl Questions {
    pub(crate) fn of(tokenizer: &Tokenizer, fact: &Fact) -> Result<Self> {
        let filled = fact.filled_prompt();
        let tokens = |texts: &[String]| {
            texts
                .iter()
                .map(|text| text_tokens(tokenizer, text))
                .collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            prompt: text_tokens(tokenizer, &filled)?,
            target: target_tokens(tokenizer, &filled, &fact.target)?,
            paraphrases: tokens(&fact.paraphrases)?,
            neighbours: tokens(&fact.neighbours)?,
            chat: None,
        })
    }

    /// The same, with the prompt in a chat as well.
    pub(crate) fn in_chat(
        mut self,
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
        fact: &Fact,
    ) -> Result<Self> {
        let filled = fact.filled_prompt();
        let asked = ChatMessage {
            role: "user".to_owned(),
            content: format!("Complete this sentence: {filled}"),
        };
        let asked = template.render(&[asked], true)?;
        self.chat = Some(tokenizer.encode(&format!("{asked}{filled}"))?.ids);
        Ok(self)
    }
}

impl Questions {
    /// Tokens of the longest text, with the target behind it.
    pub(crate) fn longest(&self) -> usize {
        let probes = self
            .paraphrases
            .iter()
            .chain(&self.neighbours)
            .map(Vec::len);
        let chat = self.chat.as_ref().map_or(0, Vec::len);
        self.target.len() + probes.chain([self.prompt.len(), chat]).max().unwrap_or(0)
    }
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

#[cfg(test)]
mod tests {
    use super::Figures;
    use crate::settings::Bars;

    #[test]
    fn each_failed_bar_is_named_with_its_figure() {
        let figures = Figures {
            target_probability: 0.25,
            target_probability_before: 0.01,
            target_is_top1: false,
            paraphrase: Some(0.0),
            locality: Some(0.0),
            made_paraphrases: true,
            made_neighbours: false,
            chat_probability: Some(0.125),
            chat_is_top1: Some(false),
            same_subject: None,
            perplexity_before: 10.0,
            perplexity_after: 10.3,
            perplexity_base: 10.0,
        };
        let bars = Bars {
            target_probability: 0.5,
            target_top1: true,
            paraphrase: 0.5,
            locality: 0.5,
            perplexity: 0.01,
            perplexity_total: 0.1,
            chat_probability: 0.25,
            make_probes: true,
            made_probes: false,
        };
        let failures = figures.failures(&bars).join("; ");
        assert!(
            failures.contains("probability is 25.0 %, and 50.0 % is asked for"),
            "{failures}"
        );
        assert!(
            failures.contains("neighbours that kept their answer is 0.0 %"),
            "{failures}"
        );
        assert!(
            failures.contains("rose by 3.0 % through this edit"),
            "{failures}"
        );
        assert!(failures.contains("in the chat is 12.5 %"), "{failures}");
        // Those were made from a template, which nobody asked to be held to the bars.
        assert!(!failures.contains("paraphrases"), "{failures}");
        assert!(!failures.contains("together"), "{failures}");
    }
}
