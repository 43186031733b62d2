//! A training's other half: makes its lessons, hands it to the engine, writes what it leaves
//! behind, and takes the result into the library.
//!
//! Owns `adapters/training/<digest>/`: the teacher's answers and one checkpoint. Never computes.
//! Invariant: a training that ended well leaves no such directory; one that did not is taken up
//! where it was by the same request.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc;

use super::course::Course;
use super::file::{read, write};
use super::library::{Entry, Library};
use super::plan::Plan;
use super::samples::Split;
use super::training::{self, Note, Outcome};
use super::{passages, samples::Suite};
use crate::documents::blocking;
use crate::ending::Ending;
use crate::engine::command::{Adapt, Command, Ticket};
use crate::error::{Error, Result};
use crate::grpc::Serving;
use crate::jobs::JobHandle;
use crate::prompt;

/// Notes that may wait to be written; then training waits too.
pub(crate) const NOTES: usize = 16;

/// Unfinished trainings that are kept, the newest.
const UNFINISHED: usize = 4;

/// What a training is asked for.
pub(crate) struct Request {
    pub(crate) plan: Plan,
    /// Documents by name for the suite of that name; empty is all of the namespace.
    pub(crate) documents: Vec<String>,
    pub(crate) namespace: String,
    /// Whether the result is to be active, if it is better than no adapter.
    pub(crate) activate: bool,
}

/// Trains to the end. Gives the adapter.
///
/// # Errors
/// Data that gives no lessons, a cancelled or refused training, or the disk's.
pub(crate) async fn train(
    serving: &Arc<Serving>,
    ticket: &Ticket,
    request: Request,
    job: &JobHandle,
) -> Result<Entry> {
    job.progress("making samples", 0, 0);
    let (activate, place) = (request.activate, Arc::clone(serving));
    let (course, directory) = blocking(move || prepare(&place, request)).await?;
    let (notes, mut said) = mpsc::channel(NOTES);
    let engine = &serving.documents.engine;
    let course = Box::new(course);
    let train = Adapt::Train { course, notes };
    engine
        .submit(ticket, Command::Adapt(Box::new(train)))
        .await?;
    while let Some(note) = said.recv().await {
        engine.ring();
        match note? {
            Note::Progress(phase, done, total) => job.progress(&phase, done, total),
            Note::Answer(place, bytes) => {
                let path = answer(&directory, place);
                blocking(move || write(&path, &bytes)).await?;
            }
            Note::Checkpoint(bytes) => {
                let path = checkpoint(&directory);
                blocking(move || write(&path, &bytes)).await?;
            }
            Note::Done(outcome) => {
                job.progress("storing the adapter", 0, 0);
                let library = Arc::clone(&serving.loaded.adapters);
                let better = outcome.record.kl_after < outcome.record.kl_before;
                let entry = blocking(move || keep(&library, &outcome, &directory)).await?;
                if activate && better {
                    super::activate(serving, ticket, Some(&entry)).await?;
                }
                return Ok(entry);
            }
        }
    }
    Err(Error::EngineGone)
}

/// Lessons, and what an earlier run of the same training left.
fn prepare(serving: &Serving, request: Request) -> Result<(training::Course, PathBuf)> {
    let Request {
        mut plan,
        documents,
        namespace,
        ..
    } = request;
    let own = plan.suites.is_empty() || plan.kinds().contains(&Suite::Documents);
    let passages = if own {
        passages::of(&serving.documents, &namespace, &documents)?
    } else {
        Vec::new()
    };
    let maker = Course {
        plan: &plan,
        tokenizer: &serving.tokenizer,
        template: serving.template(),
        part_tokens: serving.documents.part_tokens,
        documents: &passages,
    };
    let suites = maker.suites()?;
    let mut lessons = maker.lessons(Split::Train, plan.samples)?;
    lessons.extend(maker.lessons(Split::Validation, plan.validation)?);
    plan.suites = suites.iter().map(ToString::to_string).collect();
    let base = serving.loaded.fingerprint.0;
    let revision = serving.documents.engine.state().under.revision.0;
    let texts = blake3::hash(passages.join("\0").as_bytes());
    let dtype = addenda_model::tensor::kind_name(serving.loaded.kind);
    let primer = serving.loaded.primer.digest().0;
    let parts: [&[u8]; 5] = [
        &base,
        &revision,
        &primer,
        texts.as_bytes(),
        dtype.as_bytes(),
    ];
    let digest = crate::digest::Digest(plan.digest(&parts));
    let directory = serving.loaded.adapters.trainings().join(digest.to_string());
    forget_old(&serving.loaded.adapters.trainings(), &directory);
    let lessons = lessons
        .into_iter()
        .enumerate()
        .map(|(place, lesson)| (lesson, read(&answer(&directory, place)).ok()))
        .collect();
    let course = training::Course {
        bridge: prompt::bridge(&serving.tokenizer, plan.bridge_tokens)?,
        ending: Ending::of(serving.template()),
        plan,
        base,
        lessons,
        checkpoint: read(&checkpoint(&directory)).ok(),
    };
    Ok((course, directory))
}

/// Removes the oldest of the unfinished trainings beside `own`: they hold what was made of documents,
/// and nobody may ever take them up.
fn forget_old(trainings: &Path, own: &Path) {
    let Ok(found) = std::fs::read_dir(trainings) else {
        return;
    };
    let mut others: Vec<(Option<SystemTime>, PathBuf)> = found
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path != own)
        .map(|path| (path.metadata().and_then(|data| data.modified()).ok(), path))
        .collect();
    others.sort();
    let surplus = others.len().saturating_sub(UNFINISHED - 1);
    for (_, path) in others.into_iter().take(surplus) {
        if let Err(error) = std::fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "an old training is left");
        }
    }
}

/// Takes the result into the library; what its training needed goes.
fn keep(library: &Library, outcome: &Outcome, directory: &Path) -> Result<Entry> {
    let entry = library.add(&outcome.file)?;
    if let Err(error) = std::fs::remove_dir_all(directory) {
        tracing::warn!(path = %directory.display(), %error, "a finished training's files are left");
    }
    Ok(entry)
}

fn answer(directory: &Path, place: usize) -> PathBuf {
    directory.join(format!("answer-{place:05}.safetensors"))
}

fn checkpoint(directory: &Path) -> PathBuf {
    directory.join("checkpoint.safetensors")
}
