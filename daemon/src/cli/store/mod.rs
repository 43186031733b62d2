//! `addenda store`: the upkeep of what is in the data directory.
//!
//! `verify`, `compact` and `backup` ask the running daemon; `rebuild` and `restore` need a data directory that no
//! daemon has open, and its lock sees to that.

mod backup;
mod rebuild;
mod restore;

use std::path::PathBuf;
use std::process::ExitCode;

use addenda_proto::addenda::v1::{
    CompactProgress, CompactReport, CompactRequest, VerifyProgress, VerifyReport, VerifyRequest,
};
use clap::{Args, Subcommand};

use super::client::{Client, block_on};
use super::console::Console;
use super::error::{Error, Result};
use super::text::{count, grouped};
use crate::config::{Config, format_bytes};

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Read every packet and compare it with its digest; the daemon goes on serving
    Verify,
    /// Give back the disk of what was deleted or replaced; the daemon goes on serving
    Compact,
    /// Copy packets, facts, adapters and certificates into a new folder; the daemon goes on serving
    Backup {
        /// The folder, which must not exist yet
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
    },
    /// Make a data directory from a backup, verifying every byte
    Restore {
        /// The backup's folder
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
        #[command(flatten)]
        to: DataArgs,
    },
    /// Make the index anew from the packets themselves; stop the daemon first
    Rebuild(DataArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    /// The data directory [default: the setting `data_dir`]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
}

impl StoreCommand {
    pub(crate) fn flags(&self) -> Vec<(&'static str, String)> {
        let data = match self {
            Self::Restore { to, .. } | Self::Rebuild(to) => &to.data_dir,
            _ => &None,
        };
        let flag = data.iter().map(|data| ("data_dir", data.clone()));
        flag.collect()
    }

    pub(crate) fn run(self, config: &Config, console: &mut Console) -> Result<ExitCode> {
        let connect = &config.connect;
        match self {
            Self::Verify => block_on(verify(connect, console)),
            Self::Compact => block_on(compact(connect, console)),
            Self::Backup { folder } => block_on(backup::run(connect, &folder, console)),
            Self::Restore { folder, .. } => restore::run(&folder, config, console),
            Self::Rebuild(_) => rebuild::run(config, console),
        }
    }
}

async fn verify(connect: &str, console: &mut Console) -> Result<ExitCode> {
    let client = Client::connect(connect).await?;
    let mut answers = client.admin().verify(VerifyRequest {}).await?.into_inner();
    let bar = console.bytes("verifying");
    let mut last = VerifyProgress::default();
    while let Some(progress) = answers.message().await? {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        last = progress;
    }
    bar.finish_and_clear();
    let Some(report) = &last.report else {
        return Err(Error::Incomplete { what: "the report" });
    };
    if console.json() {
        console.message("VerifyProgress", &last)?;
    } else {
        tell_damage(report, console)?;
        console.line(&format!(
            "{} verified, {}: {} damaged",
            count(last.packets, "packet"),
            format_bytes(last.bytes),
            report.damaged.len()
        ))?;
    }
    Ok(if report.damaged.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn tell_damage(report: &VerifyReport, console: &mut Console) -> Result<()> {
    for packet in &report.damaged {
        let document = match packet.document.as_str() {
            "" => "a packet without a name",
            name => name,
        };
        console.line(&format!(
            "{document} ({}): {}; it was set aside: put the document again",
            packet.namespace, packet.what
        ))?;
    }
    if report.damaged_bytes > 0 {
        let bytes = format_bytes(report.damaged_bytes);
        console.line(&format!(
            "{bytes} of the extents are no record; `addenda store compact` gives them back"
        ))?;
    }
    Ok(())
}

async fn compact(connect: &str, console: &mut Console) -> Result<ExitCode> {
    let client = Client::connect(connect).await?;
    let request = CompactRequest {};
    let mut answers = client.admin().compact(request).await?.into_inner();
    let bar = console.bytes("compacting");
    let mut last = CompactProgress::default();
    while let Some(progress) = answers.message().await? {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        last = progress;
    }
    bar.finish_and_clear();
    let Some(report) = last.report else {
        return Err(Error::Incomplete { what: "the report" });
    };
    if console.json() {
        console.message("CompactReport", &report)?;
    } else {
        tell_compaction(&report, console)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn tell_compaction(report: &CompactReport, console: &mut Console) -> Result<()> {
    let waiting = match report.waiting {
        0 => String::new(),
        some => format!("; {} still being read", count(some, "extent")),
    };
    console.line(&format!(
        "{} on disk, {} before: {} copied, {} removed{waiting}",
        format_bytes(report.disk_bytes),
        format_bytes(report.disk_bytes_before),
        count(report.packets, "packet"),
        grouped(report.removed)
    ))
}
