//! A course: the lessons of a training, from samples to token ids.
//!
//! Owns the mixture: which suite a lesson is of, and its lengths and counts, all by the plan's
//! seed. Lays contexts out exactly as serving does (`prompt.rs`), so that what is learned is what
//! is used. Never asks the model.

use addenda_editor::Corpus;
use addenda_model::adapter::Lesson;
use addenda_model::{ChatTemplate, Tokenizer};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::plan::Plan;
use super::samples::{Biography, Documents, Needle, Prose, Sample, Split, Suite, Tracking};
use crate::error::{Error, Result};
use crate::prompt::{self, Ask};

/// Times that a sample which came out too long is drawn anew, smaller each time.
const ATTEMPTS: u64 = 12;
/// Domain of a lesson's seed.
const CONTEXT: &str = "addenda 2026-11 lesson seed v1";

/// What lessons are made with.
pub(crate) struct Course<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) template: Option<&'a ChatTemplate>,
    /// Tokens of a document's part, at most: longer documents stand in several packets.
    pub(crate) part_tokens: usize,
    /// Passages of the user's own documents.
    pub(crate) documents: &'a [String],
}

/// A lesson and what it is of.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) suite: Suite,
    pub(crate) lesson: Lesson,
    /// Lessons of one number are about the same documents, and stand side by side.
    pub(crate) about: usize,
}

impl Course<'_> {
    /// The first `count` lessons of a split.
    ///
    /// # Errors
    /// No suite can be had, a sample that does not fit, or the tokenizer's.
    pub(crate) fn lessons(&self, split: Split, count: usize) -> Result<Vec<Placed>> {
        let corpus = Corpus::shipped();
        let paragraphs: Vec<&str> = corpus
            .paragraphs()
            .filter(|text| text.split_whitespace().count() >= 24)
            .collect();
        let suites = self.suites()?;
        let mut lessons = Vec::with_capacity(count);
        for about in 0.. {
            let wanted = self.plan.questions.max(1).min(count - lessons.len());
            if wanted == 0 {
                break;
            }
            let suite = suites.get(about % suites.len().max(1)).copied();
            let suite = suite.unwrap_or(Suite::Biography);
            lessons.extend(self.about((suite, split), (about, wanted), &paragraphs)?);
        }
        Ok(lessons)
    }

    /// The suites of the plan, or all that there is text for.
    pub(crate) fn suites(&self) -> Result<Vec<Suite>> {
        let mut suites = self.plan.kinds();
        let all = suites.is_empty();
        if all {
            suites = Suite::ALL.to_vec();
        }
        if self.documents.is_empty() {
            if !all && suites.contains(&Suite::Documents) {
                return Err(Error::invalid(
                    "data.suites",
                    "has \"documents\", but there are no documents in this namespace; put some first",
                ));
            }
            suites.retain(|suite| *suite != Suite::Documents);
        }
        Ok(suites)
    }

    /// Lessons about the same documents, `wanted` at most and at least one.
    fn about(
        &self,
        (suite, split): (Suite, Split),
        (about, wanted): (usize, usize),
        paragraphs: &[&str],
    ) -> Result<Vec<Placed>> {
        let most = self.plan.lesson_tokens;
        for attempt in 0..ATTEMPTS {
            let seed = seed(self.plan.seed, split, about as u64, attempt);
            let samples = self.samples((suite, split), (seed, wanted), attempt, paragraphs);
            let lessons = samples.iter().map(|sample| self.tokens(sample));
            let lessons = lessons.collect::<Result<Vec<Lesson>>>()?;
            let fits = |lesson: &Lesson| lesson.tokens() <= most && !lesson.documents.is_empty();
            if !lessons.is_empty() && lessons.iter().all(fits) {
                let placed = |lesson| Placed {
                    suite,
                    lesson,
                    about,
                };
                return Ok(lessons.into_iter().map(placed).collect());
            }
        }
        Err(Error::invalid(
            "data",
            format!(
                "gives no sample of suite \"{suite}\" within {most} tokens; use shorter documents"
            ),
        ))
    }

    /// Samples about the same documents, `wanted` at most, with lengths and counts by their seed; smaller with each
    /// attempt.
    fn samples(
        &self,
        (suite, split): (Suite, Split),
        (seed, wanted): (u64, usize),
        attempt: u64,
        paragraphs: &[&str],
    ) -> Vec<Sample> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let fewer = usize::try_from(attempt / 2).unwrap_or(usize::MAX);
        let mut documents = |least: usize, most: usize| {
            let most = most.saturating_sub(fewer).max(least);
            random.random_range(least..=most)
        };
        match suite {
            Suite::Biography => Biography {
                documents: documents(2, 7),
            }
            .samples(split, seed, wanted),
            Suite::Needle => {
                let documents = documents(2, 6);
                let keys = if random.random_bool(0.5) { 1 } else { 4 };
                let each = (self.plan.lesson_tokens * 3 / 4 / documents).max(32);
                let least = each / 2;
                let needle = Needle::single(documents, keys, least..=each);
                needle.samples(split, (seed, wanted), &|text| self.count(text))
            }
            Suite::Tracking => {
                let documents = documents(2, 4);
                let tracking = Tracking {
                    documents,
                    hops: random.random_range(1..=3),
                    sentences: random.random_range(2..=6),
                };
                vec![tracking.sample(split, seed)]
            }
            Suite::Prose => Prose {
                paragraphs,
                documents: documents(1, 5),
            }
            .samples(split, seed, wanted),
            Suite::Documents => {
                let texts: Vec<&str> = self.documents.iter().map(String::as_str).collect();
                let documents = documents(1, 4);
                Documents {
                    texts: &texts,
                    documents,
                }
                .samples(split, seed, wanted)
            }
        }
    }

    fn count(&self, text: &str) -> usize {
        let encoding = self.tokenizer.encode(text);
        encoding.map_or(usize::MAX / 2, |encoding| encoding.ids.len())
    }

    /// The sample as serving would lay it out; without a chat template, as raw text.
    fn tokens(&self, sample: &Sample) -> Result<Lesson> {
        let ask = Ask::question(&sample.question, self.template);
        let framed = prompt::around_documents(&ask, self.tokenizer, self.template)?;
        let documents = sample.documents.iter().filter(|text| !text.is_empty());
        let documents = documents
            .map(|text| prompt::document(text, self.tokenizer, self.part_tokens))
            .collect::<Result<Vec<_>>>()?;
        Ok(Lesson {
            preamble: framed.before,
            documents: documents.into_iter().flatten().collect(),
            prompt: framed.after,
        })
    }
}

fn seed(plan: u64, split: Split, index: u64, attempt: u64) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    for part in [plan, split as u64, index, attempt] {
        hasher.update(&part.to_le_bytes());
    }
    let digest = hasher.finalize();
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(digest.as_bytes()) {
        *to = *from;
    }
    u64::from_le_bytes(bytes)
}
