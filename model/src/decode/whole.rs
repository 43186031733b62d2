//! Inputs as whole numbers, to be multiplied with packed weights.
//!
//! Owns the rounding of inputs: per group of [`GROUP`], to 256ths of a step that the largest of them sets,
//! in two numbers of 8 bits. One alone, as llama.cpp has it, would do for the speed; but then the inputs'
//! rounding costs more than the weights' (see ARCHITECTURE.md). Products of whole numbers are exact in any
//! order, so a processor's widest instructions give what its plainest ones do.

use super::wide::{FOUR, GROUP, LANES, ROUND, Vector, Work, widest};

/// One group of a vector's inputs: `x ≈ (q + r / 256) · step`, q and r in −127 … 127.
#[derive(Clone, Copy, Default)]
pub(crate) struct Whole {
    /// q, and r.
    pub(crate) parts: [Part; 2],
    pub(crate) step: f32,
    /// Σ x, as it was.
    pub(crate) total: f32,
}

/// Whole numbers of 8 bits, one for each input.
#[derive(Clone, Copy, Default)]
pub(crate) struct Part {
    /// Four to a number, the first in its lowest byte.
    pub(crate) fours: [i32; GROUP / FOUR],
    pub(crate) sum: i32,
}

/// What the second part counts in.
pub(crate) const FINE: f32 = 1.0 / 256.0;

impl Whole {
    /// Rounds `inputs` to as many groups as there is place for.
    pub(crate) fn round(inputs: &[f32], groups: &mut [Self]) {
        widest(Rounding { inputs, groups });
    }
}

struct Rounding<'a> {
    inputs: &'a [f32],
    groups: &'a mut [Whole],
}

impl Work for Rounding<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let (inputs, _) = self.inputs.as_chunks();
        for (group, inputs) in self.groups.iter_mut().zip(inputs) {
            *group = round::<V>(inputs);
        }
    }
}

#[inline(always)]
fn round<V: Vector>(group: &[f32; GROUP]) -> Whole {
    let (halves, _) = group.as_chunks();
    let mut most = V::splat(0.0);
    let mut total = V::splat(0.0);
    for half in halves {
        let half = V::load(half);
        most = most.at_least(half).at_least(half.multiply(V::splat(-1.0)));
        total = total.plus(half);
    }
    // They are magnitudes, but a zero may have come out as -0.
    let step = most.largest().abs() / 127.0;
    let per_step = if step > 0.0 { 1.0 / step } else { 0.0 };
    let mut numbers = [[0_i8; GROUP]; 2];
    let [coarse, fine] = &mut numbers;
    let (coarse, _) = coarse.as_chunks_mut();
    let (fine, _) = fine.as_chunks_mut();
    for ((coarse, fine), half) in coarse.iter_mut().zip(fine).zip(halves) {
        let steps = V::load(half).multiply(V::splat(per_step));
        let rounded = keep(steps, coarse);
        let rest = steps.plus(rounded.multiply(V::splat(-1.0)));
        let rest = rest.multiply(V::splat(1.0 / FINE));
        let rest = rest.at_least(V::splat(-127.0)).at_most(V::splat(127.0));
        keep(rest, fine);
    }
    let [coarse, fine] = numbers;
    Whole {
        parts: [Part::of(&coarse), Part::of(&fine)],
        step,
        total: total.sum(),
    }
}

/// Rounds numbers within ±127 and keeps them.
#[inline(always)]
fn keep<V: Vector>(numbers: V, to: &mut [i8; LANES]) -> V {
    let rounded = numbers.plus(V::splat(ROUND));
    let mut bits = [0.0_f32; LANES];
    rounded.store(&mut bits);
    for (to, bits) in to.iter_mut().zip(bits) {
        // The lowest bits of such a sum are the whole number.
        *to = (bits.to_bits() as u8).cast_signed();
    }
    rounded.plus(V::splat(-ROUND))
}

impl Part {
    #[inline(always)]
    fn of(numbers: &[i8; GROUP]) -> Self {
        let mut part = Self::default();
        let (numbers, _) = numbers.as_chunks();
        for (four, numbers) in part.fours.iter_mut().zip(numbers) {
            let [a, b, c, d]: &[i8; FOUR] = numbers;
            *four = i32::from_le_bytes([*a, *b, *c, *d].map(i8::cast_unsigned));
            part.sum += i32::from(*a) + i32::from(*b) + i32::from(*c) + i32::from(*d);
        }
        part
    }
}

#[cfg(test)]
mod tests {
    use super::{FINE, GROUP, Part, Whole};

    fn numbers(part: &Part) -> Vec<i32> {
        let bytes = part.fours.iter().flat_map(|four| four.to_le_bytes());
        bytes.map(|byte| i32::from(byte.cast_signed())).collect()
    }

    #[test]
    fn an_input_is_a_512th_of_a_step_from_what_it_was_or_a_little_more() {
        let number = |i: u32| ((i * 2_654_435) % 1999) as f32 / 999.0 - 1.0;
        let inputs: Vec<f32> = (0..2 * GROUP as u32).map(number).collect();
        let mut groups = [Whole::default(); 2];
        Whole::round(&inputs, &mut groups);
        for (group, inputs) in groups.iter().zip(inputs.chunks(GROUP)) {
            let [coarse, fine] = group.parts.each_ref().map(numbers);
            for ((input, q), r) in inputs.iter().zip(&coarse).zip(&fine) {
                let apart = (*q as f32 + *r as f32 * FINE) * group.step - input;
                assert!(apart.abs() <= group.step * FINE * 1.01, "{input}: {apart}");
            }
            assert_eq!(group.parts[0].sum, coarse.iter().sum::<i32>());
            assert_eq!(group.parts[1].sum, fine.iter().sum::<i32>());
            let total: f32 = inputs.iter().sum();
            assert!((group.total - total).abs() < 1e-5);
        }
    }

    #[test]
    fn nothing_stays_nothing() {
        let mut group = Whole::default();
        Whole::round(&[0.0; GROUP], std::slice::from_mut(&mut group));
        for part in group.parts {
            assert_eq!((part.fours, part.sum), ([0; 8], 0));
        }
        assert_eq!(group.step.to_bits(), 0.0_f32.to_bits());
    }
}
