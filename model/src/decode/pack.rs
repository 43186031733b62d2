//! Weights in 8 and 4 bits, for decode steps.
//!
//! Owns the packed formats, which live in memory only. A row is in groups of [`GROUP`] inputs, as
//! llama.cpp's Q8_0 and Q4_1 have them, with steps in f16 as theirs are: what a GGUF has in such groups
//! comes out as it was.
//! - int8: `w ≈ q · scale`, q in −127 … 127;
//! - int4: `w ≈ q · scale + low`, q in 0 … 15.
//!
//! Sixteen rows lie together, a group of all of them and then the next (see [`EightBits`] and
//! [`FourBits`]): one instruction multiplies four inputs of each.

use super::rows::{Eights, Fours, Rows};
use super::wide::{EightBits, FOUR, FourBits, GROUP, LANES, ROUND};
use half::f16;
use rayon::prelude::{IntoParallelIterator, ParallelIterator};
use std::ops::RangeInclusive;

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
    /// In a row.
    groups: usize,
    data: Data,
}

/// Each of `[blocks of sixteen rows, groups]`; rows that a last block lacks are zeros.
enum Data {
    Int8 {
        numbers: Vec<EightBits>,
        scales: Vec<[f16; LANES]>,
    },
    Int4 {
        pairs: Vec<FourBits>,
        scales: Vec<[f16; LANES]>,
        lows: Vec<[f16; LANES]>,
    },
}

impl Packed {
    /// Packs `weights [outputs, inputs]`, row-major; `None` where rows don't divide into groups, or
    /// a weight is beyond f16.
    pub(crate) fn new(weights: &[f32], inputs: usize, packing: Packing) -> Option<Self> {
        let within = |weight: &f32| weight.abs() <= f16::MAX.to_f32();
        if inputs == 0 || !inputs.is_multiple_of(GROUP) || !weights.iter().all(within) {
            return None;
        }
        let groups = inputs / GROUP;
        let outputs = weights.len() / inputs;
        let blocks = (0..outputs.div_ceil(LANES) * groups).into_par_iter();
        let group = |place: usize| Sixteen {
            weights,
            inputs,
            first: place / groups * LANES,
            from: place % groups * GROUP,
        };
        let data = match packing {
            Packing::Int8 => {
                let (numbers, scales) = blocks.map(|place| group(place).int8()).unzip();
                Data::Int8 { numbers, scales }
            }
            Packing::Int4 => {
                let packed = blocks.map(|place| group(place).int4());
                let (pairs, (scales, lows)) = packed.unzip();
                Data::Int4 {
                    pairs,
                    scales,
                    lows,
                }
            }
        };
        Some(Self { groups, data })
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        match &self.data {
            Data::Int8 { numbers, scales } => size_of_val(&**numbers) + size_of_val(&**scales),
            Data::Int4 {
                pairs,
                scales,
                lows,
            } => size_of_val(&**pairs) + size_of_val(&**scales) + size_of_val(&**lows),
        }
    }

    /// What packing `weights` changed, root mean square, against the weights' own.
    pub(crate) fn loss(&self, weights: &[f32]) -> f64 {
        let inputs = (self.groups * GROUP).max(1);
        let (mut lost, mut all) = (0.0, 0.0);
        for (place, weight) in weights.iter().enumerate() {
            let found = self.weight(place / inputs, place % inputs);
            let (weight, found) = (f64::from(*weight), found.map_or(0.0, f64::from));
            lost += (found - weight) * (found - weight);
            all += weight * weight;
        }
        (lost / all.max(f64::MIN_POSITIVE)).sqrt()
    }

    /// One weight, as it is packed.
    fn weight(&self, row: usize, input: usize) -> Option<f32> {
        let place = row / LANES * self.groups + input / GROUP;
        let (lane, within) = (row % LANES, input % GROUP);
        let scale = |scales: &[[f16; LANES]]| Some(scales.get(place)?.get(lane)?.to_f32());
        let byte = |half: usize| (half / FOUR, lane * FOUR + half % FOUR);
        match &self.data {
            Data::Int8 { numbers, scales } => {
                let (slice, at) = byte(within);
                let number = numbers.get(place)?.get(slice)?.get(at)?;
                Some(f32::from(*number) * scale(scales)?)
            }
            Data::Int4 {
                pairs,
                scales,
                lows,
            } => {
                let half = within % (GROUP / 2);
                let (slice, at) = byte(half);
                let pair = pairs.get(place)?.get(slice)?.get(at)?;
                let number = if within == half { pair & 15 } else { pair >> 4 };
                Some(f32::from(number) * scale(scales)? + scale(lows)?)
            }
        }
    }

    /// To be read.
    pub(crate) fn rows(&self) -> Rows<'_> {
        let groups = self.groups;
        match &self.data {
            Data::Int8 { numbers, scales } => Rows::Int8(Eights {
                groups,
                numbers,
                scales,
            }),
            Data::Int4 {
                pairs,
                scales,
                lows,
            } => Rows::Int4(Fours {
                groups,
                pairs,
                scales,
                lows,
            }),
        }
    }
}

/// One group of sixteen rows of `weights`.
struct Sixteen<'a> {
    weights: &'a [f32],
    inputs: usize,
    /// The first row.
    first: usize,
    /// The group's first input.
    from: usize,
}

impl<'a> Sixteen<'a> {
    /// The rows that there are: up to sixteen.
    fn rows(&self) -> impl Iterator<Item = &'a [f32]> {
        let rows = self.weights.chunks_exact(self.inputs).skip(self.first);
        let from = self.from;
        rows.take(LANES)
            .filter_map(move |row| row.get(from..from + GROUP))
    }

    fn int8(&self) -> (EightBits, [f16; LANES]) {
        let mut numbers = [[0; _]; _];
        let mut scales = [f16::ZERO; LANES];
        for ((row, weights), scale) in self.rows().enumerate().zip(&mut scales) {
            let largest = weights.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
            *scale = f16::from_f32(largest / 127.0);
            let number = |weight: f32| steps(weight, *scale, -127.0..=127.0) as i8;
            for (slice, weights) in numbers.iter_mut().zip(weights.chunks_exact(FOUR)) {
                for (own, weight) in of_row(slice, row).zip(weights) {
                    *own = number(*weight);
                }
            }
        }
        (numbers, scales)
    }

    fn int4(&self) -> (FourBits, ([f16; LANES], [f16; LANES])) {
        let mut pairs = [[0; _]; _];
        let mut scales = [f16::ZERO; LANES];
        let mut lows = [f16::ZERO; LANES];
        let steps_and_lows = scales.iter_mut().zip(&mut lows);
        for ((row, weights), (scale, low)) in self.rows().enumerate().zip(steps_and_lows) {
            let lowest = weights.iter().copied().fold(f32::INFINITY, f32::min);
            let highest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            *low = f16::from_f32(lowest);
            *scale = f16::from_f32((highest - low.to_f32()) / 15.0);
            let number = |weight: f32| steps(weight - low.to_f32(), *scale, 0.0..=15.0) as u8;
            let (first, second) = weights.split_at(GROUP / 2);
            let halves = first.chunks_exact(FOUR).zip(second.chunks_exact(FOUR));
            for (slice, (first, second)) in pairs.iter_mut().zip(halves) {
                for (own, (first, second)) in of_row(slice, row).zip(first.iter().zip(second)) {
                    *own = number(*first) | (number(*second) << 4);
                }
            }
        }
        (pairs, (scales, lows))
    }
}

/// A row's four of a slice.
fn of_row<T>(slice: &mut [T], row: usize) -> impl Iterator<Item = &mut T> {
    slice.iter_mut().skip(FOUR * row).take(FOUR)
}

/// How many steps `weight` is, as a whole number within `range`.
#[inline]
fn steps(weight: f32, step: f16, range: RangeInclusive<f32>) -> f32 {
    let step = step.to_f32();
    if step == 0.0 {
        return 0.0;
    }
    let steps = (weight / step).clamp(*range.start(), *range.end());
    // Rounded; the function for it is a call where the program is built for any processor.
    (steps + ROUND) - ROUND
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::{Packed, Packing};
    use crate::decode::wide::{GROUP, LANES};
    use half::f16;

    /// Seventeen rows of two groups: a block, and one row of another.
    const ROWS: usize = LANES + 1;
    const INPUTS: usize = 2 * GROUP;

    fn weights() -> Vec<f32> {
        let number = |i: usize| ((i * 2_654_435) % 1999) as f32 / 999.0 - 1.0;
        (0..ROWS * INPUTS).map(number).collect()
    }

    #[test]
    fn a_weight_is_half_a_step_from_what_it_was_at_most() {
        let weights = weights();
        for packing in [Packing::Int8, Packing::Int4] {
            let Some(packed) = Packed::new(&weights, INPUTS, packing) else {
                panic!("{packing:?}: whole groups can be packed")
            };
            // Their range is 2 at most.
            let step = match packing {
                Packing::Int8 => 1.0 / 127.0,
                Packing::Int4 => 2.0 / 15.0,
            };
            for (place, weight) in weights.iter().enumerate() {
                let found = packed.weight(place / INPUTS, place % INPUTS).unwrap();
                let apart = (found - weight).abs();
                assert!(
                    apart <= step * 0.51,
                    "{packing:?}, {place}: {apart} of {step}"
                );
            }
            assert!(packed.loss(&weights) > 1e-3);
        }
    }

    /// A GGUF's Q8_0 and Q4_1 are not rounded anew.
    #[test]
    fn weights_that_lie_on_such_steps_come_out_as_they_were() {
        let (step, low) = (f16::from_f32(0.0137), f16::from_f32(-0.0821));
        for packing in [Packing::Int8, Packing::Int4] {
            let weight = |i: usize| match packing {
                Packing::Int8 => (((i * 37) % 255) as f32 - 127.0) * step.to_f32(),
                Packing::Int4 => ((i * 7) % 16) as f32 * step.to_f32() + low.to_f32(),
            };
            // Each group has its ends, as the quantisers leave it.
            let ends = |i: usize| match (packing, i % GROUP) {
                (Packing::Int8, 0) => 127.0 * step.to_f32(),
                _ => weight(i % GROUP),
            };
            let weights: Vec<f32> = (0..ROWS * INPUTS).map(ends).collect();
            let Some(packed) = Packed::new(&weights, INPUTS, packing) else {
                panic!("{packing:?}: whole groups can be packed")
            };
            for (place, weight) in weights.iter().enumerate() {
                let found = packed.weight(place / INPUTS, place % INPUTS).unwrap();
                assert_eq!(found.to_bits(), weight.to_bits(), "{packing:?}, {place}");
            }
            assert!(packed.loss(&weights) < 1e-9);
        }
    }

    #[test]
    fn what_can_not_be_packed_is_left_alone() {
        assert!(Packed::new(&weights(), GROUP - 1, Packing::Int8).is_none());
        assert!(Packed::new(&[1e5; GROUP], GROUP, Packing::Int4).is_none());
    }
}
