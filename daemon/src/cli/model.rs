//! `addenda model`: which model is served.

use std::process::ExitCode;

use addenda_proto::addenda::v1::{InfoRequest, InfoResponse};
use clap::Subcommand;

use super::client::{Client, block_on};
use super::console::Console;
use super::error::Result;
use super::table::fields;
use super::text::{grouped, utc};
use crate::config::{Config, format_bytes};

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Show the model that the daemon serves, its revision and limits
    Info,
}

impl ModelCommand {
    pub(crate) fn run(self, config: &Config, console: &mut Console) -> Result<ExitCode> {
        match self {
            Self::Info => block_on(info(&config.connect, console))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn info(connect: &str, console: &mut Console) -> Result<()> {
    let client = Client::connect(connect).await?;
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
