//! The vectors of x86-64 processors. Every function here is sound only on a processor that has the
//! instructions, which [`widest`](super::widest) sees to: nothing else can name these types.

use super::{EightBits, FourBits, LANES, PairLanes, Pairs, Vector, Whole, Work, in_one};
use half::{bf16, f16};
#[cfg_attr(
    not(test),
    expect(
        clippy::wildcard_imports,
        reason = "sixty names, each with the prefix that tells where it is from"
    )
)]
use std::arch::x86_64::*;

pub(super) fn has_avx512() -> bool {
    has_avx2()
        && std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vnni")
}

pub(super) fn has_avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("f16c")
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
pub(super) fn with_avx512<W: Work>(work: W) -> W::Output {
    work.run::<One>()
}

/// The same where the processor has `avx512bf16`, too.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512bf16,avx2,fma,f16c")]
pub(super) fn with_pairs<W: Work>(work: W) -> W::Output {
    work.run_in_pairs::<One>()
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn with_avx2<W: Work>(work: W) -> W::Output {
    work.run::<Two>()
}

/// One register of AVX-512.
#[derive(Clone, Copy)]
struct One(__m512);

/// Two registers of AVX2.
#[derive(Clone, Copy)]
struct Two(__m256, __m256);

// SAFETY, of every block below: the processor has the instructions (see the module), and each load
// or store is as long as the array that it is given.

impl Vector for One {
    #[inline(always)]
    fn splat(number: f32) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_set1_ps(number)) }
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_loadu_ps(from.as_ptr())) }
    }
    #[inline(always)]
    fn load_bf16(from: &[bf16; LANES]) -> Self {
        // SAFETY: see above.
        unsafe {
            let halves = _mm256_loadu_si256(from.as_ptr().cast());
            let whole = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves));
            Self(_mm512_castsi512_ps(whole))
        }
    }
    #[inline(always)]
    fn load_f16(from: &[f16; LANES]) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()))) }
    }
    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        clippy::needless_range_loop,
        reason = "see `product::dot`"
    )]
    fn eights<const N: usize>(weights: &EightBits, inputs: [&Whole; N]) -> [Self; N] {
        // SAFETY: see above.
        unsafe {
            // The instruction takes weights from 0 on: 128 more than they are, and 128 Σ q too much.
            let more = _mm512_set1_epi8(-128);
            let mut sums = [[_mm512_setzero_si512(); 2]; N];
            for n in 0..N {
                for part in 0..2 {
                    sums[n][part] = _mm512_set1_epi32(-128 * inputs[n].parts[part].sum);
                }
            }
            for slice in 0..weights.len() {
                let own = _mm512_loadu_si512(weights[slice].as_ptr().cast());
                let own = _mm512_xor_si512(own, more);
                for n in 0..N {
                    for part in 0..2 {
                        let four = _mm512_set1_epi32(inputs[n].parts[part].fours[slice]);
                        sums[n][part] = _mm512_dpbusd_epi32(sums[n][part], own, four);
                    }
                }
            }
            in_numbers(sums)
        }
    }
    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        clippy::needless_range_loop,
        reason = "see `product::dot`"
    )]
    fn fours<const N: usize>(weights: &FourBits, inputs: [&Whole; N]) -> [Self; N] {
        // SAFETY: see above.
        unsafe {
            let mask = _mm512_set1_epi8(15);
            let mut sums = [[_mm512_setzero_si512(); 2]; N];
            for slice in 0..weights.len() {
                let pairs = _mm512_loadu_si512(weights[slice].as_ptr().cast());
                let low = _mm512_and_si512(pairs, mask);
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(pairs), mask);
                for n in 0..N {
                    for part in 0..2 {
                        let fours = &inputs[n].parts[part].fours;
                        let first = _mm512_set1_epi32(fours[slice]);
                        let second = _mm512_set1_epi32(fours[slice + weights.len()]);
                        let sum = _mm512_dpbusd_epi32(sums[n][part], low, first);
                        sums[n][part] = _mm512_dpbusd_epi32(sum, high, second);
                    }
                }
            }
            in_numbers(sums)
        }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn multiply(self, by: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_mul_ps(self.0, by.0)) }
    }
    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn multiply_add(self, by: Self, to: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_fmadd_ps(self.0, by.0, to.0)) }
    }
    #[inline(always)]
    fn divide(self, by: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_div_ps(self.0, by.0)) }
    }
    #[inline(always)]
    fn at_least(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn at_most(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_min_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_scalef_ps(_mm512_set1_ps(1.0), self.0)) }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0));
            sum_of_two(_mm512_castps512_ps256(self.0), _mm256_castpd_ps(high))
        }
    }
    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        clippy::needless_range_loop,
        reason = "see `product::dot`"
    )]
    fn sums(all: &[Self; LANES]) -> Self {
        // SAFETY: see above.
        unsafe {
            // At each step two vectors become one, of half as many numbers each, until sixteen are one of
            // one each. The order in which they are taken is that in which they are to come out.
            let mut eights = [_mm512_setzero_ps(); 8];
            for pair in 0..8 {
                let (l, j) = (pair % 2 * 2, pair / 2);
                let (a, b) = (all[4 * l + j].0, all[4 * (l + 1) + j].0);
                let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
                let high = _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b);
                eights[pair] = _mm512_add_ps(low, high);
            }
            let mut fours = [_mm512_setzero_ps(); 4];
            for pair in 0..4 {
                let (a, b) = (eights[2 * pair], eights[2 * pair + 1]);
                let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                let high = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
                fours[pair] = _mm512_add_ps(low, high);
            }
            let mut twos = [_mm512_setzero_ps(); 2];
            for pair in 0..2 {
                let (a, b) = (fours[2 * pair], fours[2 * pair + 1]);
                let low = _mm512_shuffle_ps::<0b01_00_01_00>(a, b);
                let high = _mm512_shuffle_ps::<0b11_10_11_10>(a, b);
                twos[pair] = _mm512_add_ps(low, high);
            }
            let low = _mm512_shuffle_ps::<0b10_00_10_00>(twos[0], twos[1]);
            let high = _mm512_shuffle_ps::<0b11_01_11_01>(twos[0], twos[1]);
            Self(_mm512_add_ps(low, high))
        }
    }
}

/// Only [`with_pairs`] knows that this is one.
impl Pairs for One {
    #[inline(always)]
    fn add_products(self, pairs: &PairLanes, by: &[bf16; 2]) -> Self {
        // SAFETY: see above; a pair has as many bytes as an i32.
        unsafe {
            let pairs = _mm512_loadu_si512(pairs.as_ptr().cast());
            let by = _mm512_set1_epi32(by.as_ptr().cast::<i32>().read_unaligned());
            Self(dot_pairs(self.0, pairs, by))
        }
    }
    #[inline(always)]
    fn pair(first: Self, second: Self, to: &mut PairLanes) {
        // SAFETY: see above.
        unsafe {
            let lower = _mm512_srli_epi32::<16>(_mm512_castps_si512(first.0));
            let both = _mm512_or_si512(_mm512_castps_si512(second.0), lower);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), both);
        }
    }
    #[inline(always)]
    fn beside(first: &[bf16; LANES], second: &[bf16; LANES], to: &mut PairLanes) {
        // SAFETY: see above.
        unsafe {
            let lower = _mm512_cvtepu16_epi32(_mm256_loadu_si256(first.as_ptr().cast()));
            let upper = _mm512_cvtepu16_epi32(_mm256_loadu_si256(second.as_ptr().cast()));
            let upper = _mm512_slli_epi32::<16>(upper);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_or_si512(upper, lower));
        }
    }
    #[inline(always)]
    fn rounded(self) -> Self {
        // SAFETY: see above.
        unsafe {
            let half_a_step = _mm512_set1_epi32(0x8000);
            let up = _mm512_add_epi32(_mm512_castps_si512(self.0), half_a_step);
            let upper = _mm512_slli_epi32::<16>(_mm512_srli_epi32::<16>(up));
            Self(_mm512_castsi512_ps(upper))
        }
    }
}

/// Products of pairs of bf16, added up in f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_pairs(to: __m512, pairs: __m512i, by: __m512i) -> __m512 {
    // SAFETY: both are 32 numbers of 16 bits, whatever they are called.
    unsafe {
        _mm512_dpbf16_ps(
            to,
            std::mem::transmute::<__m512i, __m512bh>(pairs),
            std::mem::transmute::<__m512i, __m512bh>(by),
        )
    }
}

impl Vector for Two {
    #[inline(always)]
    fn splat(number: f32) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_set1_ps(number), _mm256_set1_ps(number)) }
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        let (low, high) = from.split_at(LANES / 2);
        // SAFETY: see above; each half has eight numbers.
        unsafe {
            Self(
                _mm256_loadu_ps(low.as_ptr()),
                _mm256_loadu_ps(high.as_ptr()),
            )
        }
    }
    #[inline(always)]
    fn load_bf16(from: &[bf16; LANES]) -> Self {
        let (low, high) = from.split_at(LANES / 2);
        let [low, high] = [low, high].map(|half| {
            // SAFETY: see above; each half has eight numbers of two bytes.
            unsafe {
                let half = _mm_loadu_si128(half.as_ptr().cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
            }
        });
        Self(low, high)
    }
    #[inline(always)]
    fn load_f16(from: &[f16; LANES]) -> Self {
        let (low, high) = from.split_at(LANES / 2);
        // SAFETY: see above; each half has eight numbers of two bytes.
        unsafe {
            Self(
                _mm256_cvtph_ps(_mm_loadu_si128(low.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(high.as_ptr().cast())),
            )
        }
    }
    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        clippy::needless_range_loop,
        reason = "see `product::dot`"
    )]
    fn eights<const N: usize>(weights: &EightBits, inputs: [&Whole; N]) -> [Self; N] {
        let mut out = [Self::splat(0.0); N];
        // SAFETY: see above.
        unsafe {
            for n in 0..N {
                let mut parts = [Self::splat(0.0); 2];
                for part in 0..2 {
                    let mut sums = [_mm256_setzero_si256(); 2];
                    for slice in 0..weights.len() {
                        let four = _mm256_set1_epi32(inputs[n].parts[part].fours[slice]);
                        let size = _mm256_abs_epi8(four);
                        for half in 0..2 {
                            let own = weights[slice].as_ptr().add(half * 32);
                            // The signs of the inputs go to the weights: neither is -128.
                            let own = _mm256_sign_epi8(_mm256_loadu_si256(own.cast()), four);
                            sums[half] = add_products(sums[half], size, own);
                        }
                    }
                    parts[part] = whole(sums);
                }
                out[n] = in_one(parts);
            }
        }
        out
    }
    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        clippy::needless_range_loop,
        reason = "see `product::dot`"
    )]
    fn fours<const N: usize>(weights: &FourBits, inputs: [&Whole; N]) -> [Self; N] {
        let mut out = [Self::splat(0.0); N];
        // SAFETY: see above.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            for n in 0..N {
                let mut parts = [Self::splat(0.0); 2];
                for part in 0..2 {
                    let fours = &inputs[n].parts[part].fours;
                    let mut sums = [_mm256_setzero_si256(); 2];
                    for slice in 0..weights.len() {
                        let first = _mm256_set1_epi32(fours[slice]);
                        let second = _mm256_set1_epi32(fours[slice + weights.len()]);
                        for half in 0..2 {
                            let pairs = weights[slice].as_ptr().add(half * 32);
                            let pairs = _mm256_loadu_si256(pairs.cast());
                            let low = _mm256_and_si256(pairs, mask);
                            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(pairs), mask);
                            sums[half] = add_products(sums[half], low, first);
                            sums[half] = add_products(sums[half], high, second);
                        }
                    }
                    parts[part] = whole(sums);
                }
                out[n] = in_one(parts);
            }
        }
        out
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        let (low, high) = to.split_at_mut(LANES / 2);
        // SAFETY: see above; each half has eight numbers.
        unsafe {
            _mm256_storeu_ps(low.as_mut_ptr(), self.0);
            _mm256_storeu_ps(high.as_mut_ptr(), self.1);
        }
    }
    #[inline(always)]
    fn multiply(self, by: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_mul_ps(self.0, by.0), _mm256_mul_ps(self.1, by.1)) }
    }
    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            Self(
                _mm256_add_ps(self.0, other.0),
                _mm256_add_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    fn multiply_add(self, by: Self, to: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            Self(
                _mm256_fmadd_ps(self.0, by.0, to.0),
                _mm256_fmadd_ps(self.1, by.1, to.1),
            )
        }
    }
    #[inline(always)]
    fn divide(self, by: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_div_ps(self.0, by.0), _mm256_div_ps(self.1, by.1)) }
    }
    #[inline(always)]
    fn at_least(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            Self(
                _mm256_max_ps(self.0, other.0),
                _mm256_max_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    fn at_most(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            Self(
                _mm256_min_ps(self.0, other.0),
                _mm256_min_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: see above.
        unsafe { Self(power_of_two(self.0), power_of_two(self.1)) }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see above.
        unsafe { sum_of_two(self.0, self.1) }
    }
}

/// Whole numbers as they are, both parts in one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
#[expect(clippy::indexing_slicing, reason = "see `product::dot`")]
fn in_numbers<const N: usize>(sums: [[__m512i; 2]; N]) -> [One; N] {
    let mut out = [One(_mm512_setzero_ps()); N];
    for n in 0..N {
        let [coarse, fine] = sums[n];
        out[n] = in_one([
            One(_mm512_cvtepi32_ps(coarse)),
            One(_mm512_cvtepi32_ps(fine)),
        ]);
    }
    out
}

/// Adds to each of eight sums the products of four bytes from 0 on with four of either sign, of which no
/// two products are beyond 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_products(sums: __m256i, from_zero: __m256i, signed: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(from_zero, signed);
    _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// Whole numbers as they are.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn whole([low, high]: [__m256i; 2]) -> Two {
    Two(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
}

/// 2ⁿ of eight whole numbers, put together as bits.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn power_of_two(n: __m256) -> __m256 {
    let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
}

/// The sum of sixteen numbers in two registers.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn sum_of_two(low: __m256, high: __m256) -> f32 {
    let eight = _mm256_add_ps(low, high);
    let four = _mm_add_ps(
        _mm256_castps256_ps128(eight),
        _mm256_extractf128_ps::<1>(eight),
    );
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}
