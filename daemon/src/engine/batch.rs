//! Who takes part in the next round: every decoding sequence, and one that prefills.
//!
//! Owns the choice, not the computing.

use crate::engine::sequence::{Phase, Sequence};

/// Tokens of a prefill step while others decode or edit: bounds how long those wait.
const CHUNK_BESIDE_OTHERS: usize = 128;

/// The next round.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Round {
    /// Places of the sequences that decode one token each.
    pub(crate) decode: Vec<usize>,
    /// Place of the sequence that computes a chunk of its prompt.
    pub(crate) prefill: Option<usize>,
}

impl Round {
    /// Chooses. Prompts take turns: the first one after place `after` that prefills.
    pub(crate) fn choose(sequences: &[Sequence], after: usize) -> Self {
        Self::of(sequences.iter().map(Sequence::phase), after)
    }

    fn of(phases: impl Iterator<Item = Phase>, after: usize) -> Self {
        let mut round = Self::default();
        let mut prefilling = Vec::new();
        for (place, phase) in phases.enumerate() {
            match phase {
                Phase::Decode => round.decode.push(place),
                Phase::Prefill => prefilling.push(place),
                Phase::Paused => {}
            }
        }
        let next = prefilling.iter().find(|&&place| place > after);
        round.prefill = next.or(prefilling.first()).copied();
        round
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.decode.is_empty() && self.prefill.is_none()
    }

    /// Tokens that a prefill step may compute in this round.
    pub(crate) fn chunk(&self, alone: usize, others_wait: bool) -> usize {
        if self.decode.is_empty() && !others_wait {
            alone
        } else {
            alone.min(CHUNK_BESIDE_OTHERS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Round;
    use crate::engine::sequence::Phase::{Decode, Paused, Prefill};

    #[test]
    fn prompts_take_turns_while_all_others_decode() {
        let phases = [Prefill, Decode, Prefill, Paused, Decode];
        let first = Round::of(phases.into_iter(), 0);
        assert_eq!((first.decode.clone(), first.prefill), (vec![1, 4], Some(2)));
        let second = Round::of(phases.into_iter(), 2);
        assert_eq!(second.prefill, Some(0));
        assert_eq!(first.chunk(512, false), 128);
    }

    #[test]
    fn a_paused_sequence_takes_no_part() {
        assert!(Round::of([Paused, Paused].into_iter(), 0).is_empty());
    }
}
