//! Who takes part in the next round: every decoding sequence, and one that prefills.
//!
//! Owns the choice, not the computing; also how much of a prompt is computed while others wait.

use std::time::Duration;

use crate::engine::sequence::{Phase, Sequence};

/// Tokens of a prefill step while others decode or edit: at least, and at most.
const LEAST_BESIDE: usize = 32;
const MOST_BESIDE: usize = 256;
/// What decoding sequences wait for somebody's prompt, against their own step's time.
const SHARE: f64 = 1.5;

/// Tokens of a prefill step beside others: learned from how long these steps and decode steps take, so
/// that whoever decodes waits about as long for a prompt as for its own step, on any machine. Where more
/// prompts wait than sequences decode, so many times as long: nobody's answer is worth more than another's.
#[derive(Debug)]
pub(crate) struct Pace {
    tokens: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            tokens: LEAST_BESIDE,
        }
    }
}

impl Pace {
    /// A prefill step of this pace took so long in `round`, and its decode step.
    pub(crate) fn learn(&mut self, round: &Round, prefill: Duration, decode: Duration) {
        let each = round.prompts as f64 / round.decode.len().max(1) as f64;
        let wanted = decode.as_secs_f64() * SHARE * each.max(1.0);
        // Down at once, up slowly: a step that had nothing to compute says little.
        let by = (wanted / prefill.as_secs_f64().max(1e-6)).clamp(0.25, 1.5);
        let tokens = self.tokens as f64 * by;
        self.tokens = (tokens.round() as usize).clamp(LEAST_BESIDE, MOST_BESIDE);
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
        round.prompts = prefilling.len();
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
            alone.min(pace.tokens)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LEAST_BESIDE, MOST_BESIDE, Pace, Round};
    use crate::engine::sequence::Phase::{Decode, Paused, Prefill};
    use std::time::Duration;

    /// Steps of `a + b · tokens` ms beside decode steps of `decode` ms: what the pace comes to.
    fn settled(a: f64, b: f64, decode: f64, prompts: usize) -> usize {
        let mut pace = Pace::default();
        let round = Round {
            decode: vec![0, 1],
            prefill: Some(2),
            prompts,
        };
        for _ in 0..50 {
            let prefill = Duration::from_secs_f64((a + b * pace.tokens as f64) / 1e3);
            pace.learn(&round, prefill, Duration::from_secs_f64(decode / 1e3));
        }
        pace.tokens
    }

    #[test]
    fn a_prompt_takes_about_as_long_as_those_who_decode_beside_it() {
        // 10 + 1 · 50 ms are one and a half times 40.
        assert!((45..=55).contains(&settled(10.0, 1.0, 40.0, 1)));
        assert!((45..=55).contains(&settled(10.0, 1.0, 20.0, 4)));
        assert_eq!(settled(10.0, 5.0, 10.0, 1), LEAST_BESIDE);
        assert_eq!(settled(0.1, 0.01, 40.0, 1), MOST_BESIDE);
    }

    #[test]
    fn prompts_take_turns_while_all_others_decode() {
        let phases = [Prefill, Decode, Prefill, Paused, Decode];
        let first = Round::of(phases.into_iter(), 0);
        assert_eq!((first.decode.clone(), first.prefill), (vec![1, 4], Some(2)));
        let second = Round::of(phases.into_iter(), 2);
        assert_eq!(second.prefill, Some(0));
        let pace = Pace::default();
        assert_eq!(first.chunk(512, false, &pace), LEAST_BESIDE);
        let alone = Round::of([Prefill].into_iter(), 0);
        assert_eq!(alone.chunk(512, false, &pace), 512);
        assert_eq!(alone.chunk(512, true, &pace), LEAST_BESIDE);
    }

    #[test]
    fn a_paused_sequence_takes_no_part() {
        assert!(Round::of([Paused, Paused].into_iter(), 0).is_empty());
    }
}
