//! How facts, their figures and the ledger look.

use addenda_proto::addenda::v1::{
    AddFactResponse, CheckFactResponse, Fact, FactFigures, FactRecord, FactState, LedgerEntry,
};

use crate::cli::console::Console;
use crate::cli::error::Result;
use crate::cli::table::{fields, table};
use crate::cli::text::{ago, first_line, short, utc};

/// `The mother tongue of Danielle Darrieux is → English`.
pub(crate) fn sentence(fact: &Fact) -> String {
    let prompt = fact.prompt.replacen("{}", &fact.subject, 1);
    format!("{prompt} → {}", fact.target.trim())
}

pub(crate) fn list(facts: &[FactRecord], console: &mut Console) -> Result<()> {
    if console.json() {
        return console.messages("FactRecord", facts);
    }
    if facts.is_empty() {
        return console.line("No facts.");
    }
    let mut rows = table(&["Fact", "Says", "State", ">Probability", "Added"]);
    for record in facts {
        let figures = record.figures.unwrap_or_default();
        rows.add_row([
            short(&record.id).to_owned(),
            record
                .fact
                .as_ref()
                .map_or_else(String::new, |fact| first_line(&sentence(fact), 100)),
            state(record).to_owned(),
            format!("{:.3}", figures.target_probability),
            ago(record.added_at_ms),
        ]);
    }
    console.rows(rows)
}

pub(crate) fn one(record: &FactRecord, console: &mut Console) -> Result<()> {
    if console.json() {
        return console.message("FactRecord", record);
    }
    let fact = record.fact.clone().unwrap_or_default();
    let layers: Vec<String> = record.layers.iter().map(ToString::to_string).collect();
    let mut rows = vec![
        ("fact", record.id.clone()),
        ("says", sentence(&fact)),
        ("subject", fact.subject.clone()),
        ("state", state(record).to_owned()),
        (
            "method",
            format!("{}, layers {}", record.method, layers.join(" ")),
        ),
        ("added", utc(record.added_at_ms)),
        ("ended", utc(record.ended_at_ms)),
    ];
    for (name, at_ms) in [
        ("valid from", fact.valid_from_ms),
        ("valid until", fact.valid_until_ms),
    ] {
        if at_ms > 0 {
            rows.push((name, utc(at_ms)));
        }
    }
    if !record.superseded_by.is_empty() {
        rows.push(("superseded by", record.superseded_by.clone()));
    }
    rows.extend(
        fact.paraphrases
            .iter()
            .map(|text| ("paraphrase", text.clone())),
    );
    rows.extend(
        fact.neighbours
            .iter()
            .map(|text| ("neighbour", text.clone())),
    );
    if let Some(figures) = &record.figures {
        rows.push(("when added", self::figures(figures)));
    }
    console.line(&fields(&rows))
}

pub(crate) fn added(answer: &AddFactResponse, console: &mut Console) -> Result<()> {
    if console.json() {
        return console.message("AddFactResponse", answer);
    }
    let record = answer.record.clone().unwrap_or_default();
    let says = record.fact.as_ref().map_or_else(String::new, sentence);
    console.line(&format!("added {}  {says}", short(&record.id)))?;
    if record.state() == FactState::Waiting {
        let from = record.fact.as_ref().map_or(0, |fact| fact.valid_from_ms);
        console.line(&format!("it waits, and holds from {}", utc(from)))?;
    }
    if !answer.superseded.is_empty() {
        console.line(&format!(
            "it takes the place of {}",
            short(&answer.superseded)
        ))?;
    }
    if let Some(figures) = &record.figures {
        console.line(&self::figures(figures))?;
    }
    let took = format!(
        "revision {} · {:.1} s",
        short(&answer.revision),
        answer.seconds
    );
    let took = console.dim(&took);
    console.note(&took)
}

pub(crate) fn check(answer: &CheckFactResponse, console: &mut Console) -> Result<()> {
    let record = answer.record.clone().unwrap_or_default();
    let mut rows = vec![
        ("fact", record.id.clone()),
        (
            "says",
            record.fact.as_ref().map_or_else(String::new, sentence),
        ),
        ("state", state(&record).to_owned()),
    ];
    if let Some(figures) = &record.figures {
        rows.push(("when added", self::figures(figures)));
    }
    if let Some(figures) = &answer.now {
        rows.push(("now", self::figures(figures)));
    }
    console.line(&fields(&rows))
}

pub(crate) fn entry(entry: &LedgerEntry, console: &mut Console) -> Result<()> {
    console.line(&format!(
        "{:>6}  {}  {:10}  {}  revision {}",
        entry.sequence,
        utc(entry.at_ms),
        entry.action,
        short(&entry.fact_id),
        short(&entry.revision)
    ))
}

/// What an edit's verification measured, in one line.
pub(crate) fn figures(figures: &FactFigures) -> String {
    let mut parts = vec![
        format!(
            "probability {:.4} → {:.4}",
            figures.target_probability_before, figures.target_probability
        ),
        if figures.target_is_top1 {
            "the likeliest answer".to_owned()
        } else {
            "not the likeliest answer".to_owned()
        },
    ];
    if let Some(share) = figures.paraphrase {
        let made = made(figures.made_paraphrases);
        parts.push(format!("{made}paraphrases {:.0} %", share * 100.0));
    }
    if let Some(share) = figures.locality {
        let made = made(figures.made_neighbours);
        parts.push(format!("{made}neighbours unchanged {:.0} %", share * 100.0));
    }
    if let Some(probability) = figures.chat_probability {
        let likeliest = match figures.chat_is_top1() {
            true => "",
            false => ", not the likeliest",
        };
        parts.push(format!("in the chat {probability:.4}{likeliest}"));
    }
    parts.push(format!(
        "perplexity {:.2} → {:.2}",
        figures.perplexity_before, figures.perplexity_after
    ));
    parts.join(" · ")
}

/// How probes are called that the caller did not give.
fn made(made: bool) -> &'static str {
    match made {
        true => "made ",
        false => "",
    }
}

fn state(record: &FactRecord) -> &'static str {
    match record.state() {
        FactState::Unspecified => "unknown",
        FactState::Active => "active",
        FactState::Superseded => "superseded",
        FactState::Retired => "retired",
        FactState::Waiting => "waiting",
        FactState::Expired => "expired",
    }
}
