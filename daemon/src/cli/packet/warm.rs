//! `addenda packet warm`: a folder of documents, with progress.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use addenda_proto::addenda::v1::{PacketRecord, PutDocumentRequest, WarmProgress, warm_progress};
use clap::Args;
use indicatif::ProgressBar;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use super::NamespaceArgs;
use crate::cli::client::Client;
use crate::cli::console::Console;
use crate::cli::error::{Error, Result};
use crate::cli::text::{count, grouped};

/// Documents that are read ahead of the daemon; the wire's own flow control does the rest.
const READ_AHEAD: usize = 2;

#[derive(Debug, Args)]
pub(crate) struct WarmArgs {
    /// Every text file in it and below becomes a document, named by its path from here; hidden
    /// files and links are left out
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Only files with this ending; repeat for more [default: all]
    #[arg(long = "ext", value_name = "EXT")]
    extensions: Vec<String>,
    #[command(flatten)]
    of: NamespaceArgs,
}

impl WarmArgs {
    pub(crate) async fn run(self, client: &Client, console: &mut Console) -> Result<ExitCode> {
        let files = self.files()?;
        if files.is_empty() {
            return Err(Error::refused(
                format!("there are no documents in {}", self.dir.display()),
                "give a folder with text files, or another --ext",
            ));
        }
        let total = files.len();
        let (documents, reader) = read_all(self.dir, files, self.of.namespace);
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

    /// All files, in the order of their names.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut dirs = vec![self.dir.clone()];
        while let Some(dir) = dirs.pop() {
            let failed = |source| Error::File {
                path: dir.clone(),
                source,
            };
            for entry in std::fs::read_dir(&dir).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let kind = entry.file_type().map_err(failed)?;
                let path = entry.path();
                if entry.file_name().as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                if kind.is_dir() {
                    dirs.push(path);
                } else if kind.is_file() && self.wants(&path) {
                    found.push(path);
                }
            }
        }
        found.sort();
        Ok(found)
    }

    fn wants(&self, path: &Path) -> bool {
        let ending = path.extension().unwrap_or_default();
        self.extensions.is_empty()
            || self
                .extensions
                .iter()
                .any(|wanted| ending.eq_ignore_ascii_case(wanted.trim_start_matches('.')))
    }
}

/// Reads the files on a thread of their own, a few ahead; it returns a line for each that cannot
/// be read.
fn read_all(
    dir: PathBuf,
    files: Vec<PathBuf>,
    namespace: String,
) -> (ReceiverStream<PutDocumentRequest>, JoinHandle<Vec<String>>) {
    let (documents, stream) = mpsc::channel(READ_AHEAD);
    let reader = tokio::task::spawn_blocking(move || {
        let mut left_out = Vec::new();
        for file in files {
            let name = file.strip_prefix(&dir).unwrap_or(&file);
            let name = name.to_string_lossy().replace('\\', "/");
            match std::fs::read_to_string(&file) {
                Ok(text) => {
                    let namespace = namespace.clone();
                    let request = PutDocumentRequest {
                        name,
                        text,
                        namespace,
                    };
                    if documents.blocking_send(request).is_err() {
                        break;
                    }
                }
                Err(error) => {
                    let why = match error.kind() {
                        std::io::ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
                        _ => error.to_string(),
                    };
                    left_out.push(format!("{}: left out: {why}", file.display()));
                }
            }
        }
        left_out
    });
    (ReceiverStream::new(stream), reader)
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
