//! Beam search beside greedy decoding, over gRPC: tokens a second, and memory for keys and values.

use std::time::Duration;

use addenda_model::{ModelFiles, Tokenizer};
use addenda_proto::addenda::v1::{Completion, GenerateRequest, generate_request::Prompt};
use serde_json::json;

use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::prefill::median;
use crate::text;

/// How often the memory is looked at.
const LOOK: Duration = Duration::from_millis(10);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A model's path or its name in the catalogue.
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// Continuations that are followed at once.
    #[arg(long, default_value_t = 4)]
    beams: u32,
    /// Tokens of each prompt; each is another.
    #[arg(long, default_value_t = 1024)]
    prompt_tokens: usize,
    /// Tokens of each answer at most.
    #[arg(long, default_value_t = 128)]
    answer_tokens: u32,
    /// Runs of each, in turn; the median is shown.
    #[arg(long, default_value_t = 5)]
    runs: u64,
    /// One line of JSON (there is no other form yet).
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<serde_json::Value> {
    crate::block_on(measure(arguments))
}

/// Of one answer.
#[derive(Clone, Copy)]
struct Seen {
    tokens: f64,
    /// From the request to the summary.
    tokens_per_s: f64,
    /// The most that all contexts took.
    kv_bytes: f64,
}

async fn measure(arguments: &Arguments) -> Result<serde_json::Value> {
    let folder = crate::temporary_folder()?;
    let tokenizer = ModelFiles::open(&crate::resolve(&arguments.model)?)?.tokenizer;
    // Memory is to be that of what runs.
    let flags = ["--max-prefix-bytes=0".to_owned()];
    let daemon = Daemon::start(&arguments.model, folder.path(), &flags).await?;
    let (mut greedy, mut beams) = (Vec::new(), Vec::new());
    for run in 0..arguments.runs {
        for (number, (seen, wanted)) in [(&mut greedy, 0), (&mut beams, arguments.beams)]
            .into_iter()
            .enumerate()
        {
            let request = request(&tokenizer, arguments, 2 * run + number as u64, wanted)?;
            seen.push(answer(&daemon, request).await?);
        }
        eprintln!("runs {}/{}", run + 1, arguments.runs);
    }
    let of = |seen: &[Seen], pick: fn(&Seen) -> f64| median(seen.iter().map(pick));
    let rates = [&greedy, &beams].map(|seen| of(seen, |seen| seen.tokens_per_s));
    let bytes = [&greedy, &beams].map(|seen| of(seen, |seen| seen.kv_bytes));
    Ok(json!({
        "model": arguments.model, "beams": arguments.beams, "runs": arguments.runs,
        "prompt_tokens": arguments.prompt_tokens, "answer_tokens": arguments.answer_tokens,
        "greedy_tokens_per_s": rates[0], "beams_tokens_per_s": rates[1],
        "rate_ratio": rates[1] / rates[0],
        "greedy_kv_bytes": bytes[0], "beams_kv_bytes": bytes[1], "kv_ratio": bytes[1] / bytes[0],
        "greedy_answer_tokens": of(&greedy, |seen| seen.tokens),
        "beams_answer_tokens": of(&beams, |seen| seen.tokens),
    }))
}

fn request(
    tokenizer: &Tokenizer,
    arguments: &Arguments,
    seed: u64,
    num_beams: u32,
) -> Result<GenerateRequest> {
    let text = text::prose(tokenizer, arguments.prompt_tokens, seed + 1)?;
    Ok(GenerateRequest {
        prompt: Some(Prompt::Completion(Completion { text })),
        max_tokens: arguments.answer_tokens,
        num_beams,
        ..GenerateRequest::default()
    })
}

/// One answer, while the daemon's memory is looked at.
async fn answer(daemon: &Daemon, request: GenerateRequest) -> Result<Seen> {
    let mut most = 0.0_f64;
    let answering = daemon.generate(request);
    tokio::pin!(answering);
    let answer = loop {
        tokio::select! {
            answer = &mut answering => break answer?,
            () = tokio::time::sleep(LOOK) => {
                let page = daemon.metrics().await?;
                let bytes = page.lines().find_map(|line| line.strip_prefix("addenda_kv_bytes "));
                let bytes = bytes.and_then(|bytes| bytes.parse().ok());
                most = most.max(bytes.ok_or_else(|| {
                    Error::Daemon("its metrics say nothing about KV memory".to_owned())
                })?);
            }
        }
    };
    let tokens = f64::from(answer.summary.generated_tokens);
    Ok(Seen {
        tokens,
        tokens_per_s: tokens / (answer.summary.total_ms / 1e3),
        kv_bytes: most,
    })
}
