//! The vectors of x86-64 processors. Every function here is sound only on a processor that has the
//! instructions, which [`widest`](super::widest) sees to: nothing else can name these types.

use super::{LANES, Vector, Work};
use half::bf16;
use std::arch::x86_64::{
    __m256, __m512, _mm_add_ps, _mm_add_ss, _mm_and_si128, _mm_bsrli_si128, _mm_cvtss_f32,
    _mm_loadu_si128, _mm_movehdup_ps, _mm_movehl_ps, _mm_set1_epi8, _mm_srli_epi16,
    _mm256_add_epi32, _mm256_add_ps, _mm256_castpd_ps, _mm256_castps256_ps128, _mm256_castsi256_ps,
    _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_cvtps_epi32,
    _mm256_div_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_slli_epi32, _mm256_storeu_ps, _mm512_add_ps, _mm512_castps_pd, _mm512_castps512_ps256,
    _mm512_castsi512_ps, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32,
    _mm512_div_ps, _mm512_extractf64x4_pd, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_max_ps,
    _mm512_min_ps, _mm512_mul_ps, _mm512_scalef_ps, _mm512_set1_ps, _mm512_slli_epi32,
    _mm512_storeu_ps,
};

pub(super) fn has_avx512() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
}

pub(super) fn has_avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn with_avx512<W: Work>(work: W) -> W::Output {
    work.run::<One>()
}

#[target_feature(enable = "avx2,fma")]
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
    fn load_i8(from: &[i8; LANES]) -> Self {
        // SAFETY: see above.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)))
        }
    }
    #[inline(always)]
    fn load_nibbles(from: &[u8; LANES]) -> [Self; 2] {
        // SAFETY: see above.
        unsafe {
            let pairs = _mm_loadu_si128(from.as_ptr().cast());
            let mask = _mm_set1_epi8(15);
            let low = _mm_and_si128(pairs, mask);
            let high = _mm_and_si128(_mm_srli_epi16::<4>(pairs), mask);
            [low, high].map(|four| Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(four))))
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
    fn load_i8(from: &[i8; LANES]) -> Self {
        // SAFETY: see above.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let high = _mm_bsrli_si128::<8>(bytes);
            Self(
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)),
            )
        }
    }
    #[inline(always)]
    fn load_nibbles(from: &[u8; LANES]) -> [Self; 2] {
        let low = from.map(|pair| (pair & 15).cast_signed());
        let high = from.map(|pair| (pair >> 4).cast_signed());
        [Self::load_i8(&low), Self::load_i8(&high)]
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
