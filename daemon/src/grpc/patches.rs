//! Patches: the changes over the base weights, listed, given out and taken in.
//!
//! Owns the way between a stream of parts and a file; what a file says is the editor's to judge.

use addenda_editor::{Added, Patch};
use addenda_proto::addenda::v1 as wire;
use tokio_stream::StreamExt;
use tonic::{Status, Streaming};

use crate::digest::Digest;
use crate::engine::command::{Command, Edit, Ticket, View};
use crate::error::{Error, Result};
use crate::grpc::Daemon;
use crate::grpc::status::status;
use crate::limits;

/// What is installed.
pub(crate) async fn list(daemon: &Daemon, ticket: &Ticket) -> Result<wire::ListPatchesResponse> {
    let look = |view: View<'_>| {
        let patches = view.editor.patches().iter().map(record);
        Ok((patches.collect::<Result<_>>()?, view.editor.revision()))
    };
    let (patches, revision) = daemon.engine.consult(ticket, look).await?;
    Ok(wire::ListPatchesResponse {
        patches,
        base: daemon.serving()?.loaded.fingerprint.to_string(),
        revision: Digest(revision).to_string(),
    })
}

fn record(patch: &Patch) -> Result<wire::PatchRecord> {
    Ok(wire::PatchRecord {
        digest: Digest(patch.digest()?).to_string(),
        kind: patch.kind().to_string(),
        layer: u32::try_from(patch.layer()).unwrap_or(u32::MAX),
        rank: u32::try_from(patch.rank()).unwrap_or(u32::MAX),
        norm: patch.norm()?,
        unmet: patch.unmet(),
        condition: patch.condition(),
    })
}

/// The active facts as a file.
pub(crate) async fn export(daemon: &Daemon, ticket: &Ticket, matrices: bool) -> Result<Vec<u8>> {
    let look = move |view: View<'_>| Ok(view.editor.export(matrices)?);
    daemon.engine.consult(ticket, look).await
}

/// The parts of a file put together.
///
/// # Errors
/// It is too large, or its stream breaks.
pub(crate) async fn gather(
    mut parts: Streaming<wire::PatchChunk>,
) -> std::result::Result<Vec<u8>, Status> {
    let mut file = Vec::new();
    while let Some(part) = parts.next().await {
        file.extend_from_slice(&part?.data);
        if file.len() > limits::PATCH_BYTES {
            let most = limits::PATCH_BYTES >> 20;
            let reason = format!("is larger than {most} MiB; export it without matrices");
            return Err(status(&Error::invalid("data", reason)));
        }
    }
    Ok(file)
}

/// Takes a file's facts in, as one job that others can watch and cancel.
pub(crate) async fn import(
    daemon: &Daemon,
    ticket: &Ticket,
    file: Vec<u8>,
) -> Result<Vec<Result<Added>>> {
    let job = daemon.jobs.begin("import", "steps", ticket.cancel.clone());
    let edit = |reply| Command::Edit(Box::new(Edit::Import { file, job, reply }));
    daemon.engine.ask(ticket, edit).await
}
