//! `addenda adapter`: what is trained so that packets are read as if they had been computed together.

mod certify;
mod show;
mod train;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use addenda_proto::addenda::v1::{
    ActivateAdapterRequest, ExportAdapterRequest, ImportAdapterRequest, ListAdaptersRequest,
};
use clap::Subcommand;

use super::client::Client;
use super::console::Console;
use super::error::{Error, Result};
use crate::config::format_bytes;

#[derive(Debug, Subcommand)]
pub(crate) enum AdapterCommand {
    /// Train an adapter on samples; the same command again goes on where it was stopped
    Train(train::TrainArgs),
    /// Measure how well modes agree with full prefill; `--mode auto` goes by it
    Certify(certify::CertifyArgs),
    /// List certificates
    Certificates {
        /// Void ones as well
        #[arg(long)]
        all: bool,
    },
    /// List adapters
    List,
    /// Read packets through an adapter from now on, or through none
    Activate {
        /// An adapter's id, the beginning of it or its name, or "none"
        #[arg(value_name = "ID|NAME|none")]
        adapter: String,
    },
    /// Write an adapter to a file
    Export {
        /// An adapter's id, the beginning of it or its name
        #[arg(value_name = "ID|NAME")]
        adapter: String,
        /// The file; it must not be there yet
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Take in an adapter from a file
    Import {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Make it the active adapter
        #[arg(long)]
        activate: bool,
    },
}

impl AdapterCommand {
    pub(crate) async fn run(self, connect: &str, console: &mut Console) -> Result<ExitCode> {
        let client = Client::ready(connect, console).await?;
        let mut adapters = client.adapters();
        match self {
            Self::Train(args) => return args.run(&client, console).await,
            Self::Certify(args) => return args.run(&client, console).await,
            Self::Certificates { all } => return certify::list(&client, all, console).await,
            Self::List => {
                let list = adapters.list(ListAdaptersRequest {}).await?.into_inner();
                show::list(&list.adapters, console)?;
            }
            Self::Activate { adapter } => {
                let request = ActivateAdapterRequest { id: adapter };
                let record = adapters.activate(request).await?.into_inner();
                show::activated(&record, console)?;
            }
            Self::Export { adapter, file } => {
                let request = ExportAdapterRequest { id: adapter };
                let bytes = adapters.export(request).await?.into_inner().file;
                let failed = |source| Error::File {
                    path: file.clone(),
                    source,
                };
                let mut out = std::fs::File::create_new(&file).map_err(failed)?;
                out.write_all(&bytes).map_err(failed)?;
                console.note(&format!(
                    "wrote {}, {}",
                    file.display(),
                    format_bytes(bytes.len() as u64)
                ))?;
            }
            Self::Import { file, activate } => {
                let bytes =
                    std::fs::read(&file).map_err(|source| Error::File { path: file, source })?;
                let request = ImportAdapterRequest {
                    file: bytes,
                    activate,
                };
                let record = adapters.import(request).await?.into_inner();
                show::one(&record, console)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
