//! A training on its way, one small step at a time: teach, measure, learn, validate.
//!
//! Owns everything of it that is in memory, on the engine's thread; what is to be kept leaves as
//! [`Note`]s, which its client writes, so that no fsync ever holds the engine. Invariant: the
//! course of a training depends on its plan and lessons alone, not on where it was interrupted.

use std::rc::Rc;
use std::time::{Duration, Instant};

use addenda_model::adapter::{Desk, Measured, Primer, Schedule, Student, Taught, Trainer, teach};
use addenda_model::{Adapter, Tokenizer, Transformer};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::course::Placed;
use super::plan::Plan;
use super::record::{Record, SuiteRecord, Validation, sum};
use super::samples::Suite;
use crate::digest::Digest;
use crate::ending::Ending;
use crate::error::{Error, Result};

/// Validations without a better one, after which training ends.
const PATIENCE: usize = 3;
/// Validations in one pass over the lessons.
const VALIDATIONS_PER_EPOCH: usize = 2;

/// What a training begins with.
pub(crate) struct Course {
    pub(crate) plan: Plan,
    /// Base model's fingerprint.
    pub(crate) base: [u8; 32],
    /// What a bridge begins as, in tokens.
    pub(crate) bridge: Vec<u32>,
    /// Where a teacher's answer is over.
    pub(crate) ending: Ending,
    /// Lessons to learn from, then those to validate on, each with its teacher's answer if that
    /// was kept.
    pub(crate) lessons: Vec<(Placed, Option<Vec<u8>>)>,
    /// Where an earlier run was.
    pub(crate) checkpoint: Option<Vec<u8>>,
}

/// What a training has to say.
pub(crate) enum Note {
    /// A teacher's answer to a lesson, by its place, to be kept for a later run.
    Answer(usize, Vec<u8>),
    /// Where the training is; takes the place of the one before.
    Checkpoint(Vec<u8>),
    /// What it does, units done and in all.
    Progress(String, u64, u64),
    /// It is done. Nothing follows.
    Done(Box<Outcome>),
}

/// What came of a training.
pub(crate) struct Outcome {
    /// The file of the best adapter in validation, its record in it.
    pub(crate) file: Vec<u8>,
    pub(crate) record: Record,
}

/// What goes into a checkpoint beside the trainer's state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Notes {
    /// Of each validation lesson, without an adapter, and with the best one.
    before: Vec<Measured>,
    best: Vec<Measured>,
    history: Vec<Validation>,
    losses: (f64, u64),
    seconds: f64,
}

/// A training on its way.
pub(crate) struct Training {
    course: Course,
    taught: Vec<Taught>,
    trainer: Trainer,
    desk: Rc<Desk>,
    notes: Notes,
    stage: Stage,
    /// Places of the lessons of this pass, in order, and the pass.
    order: (Vec<usize>, Option<u64>),
    clock: Clock,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq)]
enum Stage {
    Teach,
    /// Measuring the validation lessons, those so far; without an adapter the first time.
    Measure {
        before: bool,
        so_far: Vec<Measured>,
    },
    Learn,
    End,
}

/// Time spent, and so time left.
#[derive(Default)]
struct Clock {
    /// Of this run: time and units of teaching, of learning.
    teach: (Duration, u32),
    learn: (Duration, u32),
}

impl Training {
    /// Begins, or goes on from the course's checkpoint.
    ///
    /// # Errors
    /// No lessons to learn from or to validate on, or the model's.
    pub(crate) fn begin(course: Course, model: &Transformer) -> Result<Self> {
        let plan = &course.plan;
        if plan.samples == 0
            || plan.validation == 0
            || course.lessons.len() != plan.samples + plan.validation
        {
            return Err(Error::invalid(
                "data",
                "gives no samples to train on or to validate on",
            ));
        }
        let name = plan.name.clone();
        let first = if plan.bridge_tokens > 0 {
            let before = first_preamble(&course);
            Adapter::bridge_of_tokens(model, (before, &course.bridge), course.base, name)?
        } else {
            let (header, trailer) = first_tokens(&course);
            Adapter::of_tokens(model, (&header, &trailer), course.base, name)?
        };
        let schedule = Schedule {
            updates: plan.updates() as u64,
            learning_rate: plan.learning_rate,
        };
        let (trainer, notes) = match &course.checkpoint {
            None => (Trainer::new(first, schedule, model)?, Notes::default()),
            Some(bytes) => {
                let (trainer, notes) = Trainer::from_bytes(bytes, first, schedule, model)?;
                let notes = serde_json::from_str(&notes).unwrap_or_default();
                (trainer, notes)
            }
        };
        Ok(Self {
            course,
            taught: Vec::new(),
            trainer,
            desk: Rc::default(),
            notes,
            stage: Stage::Teach,
            order: (Vec::new(), None),
            clock: Clock::default(),
        })
    }

    /// One small step under the weights of this revision: a teacher's answer, one lesson, or one measurement. Its
    /// notes; after [`Note::Done`] there is nothing more to do.
    ///
    /// # Errors
    /// The model's.
    pub(crate) fn step(
        &mut self,
        (revision, model): (Digest, &Transformer),
        primer: Option<Primer<'_>>,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<Note>> {
        let started = Instant::now();
        let desk = Rc::clone(&self.desk);
        desk.under(revision.0);
        let student = Student {
            model,
            primer,
            desk: &desk,
        };
        let mut notes = match self.stage.clone() {
            Stage::Teach => self.teach(student, tokenizer)?,
            Stage::Measure { before, so_far } => self.measure(student, before, so_far)?,
            Stage::Learn => self.learn(student)?,
            Stage::End => Vec::new(),
        };
        self.notes.seconds += started.elapsed().as_secs_f64();
        if self.stage == Stage::End {
            notes.push(Note::Done(Box::new(self.outcome(model)?)));
        }
        Ok(notes)
    }

    fn teach(&mut self, student: Student<'_>, tokenizer: &Tokenizer) -> Result<Vec<Note>> {
        let Student { model, desk, .. } = student;
        let place = self.taught.len();
        let Some((placed, kept)) = self.course.lessons.get_mut(place) else {
            self.begin_lessons();
            return Ok(Vec::new());
        };
        let lesson = placed.lesson.clone();
        let kept = kept
            .take()
            .and_then(|bytes| Taught::from_answer_bytes(lesson.clone(), &bytes, model).ok());
        let mut notes = Vec::new();
        let taught = match kept {
            Some(taught) => taught,
            None => {
                let started = Instant::now();
                let most = self.course.plan.answer_tokens;
                let ending = self.course.ending;
                let is_over = |answer: &[u32]| ending.is_met(answer, tokenizer);
                let taught = teach((model, desk), lesson, most, is_over)?;
                self.clock.teach.0 += started.elapsed();
                self.clock.teach.1 += 1;
                notes.push(Note::Answer(place, taught.answer_bytes()?));
                taught
            }
        };
        self.taught.push(taught);
        let (done, all) = (self.taught.len(), self.course.lessons.len());
        let left = left(self.clock.teach, all - done);
        notes.push(Note::Progress(
            format!("asking the teacher{left}"),
            done as u64,
            all as u64,
        ));
        Ok(notes)
    }

    /// What follows the teaching: the first measurement, or the place where an earlier run was.
    fn begin_lessons(&mut self) {
        self.desk.dismiss_teacher();
        self.stage = if self.notes.before.is_empty() {
            Stage::Measure {
                before: true,
                so_far: Vec::new(),
            }
        } else if self.trainer.updates() > 0 && self.is_time_to_validate() && !self.is_measured() {
            // It was stopped between an update and the validation that follows it.
            Stage::Measure {
                before: false,
                so_far: Vec::new(),
            }
        } else if self.is_over() {
            Stage::End
        } else {
            Stage::Learn
        };
    }

    fn measure(
        &mut self,
        student: Student<'_>,
        before: bool,
        mut so_far: Vec<Measured>,
    ) -> Result<Vec<Note>> {
        let plan = &self.course.plan;
        let adapter = if before {
            None
        } else {
            Some(self.trainer.adapter()?)
        };
        if let Some(taught) = self.taught.get(plan.samples + so_far.len()) {
            so_far.push(taught.measure(student, adapter.as_ref())?);
        }
        let (done, all) = (so_far.len(), plan.validation);
        let phase = if before {
            "measuring without an adapter".to_owned()
        } else {
            format!("validating after update {}", self.trainer.updates())
        };
        let mut notes = vec![Note::Progress(phase, done as u64, all as u64)];
        if done < all {
            self.stage = Stage::Measure { before, so_far };
            return Ok(notes);
        }
        if before {
            self.notes.before = so_far;
        } else {
            let whole = sum(&so_far);
            let losses = std::mem::take(&mut self.notes.losses);
            self.notes.history.push(Validation {
                update: self.trainer.updates(),
                loss: losses.0 / losses.1.max(1) as f64,
                kl: whole.mean_kl(),
                agreement: whole.agreement(),
            });
            if self.trainer.validated(whole.mean_kl())? {
                self.notes.best = so_far;
            }
        }
        self.stage = if self.is_over() {
            Stage::End
        } else {
            Stage::Learn
        };
        notes.push(self.checkpoint()?);
        Ok(notes)
    }

    fn learn(&mut self, student: Student<'_>) -> Result<Vec<Note>> {
        let started = Instant::now();
        let plan = &self.course.plan;
        let (batch, per_epoch) = (self.batch() as u64, plan.updates_per_epoch() as u64);
        let (updates, all) = (self.trainer.updates(), plan.updates() as u64);
        let epoch = updates / per_epoch;
        if self.order.1 != Some(epoch) {
            self.order = (order(&self.course, epoch), Some(epoch));
        }
        let at = (updates % per_epoch) * batch + self.trainer.gathered();
        let place = usize::try_from(at).ok();
        let lesson = place.and_then(|at| self.order.0.get(at)).copied();
        let taught = lesson.and_then(|lesson| self.taught.get(lesson));
        let taught = taught.ok_or_else(|| Error::invalid("data", "has no lesson left"))?;
        let loss = self.trainer.study(student, taught)?;
        self.notes.losses.0 += loss;
        self.notes.losses.1 += 1;
        self.clock.learn.0 += started.elapsed();
        self.clock.learn.1 += 1;
        let studied = updates * batch + self.trainer.gathered();
        let wanted = all * batch;
        let rest = usize::try_from(wanted.saturating_sub(studied)).unwrap_or(usize::MAX);
        let mean = self.notes.losses.0 / self.notes.losses.1.max(1) as f64;
        let phase = format!(
            "learning: pass {} of {}, loss {mean:.3}{}{}",
            epoch + 1,
            plan.epochs,
            self.validated(),
            left(self.clock.learn, rest)
        );
        let mut notes = vec![Note::Progress(phase, studied, wanted)];
        if self.trainer.gathered() >= batch {
            self.trainer.update()?;
            if self.is_time_to_validate() {
                self.stage = Stage::Measure {
                    before: false,
                    so_far: Vec::new(),
                };
            }
            notes.push(self.checkpoint()?);
        }
        Ok(notes)
    }

    fn batch(&self) -> usize {
        let plan = &self.course.plan;
        plan.batch.clamp(1, plan.samples.max(1))
    }

    fn is_time_to_validate(&self) -> bool {
        let plan = &self.course.plan;
        let every = (plan.updates_per_epoch() / VALIDATIONS_PER_EPOCH).max(1) as u64;
        let updates = self.trainer.updates();
        updates.is_multiple_of(every) || updates >= plan.updates() as u64
    }

    /// Whether all updates are made, or the last validations brought nothing.
    fn is_over(&self) -> bool {
        let history = &self.notes.history;
        let kl = |one: &Validation| one.kl;
        let best = history
            .iter()
            .enumerate()
            .min_by(|a, b| kl(a.1).total_cmp(&kl(b.1)));
        let since = best.map_or(0, |(place, _)| history.len() - 1 - place);
        let all_made = self.trainer.updates() >= self.course.plan.updates() as u64;
        (all_made && self.is_measured()) || since >= PATIENCE
    }

    /// Whether the present state was validated.
    fn is_measured(&self) -> bool {
        let last = self.notes.history.last().map(|last| last.update);
        last == Some(self.trainer.updates())
    }

    /// ", validation 0.123 (0.456 without)" once there was one.
    fn validated(&self) -> String {
        match self.notes.history.last() {
            None => String::new(),
            Some(last) => format!(
                ", validation {:.3} ({:.3} without)",
                last.kl,
                sum(&self.notes.before).mean_kl()
            ),
        }
    }

    fn checkpoint(&self) -> Result<Note> {
        let notes = serde_json::to_string(&self.notes);
        let notes = notes.map_err(|error| Error::Panicked {
            message: error.to_string(),
        })?;
        Ok(Note::Checkpoint(self.trainer.to_bytes(&notes)?))
    }

    fn outcome(&self, model: &Transformer) -> Result<Outcome> {
        let (adapter, _) = self.trainer.best()?;
        let plan = &self.course.plan;
        let (before, after) = (sum(&self.notes.before), sum(&self.notes.best));
        let validated = self.course.lessons.iter().skip(plan.samples);
        let suites: Vec<Suite> = validated.map(|(placed, _)| placed.suite).collect();
        let record = Record {
            plan: plan.clone(),
            dtype: addenda_model::tensor::kind_name(model.kind()).to_owned(),
            kl_before: before.mean_kl(),
            kl_after: after.mean_kl(),
            agreement_before: before.agreement(),
            agreement_after: after.agreement(),
            suites: SuiteRecord::of_each(&suites, &self.notes.before, &self.notes.best),
            history: self.notes.history.clone(),
            studied: self.trainer.updates() * self.batch() as u64,
            updates: self.trainer.updates(),
            seconds: self.notes.seconds.round(),
            created_at_ms: crate::jobs::now_ms(),
        };
        let json = serde_json::to_string(&record).unwrap_or_default();
        let name = plan.name.clone();
        Ok(Outcome {
            file: adapter.named(name, json).to_bytes()?,
            record,
        })
    }
}

/// What stands before the documents of the first lesson.
fn first_preamble(course: &Course) -> &[u32] {
    let lesson = course.lessons.first().map(|(placed, _)| &placed.lesson);
    lesson.map_or(&[], |lesson| &lesson.preamble)
}

/// What header and trailer begin as: the last tokens before documents, and the token that documents end with.
fn first_tokens(course: &Course) -> (Vec<u32>, Vec<u32>) {
    let lesson = course.lessons.first().map(|(placed, _)| &placed.lesson);
    let document = lesson.and_then(|lesson| lesson.documents.first());
    let end = document.and_then(|ids| ids.last()).copied();
    let end = end.unwrap_or_default();
    let Plan {
        header_tokens,
        trailer_tokens,
        ..
    } = course.plan;
    let before = first_preamble(course).iter().rev().copied();
    let mut header: Vec<u32> = before
        .chain(std::iter::repeat(end))
        .take(header_tokens)
        .collect();
    header.reverse();
    (header, vec![end; trailer_tokens])
}

/// The order of the lessons in a pass; those about the same documents stay side by side.
fn order(course: &Course, epoch: u64) -> Vec<usize> {
    let plan = &course.plan;
    let mut random = ChaCha8Rng::seed_from_u64(plan.seed);
    random.set_stream(epoch + 1);
    let about = |place: &usize| course.lessons.get(*place).map(|(placed, _)| placed.about);
    let places: Vec<usize> = (0..plan.samples).collect();
    let mut groups: Vec<&[usize]> = places.chunk_by(|a, b| about(a) == about(b)).collect();
    groups.shuffle(&mut random);
    groups.concat()
}

/// ", about 12 min left", from what units took so far; empty before the first.
fn left((spent, units): (Duration, u32), rest: usize) -> String {
    let Some(each) = spent.checked_div(units) else {
        return String::new();
    };
    let seconds = each.as_secs_f64() * rest as f64;
    match seconds {
        _ if rest == 0 => String::new(),
        seconds if seconds < 90.0 => format!(", about {seconds:.0} s left"),
        seconds if seconds < 5400.0 => format!(", about {:.0} min left", seconds / 60.0),
        seconds => format!(", about {:.1} h left", seconds / 3600.0),
    }
}
