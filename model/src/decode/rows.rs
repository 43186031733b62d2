//! A linear map's weights as the decode kernels read them: where libtorch keeps them, or packed.
//!
//! Owns the reading of a row, a pair of groups at a time.

use super::wide::{LANES, Numbers, Vector, ahead};
use crate::tensor::Element;
use half::bf16;

/// Inputs that share a scale.
pub(crate) const GROUP: usize = 2 * LANES;

/// Weights `[outputs, inputs]`, row-major, in whatever form they lie.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    F32 {
        inputs: usize,
        numbers: &'a [f32],
    },
    Bf16 {
        inputs: usize,
        numbers: &'a [bf16],
    },
    Int8 {
        inputs: usize,
        numbers: &'a [i8],
        scales: &'a [bf16],
    },
    Int4 {
        inputs: usize,
        pairs: &'a [u8],
        scales: &'a [bf16],
        lows: &'a [bf16],
    },
}

/// Two groups, in halves: what a row's loop does at once.
pub(crate) const QUARTERS: usize = 4;

/// One row of weights, in pairs of groups; a last single group; and what is no group.
pub(crate) trait Row: Copy {
    /// Pairs of groups.
    fn pairs(&self) -> usize;

    /// The weights of a pair as they are multiplied with inputs.
    fn pair<V: Vector>(&self, index: usize) -> [V; QUARTERS];

    /// The weights of the group behind the last pair.
    fn last<V: Vector>(&self) -> Option<[V; 2]>;

    /// What all that leaves out of the product with `inputs`, of which each group's sum is given.
    fn rest(&self, inputs: &[f32], sums: &[f32]) -> f32;
}

/// A row of f32 or bf16.
#[derive(Clone, Copy)]
pub(crate) struct Plain<'a, E> {
    pairs: &'a [[[E; LANES]; QUARTERS]],
    rest: &'a [E],
}

impl<'a, E: Numbers> Plain<'a, E> {
    #[inline(always)]
    pub(crate) fn new(row: &'a [E]) -> Self {
        let whole = row.len() - row.len() % (QUARTERS * LANES);
        let (pairs, rest) = row.split_at(whole);
        Self {
            pairs: pairs.as_chunks().0.as_chunks().0,
            rest,
        }
    }
}

impl<E: Numbers> Row for Plain<'_, E> {
    #[inline(always)]
    fn pairs(&self) -> usize {
        self.pairs.len()
    }

    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        reason = "below `pairs`; a way out costs the loop a third"
    )]
    fn pair<V: Vector>(&self, index: usize) -> [V; QUARTERS] {
        let [a, b, c, d] = &self.pairs[index];
        ahead(a);
        [E::load(a), E::load(b), E::load(c), E::load(d)]
    }

    #[inline(always)]
    fn last<V: Vector>(&self) -> Option<[V; 2]> {
        None
    }

    #[inline(always)]
    fn rest(&self, inputs: &[f32], _: &[f32]) -> f32 {
        let mut sum = 0.0;
        let done = self.pairs.len() * QUARTERS * LANES;
        let inputs = inputs.get(done..).unwrap_or_default();
        for (weight, input) in self.rest.iter().zip(inputs) {
            sum += weight.widen() * input;
        }
        sum
    }
}

/// A row of int8.
#[derive(Clone, Copy)]
pub(crate) struct Eights<'a> {
    pairs: &'a [[[i8; LANES]; QUARTERS]],
    scales: &'a [[bf16; 2]],
    last: Option<(&'a [[i8; LANES]], bf16)>,
}

impl<'a> Eights<'a> {
    #[inline(always)]
    pub(crate) fn new(numbers: &'a [i8], scales: &'a [bf16]) -> Self {
        let (pairs, rest) = numbers.as_chunks().0.as_chunks();
        let (scales, last) = scales.as_chunks();
        Self {
            pairs,
            scales: scales.get(..pairs.len()).unwrap_or_default(),
            last: last.first().map(|scale| (rest, *scale)),
        }
    }
}

impl Row for Eights<'_> {
    #[inline(always)]
    fn pairs(&self) -> usize {
        self.scales.len()
    }

    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        reason = "below `pairs`; a way out costs the loop a third"
    )]
    fn pair<V: Vector>(&self, index: usize) -> [V; QUARTERS] {
        let ([a, b, c, d], [first, second]) = (&self.pairs[index], self.scales[index]);
        ahead(a);
        let (first, second) = (V::splat(first.widen()), V::splat(second.widen()));
        [
            V::load_i8(a).multiply(first),
            V::load_i8(b).multiply(first),
            V::load_i8(c).multiply(second),
            V::load_i8(d).multiply(second),
        ]
    }

    #[inline(always)]
    fn last<V: Vector>(&self) -> Option<[V; 2]> {
        let (halves, scale) = self.last?;
        let [first, second] = halves else {
            return None;
        };
        let scale = V::splat(scale.widen());
        Some([
            V::load_i8(first).multiply(scale),
            V::load_i8(second).multiply(scale),
        ])
    }

    #[inline(always)]
    fn rest(&self, _: &[f32], _: &[f32]) -> f32 {
        0.0
    }
}

/// A row of int4.
#[derive(Clone, Copy)]
pub(crate) struct Fours<'a> {
    pairs: &'a [[[u8; LANES]; 2]],
    scales: &'a [[bf16; 2]],
    last: Option<(&'a [u8; LANES], bf16)>,
    lows: &'a [bf16],
}

impl<'a> Fours<'a> {
    #[inline(always)]
    pub(crate) fn new(numbers: &'a [u8], scales: &'a [bf16], lows: &'a [bf16]) -> Self {
        let (pairs, rest) = numbers.as_chunks().0.as_chunks();
        let (scales, last) = scales.as_chunks();
        Self {
            pairs,
            scales: scales.get(..pairs.len()).unwrap_or_default(),
            last: rest.first().zip(last.first().copied()),
            lows,
        }
    }
}

impl Row for Fours<'_> {
    #[inline(always)]
    fn pairs(&self) -> usize {
        self.scales.len()
    }

    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        reason = "below `pairs`; a way out costs the loop a third"
    )]
    fn pair<V: Vector>(&self, index: usize) -> [V; QUARTERS] {
        let ([one, other], [first, second]) = (&self.pairs[index], self.scales[index]);
        ahead(one);
        let (first, second) = (V::splat(first.widen()), V::splat(second.widen()));
        let ([a, b], [c, d]) = (V::load_nibbles(one), V::load_nibbles(other));
        [
            a.multiply(first),
            b.multiply(first),
            c.multiply(second),
            d.multiply(second),
        ]
    }

    #[inline(always)]
    fn last<V: Vector>(&self) -> Option<[V; 2]> {
        let (pairs, scale) = self.last?;
        let scale = V::splat(scale.widen());
        let [first, second] = V::load_nibbles(pairs);
        Some([first.multiply(scale), second.multiply(scale)])
    }

    #[inline(always)]
    fn rest(&self, _: &[f32], sums: &[f32]) -> f32 {
        let mut sum = 0.0;
        for (low, inputs) in self.lows.iter().zip(sums) {
            sum += low.widen() * inputs;
        }
        sum
    }
}
