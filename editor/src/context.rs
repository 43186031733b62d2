//! Beginnings that are put before a prompt, so that an edit holds in the middle of a text as well.
//!
//! They are sampled from the base model with a seed: the same model and settings give the same ones.

use crate::error::{Error, Result};
use crate::pace::{Pace, Phase, Progress};
use crate::rows::{index, padded, pick};
use crate::settings::ValueSettings;
use crate::subject::text_tokens;
use addenda_model::tensor::NoGrad;
use addenda_model::tokenizer::Tokenizer;
use addenda_model::{Overlay, Pass, Sampler, SamplingParams, Transformer};

const ACTION: &str = "sampling contexts";

/// How the sampled sentences open.
const OPENINGS: [&str; 5] = ["The", "Therefore", "Because", "I", "You"];

/// A beginning as it grows.
struct Growing {
    opening: &'static str,
    ids: Vec<u32>,
    begun: usize,
    sampler: Sampler,
    ended: bool,
}

/// The contexts, the bare prompt's empty one first.
pub(crate) fn sample(
    model: &Transformer,
    tokenizer: &Tokenizer,
    settings: &ValueSettings,
    pace: &mut Pace<'_>,
) -> Result<Vec<String>> {
    let mut growing = Vec::new();
    for (number, opening) in OPENINGS
        .into_iter()
        .cycle()
        .take(settings.contexts)
        .enumerate()
    {
        let ids = text_tokens(tokenizer, opening)?;
        let sampler = Sampler::new(SamplingParams {
            temperature: 1.0,
            top_k: 40,
            seed: settings.seed.wrapping_add(number as u64),
            ..SamplingParams::default()
        })?;
        let begun = ids.len();
        growing.push(Growing {
            opening,
            ids,
            begun,
            sampler,
            ended: false,
        });
    }
    for done in 0..settings.context_tokens {
        let total = settings.context_tokens as u64;
        pace(Progress {
            phase: Phase::Contexts,
            done: done as u64,
            total,
        })?;
        grow(model, tokenizer, &mut growing)?;
    }
    let sentences = growing.iter().map(|growing| growing.sentence(tokenizer));
    std::iter::once(Ok(String::new()))
        .chain(sentences)
        .collect()
}

/// One more token for each, by the base weights.
fn grow(model: &Transformer, tokenizer: &Tokenizer, growing: &mut [Growing]) -> Result<()> {
    if growing.is_empty() {
        return Ok(());
    }
    let _no_grad = NoGrad::new();
    let rows: Vec<&[u32]> = growing
        .iter()
        .map(|growing| growing.ids.as_slice())
        .collect();
    let ends = rows
        .iter()
        .enumerate()
        .map(|(row, ids)| (index(row), index(ids.len().saturating_sub(1))));
    let ends: Vec<(i64, i64)> = ends.collect();
    let base = Overlay::base();
    let hidden = model.forward_batch(&padded(&rows, model)?, &mut Pass::new().under(&base))?;
    let logits = model.logits(&pick(&hidden, &ends).map_err(Error::torch(ACTION))?)?;
    for (row, growing) in growing.iter_mut().enumerate() {
        let logits = logits
            .f_select(0, index(row))
            .map_err(Error::torch(ACTION))?;
        let id = growing.sampler.sample(&logits, 0)?.id;
        growing.ended |= tokenizer.is_end(id);
        if !growing.ended {
            growing.ids.push(id);
        }
    }
    Ok(())
}

impl Growing {
    fn sentence(&self, tokenizer: &Tokenizer) -> Result<String> {
        let sampled = tokenizer.decode(self.ids.get(self.begun..).unwrap_or_default())?;
        let text = format!("{}{sampled}", self.opening);
        // A character that was cut, a line end or control characters would break the prompt's form.
        let plain: String = text
            .chars()
            .map(|c| {
                if c.is_control() || c == '\u{FFFD}' {
                    ' '
                } else {
                    c
                }
            })
            .collect();
        let plain = plain.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(format!("{}. ", plain.trim_end_matches(['.', ' '])))
    }
}
