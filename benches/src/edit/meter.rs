//! The metrics of editing, on the weights that are served.
//!
//! Prompt and answer are compared as token ids, with what starts a text in front; NLL is the mean per token.

use addenda_model::tensor::NoGrad;
use addenda_model::{Input, Pass, Sampler, SamplingParams, Tokenizer, Transformer};
use std::collections::HashMap;
use tch::{Kind, Tensor};

use super::records::Record;
use crate::error::{Error, Result};

/// Rows of one forward.
const ROWS: usize = 16;
/// Tokens of one row of the text that perplexity is measured on.
const WINDOW: usize = 512;
/// Tokens that are written to judge fluency.
const WRITTEN: usize = 60;

/// A prompt with an answer behind it.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    ids: Vec<u32>,
    /// Where the answer begins.
    from: usize,
}

/// An answer's score.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Score {
    /// Nats per token.
    pub(crate) nll: f64,
    /// Every token is the likeliest at its place.
    pub(crate) top1: bool,
    /// The token that is likeliest at the answer's first place.
    pub(crate) first: u32,
}

/// Of one record, the scores of new and true answer at three prompts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marks {
    pub(crate) prompt: [Score; 2],
    pub(crate) paraphrase: [Score; 2],
    pub(crate) neighbour: [Score; 2],
}

pub(crate) struct Meter<'a> {
    pub(crate) model: &'a Transformer,
    pub(crate) tokenizer: &'a Tokenizer,
}

impl Meter<'_> {
    fn row(&self, prompt: &str, answer: &str) -> Result<Row> {
        let before = self.tokenizer.encode(prompt)?.ids;
        let joined = self.tokenizer.encode(&format!("{prompt} {answer}"))?.ids;
        let answer = match joined.strip_prefix(before.as_slice()) {
            Some(rest) if !rest.is_empty() => rest.to_vec(),
            _ => self.tokenizer.encode(&format!(" {answer}"))?.ids,
        };
        let start = self.tokenizer.text_start();
        let mut ids: Vec<u32> = start.into_iter().chain(before).collect();
        let from = ids.len();
        ids.extend(answer);
        Ok(Row { ids, from })
    }

    /// The marks of each record, in order.
    pub(crate) fn marks(&self, records: &[Record]) -> Result<Vec<Marks>> {
        let mut rows = Vec::new();
        for record in records {
            let asked = [
                (&record.prompt, &record.ground_truth),
                (&record.rephrase_prompt, &record.ground_truth),
                (&record.locality_prompt, &record.locality_ground_truth),
            ];
            for (prompt, truth) in asked {
                rows.push(self.row(prompt, &record.target_new)?);
                rows.push(self.row(prompt, truth)?);
            }
        }
        let scores = self.scores(&rows)?;
        let (of_records, _) = scores.as_chunks::<6>();
        let marks = of_records.iter().map(|[a, b, c, d, e, f]| Marks {
            prompt: [*a, *b],
            paraphrase: [*c, *d],
            neighbour: [*e, *f],
        });
        Ok(marks.collect())
    }

    /// Rows of about one length go together; the answers are in the rows' order.
    fn scores(&self, rows: &[Row]) -> Result<Vec<Score>> {
        let mut order: Vec<(usize, &Row)> = rows.iter().enumerate().collect();
        order.sort_by_key(|(_, row)| row.ids.len());
        let mut scores = HashMap::new();
        for chunk in order.chunks(ROWS) {
            let own: Vec<&Row> = chunk.iter().map(|(_, row)| *row).collect();
            for ((place, _), score) in chunk.iter().zip(self.chunk(&own)?) {
                scores.insert(*place, score);
            }
        }
        Ok((0..rows.len())
            .filter_map(|place| scores.get(&place).copied())
            .collect())
    }

    fn chunk(&self, rows: &[&Row]) -> Result<Vec<Score>> {
        let _no_grad = NoGrad::new();
        let width = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
        let mut flat = Vec::with_capacity(rows.len() * width);
        let (mut places, mut answers) = (Vec::new(), Vec::new());
        for (at, row) in rows.iter().enumerate() {
            for (token, id) in row.ids.iter().enumerate().skip(row.from) {
                places.push((at * width + token - 1) as i64);
                answers.push(i64::from(*id));
            }
            flat.extend(row.ids.iter().map(|id| i64::from(*id)));
            flat.resize((at + 1) * width, 0);
        }
        let device = self.model.device();
        let ids = Tensor::f_from_slice(&flat)?
            .f_reshape([rows.len() as i64, width as i64])?
            .f_to_device(device)?;
        let hidden = self.model.forward_batch(&ids, &mut Pass::new())?;
        let wide = hidden.size3()?.2;
        let places = Tensor::f_from_slice(&places)?.f_to_device(device)?;
        let picked = hidden.f_reshape([-1, wide])?.f_index_select(0, &places)?;
        let logits = self.model.logits(&picked)?.f_log_softmax(-1, Kind::Float)?;
        let answers = Tensor::f_from_slice(&answers)?.f_to_device(device)?;
        let nll = logits
            .f_gather(1, &answers.f_unsqueeze(1)?, false)?
            .f_neg()?;
        let best = logits.f_argmax(1, false)?;
        let nll = Vec::<f32>::try_from(nll.f_reshape([-1])?)?;
        let best = Vec::<i64>::try_from(best)?;
        let answers = Vec::<i64>::try_from(answers)?;
        let mut at = 0;
        Ok(rows
            .iter()
            .map(|row| {
                let own = at..at + row.ids.len() - row.from;
                at = own.end;
                let nll = nll.get(own.clone()).unwrap_or_default();
                let best = best.get(own.clone()).unwrap_or_default();
                Score {
                    nll: nll.iter().map(|nll| f64::from(*nll)).sum::<f64>() / nll.len() as f64,
                    top1: best == answers.get(own).unwrap_or_default(),
                    first: best.first().map_or(0, |id| u32::try_from(*id).unwrap_or(0)),
                }
            })
            .collect())
    }

    /// Perplexity on the first `tokens` tokens of a text, in windows that each begin as a text begins.
    pub(crate) fn perplexity(&self, text: &str, tokens: usize) -> Result<f64> {
        let mut ids = self.tokenizer.encode(text)?.ids;
        ids.truncate(tokens);
        let start: Vec<u32> = self.tokenizer.text_start().into_iter().collect();
        let (mut sum, mut count) = (0.0, 0.0);
        for window in ids.chunks(WINDOW - start.len()) {
            let row = Row {
                ids: [start.as_slice(), window].concat(),
                from: 1,
            };
            let length = row.ids.len() as f64 - 1.0;
            if let [score] = self.chunk(&[&row])?.as_slice()
                && length > 0.0
            {
                sum += score.nll * length;
                count += length;
            }
        }
        Ok((sum / count).exp())
    }

    /// Mean over the records of ⅓·H₂ + ⅔·H₃ of what is written behind their prompts, in bits, times 100.
    pub(crate) fn fluency(&self, records: &[Record]) -> Result<Option<f64>> {
        let mut sum = 0.0;
        for (seed, record) in records.iter().enumerate() {
            let written = self.write(&record.prompt, seed as u64)?;
            sum += (entropy(&written, 2) + 2.0 * entropy(&written, 3)) / 3.0 * 100.0;
        }
        Ok((!records.is_empty()).then(|| sum / records.len() as f64))
    }

    fn write(&self, prompt: &str, seed: u64) -> Result<Vec<u32>> {
        let start = self.tokenizer.text_start();
        let ids: Vec<u32> = (start.into_iter())
            .chain(self.tokenizer.encode(prompt)?.ids)
            .collect();
        let mut sampler = Sampler::new(SamplingParams {
            temperature: 1.0,
            top_k: 5,
            seed,
            ..SamplingParams::default()
        })?;
        let mut kv = self.model.new_kv()?;
        let mut next = ids;
        let mut written = Vec::new();
        while written.len() < WRITTEN {
            let hidden = self.model.forward(Input::Ids(&next), &mut kv)?;
            let logits = self.model.logits(&hidden.f_select(0, -1)?)?;
            let id = sampler.sample(&logits, 0)?.id;
            written.push(id);
            next = vec![id];
        }
        Ok(written)
    }

    /// Logits behind each record's prompt, f32 `[records, V]`.
    pub(crate) fn logits(&self, records: &[Record]) -> Result<Tensor> {
        let mut rows = Vec::new();
        for record in records {
            let start = self.tokenizer.text_start();
            let ids: Vec<u32> = (start.into_iter())
                .chain(self.tokenizer.encode(&record.prompt)?.ids)
                .collect();
            let mut kv = self.model.new_kv()?;
            let hidden = self.model.forward(Input::Ids(&ids), &mut kv)?;
            rows.push(self.model.logits(&hidden.f_select(0, -1)?)?);
        }
        if rows.is_empty() {
            return Err(Error::Content("there are no records".to_owned()));
        }
        Ok(Tensor::f_stack(&rows, 0)?)
    }
}

/// Entropy of the text's n-grams, bits.
fn entropy(ids: &[u32], n: usize) -> f64 {
    let mut counts: HashMap<&[u32], f64> = HashMap::new();
    for gram in ids.windows(n) {
        *counts.entry(gram).or_default() += 1.0;
    }
    let total: f64 = counts.values().sum();
    counts
        .values()
        .map(|c| -(c / total) * (c / total).log2())
        .sum()
}
