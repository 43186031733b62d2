//! Beginnings that are put before a prompt, so that an edit holds in the middle of a text as well.
//!
//! They are sampled from the base model with a seed: the same model and settings give the same ones.

use addenda_model::tensor::NoGrad;
use addenda_model::tokenizer::Tokenizer;
use addenda_model::{Overlay, Pass, Sampler, SamplingParams, Transformer};
use tch::Tensor;

use crate::error::{Error, Result};
use crate::pace::{Pace, Phase, Progress};
use crate::rows::{index, padded};
use crate::settings::ValueSettings;
use crate::subject::text_tokens;

/// How the sampled sentences open.
const OPENINGS: [&str; 5] = ["The", "Therefore", "Because", "I", "You"];

/// The contexts, the bare prompt's empty one first.
pub(crate) fn sample(
    model: &Transformer,
    tokenizer: &Tokenizer,
    settings: &ValueSettings,
    pace: &mut Pace<'_>,
) -> Result<Vec<String>> {
    let base = Overlay::base();
    let mut contexts = vec![String::new()];
    for (number, opening) in OPENINGS.iter().cycle().take(settings.contexts).enumerate() {
        pace(Progress {
            phase: Phase::Contexts,
            done: number as u64,
            total: settings.contexts as u64,
        })?;
        let seed = settings.seed.wrapping_add(number as u64);
        contexts.push(sentence(
            model,
            tokenizer,
            &base,
            opening,
            settings.context_tokens,
            seed,
        )?);
    }
    Ok(contexts)
}

fn sentence(
    model: &Transformer,
    tokenizer: &Tokenizer,
    base: &Overlay,
    opening: &str,
    tokens: usize,
    seed: u64,
) -> Result<String> {
    let _no_grad = NoGrad::new();
    let mut ids = text_tokens(tokenizer, opening)?;
    let begun = ids.len();
    let params = SamplingParams {
        temperature: 1.0,
        top_k: 40,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        seed,
    };
    let mut sampler = Sampler::new(params)?;
    for _ in 0..tokens {
        let hidden = model.forward_batch(&padded(&[&ids], model)?, &mut Pass::new().under(base))?;
        let last: Tensor = hidden
            .f_select(0, 0)
            .and_then(|row| row.f_select(0, index(ids.len() - 1)))
            .map_err(Error::torch("sampling contexts"))?;
        let sampled = sampler.sample(&model.logits(&last)?, 0)?;
        if tokenizer.is_end(sampled.id) {
            break;
        }
        ids.push(sampled.id);
    }
    let text = format!(
        "{opening}{}",
        tokenizer.decode(ids.get(begun..).unwrap_or_default())?
    );
    // A character that was cut, a line end or braces of its own would say something about the prompt's form.
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
    Ok(format!(
        "{}. ",
        plain
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .trim_end_matches(['.', ' '])
    ))
}
