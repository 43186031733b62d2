//! A linear map's weights as the decode kernels read them: where libtorch keeps them, row by row, or
//! packed, in blocks of rows.
//!
//! Owns the reading of both.

use super::whole::Whole;
use super::wide::{EightBits, FourBits, LANES, Numbers, Vector, ahead};
use half::{bf16, f16};

/// Weights `[outputs, inputs]`, in whatever form they lie.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    F32 { inputs: usize, numbers: &'a [f32] },
    Bf16 { inputs: usize, numbers: &'a [bf16] },
    Int8(Eights<'a>),
    Int4(Fours<'a>),
}

/// Vectors of weights that a plain row's loop reads at once.
pub(crate) const QUARTERS: usize = 4;

/// A row of f32 or bf16: vectors in fours, and what is left.
#[derive(Clone, Copy)]
pub(crate) struct Plain<'a, E> {
    fours: &'a [[[E; LANES]; QUARTERS]],
    rest: &'a [E],
}

impl<'a, E: Numbers> Plain<'a, E> {
    #[inline(always)]
    pub(crate) fn new(row: &'a [E]) -> Self {
        let whole = row.len() - row.len() % (QUARTERS * LANES);
        let (fours, rest) = row.split_at(whole);
        Self {
            fours: fours.as_chunks().0.as_chunks().0,
            rest,
        }
    }

    #[inline(always)]
    pub(crate) fn fours(&self) -> usize {
        self.fours.len()
    }

    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        reason = "below `fours`; a way out costs the loop a third"
    )]
    pub(crate) fn four<V: Vector>(&self, index: usize) -> [V; QUARTERS] {
        let four = &self.fours[index];
        ahead(four);
        let [a, b, c, d] = four;
        [E::load(a), E::load(b), E::load(c), E::load(d)]
    }

    /// The product of what is left with the last of `inputs`.
    #[inline(always)]
    pub(crate) fn rest(&self, inputs: &[f32]) -> f32 {
        let mut sum = 0.0;
        let done = self.fours.len() * QUARTERS * LANES;
        let inputs = inputs.get(done..).unwrap_or_default();
        for (weight, input) in self.rest.iter().zip(inputs) {
            sum += weight.widen() * input;
        }
        sum
    }
}

/// Packed weights, in blocks of sixteen rows; a block's groups lie one after the other.
pub(crate) trait Blocks: Copy {
    /// Groups in a row.
    fn groups(&self) -> usize;

    /// Adds the products of sixteen rows' group `index`, counted through all blocks, with a group of
    /// each of `N` vectors.
    fn add<V: Vector, const N: usize>(
        &self,
        index: usize,
        inputs: [&Whole; N],
        totals: &mut [V; N],
    );
}

/// int8: `w ≈ q · scale`.
#[derive(Clone, Copy)]
pub(crate) struct Eights<'a> {
    pub(crate) groups: usize,
    pub(crate) numbers: &'a [EightBits],
    /// Of each row.
    pub(crate) scales: &'a [[f16; LANES]],
}

impl Blocks for Eights<'_> {
    #[inline(always)]
    fn groups(&self) -> usize {
        self.groups
    }

    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "see `product::dot`")]
    fn add<V: Vector, const N: usize>(
        &self,
        index: usize,
        inputs: [&Whole; N],
        totals: &mut [V; N],
    ) {
        let numbers = &self.numbers[index];
        ahead(numbers);
        let products = V::eights(numbers, inputs);
        let scales = V::load_f16(&self.scales[index]);
        for n in 0..N {
            let step = V::splat(inputs[n].step);
            totals[n] = products[n].multiply(step).multiply_add(scales, totals[n]);
        }
    }
}

/// int4: `w ≈ q · scale + low`.
#[derive(Clone, Copy)]
pub(crate) struct Fours<'a> {
    pub(crate) groups: usize,
    pub(crate) pairs: &'a [FourBits],
    /// Of each row.
    pub(crate) scales: &'a [[f16; LANES]],
    pub(crate) lows: &'a [[f16; LANES]],
}

impl Blocks for Fours<'_> {
    #[inline(always)]
    fn groups(&self) -> usize {
        self.groups
    }

    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "see `product::dot`")]
    fn add<V: Vector, const N: usize>(
        &self,
        index: usize,
        inputs: [&Whole; N],
        totals: &mut [V; N],
    ) {
        let pairs = &self.pairs[index];
        ahead(pairs);
        let products = V::fours(pairs, inputs);
        let scales = V::load_f16(&self.scales[index]);
        let lows = V::load_f16(&self.lows[index]);
        for n in 0..N {
            let step = V::splat(inputs[n].step);
            let low = lows.multiply_add(V::splat(inputs[n].total), totals[n]);
            totals[n] = products[n].multiply(step).multiply_add(scales, low);
        }
    }
}
