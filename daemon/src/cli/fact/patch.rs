//! `addenda fact patch`: what is installed over the base weights, and facts as files.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use addenda_proto::addenda::v1::{
    ExportPatchRequest, ListPatchesRequest, PatchChunk, add_facts_response,
};
use clap::Subcommand;
use serde_json::json;

use super::show::sentence;
use crate::cli::client::Client;
use crate::cli::console::Console;
use crate::cli::error::{Error, Result};
use crate::cli::table::{fields, table};
use crate::cli::text::{count, short};
use crate::digest::Digest;

/// Bytes of one part of a file on the wire.
const PART: usize = 1 << 20;

#[derive(Debug, Subcommand)]
pub(crate) enum PatchCommand {
    /// List the changes that are installed over the base weights
    List,
    /// Show what a patch file holds; needs no daemon
    Show {
        /// The file
        file: PathBuf,
    },
    /// Write all active facts to a safetensors file
    Export {
        /// The file; it must not be there yet
        file: PathBuf,
        /// Without the changed matrices, which a daemon does not need
        #[arg(long)]
        facts_only: bool,
    },
    /// Take the facts of a file in, without seeking them anew; exits with 1 if one was refused
    Import {
        /// The file
        file: PathBuf,
    },
}

impl PatchCommand {
    pub(crate) async fn run(self, client: &Client, console: &mut Console) -> Result<ExitCode> {
        match self {
            Self::List => list(client, console).await?,
            Self::Show { file } => show(&file, console)?,
            Self::Export { file, facts_only } => export(client, &file, facts_only, console).await?,
            Self::Import { file } => return import(client, &file, console).await,
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn list(client: &Client, console: &mut Console) -> Result<()> {
    let request = ListPatchesRequest {};
    let list = client.knowledge().list_patches(request).await?.into_inner();
    if console.json() {
        return console.message("ListPatchesResponse", &list);
    }
    if list.patches.is_empty() {
        return console.line("No patches: the base weights are served.");
    }
    let mut rows = table(&[
        "Patch",
        "Kind",
        ">Layer",
        ">Rank",
        ">Norm",
        ">Kept back",
        ">Condition",
    ]);
    for patch in &list.patches {
        rows.add_row([
            short(&patch.digest).to_owned(),
            patch.kind.clone(),
            patch.layer.to_string(),
            patch.rank.to_string(),
            format!("{:.3}", patch.norm),
            format!("{:.1} %", patch.unmet * 100.0),
            format!("{:.0e}", patch.condition),
        ]);
    }
    console.rows(rows)?;
    let (base, revision) = (short(&list.base), short(&list.revision));
    console.note(&format!("base {base} · revision {revision}"))
}

/// What a file says of itself.
pub(super) fn show(path: &Path, console: &mut Console) -> Result<()> {
    let file = addenda_editor::inspect_patch(&read(path)?);
    let file = file.map_err(|error| {
        Error::refused(
            format!("{}: {error}", path.display()),
            "`addenda fact patch export` writes such files",
        )
    })?;
    let (base, revision) = (Digest(file.base), Digest(file.revision));
    if console.json() {
        let object = json!({
            "kind": file.kind.to_string(), "base": base.to_string(), "revision": revision.to_string(),
            "digest": Digest(file.digest).to_string(), "facts": file.facts,
            "matrices": file.matrices.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        });
        return console.line(&object.to_string());
    }
    let mut rows = vec![
        ("kind", file.kind.to_string()),
        ("base", base.to_string()),
        ("revision", revision.to_string()),
        ("digest", Digest(file.digest).to_string()),
        ("matrices", file.matrices.len().to_string()),
    ];
    rows.extend(file.facts.iter().map(|fact| {
        (
            "fact",
            format!("{} → {}", fact.filled_prompt(), fact.target.trim()),
        )
    }));
    console.line(&fields(&rows))
}

async fn export(
    client: &Client,
    path: &Path,
    facts_only: bool,
    console: &mut Console,
) -> Result<()> {
    if path.exists() {
        let reason = format!("{} is there already", path.display());
        return Err(Error::refused(reason, "name a file that is not"));
    }
    let request = ExportPatchRequest { facts_only };
    let mut parts = client.knowledge().export_patch(request).await?.into_inner();
    let mut file = Vec::new();
    while let Some(part) = parts.message().await? {
        file.extend_from_slice(&part.data);
    }
    std::fs::write(path, &file).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })?;
    if console.json() {
        let object = json!({ "path": path, "bytes": file.len() });
        return console.line(&object.to_string());
    }
    let facts = addenda_editor::inspect_patch(&file).map_or(0, |file| file.facts.len());
    let facts = count(facts as u64, "fact");
    console.line(&format!("{facts} in {}", path.display()))
}

async fn import(client: &Client, path: &Path, console: &mut Console) -> Result<ExitCode> {
    let file = read(path)?;
    let parts: Vec<PatchChunk> = (file.chunks(PART))
        .map(|part| PatchChunk {
            data: part.to_vec(),
        })
        .collect();
    let spinner = console.spinner("taking the facts in and verifying them");
    let answer = client
        .knowledge()
        .import_patch(tokio_stream::iter(parts))
        .await;
    spinner.finish_and_clear();
    let answer = answer?.into_inner();
    let mut refused = 0_u64;
    for fact in &answer.facts {
        if console.json() {
            console.message("AddFactsResponse", fact)?;
        }
        match &fact.result {
            Some(add_facts_response::Result::Added(added)) if !console.json() => {
                let record = added.record.clone().unwrap_or_default();
                let says = record.fact.as_ref().map_or_else(String::new, sentence);
                console.line(&format!("added {}  {says}", short(&record.id)))?;
            }
            Some(add_facts_response::Result::Refused(refusal)) => {
                refused += 1;
                console.note(&format!("fact {}: {}", fact.index + 1, refusal.message))?;
            }
            _ => {}
        }
    }
    Ok(match refused {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}
