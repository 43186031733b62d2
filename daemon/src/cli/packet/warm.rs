//! `addenda packet warm`: many documents, with progress.
//!
//! Nothing is remembered between two runs: the daemon finds what is durable, so a run that was broken
//! off is simply started again.

use std::path::PathBuf;
use std::process::ExitCode;

use addenda_proto::addenda::v1::{PacketRecord, PutDocumentRequest, WarmProgress, warm_progress};
use clap::Args;
use indicatif::ProgressBar;

use super::NamespaceArgs;
use super::source::{read_all, sources};
use crate::cli::client::Client;
use crate::cli::console::Console;
use crate::cli::error::{Error, Result};
use crate::cli::text::{count, grouped};

#[derive(Debug, Args)]
pub(crate) struct WarmArgs {
    /// Text files; folders, of which every text file in them and below becomes a document, named by
    /// its path from there, hidden files and links left out; and .jsonl files with a {"name": …,
    /// "text": …} on each line
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// In folders only files with this ending; repeat for more [default: all]
    #[arg(long = "ext", value_name = "EXT")]
    extensions: Vec<String>,
    #[command(flatten)]
    of: NamespaceArgs,
}

impl WarmArgs {
    pub(crate) async fn run(self, client: &Client, console: &mut Console) -> Result<ExitCode> {
        let (sources, total) = sources(&self.paths, &self.extensions)?;
        if total == 0 {
            let paths: Vec<String> = self
                .paths
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            return Err(Error::refused(
                format!("there are no documents in {}", paths.join(", ")),
                "give a folder with text files, or another --ext",
            ));
        }
        let (documents, reader) = read_all(sources, self.of.namespace);
        let warmed = send(client, documents, total, console).await?;
        let left_out = reader.await.unwrap_or_default();
        for message in &left_out {
            console.note(message)?;
        }
        let bad = warmed.refused + left_out.len() as u64;
        if !console.json() {
            let all = count(total as u64, "document");
            console.line(&format!(
                "{all}: {} made, {} there already, {bad} not taken; {} tokens computed",
                warmed.created,
                warmed.found,
                grouped(warmed.tokens)
            ))?;
        }
        Ok(if bad == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// What became of a stream of documents.
#[derive(Debug, Default)]
pub(crate) struct Warmed {
    pub(crate) created: u64,
    pub(crate) found: u64,
    pub(crate) refused: u64,
    pub(crate) tokens: u64,
    pub(crate) packets: Vec<PacketRecord>,
}

/// Streams documents to the daemon under a progress bar of `total`.
///
/// # Errors
/// The daemon's status; a refusal of a single document is told and counted.
pub(crate) async fn send(
    client: &Client,
    documents: impl tokio_stream::Stream<Item = PutDocumentRequest> + Send + 'static,
    total: usize,
    console: &mut Console,
) -> Result<Warmed> {
    let bar = console.bar(total as u64, "documents", "warming");
    let mut answers = client.packets().warm(documents).await?.into_inner();
    let mut warmed = Warmed::default();
    while let Some(progress) = answers.message().await? {
        if console.json() {
            console.message("WarmProgress", &progress)?;
        }
        warmed.take(progress, &bar, console)?;
    }
    bar.finish_and_clear();
    Ok(warmed)
}

impl Warmed {
    fn take(
        &mut self,
        progress: WarmProgress,
        bar: &ProgressBar,
        console: &mut Console,
    ) -> Result<()> {
        bar.set_position(progress.created + progress.found + progress.refused);
        bar.set_message(crate::cli::text::first_line(&progress.document, 24));
        self.created = progress.created;
        self.found = progress.found;
        self.refused = progress.refused;
        self.tokens = progress.tokens;
        match progress.result {
            Some(warm_progress::Result::Packet(packet)) => self.packets.push(packet),
            Some(warm_progress::Result::Refusal(why)) => {
                let document = &progress.document;
                bar.suspend(|| console.note(&format!("{document}: not taken: {why}")))?;
            }
            None => {}
        }
        Ok(())
    }
}
