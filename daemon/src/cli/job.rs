//! `addenda job`: long work, seen and stopped.

use std::process::ExitCode;

use addenda_proto::addenda::v1::{GetJobRequest, JobRecord, JobState, ListJobsRequest};
use clap::Subcommand;

use super::client::Client;
use super::console::Console;
use super::error::{Error, Result};
use super::table::{fields, table};
use super::text::{ago, grouped, utc};

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// List running jobs
    List {
        /// Ended ones as well
        #[arg(long)]
        all: bool,
    },
    /// Show one job
    Show {
        /// The job's id
        id: String,
    },
    /// Follow a job until it ends; exits with 1 if it failed or was cancelled
    Watch {
        /// The job's id
        id: String,
    },
    /// Ask a job to stop at its next step
    Cancel {
        /// The job's id
        id: String,
    },
}

impl JobCommand {
    pub(crate) async fn run(self, connect: &str, console: &mut Console) -> Result<ExitCode> {
        let client = Client::connect(connect).await?;
        let mut jobs = client.jobs();
        match self {
            Self::List { all } => {
                let request = ListJobsRequest { include_ended: all };
                let list = jobs.list(request).await?.into_inner().jobs;
                print_list(&list, console)?;
            }
            Self::Show { id } => {
                let job = jobs.get(GetJobRequest { id }).await?.into_inner();
                print_one(&job, console)?;
            }
            Self::Cancel { id } => {
                let job = jobs.cancel(GetJobRequest { id }).await?.into_inner();
                print_one(&job, console)?;
            }
            Self::Watch { id } => {
                return watch(&client, id, console).await;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn watch(client: &Client, id: String, console: &mut Console) -> Result<ExitCode> {
    let job = follow(client, id, console, |job, console| {
        if console.json() {
            console.message("JobRecord", job)?;
        }
        Ok(format!("{} {}", job.kind, job.phase))
    })
    .await?;
    if !console.json() {
        print_one(&job, console)?;
    }
    Ok(match job.state() {
        JobState::Failed | JobState::Cancelled => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// Follows a job of this command's own to its end; `cancelled` says what became of one that was
/// cancelled.
///
/// # Errors
/// It did not end well: `what` did not come about, and why.
pub(super) async fn finish(
    client: &Client,
    id: String,
    (what, cancelled): (&str, &str),
    console: &mut Console,
) -> Result<()> {
    let job = follow(client, id, console, |job, _| Ok(job.phase.clone())).await?;
    let why = match job.state() {
        JobState::Done => return Ok(()),
        JobState::Cancelled => cancelled,
        _ => job.error.as_str(),
    };
    Err(Error::refused(
        format!("{what}: {why}"),
        "`addenda job list --all` shows all jobs",
    ))
}

/// Shows a job's states on a bar, under the words that `say` has for each; the last one.
async fn follow(
    client: &Client,
    id: String,
    console: &mut Console,
    say: impl Fn(&JobRecord, &mut Console) -> Result<String>,
) -> Result<JobRecord> {
    let mut states = client
        .jobs()
        .watch(GetJobRequest { id })
        .await?
        .into_inner();
    let bar = console.bar(0, "", "");
    let mut last = None;
    while let Some(job) = states.message().await? {
        let words = say(&job, console)?;
        bar.set_length(job.total);
        bar.set_position(job.done);
        bar.set_message(words);
        last = Some(job);
    }
    bar.finish_and_clear();
    last.ok_or(Error::Incomplete {
        what: "the job's state",
    })
}

fn print_list(jobs: &[JobRecord], console: &mut Console) -> Result<()> {
    if console.json() {
        return console.messages("JobRecord", jobs);
    }
    if jobs.is_empty() {
        return console.line("No jobs.");
    }
    let mut rows = table(&["Job", "Kind", "State", "Phase", ">Progress", "Started"]);
    for job in jobs {
        rows.add_row([
            job.id.clone(),
            job.kind.clone(),
            state(job).to_owned(),
            job.phase.clone(),
            progress(job),
            ago(job.started_at_ms),
        ]);
    }
    console.rows(rows)
}

fn print_one(job: &JobRecord, console: &mut Console) -> Result<()> {
    if console.json() {
        return console.message("JobRecord", job);
    }
    let mut rows = vec![
        ("job", job.id.clone()),
        ("kind", job.kind.clone()),
        ("state", state(job).to_owned()),
        ("phase", job.phase.clone()),
        ("progress", progress(job)),
        ("started", utc(job.started_at_ms)),
        ("ended", utc(job.ended_at_ms)),
    ];
    if !job.error.is_empty() {
        rows.push(("error", job.error.clone()));
    }
    console.line(&fields(&rows))
}

fn progress(job: &JobRecord) -> String {
    if job.total == 0 {
        return format!("{} {}", grouped(job.done), job.unit);
    }
    format!("{}/{} {}", grouped(job.done), grouped(job.total), job.unit)
}

fn state(job: &JobRecord) -> &'static str {
    match job.state() {
        JobState::Unspecified => "unknown",
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}
