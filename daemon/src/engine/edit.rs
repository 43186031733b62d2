//! Edits, one at a time: planned in small steps beside other requests, committed between two steps.
//!
//! Owns the model and the editor, and so every change of the weights. Invariants: planning changes
//! nothing; only a failure within a commit can leave the weights in doubt, and then the engine is
//! poisoned; the revision is made known in the same breath as the weights change.

use std::sync::Arc;
use std::time::Instant;

use addenda_editor::{Added, Editor, Error as EditorError, Pace, Planned, Progress};
use addenda_model::{Tokenizer, Transformer};

use crate::digest::Digest;
use crate::engine::command::{Command, Edit, NO_ADAPTER, Ticket, Under, View, Waiting};
use crate::engine::scheduler::{Floor, guard};
use crate::engine::wear::{Working, Worn};
use crate::error::{Error, Result};
use crate::jobs::JobHandle;

/// The weights, who may change them, and the adapter that goes with them.
pub(crate) struct Bench {
    pub(crate) model: Transformer,
    pub(crate) editor: Editor,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Fingerprint of the base weights.
    pub(crate) base: [u8; 32],
    /// The active adapter.
    pub(crate) worn: Option<Worn>,
    /// The adapter that is being trained.
    pub(crate) working: Option<Working>,
}

impl Bench {
    /// What consultations see.
    pub(crate) fn view(&self) -> View<'_> {
        View {
            model: &self.model,
            editor: &self.editor,
            adapter: self.worn.as_ref().map(|worn| &worn.adapter),
        }
    }

    /// The weights as they are now.
    pub(crate) fn under(&self) -> Under {
        Under {
            revision: Digest(self.editor.revision()),
            adapter: self.worn.as_ref().map_or(NO_ADAPTER, |worn| worn.digest),
            wrapping: self.worn.as_ref().map_or(NO_ADAPTER, Worn::wrapping),
            active_facts: self.editor.active(),
            changed: false,
        }
    }

    /// Number of the ledger's last frame, and when a fact next comes or goes by its dates.
    pub(crate) fn ledger(&self) -> (u64, Option<u64>) {
        let last = self.editor.events(0).last();
        let length = last.map_or(0, |event| event.sequence);
        (length, self.editor.next_turn())
    }

    /// Does one edit, from its plan to its answer, or one change of adapter.
    pub(crate) fn edit(&mut self, floor: &mut Floor, waiting: Waiting) {
        if matches!(waiting.command, Command::Adapt(_)) {
            return self.adapt(floor, waiting);
        }
        let Waiting { ticket, command } = waiting;
        let Command::Edit(edit) = command else {
            command.refuse(Error::invalid("command", "is no edit"));
            return;
        };
        let span = ticket.span.clone();
        let _span = span.enter();
        match *edit {
            Edit::Add {
                requests,
                job,
                reply,
            } => {
                let planned = self.plan(floor, &ticket, Some(&job), |bench, pace| {
                    bench
                        .editor
                        .plan_adds(&bench.model, &bench.tokenizer, requests, pace)
                });
                let added = self.take(floor, job, planned);
                drop(reply.send(added));
            }
            Edit::Import { file, job, reply } => {
                let planned = self.plan(floor, &ticket, Some(&job), |bench, pace| {
                    (bench.editor).plan_import(&bench.model, &bench.tokenizer, &file, pace)
                });
                let added = self.take(floor, job, planned);
                drop(reply.send(added));
            }
            Edit::Prepare { method, job, reply } => {
                let layers = self.plan(floor, &ticket, Some(&job), |bench, pace| {
                    (bench.editor).prepare(&bench.model, &bench.tokenizer, method, pace)
                });
                // Its owner ends it, and must be the only one who holds it then.
                drop(job);
                drop(reply.send(layers));
            }
            Edit::Locate {
                facts,
                tracing,
                job,
                reply,
            } => {
                let located = self.plan(floor, &ticket, Some(&job), |bench, pace| {
                    let (model, tokenizer) = (&bench.model, &bench.tokenizer);
                    bench.editor.locate(model, tokenizer, &facts, tracing, pace)
                });
                drop(job);
                drop(reply.send(located));
            }
            Edit::Retire { id, reply } => {
                let planned = self.plan(floor, &ticket, None, |bench, pace| {
                    bench
                        .editor
                        .plan_retire(&bench.model, &bench.tokenizer, &[id], pace)
                });
                let record = planned.and_then(|planned| {
                    self.commit(floor, |bench| {
                        bench.editor.commit_retire(&mut bench.model, planned)?;
                        bench.editor.get(id).cloned()
                    })
                });
                let revision = self.under().revision;
                drop(reply.send(record.map(|record| (record, revision))));
            }
            Edit::Turn { reply } => {
                let planned = self.plan(floor, &ticket, None, |bench, pace| {
                    (bench.editor).plan_turn(&bench.model, &bench.tokenizer, pace)
                });
                let turned = planned.and_then(|planned| match planned {
                    None => Ok(0),
                    Some(planned) => self.commit(floor, |bench| {
                        bench.editor.commit_turn(&mut bench.model, planned)
                    }),
                });
                drop(reply.send(turned));
            }
            Edit::Check { id, reply } => {
                let figures = self.plan(floor, &ticket, None, |bench, pace| {
                    let figures = bench
                        .editor
                        .check(&bench.model, &bench.tokenizer, id, pace)?;
                    Ok((bench.editor.get(id)?.clone(), figures))
                });
                drop(reply.send(figures));
            }
        }
    }

    /// Commits additions and ends their job.
    fn take(
        &mut self,
        floor: &mut Floor,
        job: JobHandle,
        planned: Result<Planned>,
    ) -> Result<Vec<Result<Added>>> {
        let added = planned.and_then(|planned| {
            self.commit(floor, |bench| {
                bench.editor.commit_adds(&mut bench.model, planned)
            })
        });
        let added = added.map(each);
        end(job, &added);
        added
    }

    /// Works something out in small steps, between which others are served. Changes nothing.
    fn plan<T>(
        &self,
        floor: &mut Floor,
        ticket: &Ticket,
        job: Option<&JobHandle>,
        work: impl FnOnce(&Self, &mut Pace<'_>) -> addenda_editor::Result<T>,
    ) -> Result<T> {
        let mut step = Instant::now();
        let mut stopped = None;
        let mut pace = |progress: Progress| {
            if let Some(job) = job {
                job.progress(&progress.phase.to_string(), progress.done, progress.total);
            }
            let wanted = if floor.abort.is_cancelled() {
                Err(Error::Stopping)
            } else {
                ticket.check()
            };
            if let Err(error) = wanted {
                stopped = Some(error);
                return Err(EditorError::Cancelled);
            }
            let took = step.elapsed();
            floor.metrics.phase(progress.phase, took);
            floor.serve(self.view(), took);
            step = Instant::now();
            Ok(())
        };
        let planned = guard(|| Ok(work(self, &mut pace)?));
        planned.map_err(|error| stopped.unwrap_or(error))
    }

    /// Writes what was planned, and makes the new weights known.
    fn commit<T>(
        &mut self,
        floor: &mut Floor,
        work: impl FnOnce(&mut Self) -> addenda_editor::Result<T>,
    ) -> Result<T> {
        let (before, ledger) = (self.under(), self.ledger());
        let result = guard(|| Ok(work(self)?));
        if let Err(error) = &result
            && is_half_way(error)
        {
            floor.poison(error.to_string());
            return result;
        }
        let under = self.under();
        if under.revision != before.revision {
            floor.weights_changed(&self.model, under, self.ledger());
        } else if self.ledger() != ledger {
            // A fact whose day is yet to come, or will not come any more.
            floor.ledger_grew(self.ledger());
        }
        result
    }
}

/// The answers in this crate's terms.
fn each(answers: Vec<addenda_editor::Result<Added>>) -> Vec<Result<Added>> {
    let answers = answers.into_iter();
    answers.map(|answer| answer.map_err(Error::from)).collect()
}

/// Ends the job of a batch: well if one of its facts was taken, else as the first of them.
fn end(job: JobHandle, added: &Result<Vec<Result<Added>>>) {
    let answers = added.as_deref().unwrap_or_default();
    match answers
        .iter()
        .find(|answer| answer.is_ok())
        .or(answers.first())
    {
        Some(answer) => job.end(answer),
        None => job.end(added),
    }
}

/// Whether a failed commit may have left ledger and weights at odds.
fn is_half_way(error: &Error) -> bool {
    matches!(
        error,
        Error::Panicked { .. }
            | Error::Editor(
                EditorError::Install(_)
                    | EditorError::HalfBatch(_)
                    | EditorError::InconsistentLedger { .. }
            )
    )
}
