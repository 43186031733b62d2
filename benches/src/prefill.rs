//! Tokens a second of the model itself: full prefill of one prompt, and decoding behind it.
//!
//! Without a daemon, so that the figures stand beside those of libraries that have none.

use std::time::Instant;

use addenda_model::{Packing, SequenceKv, Transformer};
use serde_json::json;

use crate::error::{Error, Result};
use crate::{Opened, text};

/// What decode steps read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Weights {
    Loaded,
    Int8,
    Int4,
}

impl Weights {
    /// As the model takes it.
    pub(crate) fn packing(self) -> Option<Packing> {
        match self {
            Self::Loaded => None,
            Self::Int8 => Some(Packing::Int8),
            Self::Int4 => Some(Packing::Int4),
        }
    }
}

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
    /// What decode steps read: "loaded" (as `--dtype` says), "int8" or "int4".
    #[arg(long, value_enum, default_value = "loaded")]
    weights: Weights,
    /// Sequences that decode at once, all with the same prompt.
    #[arg(long, default_value_t = 1)]
    batch: usize,
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
    let Opened {
        mut model,
        tokenizer,
        threads,
        ..
    } = crate::open(&arguments.model, &arguments.dtype, arguments.threads)?;
    let packed_bytes = model.pack(arguments.weights.packing())?;
    let model = model;
    let mut prefill = Vec::new();
    let mut decode = Vec::new();
    for &tokens in &arguments.tokens {
        let text = text::prose(&tokenizer, tokens, 1)?;
        let ids = tokenizer.encode(&text)?.ids;
        let mut runs = Vec::new();
        for _ in 0..arguments.runs.max(1) {
            runs.push(once(&model, &ids, arguments)?);
        }
        prefill.push(median(runs.iter().map(|run| run.0)));
        decode.push(median(runs.iter().map(|run| run.1)));
    }
    let copied = copied(threads);
    let bytes = match packed_bytes {
        0 => 2.0 * model.parameters() as f64 * if arguments.dtype == "f32" { 2.0 } else { 1.0 },
        packed => packed as f64,
    };
    // Of all sequences' tokens a step reads the weights once.
    let of_limit: Vec<f64> = (decode.iter())
        .map(|rate| rate / arguments.batch.max(1) as f64 * bytes / copied)
        .collect();
    Ok(json!({
        "model": arguments.model, "dtype": arguments.dtype, "threads": threads,
        "chunk": arguments.chunk, "runs": arguments.runs, "tokens": arguments.tokens,
        "weights": format!("{:?}", arguments.weights).to_lowercase(), "packed_bytes": packed_bytes,
        "batch": arguments.batch,
        "prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode,
        "copied_gb_per_s": copied / 1e9, "decode_of_limit": of_limit,
    }))
}

/// Bytes a second that are copied in memory by as many threads: what a step that reads every weight once is held against.
fn copied(threads: usize) -> f64 {
    const EACH: usize = 128 << 20;
    let mut memory: Vec<(Vec<u8>, Vec<u8>)> = (0..threads.max(1))
        .map(|_| (vec![1; EACH], vec![0; EACH]))
        .collect();
    let mut rates = Vec::new();
    for _ in 0..7 {
        let started = Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in &mut memory {
                scope.spawn(|| std::hint::black_box(to).copy_from_slice(from));
            }
        });
        rates.push((EACH * memory.len()) as f64 / started.elapsed().as_secs_f64());
    }
    median(rates.into_iter())
}

/// Prefill and decode rates of one run, tokens per second.
fn once(model: &Transformer, ids: &[u32], arguments: &Arguments) -> Result<(f64, f64)> {
    let mut kv = model.new_kv()?;
    let started = Instant::now();
    let mut hidden = None;
    for chunk in ids.chunks(arguments.chunk.max(1)) {
        hidden = Some(model.prefill(chunk, &mut kv)?);
    }
    let hidden = hidden.ok_or_else(|| Error::Config("a prompt needs tokens".to_owned()))?;
    let last = hidden.f_narrow(0, -1, 1)?;
    let first = greedy(&model.decode_logits(&last)?)?;
    let prefill = ids.len() as f64 / started.elapsed().as_secs_f64();
    // The same prompt, shared; what follows is each sequence's own.
    let mut kvs = vec![kv];
    while kvs.len() < arguments.batch
        && let Some(kv) = kvs.first_mut()
    {
        let branch = kv.branch()?;
        kvs.push(branch);
    }
    let mut next = first.repeat(kvs.len());
    let started = Instant::now();
    for _ in 0..arguments.decode {
        let mut borrowed: Vec<&mut SequenceKv> = kvs.iter_mut().collect();
        let hidden = model.decode(&next, &mut borrowed)?;
        next = greedy(&model.decode_logits(&hidden)?)?;
    }
    let tokens = arguments.decode * kvs.len();
    Ok((prefill, tokens as f64 / started.elapsed().as_secs_f64()))
}

/// The likeliest id in each of `logits [rows, vocab]`.
pub(crate) fn greedy(logits: &tch::Tensor) -> Result<Vec<u32>> {
    let best = logits.f_argmax(-1, false)?.f_to_device(tch::Device::Cpu)?;
    let best = Vec::<i64>::try_from(best)?;
    let ids = best.into_iter().map(|id| u32::try_from(id).unwrap_or(0));
    Ok(ids.collect())
}

/// The middle value; of an even number the lower middle one.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or(f64::NAN)
}
