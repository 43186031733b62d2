//! Who takes part in the next round: every decoding sequence, and one that prefills.
//!
//! Owns the choice, not the computing; also how much of a prompt is computed while others wait.

use std::time::Duration;

use crate::engine::prefix::Prefixes;
use crate::engine::sequence::{Phase, Sequence};

/// Tokens of a prefill step while others decode or edit: at least, and at most.
const LEAST_BESIDE: usize = 8;
const MOST_BESIDE: usize = 256;

/// How long steps take, learned as they are done: a prefill step beside others has so many tokens that
/// whoever decodes waits about as long for a prompt as for its own step, on any machine. Where more prompts
/// wait than sequences decode, so many times as long: nobody's answer is worth more than another's.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Seconds of the last decode step.
    decode: f64,
    /// Seconds a token of prefill beside others; `None` before the first.
    token: Option<f64>,
}

impl Pace {
    /// The decode step of a round took so long.
    pub(crate) fn decoded(&mut self, took: Duration) {
        self.decode = took.as_secs_f64();
    }

    /// A prefill step of so many tokens beside others took so long.
    pub(crate) fn prefilled(&mut self, tokens: usize, took: Duration) {
        let token = took.as_secs_f64() / tokens.max(1) as f64;
        self.token = Some(
            self.token
                .map_or(token, |before| f64::midpoint(before, token)),
        );
    }

    fn tokens(&self, round: &Round) -> usize {
        let Some(token) = self.token else {
            return LEAST_BESIDE;
        };
        let each = round.prompts as f64 / round.decode.len().max(1) as f64;
        let wanted = self.decode * each.max(1.0);
        // A cast saturates.
        ((wanted / token) as usize).clamp(LEAST_BESIDE, MOST_BESIDE)
    }
}

/// The next round.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Round {
    /// Places of the sequences that decode one token each.
    pub(crate) decode: Vec<usize>,
    /// Place of the sequence that computes a chunk of its prompt.
    pub(crate) prefill: Option<usize>,
    /// Sequences that have a prompt to compute, that one among them.
    pub(crate) prompts: usize,
}

impl Round {
    /// Chooses. Prompts take turns: the first one after place `after` that prefills, and had not better wait for
    /// another that begins like it.
    pub(crate) fn choose(sequences: &[Sequence], prefixes: &Prefixes, after: usize) -> Self {
        let waits = |place: usize| {
            let sequence = sequences.get(place);
            let mut others = sequences.iter();
            sequence.is_some_and(|one| others.any(|other| one.waits_for(other, prefixes)))
        };
        Self::of(sequences.iter().map(Sequence::phase), waits, after)
    }

    fn of(
        phases: impl Iterator<Item = Phase>,
        waits: impl Fn(usize) -> bool,
        after: usize,
    ) -> Self {
        let mut round = Self::default();
        let mut prefilling = Vec::new();
        for (place, phase) in phases.enumerate() {
            match phase {
                Phase::Decode => round.decode.push(place),
                Phase::Prefill => prefilling.push(place),
                Phase::Paused => {}
            }
        }
        round.prompts = prefilling.len();
        let behind = prefilling.partition_point(|&place| place <= after);
        prefilling.rotate_left(behind);
        round.prefill = prefilling.into_iter().find(|&place| !waits(place));
        round
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.decode.is_empty() && self.prefill.is_none()
    }

    /// Tokens that a prefill step may compute in this round.
    pub(crate) fn chunk(&self, alone: usize, others_wait: bool, pace: &Pace) -> usize {
        if self.decode.is_empty() && !others_wait {
            alone
        } else {
            alone.min(pace.tokens(self))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LEAST_BESIDE, MOST_BESIDE, Pace, Round};
    use crate::engine::sequence::Phase::{Decode, Paused, Prefill};
    use std::time::Duration;

    /// Prefill steps of 1 ms a token beside decode steps of `decode` ms.
    fn tokens(decode: u64, prompts: usize) -> usize {
        let mut pace = Pace::default();
        let round = Round {
            decode: vec![0, 1],
            prefill: Some(2),
            prompts,
        };
        assert_eq!(pace.tokens(&round), LEAST_BESIDE);
        pace.decoded(Duration::from_millis(decode));
        pace.prefilled(64, Duration::from_millis(64));
        pace.tokens(&round)
    }

    #[test]
    fn a_prompt_takes_about_as_long_as_those_who_decode_beside_it() {
        assert_eq!(tokens(40, 1), 40);
        assert_eq!(tokens(40, 2), 40);
        assert_eq!(tokens(40, 4), 80);
        assert_eq!(tokens(1, 1), LEAST_BESIDE);
        assert_eq!(tokens(1000, 1), MOST_BESIDE);
    }

    #[test]
    fn prompts_take_turns_while_all_others_decode() {
        let phases = [Prefill, Decode, Prefill, Paused, Decode];
        let nobody = |_| false;
        let first = Round::of(phases.into_iter(), nobody, 0);
        assert_eq!((first.decode.clone(), first.prefill), (vec![1, 4], Some(2)));
        let second = Round::of(phases.into_iter(), nobody, 2);
        assert_eq!(second.prefill, Some(0));
        let pace = Pace::default();
        assert_eq!(first.chunk(512, false, &pace), LEAST_BESIDE);
        let alone = Round::of([Prefill].into_iter(), nobody, 0);
        assert_eq!(alone.chunk(512, false, &pace), 512);
        assert_eq!(alone.chunk(512, true, &pace), LEAST_BESIDE);
    }

    #[test]
    fn a_prompt_that_waits_for_another_leaves_it_its_turn() {
        let phases = [Prefill, Prefill, Prefill];
        let round = Round::of(phases.into_iter(), |place| place == 1, 0);
        assert_eq!((round.prefill, round.prompts), (Some(2), 3));
    }

    #[test]
    fn a_paused_sequence_takes_no_part() {
        assert!(Round::of([Paused, Paused].into_iter(), |_| false, 0).is_empty());
    }
}
