//! A linear map's weights as the decode kernels read them: where libtorch keeps them, or packed.
//!
//! Owns the packed formats, which live in memory only. Both are per row in groups of [`GROUP`]
//! inputs, as llama.cpp's Q8_0 and Q4_1 have them, so that a GGUF's own values survive:
//! - int8: `w ≈ q · scale`, q in −127 … 127;
//! - int4: `w ≈ q · scale + low`, q in 0 … 15, two to a byte: the group's first half in the low
//!   nibbles, its second half in the high ones.
//!
//! Scale and low are bf16 and are rounded before q is chosen, so their rounding costs no accuracy
//! but a wider step.

use super::wide::{LANES, Numbers, Vector, ahead};
use crate::tensor::Element;
use half::bf16;
use rayon::prelude::{IndexedParallelIterator, ParallelIterator, ParallelSlice, ParallelSliceMut};

/// Inputs that share a scale.
pub(crate) const GROUP: usize = 2 * LANES;

/// How the decode steps' copy of the weights is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// 8 bits a weight and a scale for each 32: 1.06 bytes.
    Int8,
    /// 4 bits a weight, a scale and a lowest value for each 32: 0.625 bytes.
    Int4,
}

/// Weights `[outputs, inputs]`, packed.
pub(crate) struct Packed {
    inputs: usize,
    data: Data,
}

enum Data {
    Int8 {
        numbers: Vec<i8>,
        scales: Vec<bf16>,
    },
    Int4 {
        pairs: Vec<u8>,
        scales: Vec<bf16>,
        lows: Vec<bf16>,
    },
}

impl Packed {
    /// Packs `weights [outputs, inputs]`, row-major; `None` where rows don't divide into groups.
    pub(crate) fn new(weights: &[f32], inputs: usize, packing: Packing) -> Option<Self> {
        if inputs == 0 || !inputs.is_multiple_of(GROUP) {
            return None;
        }
        let data = match packing {
            Packing::Int8 => int8(weights),
            Packing::Int4 => int4(weights),
        };
        Some(Self { inputs, data })
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        match &self.data {
            Data::Int8 { numbers, scales } => numbers.len() + 2 * scales.len(),
            Data::Int4 {
                pairs,
                scales,
                lows,
            } => pairs.len() + 2 * (scales.len() + lows.len()),
        }
    }

    /// To be read.
    pub(crate) fn rows(&self) -> Rows<'_> {
        let inputs = self.inputs;
        match &self.data {
            Data::Int8 { numbers, scales } => Rows::Int8 {
                inputs,
                numbers,
                scales,
            },
            Data::Int4 {
                pairs,
                scales,
                lows,
            } => Rows::Int4 {
                inputs,
                pairs,
                scales,
                lows,
            },
        }
    }
}

fn int8(weights: &[f32]) -> Data {
    let mut numbers = vec![0_i8; weights.len()];
    let mut scales = vec![bf16::ZERO; weights.len() / GROUP];
    let groups = weights.par_chunks(GROUP).zip(numbers.par_chunks_mut(GROUP));
    groups
        .zip(scales.par_chunks_mut(1))
        .for_each(|((weights, numbers), scale)| {
            let largest = weights.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
            let step = above(largest / 127.0);
            for (number, weight) in numbers.iter_mut().zip(weights) {
                *number = steps(*weight, step, 127.0) as i8;
            }
            scale.fill(step);
        });
    Data::Int8 { numbers, scales }
}

fn int4(weights: &[f32]) -> Data {
    let groups = weights.len() / GROUP;
    let mut pairs = vec![0_u8; weights.len() / 2];
    let mut bounds = vec![(bf16::ZERO, bf16::ZERO); groups];
    weights
        .par_chunks(GROUP)
        .zip(pairs.par_chunks_mut(LANES))
        .zip(bounds.par_chunks_mut(1))
        .for_each(|((weights, pairs), bound)| {
            let lowest = weights.iter().copied().fold(f32::INFINITY, f32::min);
            let highest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let low = below(lowest);
            let step = above((highest - low.widen()) / 15.0);
            let number = |weight: f32| steps(weight - low.widen(), step, 15.0) as u8;
            let (first, second) = weights.split_at(LANES);
            for ((pair, first), second) in pairs.iter_mut().zip(first).zip(second) {
                *pair = number(*first) | (number(*second) << 4);
            }
            bound.fill((step, low));
        });
    let (scales, lows) = bounds.into_iter().unzip();
    Data::Int4 {
        pairs,
        scales,
        lows,
    }
}

/// How many steps `weight` is, as a whole number within `-most ..= most`.
fn steps(weight: f32, step: bf16, most: f32) -> f32 {
    let step = step.widen();
    if step == 0.0 {
        return 0.0;
    }
    (weight / step).round().clamp(-most, most)
}

/// The smallest bf16 that is not below `number`, which is not negative.
fn above(number: f32) -> bf16 {
    let near = bf16::from_f32(number);
    match near.widen() < number {
        true => bf16::from_bits(near.to_bits() + 1),
        false => near,
    }
}

/// The largest bf16 that is not above `number`.
fn below(number: f32) -> bf16 {
    let near = bf16::from_f32(number);
    if near.widen() <= number {
        return near;
    }
    // Towards zero for a positive number, away from it for a negative one.
    match near.is_sign_negative() {
        true => bf16::from_bits(near.to_bits() + 1),
        false => match near.to_bits() {
            // From zero on downwards come the negative ones.
            0 => bf16::from_bits(0x8001),
            bits => bf16::from_bits(bits - 1),
        },
    }
}

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

#[cfg(test)]
mod tests {
    use super::{Data, GROUP, Packed, Packing};
    use crate::tensor::Element;

    fn weights() -> Vec<f32> {
        let number = |i: u32| ((i * 2_654_435) % 1999) as f32 / 999.0 - 1.0;
        (0..3 * GROUP as u32).map(number).collect()
    }

    #[test]
    fn eight_bits_are_half_a_step_from_every_weight_at_most() {
        let weights = weights();
        let packed = Packed::new(&weights, GROUP, Packing::Int8).map(|packed| packed.data);
        let Some(Data::Int8 { numbers, scales }) = packed else {
            panic!("a row of one group can be packed")
        };
        for (place, weight) in weights.iter().enumerate() {
            let scale = scales[place / GROUP].widen();
            let apart = (f32::from(numbers[place]) * scale - weight).abs();
            assert!(apart <= scale * 0.501, "{place}: {apart} of {scale}");
        }
    }

    #[test]
    fn four_bits_are_half_a_step_from_every_weight_at_most() {
        let weights = weights();
        let packed = Packed::new(&weights, GROUP, Packing::Int4).map(|packed| packed.data);
        let Some(Data::Int4 {
            pairs,
            scales,
            lows,
        }) = packed
        else {
            panic!("a row of one group can be packed")
        };
        for (place, weight) in weights.iter().enumerate() {
            let (group, within) = (place / GROUP, place % GROUP);
            let pair = pairs[group * GROUP / 2 + within % (GROUP / 2)];
            let number = if within < GROUP / 2 {
                pair & 15
            } else {
                pair >> 4
            };
            let scale = scales[group].widen();
            let apart = (f32::from(number) * scale + lows[group].widen() - weight).abs();
            assert!(apart <= scale * 0.501, "{place}: {apart} of {scale}");
        }
    }

    #[test]
    fn rows_that_do_not_divide_into_groups_are_left_alone() {
        assert!(Packed::new(&weights(), GROUP - 1, Packing::Int8).is_none());
    }
}
