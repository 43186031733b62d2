//! Many clients of one daemon at once, over gRPC: tokens a second in all against one client's, and the pauses between
//! tokens while somebody else's long prompt is computed.
//!
//! Each client has a prompt of its own, so that none shares another's beginning.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use addenda_model::{ModelFiles, Tokenizer};
use addenda_proto::addenda::v1::{Completion, GenerateRequest, generate_request::Prompt};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::daemon::{Daemon, listen};
use crate::error::{Error, Result};
use crate::prefill::median;
use crate::text;

/// Tokens that each of those who are disturbed has heard before the long prompt comes.
const HEARD_BEFORE: usize = 8;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A model's path or its name in the catalogue.
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// Clients at once.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Tokens of each client's prompt.
    #[arg(long, default_value_t = 256)]
    prompt_tokens: usize,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 128)]
    answer_tokens: u32,
    /// Clients whose pauses between tokens are measured.
    #[arg(long, default_value_t = 8)]
    listeners: usize,
    /// Tokens of the long prompt that comes while they listen; 0: none does.
    #[arg(long, default_value_t = 4096)]
    long_tokens: usize,
    /// Runs of each; the median is shown.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Further flags of `addenda serve`, such as `--serve-flag=--weights=int8`.
    #[arg(long)]
    serve_flag: Vec<String>,
    /// One line of JSON (there is no other form yet).
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<serde_json::Value> {
    crate::block_on(measure(arguments))
}

async fn measure(arguments: &Arguments) -> Result<serde_json::Value> {
    let folder = crate::temporary_folder()?;
    let tokenizer = ModelFiles::open(&crate::resolve(&arguments.model)?)?.tokenizer;
    let daemon = Daemon::start(&arguments.model, folder.path(), &arguments.serve_flag).await?;
    let mut bench = Bench {
        daemon,
        tokenizer,
        texts: 0,
    };
    let (mut one, mut many) = (Vec::new(), Vec::new());
    let (mut calm, mut disturbed) = (Vec::new(), Vec::new());
    for run in 0..arguments.runs.max(1) {
        one.push(bench.rate(1, arguments).await?);
        many.push(bench.rate(arguments.clients, arguments).await?);
        if arguments.long_tokens > 0 {
            calm.push(bench.pauses(arguments, 0).await?);
            disturbed.push(bench.pauses(arguments, arguments.long_tokens).await?);
        }
        eprint!("\rruns {}/{}", run + 1, arguments.runs.max(1));
    }
    eprintln!();
    let (one, many) = (median(one.into_iter()), median(many.into_iter()));
    let p99 = |runs: &[f64]| (!runs.is_empty()).then(|| median(runs.iter().copied()) * 1e3);
    let (calm, disturbed) = (p99(&calm), p99(&disturbed));
    Ok(json!({
        "model": arguments.model, "clients": arguments.clients, "runs": arguments.runs,
        "prompt_tokens": arguments.prompt_tokens, "answer_tokens": arguments.answer_tokens,
        "one_tokens_per_s": one, "many_tokens_per_s": many, "many_vs_one": many / one,
        "listeners": arguments.listeners, "long_tokens": arguments.long_tokens,
        "itl_p99_ms": calm, "itl_p99_beside_prefill_ms": disturbed,
        "itl_ratio": calm.zip(disturbed).map(|(calm, disturbed)| disturbed / calm),
    }))
}

struct Bench {
    daemon: Daemon,
    tokenizer: Tokenizer,
    /// Texts made so far: each is another.
    texts: u64,
}

impl Bench {
    fn request(&mut self, tokens: usize, answer: u32) -> Result<GenerateRequest> {
        self.texts += 1;
        let text = text::prose(&self.tokenizer, tokens, self.texts)?;
        Ok(GenerateRequest {
            prompt: Some(Prompt::Completion(Completion { text })),
            max_tokens: answer,
            ..GenerateRequest::default()
        })
    }

    /// Tokens a second, of all answers together, from the first request to the last token.
    async fn rate(&mut self, clients: usize, arguments: &Arguments) -> Result<f64> {
        let mut requests = Vec::new();
        for _ in 0..clients {
            requests.push(self.request(arguments.prompt_tokens, arguments.answer_tokens)?);
        }
        let started = Instant::now();
        let mut answers = JoinSet::new();
        for request in requests {
            let client = self.daemon.generation();
            answers.spawn(async move {
                let mut tokens = 0_u32;
                listen(client, request, || tokens += 1).await?;
                Ok::<u32, Error>(tokens)
            });
        }
        let mut tokens = 0;
        while let Some(answer) = answers.join_next().await {
            tokens += answer.map_err(|error| Error::Daemon(error.to_string()))??;
        }
        Ok(f64::from(tokens) / started.elapsed().as_secs_f64())
    }

    /// The 99th percentile of the pauses between two tokens of one answer, in seconds; with a long prompt, of those
    /// that ended while it was computed.
    async fn pauses(&mut self, arguments: &Arguments, long_tokens: usize) -> Result<f64> {
        let heard = Arc::new(Semaphore::new(0));
        let mut listeners = JoinSet::new();
        let mut all_times = Vec::new();
        for _ in 0..arguments.listeners.max(1) {
            let times = Arc::new(Mutex::new(Vec::new()));
            all_times.push(Arc::clone(&times));
            let request = self.request(64, 1024)?;
            let (client, heard) = (self.daemon.generation(), Arc::clone(&heard));
            listeners.spawn(async move {
                listen(client, request, || {
                    let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
                    times.push(Instant::now());
                    if times.len() == HEARD_BEFORE {
                        heard.add_permits(1);
                    }
                })
                .await
            });
        }
        let count = u32::try_from(all_times.len()).unwrap_or(u32::MAX);
        let all_heard = heard.acquire_many(count).await;
        drop(all_heard.map_err(|error| Error::Daemon(error.to_string()))?);
        let begin = Instant::now();
        if long_tokens > 0 {
            let request = self.request(long_tokens, 1)?;
            self.daemon.generate(request).await?;
        } else {
            // What is measured is this stretch of time.
            tokio::time::sleep(CALM).await;
        }
        let end = Instant::now();
        // Who goes is noticed by the daemon, and frees its place.
        listeners.shutdown().await;
        let mut pauses = Vec::new();
        for times in all_times {
            let times = times.lock().unwrap_or_else(PoisonError::into_inner);
            for (before, after) in times.iter().zip(times.iter().skip(1)) {
                if *after > begin && *before < end {
                    pauses.push((*after - *before).as_secs_f64());
                }
            }
        }
        pauses.sort_by(f64::total_cmp);
        let place = pauses.len().saturating_sub(1) * 99 / 100;
        let p99 = pauses.get(place).copied();
        p99.ok_or_else(|| Error::Daemon("no token was heard".to_owned()))
    }
}

/// How long pauses are measured where nothing disturbs.
const CALM: Duration = Duration::from_secs(5);
