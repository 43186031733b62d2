//! The registry of long work: what runs, how far it is, what became of it.
//!
//! Owns the records; never does the work. Invariants: a job ends exactly once, also when its
//! handle is dropped without a word; running jobs are always listed, ended ones up to a bound.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::limits;

/// What state a job is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobState {
    Running,
    Done,
    Failed,
    Cancelled,
}

/// One job as it stands.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) id: String,
    /// "warm", "edit", "check".
    pub(crate) kind: &'static str,
    pub(crate) state: JobState,
    pub(crate) phase: String,
    pub(crate) done: u64,
    /// 0 while unknown.
    pub(crate) total: u64,
    pub(crate) unit: &'static str,
    pub(crate) started_at_ms: u64,
    /// 0 while running.
    pub(crate) ended_at_ms: u64,
    pub(crate) error: String,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    state: watch::Sender<Job>,
    cancel: CancellationToken,
}

#[derive(Debug, Default)]
struct Registry {
    last: u64,
    /// Oldest first.
    entries: VecDeque<Arc<Entry>>,
}

/// All jobs of this daemon's life.
#[derive(Debug, Clone, Default)]
pub(crate) struct Jobs(Arc<Mutex<Registry>>);

/// The working side of a job. Dropped before [`JobHandle::end`], it records a cancellation.
#[derive(Debug)]
pub(crate) struct JobHandle(Arc<Entry>);

impl Jobs {
    /// Registers a job that begins now; `cancel` is what [`Jobs::cancel`] triggers.
    pub(crate) fn begin(
        &self,
        kind: &'static str,
        unit: &'static str,
        cancel: CancellationToken,
    ) -> JobHandle {
        let mut registry = self.lock();
        registry.last += 1;
        let job = Job {
            id: format!("job-{}", registry.last),
            kind,
            state: JobState::Running,
            phase: String::new(),
            done: 0,
            total: 0,
            unit,
            started_at_ms: now_ms(),
            ended_at_ms: 0,
            error: String::new(),
        };
        let entry = Arc::new(Entry {
            id: registry.last,
            state: watch::Sender::new(job),
            cancel,
        });
        registry.entries.push_back(Arc::clone(&entry));
        registry.forget_old();
        JobHandle(entry)
    }

    /// Newest first.
    pub(crate) fn list(&self, include_ended: bool) -> Vec<Job> {
        let registry = self.lock();
        let jobs = registry.entries.iter().rev();
        jobs.map(|entry| entry.state.borrow().clone())
            .filter(|job| include_ended || job.state == JobState::Running)
            .collect()
    }

    /// The job's states, from the present one on.
    pub(crate) fn watch(&self, id: &str) -> Result<watch::Receiver<Job>> {
        Ok(self.find(id)?.state.subscribe())
    }

    /// Asks a job to stop at its next step.
    pub(crate) fn cancel(&self, id: &str) -> Result<Job> {
        let entry = self.find(id)?;
        entry.cancel.cancel();
        let job = entry.state.borrow().clone();
        Ok(job)
    }

    fn find(&self, id: &str) -> Result<Arc<Entry>> {
        let number: Option<u64> = id.strip_prefix("job-").and_then(|text| text.parse().ok());
        let registry = self.lock();
        let mut entries = registry.entries.iter();
        let entry = entries.find(|entry| Some(entry.id) == number);
        entry.cloned().ok_or_else(|| Error::NotFound {
            what: "job",
            id: id.to_owned(),
            hint: "Jobs.List shows those that are remembered",
        })
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    fn forget_old(&mut self) {
        let ended = |entry: &Arc<Entry>| entry.state.borrow().state != JobState::Running;
        let mut surplus = self.entries.iter().filter(|entry| ended(entry)).count();
        self.entries.retain(|entry| {
            let goes = surplus > limits::ENDED_JOBS && ended(entry);
            surplus -= usize::from(goes);
            !goes
        });
    }
}

impl JobHandle {
    /// The job as it stands.
    pub(crate) fn state(&self) -> Job {
        self.0.state.borrow().clone()
    }

    /// Reports how far the work is.
    pub(crate) fn progress(&self, phase: &str, done: u64, total: u64) {
        self.0.state.send_modify(|job| {
            phase.clone_into(&mut job.phase);
            job.done = done;
            job.total = total;
        });
    }

    /// Records how the job ended.
    pub(crate) fn end<T>(self, result: &Result<T>) {
        let (state, error) = match result {
            Ok(_) => (JobState::Done, String::new()),
            Err(Error::Cancelled) => (JobState::Cancelled, String::new()),
            Err(error) => (JobState::Failed, error.to_string()),
        };
        self.0.close(state, error);
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        self.0.close(JobState::Cancelled, String::new());
    }
}

impl Entry {
    fn close(&self, state: JobState, error: String) {
        self.state.send_if_modified(|job| {
            if job.state != JobState::Running {
                return false;
            }
            job.state = state;
            job.error = error;
            job.ended_at_ms = now_ms();
            true
        });
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]
mod tests {
    use super::{JobState, Jobs};
    use crate::error::Error;
    use crate::limits;
    use tokio_util::sync::CancellationToken;

    #[test]
    fn a_job_whose_worker_vanishes_is_not_left_running() {
        let jobs = Jobs::default();
        drop(jobs.begin("warm", "documents", CancellationToken::new()));
        assert!(jobs.list(false).is_empty());
        assert_eq!(jobs.list(true)[0].state, JobState::Cancelled);
    }

    #[test]
    fn a_job_keeps_its_first_ending() {
        let jobs = Jobs::default();
        let job = jobs.begin("edit", "facts", CancellationToken::new());
        job.end::<()>(&Err(Error::Deadline));
        let record = &jobs.list(true)[0];
        assert_eq!(record.state, JobState::Failed);
        assert!(record.error.contains("deadline"));
    }

    #[test]
    fn cancelling_a_job_reaches_its_worker() {
        let jobs = Jobs::default();
        let cancel = CancellationToken::new();
        let _job = jobs.begin("warm", "documents", cancel.clone());
        let id = jobs.list(false)[0].id.clone();
        jobs.cancel(&id).unwrap();
        assert!(cancel.is_cancelled());
        assert!(matches!(jobs.cancel("job-99"), Err(Error::NotFound { .. })));
    }

    #[test]
    fn only_ended_jobs_are_forgotten() {
        let jobs = Jobs::default();
        let _running = jobs.begin("warm", "documents", CancellationToken::new());
        for _ in 0..limits::ENDED_JOBS + 50 {
            let job = jobs.begin("edit", "facts", CancellationToken::new());
            job.end(&Ok(()));
        }
        assert_eq!(jobs.list(false).len(), 1);
        assert!(jobs.list(true).len() <= limits::ENDED_JOBS + 2);
    }
}
