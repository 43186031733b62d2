//! Weights in 8 and 4 bits, for decode steps.
//!
//! Owns the packed formats, which live in memory only. Both are per row in groups of [`GROUP`]
//! inputs, as llama.cpp's Q8_0 and Q4_1 have them, so that a GGUF's own values survive:
//! - int8: `w ≈ q · scale`, q in −127 … 127;
//! - int4: `w ≈ q · scale + low`, q in 0 … 15, two to a byte: the group's first half in the low
//!   nibbles, its second half in the high ones.
//!
//! Scale and low are bf16 and are rounded before q is chosen, so their rounding costs no accuracy
//! but a wider step.

use super::rows::{GROUP, Rows};
use super::wide::LANES;
use crate::tensor::Element;
use half::bf16;
use rayon::prelude::{IndexedParallelIterator, ParallelIterator, ParallelSlice, ParallelSliceMut};

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

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::{Data, Packed, Packing};
    use crate::decode::rows::GROUP;
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
