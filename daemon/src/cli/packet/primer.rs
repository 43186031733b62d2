//! `addenda packet primer`: a primer's file out of one's own documents. Asks no daemon.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use tokio_stream::StreamExt as _;

use super::source::{read_all, sources};
use crate::cli::console::Console;
use crate::cli::error::{Error, Result};
use crate::cli::text::count;
use crate::primer::draw;

#[derive(Debug, Args)]
pub(crate) struct PrimerArgs {
    /// Documents of the kind that is asked about, as `addenda packet warm` takes them; of many, 16 are taken evenly
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// In folders only files with this ending; repeat for more [default: all]
    #[arg(long = "ext", value_name = "EXT")]
    extensions: Vec<String>,
}

impl PrimerArgs {
    pub(crate) async fn run(self, console: &mut Console) -> Result<()> {
        let (sources, total) = sources(&self.paths, &self.extensions)?;
        let (mut documents, reader) = read_all(sources, String::new());
        let mut excerpts = Vec::new();
        let mut number = 0;
        while let Some(document) = documents.next().await {
            if draw::takes(number, total) {
                excerpts.extend(draw::excerpt(&document.text));
            }
            number += 1;
        }
        for message in reader.await.unwrap_or_default() {
            console.note(&message)?;
        }
        if excerpts.is_empty() {
            return Err(Error::refused(
                "none of these documents has a word".to_owned(),
                "give a folder with text files, or another --ext",
            ));
        }
        let file = draw::file(&excerpts);
        if console.json() {
            let line = json!({ "documents": excerpts.len(), "primer": file });
            return console.line(&line.to_string());
        }
        console.stream(&file)?;
        console.note(&format!(
            "the first sentences of {}; keep them in a file and name it: addenda serve --primer FILE",
            count(excerpts.len() as u64, "document")
        ))
    }
}
