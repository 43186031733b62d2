//! `addenda model`: which model is served, which are known, and bringing one here.

use std::path::Path;
use std::process::ExitCode;

use addenda_model::catalogue::{self, FetchProgress};
use addenda_proto::addenda::v1::{InfoRequest, InfoResponse, PrepareRequest};
use clap::Subcommand;
use indicatif::ProgressBar;
use serde_json::json;

use super::client::{Client, block_on};
use super::console::Console;
use super::error::Result;
use super::job::finish;
use super::table::{fields, table};
use super::text::{grouped, utc};
use crate::config::{Config, format_bytes};

mod locate;

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Show the model that the daemon serves, its revision and limits
    Info,
    /// List the models of the catalogue, and whether they are here
    List,
    /// Measure ahead what edits need of the served model, so that the first fact need not wait for it; goes on where it
    /// was stopped, and is done once for each model
    Prepare {
        /// memit, rome, alphaedit, all, or what the daemon takes for its model
        #[arg(long, value_name = "METHOD", default_value = "auto", value_parser = ["auto", "memit", "rome", "alphaedit", "all"])]
        method: String,
    },
    /// Find the layers that carry facts, by causal tracing over facts that the model knows, and show what was found;
    /// without --known, show what was found last
    Locate(locate::LocateArgs),
    /// Bring models into the cache directory; what is here already is left as it is
    Fetch {
        /// Names of the catalogue, or OWNER/NAME of a Hugging Face repository
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

impl ModelCommand {
    pub(crate) fn run(self, config: &Config, console: &mut Console) -> Result<ExitCode> {
        match self {
            Self::Info => block_on(info(&config.connect, console))?,
            Self::List => list(&config.cache_dir, console)?,
            Self::Locate(args) => block_on(args.run(&config.connect, console))?,
            Self::Prepare { method } => block_on(prepare(&config.connect, method, console))?,
            Self::Fetch { names } => {
                for name in names {
                    fetch(&name, &config.cache_dir, console)?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Makes sure that a model is here, and brings it if it is not.
pub(crate) fn present(name: &str, config: &Config, console: &mut Console) -> Result<()> {
    if catalogue::resolve(name, &config.cache_dir).is_err() {
        bring(name, &config.cache_dir, console)?;
    }
    Ok(())
}

fn fetch(name: &str, cache_dir: &Path, console: &mut Console) -> Result<()> {
    let here = catalogue::resolve(name, cache_dir).is_ok();
    let path = bring(name, cache_dir, console)?;
    if console.json() {
        let object = json!({ "name": name, "path": path, "fetched": !here });
        return console.line(&object.to_string());
    }
    let done = if here { "is here already" } else { "fetched" };
    console.line(&format!("{name}: {done}: {path}"))
}

fn bring(name: &str, cache_dir: &Path, console: &mut Console) -> Result<String> {
    let bar = console.bytes(name);
    let path = catalogue::fetch(name, cache_dir, &mut |progress| draw(&bar, name, progress));
    bar.finish_and_clear();
    Ok(path?.display().to_string())
}

fn draw(bar: &ProgressBar, name: &str, progress: FetchProgress<'_>) {
    let (message, done, total) = match progress {
        FetchProgress::Waiting => {
            return bar.set_message(format!("{name}: another process fetches it; waiting"));
        }
        FetchProgress::Fetching { what, done, total } => (format!("fetching {what}"), done, total),
        FetchProgress::Checking { done, total } => (format!("checking {name}"), done, total),
    };
    bar.set_message(message);
    bar.set_length(total);
    bar.set_position(done);
}

fn list(cache_dir: &Path, console: &mut Console) -> Result<()> {
    let mut rows = table(&["Name", "Model", "Architecture", "Licence", ">Size", "Here?"]);
    for entry in catalogue::catalogue() {
        let path = entry.path(cache_dir);
        let here = path.exists();
        if console.json() {
            let object = json!({
                "name": entry.name,
                "title": entry.title,
                "about": entry.about,
                "architecture": entry.architecture.to_string(),
                "licence": entry.licence,
                "bytes": entry.bytes,
                "sha256": entry.sha256,
                "path": here.then_some(path),
            });
            console.line(&object.to_string())?;
            continue;
        }
        rows.add_row([
            entry.name.clone(),
            format!("{}\n{}", entry.title, entry.about),
            entry.architecture.to_string(),
            entry.licence.clone(),
            format_bytes(entry.bytes),
            if here { "yes" } else { "" }.to_owned(),
        ]);
    }
    if console.json() {
        return Ok(());
    }
    console.rows(rows)
}

async fn prepare(connect: &str, method: String, console: &mut Console) -> Result<()> {
    let client = Client::ready(connect, console).await?;
    let job = client
        .knowledge()
        .prepare(PrepareRequest { method })
        .await?
        .into_inner();
    let words = (
        "the model is not prepared",
        "it was cancelled; the same command goes on where it stood",
    );
    finish(&client, job.id, words, console).await?;
    if console.json() {
        return console.line(&json!({ "prepared": true }).to_string());
    }
    console.line("The model is prepared for edits.")
}

async fn info(connect: &str, console: &mut Console) -> Result<()> {
    let client = Client::ready(connect, console).await?;
    let info = client.admin().info(InfoRequest {}).await?.into_inner();
    if console.json() {
        return console.message("InfoResponse", &info);
    }
    console.line(&fields(&rows(&info)))
}

fn rows(info: &InfoResponse) -> Vec<(&'static str, String)> {
    let template = if info.has_chat_template {
        "yes"
    } else {
        "none: use `ask --raw`"
    };
    vec![
        ("model", info.model.clone()),
        ("files", info.model_path.clone()),
        ("architecture", info.architecture.clone()),
        ("parameters", grouped(info.parameters)),
        (
            "layers, width",
            format!("{}, {}", info.layers, info.hidden_size),
        ),
        ("vocabulary", grouped(info.vocab_size.into())),
        (
            "context",
            format!("{} tokens", grouped(info.context.into())),
        ),
        ("chat template", template.to_owned()),
        ("computes in", format!("{} on {}", info.dtype, info.device)),
        ("decodes with", info.weights.clone()),
        ("KV of a token", format_bytes(info.kv_bytes_per_token)),
        ("modes", info.modes.join(" ")),
        ("active facts", grouped(info.active_facts.into())),
        ("packets", grouped(info.packets)),
        (
            "queue",
            format!("{} of {}", info.queue_length, info.queue_capacity),
        ),
        ("data directory", info.data_dir.clone()),
        (
            "daemon",
            format!("{}, since {}", info.version, utc(info.started_at_ms)),
        ),
        ("base fingerprint", info.base_fingerprint.clone()),
        ("revision", info.revision.clone()),
        ("tokenizer", info.tokenizer.clone()),
    ]
}
