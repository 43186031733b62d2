//! What a training is asked to do: figures and suites, complete, and their digest.
//!
//! Owns the defaults. Invariant: two requests with the same plan, base model, weights and documents
//! have the same digest, and only they go on from each other's checkpoints.

use serde::{Deserialize, Serialize};

use super::samples::Suite;

/// Domain of a plan's digest.
const CONTEXT: &str = "addenda 2026-11 adapter training plan v4";

/// A training's figures. All are set: nothing is decided later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The adapter's name.
    pub(crate) name: String,
    /// Soft tokens before a document.
    pub(crate) header_tokens: usize,
    /// Soft tokens after a document.
    pub(crate) trailer_tokens: usize,
    /// Tokens of a bridge; 0 where soft tokens are trained, which are 0 otherwise.
    #[serde(default)]
    pub(crate) bridge_tokens: usize,
    /// What samples are made of, in turn.
    pub(crate) suites: Vec<String>,
    /// Lessons about the same documents, at most.
    #[serde(default)]
    pub(crate) questions: usize,
    /// Lessons to learn from.
    pub(crate) samples: usize,
    /// Lessons to validate on.
    pub(crate) validation: usize,
    /// Passes over the lessons.
    pub(crate) epochs: usize,
    /// Lessons between two updates.
    pub(crate) batch: usize,
    /// Learning rate of the first update; falls linearly to 0.
    pub(crate) learning_rate: f64,
    /// Makes samples and their order.
    pub(crate) seed: u64,
    /// Tokens of a teacher's answer at most.
    pub(crate) answer_tokens: usize,
    /// Tokens of a lesson at most, soft ones and answer not counted.
    pub(crate) lesson_tokens: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            name: String::new(),
            header_tokens: 0,
            trailer_tokens: 0,
            bridge_tokens: 8,
            questions: 4,
            suites: Vec::new(),
            samples: 384,
            validation: 48,
            epochs: 3,
            batch: 16,
            learning_rate: 1e-2,
            seed: 0,
            answer_tokens: 24,
            lesson_tokens: 512,
        }
    }
}

impl Plan {
    /// What is set where nothing is said: of a bridge, or of soft tokens, which learn at a lower rate and see documents
    /// anew with every question.
    #[must_use]
    pub(crate) fn defaults(soft: bool) -> Self {
        let plan = Self::default();
        if !soft {
            return plan;
        }
        Self {
            header_tokens: 8,
            trailer_tokens: 8,
            bridge_tokens: 0,
            questions: 1,
            learning_rate: 5e-4,
            ..plan
        }
    }

    /// Updates in one pass over the lessons; what is left of a batch waits for no other.
    #[must_use]
    pub(crate) fn updates_per_epoch(&self) -> usize {
        (self.samples / self.batch.max(1)).max(1)
    }

    /// Updates in all.
    #[must_use]
    pub(crate) fn updates(&self) -> usize {
        self.updates_per_epoch() * self.epochs.max(1)
    }

    /// The suites that are named.
    pub(crate) fn kinds(&self) -> Vec<Suite> {
        let named = self.suites.iter().filter_map(|name| name.parse().ok());
        named.collect()
    }

    /// Identifies the training: its figures, the base model, the weights that teach, the lessons.
    pub(crate) fn digest(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        let figures = serde_json::to_vec(self).unwrap_or_default();
        for part in std::iter::once(&figures[..]).chain(parts.iter().copied()) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        *hasher.finalize().as_bytes()
    }
}
