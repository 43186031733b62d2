//! Adapters: trained bridges between packets and question, or soft tokens around documents, from their training to their use.
//!
//! [`samples`] makes what they learn from; `course` turns samples into lessons; `training` is one
//! training, step by step, on the engine's thread; `job` is its other half, which writes what it
//! leaves behind; `library` holds the adapters that there are.

pub(crate) mod course;
pub(crate) mod file;
pub(crate) mod job;
pub(crate) mod library;
pub(crate) mod passages;
pub(crate) mod plan;
pub(crate) mod record;
pub mod samples;
pub(crate) mod shipped;
pub(crate) mod training;

use std::sync::Arc;

use self::library::Entry;
use crate::documents::blocking;
use crate::engine::command::{Adapt, Command, Ticket};
use crate::error::Result;
use crate::grpc::Serving;

/// Reads packets through this adapter from now on, or through none, and remembers it.
///
/// # Errors
/// Another model's adapter, the engine's, or the disk's.
pub(crate) async fn activate(
    serving: &Arc<Serving>,
    ticket: &Ticket,
    entry: Option<&Entry>,
) -> Result<()> {
    let library = Arc::clone(&serving.loaded.adapters);
    let file = match entry {
        None => None,
        Some(entry) => {
            library.check(entry)?;
            let (library, entry) = (Arc::clone(&library), entry.clone());
            Some(blocking(move || library.bytes(&entry)).await?)
        }
    };
    let turn = Arc::clone(&library);
    let _turn = turn.turn().await;
    let engine = &serving.documents.engine;
    engine
        .ask(ticket, |reply| {
            Command::Adapt(Box::new(Adapt::Wear { file, reply }))
        })
        .await?;
    let id = entry.map(|entry| entry.id);
    blocking(move || library.remember(id)).await
}
