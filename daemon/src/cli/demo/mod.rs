//! `addenda demo`: the main job on a small real model, from start to end.
//!
//! Owns the order of the show and the list of what it promised. Everything is a call over gRPC to
//! a daemon that runs as its own process; what a step claims is checked, and one claim that does
//! not hold makes the exit code 1.

mod daemon;
mod documents;
mod fact;
mod packets;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use comfy_table::Table;
use serde_json::json;

use self::daemon::Daemon;
use super::client::block_on;
use super::console::Console;
use super::error::{Error, Result};
use crate::config::Config;

/// Columns of the demo's tables at most.
const PAGE: u16 = 110;

/// Characters of a bar that is printed once.
const BAR: usize = 40;

/// The model that the demo's promises are about.
const MODEL: &str = "smollm2-135m";

/// Show what Addenda does, on a small real model and in a temporary data directory.
///
/// Documents become packets, a question is answered three ways, a fact goes into the weights,
/// survives a restart and is taken out again. Exits with 1 if anything is not as promised.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Keep the data directory and say where it is
    #[arg(long)]
    keep: bool,
}

impl DemoArgs {
    pub(crate) fn run(self, config: &Config, console: &mut Console) -> Result<ExitCode> {
        super::model::present(MODEL, config, console)?;
        let directory = tempfile::Builder::new()
            .prefix("addenda-demo-")
            .tempdir()
            .map_err(Error::Runtime)?;
        let outcome = block_on(async {
            tokio::select! {
                outcome = show(config, directory.path(), console) => outcome,
                _ = tokio::signal::ctrl_c() => {
                    Err(Error::refused("interrupted", "the daemon was stopped and its data removed"))
                }
            }
        });
        if self.keep {
            let kept = directory.keep();
            console.note(&format!("The data directory is kept: {}", kept.display()))?;
        }
        outcome
    }
}

async fn show(config: &Config, directory: &Path, console: &mut Console) -> Result<ExitCode> {
    let began = Instant::now();
    let mut stage = Stage {
        console,
        claims: Vec::new(),
    };
    let daemon = Daemon::start(config, MODEL, directory).await?;
    stage.say(&format!(
        "addenda serve --model {MODEL}: ready at {} after {:.1} s, data in {}",
        daemon.endpoint,
        daemon.start_time.as_secs_f64(),
        directory.join("data").display()
    ))?;
    packets::warm(&daemon.client, &mut stage).await?;
    packets::three_ways(&daemon.client, &mut stage).await?;
    fact::show(config, daemon, directory, &mut stage).await?;
    stage.finish(began)
}

/// The console, and what has been promised on it.
pub(crate) struct Stage<'a> {
    pub(crate) console: &'a mut Console,
    claims: Vec<(String, bool)>,
}

impl Stage<'_> {
    /// A heading.
    fn heading(&mut self, text: &str) -> Result<()> {
        let text = self.console.bold(text);
        self.say("")?;
        self.say(&text)
    }

    /// A line for people; nothing under `--json`.
    fn say(&mut self, text: &str) -> Result<()> {
        if self.console.json() {
            return Ok(());
        }
        self.console.line(text)
    }

    /// Where no bar was drawn because nobody watches a terminal, the bar at its end.
    fn full_bar(&mut self, what: &str, total: usize, unit: &str) -> Result<()> {
        if self.console.live() {
            return Ok(());
        }
        let bar = "━".repeat(BAR);
        self.say(&format!("{what} {bar} {total}/{total} {unit}"))
    }

    /// A table for people, never wider than a page.
    fn table(&mut self, mut rows: Table) -> Result<()> {
        rows.set_width(self.console.width().unwrap_or(PAGE).min(PAGE));
        self.say(&rows.trim_fmt())
    }

    /// A promise, and whether it was kept.
    fn claim(&mut self, claim: impl Into<String>, holds: bool) -> Result<()> {
        let claim = claim.into();
        let mark = if holds {
            self.console.paint("32", "✓")
        } else {
            self.console.paint("31", "✗ NOT SO:")
        };
        let line = format!("{mark} {claim}");
        self.claims.push((claim, holds));
        self.say(&line)
    }

    fn finish(self, began: Instant) -> Result<ExitCode> {
        let seconds = began.elapsed().as_secs_f64();
        let broken = self.claims.iter().filter(|(_, holds)| !holds).count();
        if self.console.json() {
            let claims: Vec<_> = self
                .claims
                .iter()
                .map(|(claim, holds)| json!({ "claim": claim, "holds": holds }))
                .collect();
            let object = json!({ "claims": claims, "broken": broken, "seconds": seconds });
            self.console.line(&object.to_string())?;
        } else if broken == 0 {
            let all = self.claims.len();
            self.console.line(&format!(
                "\nAll {all} promises were kept, in {seconds:.1} s."
            ))?;
        } else {
            let all = self.claims.len();
            let line = format!("\n{broken} of {all} promises were not kept ({seconds:.1} s).");
            self.console.line(&line)?;
        }
        Ok(if broken == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
