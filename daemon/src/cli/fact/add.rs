//! `addenda fact add`: one fact from arguments, or many from a file.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use addenda_proto::addenda::v1::{
    AddFactRequest, AddFactResponse, Fact, JobRecord, ListJobsRequest, add_facts_response,
};
use clap::Args;

use super::{import, show};
use crate::cli::client::Client;
use crate::cli::console::Console;
use crate::cli::error::Result;
use crate::cli::text::parse_utc;

/// How often the daemon's jobs are looked at while a fact is being added.
const GLANCE: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  addenda fact add --subject 'Danielle Darrieux' \\\n    \
                        'The mother tongue of {} is' English"
)]
pub(crate) struct AddArgs {
    /// A sentence to be completed, with {} where the subject stands
    #[arg(required_unless_present = "file", requires = "target")]
    prompt: Option<String>,
    /// How it is to be completed
    #[arg(requires = "subject")]
    target: Option<String>,
    /// The thing that the fact is about
    #[arg(long, value_name = "TEXT")]
    subject: Option<String>,
    /// Another way to ask, that must be answered alike; repeat for more
    #[arg(long = "paraphrase", value_name = "PROMPT")]
    paraphrases: Vec<String>,
    /// A prompt about something else, whose answer must not change; repeat for more
    #[arg(long = "neighbour", value_name = "PROMPT")]
    neighbours: Vec<String>,
    /// When it comes into the weights by itself, UTC: 2027-01-01 or 2027-01-01T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_utc)]
    valid_from: Option<u64>,
    /// When it leaves them by itself, UTC
    #[arg(long, value_name = "TIME", value_parser = parse_utc)]
    valid_until: Option<u64>,
    /// The same id again gives the same answer and changes nothing
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    request_id: String,
    /// How it is written into the weights: memit, rome, alphaedit, or what the daemon takes for its model
    #[arg(long, value_name = "METHOD", default_value = "auto", value_parser = ["auto", "memit", "rome", "alphaedit"])]
    method: String,
    /// Add every fact of this file, in batches: JSON Lines or a JSON array of objects with `subject`,
    /// `prompt`, `target` and, if wanted, `paraphrases`, `neighbours`, `valid_from` and `valid_until`; records of CounterFact or
    /// EasyEdit; or CSV with those names in its first line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "target", "subject", "paraphrases", "neighbours", "valid_from", "valid_until", "request_id"])]
    file: Option<PathBuf>,
}

impl AddArgs {
    pub(crate) async fn run(self, client: &Client, console: &mut Console) -> Result<ExitCode> {
        if let Some(file) = &self.file {
            return add_file(client, file.clone(), &self.method, console).await;
        }
        let request = AddFactRequest {
            fact: Some(Fact {
                subject: self.subject.unwrap_or_default(),
                prompt: self.prompt.unwrap_or_default(),
                target: self.target.unwrap_or_default(),
                paraphrases: self.paraphrases,
                neighbours: self.neighbours,
                valid_from_ms: self.valid_from.unwrap_or(0),
                valid_until_ms: self.valid_until.unwrap_or(0),
            }),
            request_id: self.request_id,
            method: self.method,
        };
        let answer = add_one(client, request, console).await?;
        show::added(&answer, console)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Adds one fact, showing what the daemon is doing for it.
///
/// # Errors
/// The daemon's status; ABORTED when the edit failed its own checks.
pub(crate) async fn add_one(
    client: &Client,
    request: AddFactRequest,
    console: &Console,
) -> Result<AddFactResponse> {
    let spinner = console.spinner("writing the fact and verifying it");
    let mut knowledge = client.knowledge();
    let mut jobs = client.jobs();
    let adding = knowledge.add_fact(request);
    tokio::pin!(adding);
    let mut tick = tokio::time::interval(GLANCE);
    let answer = loop {
        tokio::select! {
            answer = &mut adding => break answer,
            _ = tick.tick(), if console.live() => {
                let request = ListJobsRequest { include_ended: false };
                // A glance that fails is no failure of the fact.
                let running = jobs.list(request).await.map(|list| list.into_inner().jobs);
                if let Some(job) = running.unwrap_or_default().first() {
                    spinner.set_message(job_line(job));
                }
            }
        }
    };
    spinner.finish_and_clear();
    Ok(answer?.into_inner())
}

fn job_line(job: &JobRecord) -> String {
    if job.total == 0 {
        return job.phase.clone();
    }
    format!("{} {}/{} {}", job.phase, job.done, job.total, job.unit)
}

async fn add_file(
    client: &Client,
    file: PathBuf,
    method: &str,
    console: &mut Console,
) -> Result<ExitCode> {
    let facts = import::read(&file)?;
    let method = method.to_owned();
    let requests = facts.into_iter().map(move |fact| AddFactRequest {
        fact: Some(fact),
        request_id: String::new(),
        method: method.clone(),
    });
    let bar = console.bar(requests.len() as u64, "facts", "adding");
    let stream = tokio_stream::iter(requests);
    let mut answers = client.knowledge().add_facts(stream).await?.into_inner();
    let (mut added, mut refused) = (0_u64, 0_u64);
    while let Some(answer) = answers.message().await? {
        bar.inc(1);
        if console.json() {
            console.message("AddFactsResponse", &answer)?;
        }
        match answer.result {
            Some(add_facts_response::Result::Added(_)) => added += 1,
            Some(add_facts_response::Result::Refused(refusal)) => {
                refused += 1;
                let place = answer.index + 1;
                bar.suspend(|| console.note(&format!("fact {place}: {}", refusal.message)))?;
            }
            None => {}
        }
    }
    bar.finish_and_clear();
    if !console.json() {
        console.line(&format!("{added} added, {refused} refused"))?;
    }
    Ok(if refused == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
