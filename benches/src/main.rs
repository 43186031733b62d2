//! `addenda-bench`: measures Addenda as its users meet it, and prints one line of JSON a run.
//!
//! Owns what is asked and how it is timed; what is measured is the same code, and for anything that
//! users wait for, the same daemon over gRPC. Figures of one run belong together; those of two runs
//! on a shared machine do not.

mod beams;
mod clients;
mod daemon;
mod edit;
mod error;
mod pages;
mod perplexity;
mod prefill;
mod quality;
mod random;
mod shape;
mod soak;
mod store;
mod text;
mod ttft;

use std::process::ExitCode;

use addenda_model::tensor;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "addenda-bench", version, about = "Measures Addenda")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Time to the first token from packets against full prefill, over gRPC, in a fresh daemon.
    Ttft(ttft::Arguments),
    /// Each mode's answers beside full prefill's, on held-out questions about documents.
    Quality(quality::Arguments),
    /// Facts of a file written into the weights: do they hold, do they spare the rest, what do they cost.
    Edit(Box<edit::Arguments>),
    /// Many clients of one daemon at once: their rate, and how even it stays beside a long prompt.
    Clients(clients::Arguments),
    /// Beam search beside greedy decoding: tokens a second and memory.
    Beams(beams::Arguments),
    /// Tokens a second of full prefill and of decoding, without a daemon.
    Prefill(prefill::Arguments),
    /// The store of packets beside plain files with fsync, in the same run, without a daemon.
    Store(store::Arguments),
    /// A model of a given shape with random weights, on any device: packets, decoding and loading beside what memory allows.
    Shape(shape::Arguments),
    /// Mixed traffic for a while: no error, no leak, nothing left running.
    Soak(soak::Arguments),
    /// What packed weights cost: perplexity of a text that is decoded token by token.
    Perplexity(perplexity::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    addenda::process::start_over_prepared();
    let line = match arguments.what {
        What::Ttft(arguments) => ttft::run(&arguments),
        What::Quality(arguments) => quality::run(&arguments),
        What::Edit(arguments) => edit::run(&arguments),
        What::Clients(arguments) => clients::run(&arguments),
        What::Beams(arguments) => beams::run(&arguments),
        What::Prefill(arguments) => prefill::run(&arguments),
        What::Shape(arguments) => shape::run(&arguments),
        What::Soak(arguments) => soak::run(&arguments),
        What::Store(arguments) => store::run(&arguments),
        What::Perplexity(arguments) => perplexity::run(&arguments),
    };
    match line {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("addenda-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The files of a model: a path, or a name in the catalogue whose files were fetched.
fn resolve(model: &str) -> error::Result<std::path::PathBuf> {
    Ok(addenda_model::catalogue::resolve(model, &cache_dir()?)?)
}

/// The cache directory of this user.
fn cache_dir() -> error::Result<std::path::PathBuf> {
    let config = |error: addenda::config::ConfigError| error::Error::Config(error.to_string());
    let inputs = addenda::config::Inputs::from_process(None, Vec::new()).map_err(config)?;
    Ok(addenda::config::load(&inputs)
        .map_err(config)?
        .config
        .cache_dir)
}

/// A model on the CPU, without a daemon, and what of its files is left.
struct Opened {
    model: addenda_model::Transformer,
    tokenizer: addenda_model::Tokenizer,
    fingerprint: [u8; 32],
    /// Computing threads.
    threads: usize,
}

/// Loads a model to compute in `dtype` on so many threads; 0 takes one a core.
fn open(model: &str, dtype: &str, threads: usize) -> error::Result<Opened> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads,
    };
    tensor::set_threads(threads);
    let files = addenda_model::ModelFiles::open(&resolve(model)?)?;
    let kind = tensor::parse_kind(dtype)?;
    let cpu = tch::Device::Cpu;
    Ok(Opened {
        model: addenda_model::Transformer::load(files.config, files.weights, cpu, kind)?,
        tokenizer: files.tokenizer,
        fingerprint: files.fingerprint,
        threads,
    })
}

/// The text of a file.
fn read_text(path: &std::path::Path) -> error::Result<String> {
    std::fs::read_to_string(path).map_err(error::io(&path.display()))
}

/// A folder that goes with its last user.
fn temporary_folder() -> error::Result<tempfile::TempDir> {
    tempfile::tempdir().map_err(error::io("a temporary folder"))
}

/// Runs a measurement that talks to a daemon.
fn block_on<T>(work: impl Future<Output = error::Result<T>>) -> error::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(error::io("the runtime"))?;
    runtime.block_on(work)
}
