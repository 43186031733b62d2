//! `addenda packet put`: one document.

use std::path::{Path, PathBuf};

use addenda_proto::addenda::v1::PutDocumentRequest;
use clap::Args;

use super::{NamespaceArgs, show};
use crate::cli::client::Client;
use crate::cli::console::Console;
use crate::cli::error::{Error, Result};

#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// A text file in UTF-8; `-` reads standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The document's name [default: the file's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    of: NamespaceArgs,
}

impl PutArgs {
    pub(crate) async fn run(self, client: &Client, console: &mut Console) -> Result<()> {
        let text = if self.file == Path::new("-") {
            std::io::read_to_string(std::io::stdin())
        } else {
            std::fs::read_to_string(&self.file)
        };
        let text = text.map_err(|source| Error::File {
            path: self.file.clone(),
            source,
        })?;
        let of_file = || Some(self.file.file_name()?.to_str()?.to_owned());
        let request = PutDocumentRequest {
            name: self.name.clone().or_else(of_file).unwrap_or_default(),
            text,
            namespace: self.of.namespace,
        };
        let spinner = console.spinner("computing the packet");
        let answer = client.packets().put_document(request).await;
        spinner.finish_and_clear();
        show::put(&answer?.into_inner(), console)
    }
}
