//! How an adapter was trained: what its file says of it.
//!
//! Owns the form of the record. Computes nothing but sums of what was measured.

use addenda_model::adapter::Measured;
use serde::{Deserialize, Serialize};

use super::plan::Plan;
use super::samples::Suite;

/// A training's plan and what came of it; stored in the adapter's file, as JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) plan: Plan,
    pub(crate) dtype: String,
    /// Mean KL in validation without an adapter, nats; and with it.
    pub(crate) kl_before: f64,
    pub(crate) kl_after: f64,
    pub(crate) agreement_before: f64,
    pub(crate) agreement_after: f64,
    pub(crate) suites: Vec<SuiteRecord>,
    pub(crate) history: Vec<Validation>,
    /// Lessons studied, and updates made.
    pub(crate) studied: u64,
    pub(crate) updates: u64,
    pub(crate) seconds: f64,
    pub(crate) created_at_ms: u64,
}

/// One suite's part in the validation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SuiteRecord {
    pub(crate) suite: String,
    pub(crate) kl_before: f64,
    pub(crate) kl_after: f64,
    pub(crate) agreement_before: f64,
    pub(crate) agreement_after: f64,
    pub(crate) tokens: u64,
}

/// One validation on the way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Validation {
    pub(crate) update: u64,
    /// Mean loss of the lessons since the validation before.
    pub(crate) loss: f64,
    pub(crate) kl: f64,
    pub(crate) agreement: f64,
}

impl SuiteRecord {
    /// Of every suite in `suites`, which names that of each lesson measured, without an adapter and with it.
    pub(crate) fn of_each(suites: &[Suite], before: &[Measured], after: &[Measured]) -> Vec<Self> {
        let of = |measured: &[Measured], wanted: Suite| {
            let own = suites.iter().zip(measured);
            sum(own
                .filter(|(suite, _)| **suite == wanted)
                .map(|(_, one)| one))
        };
        let present = Suite::ALL
            .into_iter()
            .filter(|suite| suites.contains(suite));
        present
            .map(|suite| {
                let (before, after) = (of(before, suite), of(after, suite));
                Self {
                    suite: suite.to_string(),
                    kl_before: before.mean_kl(),
                    kl_after: after.mean_kl(),
                    agreement_before: before.agreement(),
                    agreement_after: after.agreement(),
                    tokens: after.tokens,
                }
            })
            .collect()
    }
}

/// All of it together.
pub(crate) fn sum<'a>(measured: impl IntoIterator<Item = &'a Measured>) -> Measured {
    measured
        .into_iter()
        .copied()
        .fold(Measured::default(), Measured::plus)
}
