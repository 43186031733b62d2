//! How long work stays interruptible: between small steps it reports where it is, and the caller may do other
//! work meanwhile, or stop it.

use crate::error::Result;

/// Called between small steps. An error ([`crate::error::Error::Cancelled`], usually) stops the work.
pub type Pace<'a> = dyn FnMut(Progress) -> Result<()> + 'a;

/// Where long work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Units done.
    pub done: u64,
    /// Units in all; for [`Phase::Value`] at most so many.
    pub total: u64,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Measuring the second moment of the keys; units are tokens.
    Moment,
    /// Finding the directions that an edit may not touch; units are layers.
    Projection,
    /// Tracing what facts hang on; units are layers, of every fact.
    Trace,
    /// Sampling contexts; units are tokens of each.
    Contexts,
    /// Seeking the wanted state; units are optimiser steps.
    Value,
    /// Measuring keys for the solve; units are forward passes.
    Keys,
    /// Solving for the weights; units are layers.
    Solve,
    /// Measuring what the edit did; units are forward passes.
    Verify,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Moment => "measuring the second moment",
            Self::Projection => "finding the null space",
            Self::Trace => "tracing facts",
            Self::Contexts => "sampling contexts",
            Self::Value => "seeking the wanted state",
            Self::Keys => "measuring keys",
            Self::Solve => "solving for the weights",
            Self::Verify => "measuring the edit",
        })
    }
}
