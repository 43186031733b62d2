//! Sixteen numbers at a time: the processor's vectors, behind one name.
//!
//! Owns the only code that not every processor can run, and the choice of it. A kernel is a [`Work`],
//! written once over any [`Vector`] and compiled for each; [`widest`] runs the one that this processor
//! is fastest with. Everything is arithmetic in f32, where each kind of vector adds in the same order, or
//! in whole numbers.

use super::whole::{FINE, Whole};
use crate::tensor::Element;
#[cfg(target_arch = "x86_64")]
use crate::tensor::multiplies_pairs_faster;
use half::{bf16, f16};

/// Numbers in a vector.
pub(crate) const LANES: usize = 16;
/// Inputs that share a scale.
pub(crate) const GROUP: usize = 2 * LANES;
/// Adding this to a number below 2²² rounds it: the sum has no bits for less than 1.
pub(crate) const ROUND: f32 = 12_582_912.0;
/// Neighbouring inputs that an instruction multiplies at once.
pub(crate) const FOUR: usize = 4;
/// Four neighbouring inputs of sixteen rows.
const SLICE: usize = FOUR * LANES;

/// A group's int8 of sixteen rows, in slices of four inputs; in a slice, row after row.
pub(crate) type EightBits = [[i8; SLICE]; 8];
/// A group's int4 of sixteen rows: the slices of the group's first half in the low nibbles, those of its
/// second half in the high ones.
pub(crate) type FourBits = [[u8; SLICE]; 4];

/// Sixteen f32.
///
/// Every function of an implementation, and whatever calls it up to [`Work::run`], must be
/// `#[inline(always)]`: only then is it compiled for the processor that it is for. Closures that go into
/// an iterator's `map`, `sum` or `collect` are not; so kernels are written with `for`.
pub(crate) trait Vector: Copy {
    fn splat(number: f32) -> Self;
    fn load(from: &[f32; LANES]) -> Self;
    fn load_bf16(from: &[bf16; LANES]) -> Self;
    fn load_f16(from: &[f16; LANES]) -> Self;
    /// The products of sixteen rows' group with a group of each of `N` vectors, in steps of each of both.
    fn eights<const N: usize>(weights: &EightBits, inputs: [&Whole; N]) -> [Self; N];
    /// The same of int4.
    fn fours<const N: usize>(weights: &FourBits, inputs: [&Whole; N]) -> [Self; N];
    fn store(self, to: &mut [f32; LANES]);
    fn multiply(self, by: Self) -> Self;
    fn plus(self, other: Self) -> Self;
    /// `self · by + to`.
    fn multiply_add(self, by: Self, to: Self) -> Self;

    fn divide(self, by: Self) -> Self;
    /// The larger one of each.
    fn at_least(self, other: Self) -> Self;
    /// The smaller one of each.
    fn at_most(self, other: Self) -> Self;
    /// 2ⁿ of whole numbers from -126 to 127.
    fn power_of_two(self) -> Self;
    /// The sum of all sixteen: the upper half is added to the lower one until one is left.
    fn sum(self) -> f32;

    /// The largest of all sixteen.
    #[inline(always)]
    fn largest(self) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes);
        let mut largest = f32::NEG_INFINITY;
        for lane in lanes {
            largest = largest.max(lane);
        }
        largest
    }

    /// The sum of each of sixteen.
    #[inline(always)]
    fn sums(all: &[Self; LANES]) -> Self {
        let mut sums = [0.0; LANES];
        for (sum, vector) in sums.iter_mut().zip(all) {
            *sum = vector.sum();
        }
        Self::load(&sums)
    }

    /// eˣ to a few units in the last place, of x from -87 to 88 (others count as the nearer of these):
    /// 2ⁿ · e^r with r within ± ln 2 / 2, and e^r by its Taylor series, of which what is left out is
    /// below 2⁻²⁴ there.
    #[inline(always)]
    fn exp(self) -> Self {
        const LN_2_HIGH: f32 = 0.693_359_4;
        const LN_2_LOW: f32 = -2.121_944_4e-4;
        let x = self.at_least(Self::splat(-87.0)).at_most(Self::splat(88.0));
        let n = x.multiply_add(Self::splat(std::f32::consts::LOG2_E), Self::splat(ROUND));
        let n = n.plus(Self::splat(-ROUND));
        let r = n.multiply_add(Self::splat(-LN_2_HIGH), x);
        let r = n.multiply_add(Self::splat(-LN_2_LOW), r);
        let mut series = Self::splat(1.0 / 720.0);
        for term in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            series = series.multiply_add(r, Self::splat(term));
        }
        series.multiply(n.power_of_two())
    }
}

/// Two neighbouring numbers in bf16, for each of sixteen.
pub(crate) type PairLanes = [[bf16; 2]; LANES];

/// Vectors of a processor that multiplies bf16 faster than f32: two products of each lane at once, summed in f32.
/// Implementations inline as those of [`Vector`] do.
pub(crate) trait Pairs: Vector {
    /// `self + pair₀ · by₀ + pair₁ · by₁`, the same `by` for each lane.
    fn add_products(self, pairs: &PairLanes, by: &[bf16; 2]) -> Self;
    /// Numbers that are [`Self::rounded`]: the first ones of pairs, and the second ones.
    fn pair(first: Self, second: Self, to: &mut PairLanes);
    /// Each number of `first` with its counterpart.
    fn beside(first: &[bf16; LANES], second: &[bf16; LANES], to: &mut PairLanes);
    /// The nearest bf16 of finite numbers, of two the one away from 0; as f32.
    fn rounded(self) -> Self;
}

/// A loop that is worth vectors.
pub(crate) trait Work: Sized {
    /// What it gives.
    type Output;
    /// Does it.
    fn run<V: Vector>(self) -> Self::Output;
    /// Does it where products of pairs of bf16 are at hand.
    #[inline(always)]
    fn run_in_pairs<V: Pairs>(self) -> Self::Output {
        self.run::<V>()
    }
}

/// Does `work` with the widest vectors that this processor has.
pub(crate) fn widest<W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if x86::has_avx512() && multiplies_pairs_faster() {
            // SAFETY: the processor has the instructions.
            return unsafe { x86::with_pairs(work) };
        }
        if x86::has_avx512() {
            // SAFETY: the processor has the instructions.
            return unsafe { x86::with_avx512(work) };
        }
        if x86::has_avx2() {
            // SAFETY: the processor has the instructions.
            return unsafe { x86::with_avx2(work) };
        }
    }
    work.run::<Plain>()
}

/// The first numbers of `from`, as f32; zeros behind them.
#[inline(always)]
pub(crate) fn load<V: Vector, E: Numbers>(from: &[E]) -> V {
    match from.first_chunk() {
        Some(whole) => E::load(whole),
        None => {
            let mut padded = [E::narrow(0.0); LANES];
            for (to, from) in padded.iter_mut().zip(from) {
                *to = *from;
            }
            E::load(&padded)
        }
    }
}

/// Asks for memory as long as `this` that lies a little behind it and is read soon: rows lie one after the
/// other, and the processor's own guesses stop at the border of a page.
#[inline(always)]
pub(crate) fn ahead<T: ?Sized>(this: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let mut at = 0;
        while at < size_of_val(this) {
            // SAFETY: a prefetch reads nothing and may be of any address.
            unsafe {
                let there = std::ptr::from_ref(this).cast::<i8>();
                _mm_prefetch::<_MM_HINT_T0>(there.wrapping_add(AHEAD + at));
            }
            at += LINE;
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = this;
}

/// Bytes of a cache's line.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;
/// Bytes that [`ahead`] looks ahead.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 3072;

/// Elements that vectors are loaded from.
pub(crate) trait Numbers: Element {
    fn load<V: Vector>(from: &[Self; LANES]) -> V;

    /// The numbers themselves where they are in bf16.
    fn halves(numbers: &[Self]) -> Option<&[bf16]> {
        let _ = numbers;
        None
    }
}

impl Numbers for f32 {
    #[inline(always)]
    fn load<V: Vector>(from: &[Self; LANES]) -> V {
        V::load(from)
    }
}

impl Numbers for bf16 {
    #[inline(always)]
    fn load<V: Vector>(from: &[Self; LANES]) -> V {
        V::load_bf16(from)
    }

    #[inline(always)]
    fn halves(numbers: &[Self]) -> Option<&[bf16]> {
        Some(numbers)
    }
}

/// Sixteen f32 on any processor.
#[derive(Clone, Copy)]
struct Plain([f32; LANES]);

impl Plain {
    /// `make` of each number with its counterpart.
    #[inline(always)]
    fn with(self, other: Self, make: impl Fn(f32, f32) -> f32) -> Self {
        let mut numbers = self.0;
        for (number, other) in numbers.iter_mut().zip(other.0) {
            *number = make(*number, other);
        }
        Self(numbers)
    }
}

impl Vector for Plain {
    #[inline(always)]
    fn splat(number: f32) -> Self {
        Self([number; LANES])
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Self(*from)
    }
    #[inline(always)]
    fn load_bf16(from: &[bf16; LANES]) -> Self {
        Self(from.map(Element::widen))
    }
    #[inline(always)]
    fn load_f16(from: &[f16; LANES]) -> Self {
        Self(from.map(f16::to_f32))
    }
    #[inline(always)]
    fn eights<const N: usize>(weights: &EightBits, inputs: [&Whole; N]) -> [Self; N] {
        inputs.map(|inputs| {
            in_one(inputs.parts.each_ref().map(|part| {
                let mut sums = [0_i32; LANES];
                for (slice, four) in weights.iter().zip(part.fours) {
                    add_products(&mut sums, &slice.map(i32::from), four);
                }
                Self(sums.map(|sum| sum as f32))
            }))
        })
    }
    #[inline(always)]
    fn fours<const N: usize>(weights: &FourBits, inputs: [&Whole; N]) -> [Self; N] {
        inputs.map(|inputs| {
            in_one(inputs.parts.each_ref().map(|part| {
                let mut sums = [0_i32; LANES];
                let (first, second) = part.fours.split_at(4);
                for ((slice, first), second) in weights.iter().zip(first).zip(second) {
                    add_products(&mut sums, &slice.map(|pair| i32::from(pair & 15)), *first);
                    add_products(&mut sums, &slice.map(|pair| i32::from(pair >> 4)), *second);
                }
                Self(sums.map(|sum| sum as f32))
            }))
        })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }
    #[inline(always)]
    fn multiply(self, by: Self) -> Self {
        self.with(by, |a, b| a * b)
    }
    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }
    #[inline(always)]
    fn multiply_add(self, by: Self, to: Self) -> Self {
        let mut numbers = to.0;
        for ((number, a), b) in numbers.iter_mut().zip(self.0).zip(by.0) {
            *number = a.mul_add(b, *number);
        }
        Self(numbers)
    }
    #[inline(always)]
    fn divide(self, by: Self) -> Self {
        self.with(by, |a, b| a / b)
    }
    #[inline(always)]
    fn at_least(self, other: Self) -> Self {
        self.with(other, f32::max)
    }
    #[inline(always)]
    fn at_most(self, other: Self) -> Self {
        self.with(other, f32::min)
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        let power = |n: f32| f32::from_bits(((n as i32 + 127) << 23).cast_unsigned());
        Self(self.0.map(power))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut numbers = self.0;
        let mut left = LANES;
        while left > 1 {
            left /= 2;
            let (low, high) = numbers.split_at_mut(left);
            for (low, high) in low.iter_mut().zip(high) {
                *low += *high;
            }
        }
        let [sum, ..] = numbers;
        sum
    }
}

/// The products with both parts of a group's inputs.
#[inline(always)]
fn in_one<V: Vector>([coarse, fine]: [V; 2]) -> V {
    fine.multiply_add(V::splat(FINE), coarse)
}

/// Adds each row's products with four inputs to its sum.
#[inline(always)]
fn add_products(sums: &mut [i32; LANES], slice: &[i32; SLICE], four: i32) {
    let (rows, _) = slice.as_chunks();
    let [a, b, c, d] = four.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
    for (sum, [e, f, g, h]) in sums.iter_mut().zip(rows) {
        *sum += a * e + b * f + c * g + d * h;
    }
}

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests {
    use super::{GROUP, LANES, Plain, SLICE, Vector, Whole, Work, load, widest};
    use half::{bf16, f16};

    #[test]
    fn the_exponential_is_exact_to_a_few_units_in_the_last_place() {
        for step in -17_400..17_600_i32 {
            let x = step as f32 * 0.005;
            let mut found = [0.0; LANES];
            Plain::splat(x).exp().store(&mut found);
            let exact = f64::from(x).exp();
            let apart = (f64::from(found[0]) - exact).abs() / exact;
            assert!(apart < 3e-7, "exp({x}): {apart:e} apart");
        }
    }

    /// All that a vector can do, as numbers.
    struct All;

    impl Work for All {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<V: Vector>(self) -> Vec<f32> {
            let numbers: [f32; LANES] = std::array::from_fn(|i| i as f32 * 0.37 - 2.0);
            let halves = numbers.map(bf16::from_f32);
            // The largest there are, of both signs: nothing may be cut off on the way.
            let bytes = |i: usize| match i % 5 {
                0 | 1 => 127,
                2 | 3 => -127,
                _ => (i as i32 * 37 % 255 - 127) as i8,
            };
            let eight: [[i8; SLICE]; 8] =
                std::array::from_fn(|s| std::array::from_fn(|i| bytes(s * SLICE + i)));
            let four: [[u8; SLICE]; 4] =
                std::array::from_fn(|s| std::array::from_fn(|i| (s * 91 + i * 7) as u8));
            let steep: [f32; GROUP] = std::array::from_fn(|i| if i % 3 == 0 { 2.0 } else { -2.0 });
            let mixed = [&numbers[..], &halves.map(f32::from)].concat();
            let mut inputs = [Whole::default(); 2];
            Whole::round(&[&steep[..], &mixed].concat(), &mut inputs);
            let eights = V::eights(&eight, inputs.each_ref());
            let fours = V::fours(&four, inputs.each_ref());
            let far: [f32; LANES] = std::array::from_fn(|i| i as f32 * 17.0 - 128.0);
            let made: [V; 14] = [
                load(&numbers),
                load(&halves),
                load(&numbers[..5]),
                V::load_f16(&numbers.map(f16::from_f32)),
                eights[0],
                eights[1],
                fours[0],
                fours[1],
                V::load(&numbers).multiply(V::splat(3.0)),
                V::load(&numbers).plus(V::load(&far)),
                V::load(&numbers).divide(V::splat(3.0)),
                V::load(&numbers).at_least(V::splat(0.1)),
                V::load(&numbers).at_most(V::splat(0.1)),
                V::load(&far).exp(),
            ];
            let mut out = Vec::new();
            for vector in made {
                let mut numbers = [0.0; LANES];
                vector.store(&mut numbers);
                out.extend(numbers);
                out.push(vector.sum());
                out.push(vector.multiply_add(V::splat(2.0), V::splat(1.0)).sum());
            }
            let rows: [V; LANES] =
                std::array::from_fn(|i| V::load(&numbers).multiply(V::splat(i as f32 - 3.7)));
            let mut sums = [0.0; LANES];
            V::sums(&rows).store(&mut sums);
            out.extend(sums);
            out
        }
    }

    #[test]
    fn every_processor_computes_the_same() {
        let plain = All.run::<Plain>();
        assert_eq!(widest(All), plain);
        #[cfg(target_arch = "x86_64")]
        if super::x86::has_avx2() {
            // SAFETY: the processor has the instructions.
            assert_eq!(unsafe { super::x86::with_avx2(All) }, plain);
        }
    }
}
