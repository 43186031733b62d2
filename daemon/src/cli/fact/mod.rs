//! `addenda fact`: facts in the model's weights.

mod add;
mod import;
mod patch;
mod show;

pub(crate) use add::add_one;
pub(crate) use show::figures;

use std::process::ExitCode;

use addenda_proto::addenda::v1::{
    CheckFactRequest, FactRecord, GetFactRequest, ListFactsRequest, RetireFactRequest,
    WatchLedgerRequest,
};
use clap::Subcommand;

use super::client::Client;
use super::console::Console;
use super::error::Result;
use super::ids::{ID_DIGITS, resolve};
use super::text::short;

#[derive(Debug, Subcommand)]
pub(crate) enum FactCommand {
    /// Write a fact into the weights; verified and durable when this returns
    Add(add::AddArgs),
    /// List the facts that are active or wait for their day
    List {
        /// Superseded, retired and expired ones as well
        #[arg(long)]
        all: bool,
    },
    /// Show one fact with its figures
    Show {
        /// The fact's id, or the beginning of it
        id: String,
    },
    /// Take a fact out of the weights; the answers before it come back
    Retire {
        /// The facts' ids, or the beginnings of them
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
    /// Measure an active fact again; exits with 1 if its target is no longer the likeliest
    Check {
        /// The fact's id, or the beginning of it
        id: String,
    },
    /// Carry facts from one daemon to another of the same model, as a file
    #[command(subcommand)]
    Patch(patch::PatchCommand),
    /// Follow the ledger: every fact added, superseded, retired, begun or expired
    Watch {
        /// Begin after this entry
        #[arg(long, value_name = "N", default_value_t = 0)]
        after: u64,
        /// End after the last entry there is
        #[arg(long)]
        no_follow: bool,
    },
}

impl FactCommand {
    pub(crate) async fn run(self, connect: &str, console: &mut Console) -> Result<ExitCode> {
        if let Self::Patch(patch::PatchCommand::Show { file }) = &self {
            patch::show(file, console)?;
            return Ok(ExitCode::SUCCESS);
        }
        let client = Client::ready(connect, console).await?;
        match self {
            Self::Patch(command) => return command.run(&client, console).await,
            Self::Add(args) => return args.run(&client, console).await,
            Self::List { all } => {
                let facts = all_facts(&client, all).await?;
                show::list(&facts, console)?;
            }
            Self::Show { id } => {
                let id = full_id(&client, id).await?;
                let fact = client.knowledge().get_fact(GetFactRequest { id }).await?;
                show::one(fact.get_ref(), console)?;
            }
            Self::Retire { ids } => {
                for id in ids {
                    retire(&client, id, console).await?;
                }
            }
            Self::Check { id } => return check(&client, id, console).await,
            Self::Watch { after, no_follow } => {
                let request = WatchLedgerRequest { after, no_follow };
                watch(&client, request, console).await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn retire(client: &Client, id: String, console: &mut Console) -> Result<()> {
    let id = full_id(client, id).await?;
    let request = RetireFactRequest { id: id.clone() };
    let answer = client.knowledge().retire_fact(request).await?.into_inner();
    if console.json() {
        return console.message("RetireFactResponse", &answer);
    }
    let revision = short(&answer.revision);
    console.line(&format!("retired {}; revision {revision}", short(&id)))
}

async fn check(client: &Client, id: String, console: &mut Console) -> Result<ExitCode> {
    let id = full_id(client, id).await?;
    let request = CheckFactRequest { id };
    let answer = client.knowledge().check_fact(request).await?.into_inner();
    if console.json() {
        console.message("CheckFactResponse", &answer)?;
    } else {
        show::check(&answer, console)?;
    }
    Ok(match answer.now {
        Some(now) if now.target_is_top1 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

async fn watch(client: &Client, request: WatchLedgerRequest, console: &mut Console) -> Result<()> {
    let mut entries = client.knowledge().watch_ledger(request).await?.into_inner();
    while let Some(entry) = entries.message().await? {
        if console.json() {
            console.message("LedgerEntry", &entry)?;
        } else {
            show::entry(&entry, console)?;
        }
    }
    Ok(())
}

async fn full_id(client: &Client, given: String) -> Result<String> {
    if given.len() == ID_DIGITS {
        return Ok(given);
    }
    let facts = all_facts(client, true).await?;
    resolve("fact", &given, facts.iter().map(|fact| fact.id.as_str()))
}

/// Every page of the facts.
pub(crate) async fn all_facts(client: &Client, include_ended: bool) -> Result<Vec<FactRecord>> {
    let mut facts = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListFactsRequest {
            include_ended,
            page_size: 1000,
            page_token,
        };
        let page = client.knowledge().list_facts(request).await?.into_inner();
        facts.extend(page.facts);
        if page.next_page_token.is_empty() {
            return Ok(facts);
        }
        page_token = page.next_page_token;
    }
}
