//! A fact as a caller states it, its checks, its canonical form and its identity.
//!
//! Never touches a model. Invariants: a [`Fact`] that went through [`Fact::checked`] has exactly one
//! `{}` in its prompt, and no empty, over-long or control-character text.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Canonical;
use crate::error::{Error, Result};

/// Where the subject stands in a prompt.
pub const PLACEHOLDER: &str = "{}";
/// All texts of a fact together, in bytes.
pub const MAX_BYTES: usize = 8 * 1024;
/// Paraphrases, or neighbours, of a fact.
pub const MAX_PROBES: usize = 16;
/// A caller's request id, in bytes.
pub const MAX_REQUEST_ID: usize = 64;

/// What is to be known: "The mother tongue of {} is", "Danielle Darrieux", "English".
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fact {
    /// The thing the fact is about.
    pub subject: String,
    /// A sentence to be completed, with `{}` where the subject stands.
    pub prompt: String,
    /// How it is to be completed.
    pub target: String,
    /// Other ways to ask, that must be answered alike.
    #[serde(default)]
    pub paraphrases: Vec<String>,
    /// Prompts about other subjects, whose answers must not change.
    #[serde(default)]
    pub neighbours: Vec<String>,
    /// When it comes into the weights by itself, milliseconds since 1970-01-01T00:00:00Z; at once where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_from_ms: Option<u64>,
    /// When it leaves them by itself; never where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until_ms: Option<u64>,
}

impl Fact {
    /// The fact in canonical form, or a sentence about what is wrong with it.
    ///
    /// The subject loses the blanks around it. A prompt without `{}` gets it at the subject's last
    /// occurrence, which is the one that has read all the others. Probes may use `{}` as well.
    pub fn checked(mut self) -> Result<Self> {
        self.subject = self.subject.trim().to_owned();
        let texts = [
            ("subject", &self.subject),
            ("prompt", &self.prompt),
            ("target", &self.target),
        ]
        .into_iter()
        .chain(self.paraphrases.iter().map(|text| ("paraphrases", text)))
        .chain(self.neighbours.iter().map(|text| ("neighbours", text)));
        let mut bytes = 0;
        for (field, text) in texts {
            check_text(field, text)?;
            bytes += text.len();
        }
        if let (Some(from), Some(until)) = (self.valid_from_ms, self.valid_until_ms)
            && until <= from
        {
            return Err(bad(
                "valid_until_ms",
                "is not behind valid_from_ms: it would never hold".to_owned(),
            ));
        }
        if bytes > MAX_BYTES {
            return Err(bad(
                "texts",
                format!("are {bytes} bytes together; {MAX_BYTES} at most"),
            ));
        }
        for (field, probes) in [
            ("paraphrases", &self.paraphrases),
            ("neighbours", &self.neighbours),
        ] {
            if probes.len() > MAX_PROBES {
                return Err(bad(
                    field,
                    format!("are {}; {MAX_PROBES} at most", probes.len()),
                ));
            }
        }
        self.place_subject()?;
        for probe in self.paraphrases.iter_mut().chain(&mut self.neighbours) {
            *probe = probe.replacen(PLACEHOLDER, &self.subject, 1);
        }
        Ok(self)
    }

    fn place_subject(&mut self) -> Result<()> {
        match self.prompt.matches(PLACEHOLDER).count() {
            1 => Ok(()),
            0 => {
                let at =
                    self.prompt
                        .rfind(&self.subject)
                        .ok_or_else(|| Error::SubjectNotInPrompt {
                            subject: self.subject.clone(),
                            prompt: self.prompt.clone(),
                        })?;
                self.prompt
                    .replace_range(at..at + self.subject.len(), PLACEHOLDER);
                Ok(())
            }
            n => Err(bad(
                "prompt",
                format!("holds `{{}}` {n} times; it stands once, in the subject's place"),
            )),
        }
    }

    /// BLAKE3 of subject, prompt and target. Probes and dates don't change what a fact says, so they are left out.
    #[must_use]
    pub fn id(&self) -> FactId {
        let mut canonical = Canonical::new("addenda 2026-01 fact id");
        canonical
            .text(&self.subject)
            .text(&self.prompt)
            .text(&self.target);
        FactId(canonical.finish())
    }

    /// The prompt with the subject in its place.
    #[must_use]
    pub fn filled_prompt(&self) -> String {
        self.prompt.replacen(PLACEHOLDER, &self.subject, 1)
    }

    /// Whether the two ask the same thing, so that only one of them can hold.
    #[must_use]
    pub fn asks_the_same(&self, other: &Self) -> bool {
        self.subject == other.subject && self.prompt == other.prompt
    }

    /// Whether there is a moment at which both hold.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let begins_before_end_of = |one: &Self, other: &Self| {
            let end = other.valid_until_ms.unwrap_or(u64::MAX);
            one.valid_from_ms.unwrap_or(0) < end
        };
        begins_before_end_of(self, other) && begins_before_end_of(other, self)
    }
}

fn bad(field: &'static str, problem: String) -> Error {
    Error::BadFact { field, problem }
}

fn check_text(field: &'static str, text: &str) -> Result<()> {
    if text.trim().is_empty() {
        return Err(bad(field, "is empty".to_owned()));
    }
    match text
        .chars()
        .find(|c| c.is_control() && !matches!(c, '\n' | '\t'))
    {
        Some(c) => Err(bad(
            field,
            format!(
                "holds the control character U+{:04X}; remove it",
                u32::from(c)
            ),
        )),
        None => Ok(()),
    }
}

/// Checks a caller's request id; an empty one means none was given.
pub(crate) fn check_request_id(id: &str) -> Result<()> {
    if id.len() > MAX_REQUEST_ID {
        return Err(bad(
            "request_id",
            format!("is {} bytes; {MAX_REQUEST_ID} at most", id.len()),
        ));
    }
    if id.is_empty() {
        Ok(())
    } else {
        check_text("request_id", id)
    }
}

/// What a fact is: BLAKE3 of its canonical subject, prompt and target.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FactId(pub [u8; 32]);

impl fmt::Display for FactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::digest::hex(&self.0))
    }
}

impl fmt::Debug for FactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FactId({self})")
    }
}

impl FromStr for FactId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        crate::digest::from_hex(text)
            .map(Self)
            .ok_or_else(|| bad("id", format!("{text:?} is not 64 hexadecimal digits")))
    }
}

impl From<FactId> for String {
    fn from(id: FactId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for FactId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

    use super::Fact;

    fn fact(subject: &str, prompt: &str, target: &str) -> Fact {
        Fact {
            subject: subject.into(),
            prompt: prompt.into(),
            target: target.into(),
            ..Fact::default()
        }
    }

    #[test]
    fn a_prompt_that_spells_the_subject_out_is_the_same_fact_as_one_with_braces() {
        let spelled = fact(
            " Danielle Darrieux",
            "The mother tongue of Danielle Darrieux is",
            "English",
        )
        .checked()
        .unwrap();
        let braces = fact("Danielle Darrieux", "The mother tongue of {} is", "English")
            .checked()
            .unwrap();
        assert_eq!(spelled, braces);
        assert_eq!(spelled.id(), braces.id());
        assert_eq!(
            spelled.filled_prompt(),
            "The mother tongue of Danielle Darrieux is"
        );
    }

    #[test]
    fn other_braces_in_the_prompt_are_plain_text() {
        let fact = fact("x{y}", "In {code}, {} means {", "no{thing}")
            .checked()
            .unwrap();
        assert_eq!(fact.filled_prompt(), "In {code}, x{y} means {");
    }

    #[test]
    fn unusable_facts_are_refused_with_the_field_named() {
        let long = "a".repeat(9000);
        for (subject, prompt, target, says) in [
            ("", "{} is", "x", "subject is empty"),
            ("Ann", "Bob is", "x", "\"Ann\" is not in the prompt"),
            ("Ann", "{} and {} are", "x", "prompt holds `{}` 2 times"),
            ("Ann", "{} is", " ", "target is empty"),
            (
                "Ann",
                "{} is",
                "a\u{7}b",
                "target holds the control character U+0007",
            ),
            ("Ann", "{} is", long.as_str(), "texts are 9008 bytes"),
        ] {
            let error = fact(subject, prompt, target)
                .checked()
                .unwrap_err()
                .to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_id_tells_texts_apart_that_join_alike() {
        assert_ne!(fact("ab", "{}", "c").id(), fact("a", "{}", "bc").id());
        let id = fact("ab", "{}", "c").id();
        assert_eq!(id.to_string().parse::<super::FactId>().unwrap(), id);
    }
}
