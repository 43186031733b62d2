//! Records of CounterFact in its reduced form: one object each with prompt, subject, two answers, a paraphrase and a
//! neighbour.

use std::path::Path;

use addenda_editor::{Fact, Method, Request};
use serde::Deserialize;

use crate::error::{Error, Result};

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Record {
    pub(crate) prompt: String,
    pub(crate) subject: String,
    /// What the model shall say.
    pub(crate) target_new: String,
    /// What is true.
    pub(crate) ground_truth: String,
    pub(crate) rephrase_prompt: String,
    pub(crate) locality_prompt: String,
    pub(crate) locality_ground_truth: String,
}

impl Record {
    /// The edit alone: paraphrase and neighbour are kept for measuring.
    pub(crate) fn request(&self, method: Option<Method>) -> Request {
        Request {
            fact: Fact {
                subject: self.subject.clone(),
                prompt: self.prompt.clone(),
                target: self.target_new.clone(),
                ..Fact::default()
            },
            method,
            ..Request::default()
        }
    }
}

/// The first `count` records of the file whose subject stands in their prompt, and no two with one subject and prompt.
pub(crate) fn read(path: &Path, count: usize) -> Result<Vec<Record>> {
    let text = crate::read_text(path)?;
    let all: Vec<Record> = serde_json::from_str(&text)
        .map_err(|error| Error::Content(format!("{}: {error}", path.display())))?;
    let mut seen = std::collections::HashSet::new();
    let fit = all.into_iter().filter(|record| {
        record.prompt.contains(&record.subject)
            && seen.insert((record.subject.clone(), record.prompt.clone()))
    });
    let records: Vec<Record> = fit.take(count).collect();
    if records.len() < count {
        let found = records.len();
        let path = path.display();
        return Err(Error::Content(format!(
            "{path} has {found} usable records, and {count} are asked for"
        )));
    }
    Ok(records)
}
