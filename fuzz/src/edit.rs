//! Edits that formats are sensitive to: flipped bits, lengths that lie, pieces that are missing, doubled, swapped or
//! another input's.
//!
//! Owns how an input becomes another one. Knows no format. Invariant: the same corpus gives the same inputs.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Numbers that lengths and counts are tried with.
const NUMBERS: [u64; 12] = [
    0,
    1,
    2,
    63,
    64,
    65,
    255,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 38,
    u64::MAX,
];
/// Edits of one input at most.
const EDITS: u32 = 4;

pub(crate) struct Editor {
    corpus: Vec<Vec<u8>>,
    rng: StdRng,
}

impl Editor {
    pub(crate) fn new(corpus: Vec<Vec<u8>>) -> Self {
        Self {
            corpus,
            rng: StdRng::seed_from_u64(2026),
        }
    }

    /// The next input: one of the corpus with one to four edits.
    pub(crate) fn next(&mut self) -> Vec<u8> {
        let mut input = self.one();
        for _ in 0..self.rng.random_range(1..=EDITS) {
            self.edit(&mut input);
        }
        input.truncate(crate::LONGEST);
        input
    }

    fn one(&mut self) -> Vec<u8> {
        self.corpus
            .choose(&mut self.rng)
            .cloned()
            .unwrap_or_default()
    }

    /// A place in `bytes`, or at their end, and a length that reaches no further.
    fn piece(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let start = self.rng.random_range(0..=bytes.len());
        let most = (bytes.len() - start).min(1 << self.rng.random_range(0..12));
        start..start + self.rng.random_range(0..=most)
    }

    fn edit(&mut self, bytes: &mut Vec<u8>) {
        let piece = self.piece(bytes);
        match self.rng.random_range(0..9) {
            0 | 1 => {
                let bit = 1 << self.rng.random_range(0..8);
                bytes
                    .iter_mut()
                    .skip(piece.start)
                    .take(1)
                    .for_each(|byte| *byte ^= bit);
            }
            2 => {
                let value = self.rng.random();
                bytes
                    .iter_mut()
                    .skip(piece.start)
                    .take(1)
                    .for_each(|byte| *byte = value);
            }
            3 => self.number(bytes, piece.start),
            4 => drop(bytes.drain(piece)),
            5 => {
                let copy = bytes.get(piece.clone()).unwrap_or_default().to_vec();
                bytes.splice(piece.start..piece.start, copy);
            }
            6 => {
                let other = self.one();
                let from = self.piece(&other);
                let from = other.get(from).unwrap_or_default().to_vec();
                bytes.splice(piece, from);
            }
            7 => bytes.truncate(piece.start),
            _ => {
                // The same piece over another place, so that lengths stay as they are.
                let copy = bytes.get(piece).unwrap_or_default().to_vec();
                let at = self.piece(bytes).start;
                let places = bytes.iter_mut().skip(at);
                places.zip(copy).for_each(|(byte, other)| *byte = other);
            }
        }
    }

    /// Puts a number over 1, 2, 4 or 8 bytes, or adds a little to what is there.
    fn number(&mut self, bytes: &mut [u8], at: usize) {
        let width = 1 << self.rng.random_range(0..4);
        let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..width)) else {
            return;
        };
        let mut old = [0; 8];
        old.iter_mut()
            .zip(&*place)
            .for_each(|(to, from)| *to = *from);
        let number = match self.rng.random_range(0..3) {
            0 => u64::from_le_bytes(old).wrapping_add(self.rng.random_range(1..=64)),
            1 => u64::from_le_bytes(old).wrapping_sub(self.rng.random_range(1..=64)),
            _ => NUMBERS.choose(&mut self.rng).copied().unwrap_or_default(),
        };
        place.copy_from_slice(number.to_le_bytes().get(..width).unwrap_or_default());
    }
}
