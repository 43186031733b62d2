//! Perplexity of a text when it is decoded, a token at a time, with the weights as they were loaded and
//! packed: what packing costs.

use addenda_model::{SequenceKv, Transformer};
use serde_json::{Map, Value, json};
use tch::Kind;

use crate::Opened;
use crate::error::Result;
use crate::prefill::Weights;

/// Sequences that are decoded together.
const TOGETHER: usize = 16;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A model's path or its name in the catalogue.
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// A text, such as WikiText-2's.
    #[arg(long)]
    path: std::path::PathBuf,
    /// The first tokens of it that count.
    #[arg(long, default_value_t = 16_384)]
    tokens: usize,
    /// Tokens that are read in one context; the text is cut into such pieces.
    #[arg(long, default_value_t = 512)]
    context: usize,
    /// "bf16" or "f32".
    #[arg(long, default_value = "bf16")]
    dtype: String,
    /// What to decode with, one after the other.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "loaded,int8,int4"
    )]
    weights: Vec<Weights>,
    /// One line of JSON (there is no other form yet).
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Value> {
    let text = crate::read_text(&arguments.path)?;
    let Opened {
        mut model,
        tokenizer,
        ..
    } = crate::open(&arguments.model, &arguments.dtype, 0)?;
    let mut ids = tokenizer.encode(&text)?.ids;
    ids.truncate(arguments.tokens);
    let start = tokenizer.text_start();
    let mut line = Map::new();
    line.insert("model".to_owned(), json!(arguments.model));
    line.insert("tokens".to_owned(), json!(ids.len()));
    let mut loaded = None;
    for weights in &arguments.weights {
        model.pack(weights.packing())?;
        let pieces: Vec<&[u32]> = ids.chunks(arguments.context.max(2)).collect();
        let mut sum = (0.0, 0);
        for batch in pieces.chunks(TOGETHER) {
            let (nats, count) = read(&model, batch, start)?;
            sum = (sum.0 + nats, sum.1 + count);
            eprint!("\r\x1b[K{weights:?} {}/{}", sum.1, ids.len());
        }
        eprintln!();
        let perplexity = (sum.0 / f64::from(sum.1)).exp();
        let against = *loaded.get_or_insert(perplexity);
        let name = format!("{weights:?}").to_lowercase();
        line.insert(name.clone(), json!(perplexity));
        line.insert(format!("{name}_ratio"), json!(perplexity / against));
    }
    Ok(Value::Object(line))
}

/// Σ −ln p of all tokens of `pieces` but each one's first, nats, and how many they are. Each piece is a
/// context of its own.
fn read(model: &Transformer, pieces: &[&[u32]], start: Option<u32>) -> Result<(f64, u32)> {
    let mut contexts = Vec::new();
    for piece in pieces {
        let ids: Vec<u32> = start.into_iter().chain(piece.iter().copied()).collect();
        contexts.push((model.new_kv()?, ids));
    }
    let (mut nats, mut count) = (0.0, 0);
    for step in 0.. {
        let live = contexts.iter_mut().filter_map(|(kv, ids)| {
            let (&now, &next) = (ids.get(step)?, ids.get(step + 1)?);
            Some((kv, now, next))
        });
        let mut kvs: Vec<&mut SequenceKv> = Vec::new();
        let (mut now, mut next) = (Vec::new(), Vec::new());
        for (kv, this, that) in live {
            kvs.push(kv);
            now.push(this);
            next.push(i64::from(that));
        }
        if kvs.is_empty() {
            break;
        }
        let hidden = model.decode(&now, &mut kvs)?;
        let logprobs = model
            .decode_logits(&hidden)?
            .f_log_softmax(-1, Kind::Float)?;
        let next = tch::Tensor::f_from_slice(&next)?.f_unsqueeze(-1)?;
        let own = logprobs.f_gather(-1, &next, false)?;
        nats -= own.f_sum(Kind::Double)?.f_double_value(&[])?;
        count += u32::try_from(now.len()).unwrap_or(u32::MAX);
    }
    Ok((nats, count))
}
