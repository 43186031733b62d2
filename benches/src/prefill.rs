//! Tokens a second of the model itself: full prefill of one prompt, and decoding behind it.
//!
//! Without a daemon, so that the figures stand beside those of libraries that have none.

use std::time::Instant;

use addenda_model::{Input, ModelFiles, SequenceKv, Transformer, tensor};
use serde_json::json;

use crate::error::{Error, Result};
use crate::text;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A model's path or its name in the catalogue.
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// Lengths of the prompt, tokens.
    #[arg(long, value_delimiter = ',', default_value = "512,2048,4096")]
    tokens: Vec<usize>,
    /// Tokens to decode behind each prompt.
    #[arg(long, default_value_t = 32)]
    decode: usize,
    /// Runs of each length; the median is shown.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// "bf16" or "f32".
    #[arg(long, default_value = "bf16")]
    dtype: String,
    /// Tokens computed in one pass.
    #[arg(long, default_value_t = 512)]
    chunk: usize,
    /// Computing threads; 0 takes one a core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// One line of JSON (there is no other form yet).
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<serde_json::Value> {
    let threads = match arguments.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads,
    };
    tensor::set_threads(threads);
    let path = crate::resolve(&arguments.model)?;
    let files = ModelFiles::open(&path)?;
    let kind = tensor::parse_kind(&arguments.dtype)?;
    let model = Transformer::load(files.config, files.weights, tch::Device::Cpu, kind)?;
    let mut prefill = Vec::new();
    let mut decode = Vec::new();
    for &tokens in &arguments.tokens {
        let text = text::prose(&files.tokenizer, tokens, 1)?;
        let ids = files.tokenizer.encode(&text)?.ids;
        let mut runs = Vec::new();
        for _ in 0..arguments.runs.max(1) {
            runs.push(once(&model, &ids, arguments)?);
        }
        prefill.push(median(runs.iter().map(|run| run.0)));
        decode.push(median(runs.iter().map(|run| run.1)));
    }
    Ok(json!({
        "model": arguments.model, "dtype": arguments.dtype, "threads": threads,
        "chunk": arguments.chunk, "runs": arguments.runs, "tokens": arguments.tokens,
        "prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode,
    }))
}

/// Prefill and decode rates of one run, tokens per second.
fn once(model: &Transformer, ids: &[u32], arguments: &Arguments) -> Result<(f64, f64)> {
    let mut kv = model.new_kv()?;
    let started = Instant::now();
    let mut hidden = None;
    for chunk in ids.chunks(arguments.chunk.max(1)) {
        hidden = Some(model.forward(Input::Ids(chunk), &mut kv)?);
    }
    let hidden = hidden.ok_or_else(|| Error::Config("a prompt needs tokens".to_owned()))?;
    let mut next = greedy(model, &hidden)?;
    let prefill = ids.len() as f64 / started.elapsed().as_secs_f64();
    let started = Instant::now();
    for _ in 0..arguments.decode {
        next = step(model, next, &mut kv)?;
    }
    let decode = arguments.decode as f64 / started.elapsed().as_secs_f64();
    Ok((prefill, decode))
}

fn step(model: &Transformer, id: u32, kv: &mut SequenceKv) -> Result<u32> {
    let hidden = model.forward(Input::Ids(&[id]), kv)?;
    greedy(model, &hidden)
}

fn greedy(model: &Transformer, hidden: &tch::Tensor) -> Result<u32> {
    let logits = model.logits(&hidden.f_select(0, -1)?)?;
    let best = logits.f_argmax(-1, false)?.f_int64_value(&[])?;
    Ok(u32::try_from(best).unwrap_or(0))
}

/// The middle value; of an even number the lower middle one.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or(f64::NAN)
}
