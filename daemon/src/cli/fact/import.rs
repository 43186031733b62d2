//! Facts out of files: JSON Lines, JSON arrays and CSV, in our own words or in those of CounterFact and EasyEdit.
//!
//! Owns the names of fields; never asks a daemon. A record that is none of these is refused with its place.

use std::path::Path;

use addenda_proto::addenda::v1::Fact;
use serde::Deserialize;

use crate::cli::error::{Error, Result};
use crate::cli::text::parse_utc;

/// What is told where a record can't be read.
const HINT: &str = "a record has subject, prompt and target; or it is one of CounterFact or EasyEdit (see `addenda fact add --help`)";

/// A record in any of the forms that are read.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Record {
    Own(Own),
    CounterFact(Box<CounterFact>),
    EasyEdit(EasyEdit),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Own {
    subject: String,
    prompt: String,
    target: String,
    #[serde(default)]
    paraphrases: Vec<String>,
    #[serde(default)]
    neighbours: Vec<String>,
    #[serde(default)]
    valid_from: Time,
    #[serde(default)]
    valid_until: Time,
}

/// A time of the wire, written as people write it; 0 where there is none.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "String")]
struct Time(u64);

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        match text.trim() {
            "" => Ok(Self(0)),
            text => parse_utc(text).map(Self),
        }
    }
}

/// A record as the paper's authors publish it. What else it holds serves measuring only.
#[derive(Debug, Deserialize)]
struct CounterFact {
    requested_rewrite: Rewrite,
    #[serde(default)]
    paraphrase_prompts: Vec<String>,
    #[serde(default)]
    neighborhood_prompts: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Rewrite {
    prompt: String,
    subject: String,
    target_new: Target,
}

#[derive(Debug, Deserialize)]
struct Target {
    str: String,
}

/// A record as EasyEdit's data sets and the reduced CounterFact have it.
#[derive(Debug, Deserialize)]
struct EasyEdit {
    subject: String,
    #[serde(alias = "src")]
    prompt: String,
    #[serde(alias = "alt")]
    target_new: String,
    #[serde(default, alias = "rephrase")]
    rephrase_prompt: Option<OneOrMany>,
    #[serde(default, alias = "loc")]
    locality_prompt: Option<OneOrMany>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// Probes of a fact at most; published records hold more, and the first of them do.
const PROBES: usize = 16;

impl From<Record> for Fact {
    fn from(record: Record) -> Self {
        let mut fact = match record {
            Record::Own(own) => Self {
                subject: own.subject,
                prompt: own.prompt,
                target: own.target,
                paraphrases: own.paraphrases,
                neighbours: own.neighbours,
                valid_from_ms: own.valid_from.0,
                valid_until_ms: own.valid_until.0,
            },
            Record::CounterFact(record) => Self {
                subject: record.requested_rewrite.subject,
                prompt: record.requested_rewrite.prompt,
                target: record.requested_rewrite.target_new.str,
                paraphrases: first(record.paraphrase_prompts),
                neighbours: first(record.neighborhood_prompts),
                ..Self::default()
            },
            Record::EasyEdit(record) => Self {
                subject: record.subject,
                prompt: record.prompt,
                target: record.target_new,
                paraphrases: first(
                    record
                        .rephrase_prompt
                        .map_or_else(Vec::new, OneOrMany::into_vec),
                ),
                neighbours: first(
                    record
                        .locality_prompt
                        .map_or_else(Vec::new, OneOrMany::into_vec),
                ),
                ..Self::default()
            },
        };
        fact.target = fact.target.trim().to_owned();
        fact
    }
}

fn first(mut probes: Vec<String>) -> Vec<String> {
    probes.truncate(PROBES);
    probes
}

/// The facts of a file, in order.
///
/// # Errors
/// The file can't be read, or a record of it is none that is known.
pub(crate) fn read(file: &Path) -> Result<Vec<Fact>> {
    let text = std::fs::read_to_string(file).map_err(|source| Error::File {
        path: file.to_owned(),
        source,
    })?;
    let csv = file
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
    let facts = if csv { of_csv(&text) } else { of_json(&text) };
    facts.map_err(|problem| Error::refused(format!("{} {problem}", file.display()), HINT))
}

fn of_json(text: &str) -> std::result::Result<Vec<Fact>, String> {
    let text = text.trim_start_matches('\u{feff}').trim();
    let place =
        |what: &str, at: usize, error: &serde_json::Error| format!("{what} {}: {error}", at + 1);
    if text.starts_with('[') {
        let all: Vec<serde_json::Value> =
            serde_json::from_str(text).map_err(|error| format!("is no JSON array: {error}"))?;
        let records = all.into_iter().enumerate();
        return records
            .map(|(at, value)| {
                let record: Record =
                    serde_json::from_value(value).map_err(|e| place("record", at, &e))?;
                Ok(record.into())
            })
            .collect();
    }
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(at, line)| {
            let record: Record = serde_json::from_str(line).map_err(|e| place("line", at, &e))?;
            Ok(record.into())
        })
        .collect()
}

/// Of several paraphrases or neighbours in one cell, each stands on its own line.
fn of_csv(text: &str) -> std::result::Result<Vec<Fact>, String> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let names = reader.headers().map_err(|error| error.to_string())?.clone();
    let column = |name: &str| names.iter().position(|found| found.trim() == name);
    let needed =
        |name: &str| column(name).ok_or(format!("has no column {name:?} in its first line"));
    let (subject, prompt, target) = (needed("subject")?, needed("prompt")?, needed("target")?);
    let (paraphrases, neighbours) = (column("paraphrases"), column("neighbours"));
    let (from, until) = (column("valid_from"), column("valid_until"));
    let mut facts = Vec::new();
    for row in reader.records() {
        let row = row.map_err(|error| error.to_string())?;
        let cell = |at: usize| row.get(at).unwrap_or_default();
        let many = |at: Option<usize>| {
            let texts = at.map_or("", cell).lines().map(str::trim);
            texts
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let time = |at: Option<usize>| {
            let time = at.map_or(Ok(Time::default()), |at| {
                Time::try_from(cell(at).to_owned())
            });
            time.map(|time| time.0)
        };
        facts.push(Fact {
            subject: cell(subject).to_owned(),
            prompt: cell(prompt).to_owned(),
            target: cell(target).trim().to_owned(),
            paraphrases: many(paraphrases),
            neighbours: many(neighbours),
            valid_from_ms: time(from)?,
            valid_until_ms: time(until)?,
        });
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

    use super::{of_csv, of_json};

    #[test]
    fn one_fact_reads_the_same_in_every_form() {
        let own = r#"{"subject":"Ann","prompt":"{} lives in","target":"Rome","paraphrases":["Ann's town is"],"neighbours":["Bob lives in"]}"#;
        let counterfact = r#"[{"case_id":1,"requested_rewrite":{"prompt":"{} lives in","subject":"Ann","target_new":{"str":" Rome","id":"Q1"},"target_true":{"str":"Oslo"}},
            "paraphrase_prompts":["Ann's town is"],"neighborhood_prompts":["Bob lives in"],"generation_prompts":[]}]"#;
        let easyedit = r#"[{"case_id":0,"subject":"Ann","prompt":"{} lives in","target_new":"Rome","ground_truth":"Oslo",
            "rephrase_prompt":"Ann's town is","locality_prompt":"Bob lives in","locality_ground_truth":"Bonn"}]"#;
        let csv = "subject,prompt,target,paraphrases,neighbours\nAnn,{} lives in,Rome,\"Ann's town is\",Bob lives in\n";
        let fact = of_json(own).unwrap();
        assert_eq!(fact.first().unwrap().target, "Rome");
        for other in [of_json(counterfact), of_json(easyedit), of_csv(csv)] {
            assert_eq!(other.unwrap(), fact);
        }
    }

    #[test]
    fn dates_are_read_in_json_and_csv_alike() {
        let json = r#"{"subject":"Ann","prompt":"{} lives in","target":"Rome","valid_until":"2000-03-01"}"#;
        let csv =
            "subject,prompt,target,valid_from,valid_until\nAnn,{} lives in,Rome,,2000-03-01\n";
        let (json, csv) = (of_json(json).unwrap(), of_csv(csv).unwrap());
        assert_eq!(json, csv);
        assert_eq!(json.first().unwrap().valid_until_ms, 951_868_800_000);
        let never =
            r#"{"subject":"Ann","prompt":"{} lives in","target":"Rome","valid_until":"soon"}"#;
        assert!(of_json(never).is_err());
    }

    #[test]
    fn a_record_that_is_none_is_refused_with_its_place() {
        let lines = "{\"subject\":\"A\",\"prompt\":\"{}\",\"target\":\"b\"}\n\n{\"subject\":1}";
        assert!(of_json(lines).unwrap_err().starts_with("line 3"));
        assert!(
            of_csv("subject,prompt\nA,B\n")
                .unwrap_err()
                .contains("\"target\"")
        );
    }
}
