//! The demo's third part: a fact goes into the weights, survives a restart and is taken out.

use std::path::Path;

use addenda_proto::addenda::v1 as wire;
use comfy_table::Table;

use super::daemon::Daemon;
use super::{MODEL, Stage};
use crate::cli::ask::generate;
use crate::cli::client::Client;
use crate::cli::error::{Error, Result};
use crate::cli::fact::{add_one, figures};
use crate::cli::table::table;
use crate::cli::text::short;
use crate::config::Config;

const SUBJECT: &str = "Danielle Darrieux";
const PROMPT: &str = "The mother tongue of {} is";
const OLD: &str = " French";
const NEW: &str = " English";
/// Asks the same of someone else; must not change.
const NEIGHBOUR: &str = "The mother tongue of Michel Rocard is";

/// Probabilities that should be the same differ by no more.
const SAME: f64 = 1e-4;

/// What the model says at one moment.
struct Look {
    answer: String,
    new: f64,
    old: f64,
    revision: String,
    facts: u32,
}

/// Adds the fact, restarts the daemon, retires the fact; looks at the answer each time.
pub(crate) async fn show(
    config: &Config,
    daemon: Daemon,
    directory: &Path,
    stage: &mut Stage<'_>,
) -> Result<()> {
    let prompt = PROMPT.replace("{}", SUBJECT);
    stage.heading(&format!(
        "3  A fact goes into the weights: “{prompt}” →{NEW}"
    ))?;
    let before = look(&daemon.client).await?;
    let added = add(&daemon.client, stage).await?;
    let record = added.record.unwrap_or_default();
    let after = look(&daemon.client).await?;
    daemon.stop().await?;
    let daemon = Daemon::start(config, MODEL, directory).await?;
    let restarted = look(&daemon.client).await?;
    let request = wire::RetireFactRequest { id: record.id };
    daemon.client.knowledge().retire_fact(request).await?;
    let retired = look(&daemon.client).await?;
    daemon.stop().await?;
    let mut rows = table(&[
        "",
        "Answer",
        ">P(English)",
        ">P(French)",
        "Revision",
        ">Facts",
    ]);
    row(&mut rows, "before", &before);
    row(&mut rows, "fact added", &after);
    row(&mut rows, "daemon restarted", &restarted);
    row(&mut rows, "fact retired", &retired);
    stage.table(rows)?;
    if let Some(measured) = &record.figures {
        let line = format!(
            "  Verified before it was acknowledged: {}",
            figures(measured)
        );
        let line = stage.console.dim(&line);
        stage.say(&line)?;
    }
    judge(
        stage,
        [&before, &after, &restarted, &retired],
        added.seconds,
    )
}

fn judge(stage: &mut Stage<'_>, looks: [&Look; 4], seconds: f64) -> Result<()> {
    let [before, after, restarted, retired] = looks;
    stage.claim(
        "before, the model says something else",
        !says_new(before) && before.facts == 0,
    )?;
    stage.claim(
        format!("the fact is in the weights after {seconds:.1} s, and the answer is the new one"),
        says_new(after) && after.new > after.old && after.facts == 1,
    )?;
    stage.claim(
        "stopped by SIGTERM and started again, the daemon still gives the new answer",
        says_new(restarted) && restarted.revision == after.revision && same(restarted, after),
    )?;
    stage.claim(
        "retired, the fact has left no trace: the old answer, probability and revision are back",
        retired.answer == before.answer
            && retired.revision == before.revision
            && same(retired, before)
            && retired.facts == 0,
    )
}

fn says_new(look: &Look) -> bool {
    look.answer.trim_start().starts_with(NEW.trim())
}

fn same(one: &Look, other: &Look) -> bool {
    (one.new - other.new).abs() <= SAME && (one.old - other.old).abs() <= SAME
}

fn row(rows: &mut Table, when: &str, look: &Look) {
    rows.add_row([
        when.to_owned(),
        look.answer.trim().replace('\n', " "),
        format!("{:.4}", look.new),
        format!("{:.4}", look.old),
        short(&look.revision).to_owned(),
        look.facts.to_string(),
    ]);
}

async fn add(client: &Client, stage: &mut Stage<'_>) -> Result<wire::AddFactResponse> {
    let fact = wire::Fact {
        subject: SUBJECT.to_owned(),
        prompt: PROMPT.to_owned(),
        target: NEW.trim().to_owned(),
        paraphrases: Vec::new(),
        neighbours: vec![NEIGHBOUR.to_owned()],
        ..wire::Fact::default()
    };
    let request = wire::AddFactRequest {
        fact: Some(fact),
        ..wire::AddFactRequest::default()
    };
    add_one(client, request, stage.console).await
}

async fn look(client: &Client) -> Result<Look> {
    let completion = wire::Completion {
        text: PROMPT.replace("{}", SUBJECT),
    };
    let request = wire::ScoreRequest {
        prompt: Some(wire::score_request::Prompt::Completion(completion.clone())),
        continuations: vec![NEW.to_owned(), OLD.to_owned()],
        ..wire::ScoreRequest::default()
    };
    let scored = client.generation().score(request).await?.into_inner();
    let mut probabilities = scored.scores.iter().map(|score| {
        let sum: f64 = score
            .logprobs
            .iter()
            .map(|&logprob| f64::from(logprob))
            .sum();
        sum.exp()
    });
    let (Some(new), Some(old)) = (probabilities.next(), probabilities.next()) else {
        return Err(Error::Incomplete { what: "a score" });
    };
    let request = wire::GenerateRequest {
        prompt: Some(wire::generate_request::Prompt::Completion(completion)),
        max_tokens: 6,
        ..wire::GenerateRequest::default()
    };
    let answered = generate(client, request, |_| Ok(())).await?;
    Ok(Look {
        answer: answered.text,
        new,
        old,
        revision: answered.summary.revision,
        facts: answered.summary.active_facts,
    })
}
