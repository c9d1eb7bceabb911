//! [`Lanes`] on AVX2 with FMA (8 rows) and on AVX-512 (16 rows).
//!
//! Every method is `#[inline(always)]`: a task is inlined into the function of its unit that carries the `target_feature`
//! attribute, and only there do the intrinsics become single instructions.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;

use half::{bf16, f16};

use crate::arch::lanes::{Lanes, Task};

/// AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

/// AVX-512 F and DQ, and all of [`Avx2`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx2 {
    /// The unit, if this machine has it.
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        (found && is_x86_feature_detected!("f16c")).then_some(Self(()))
    }
}

impl Avx512 {
    /// The unit, if this machine has it.
    pub(crate) fn detect() -> Option<Self> {
        let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq");
        (wide && Avx2::detect().is_some()).then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<T: Task>(unit: Avx2, task: T) -> T::Output {
    task.run(unit)
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512dq")]
fn run_avx512<T: Task>(unit: Avx512, task: T) -> T::Output {
    task.run(unit)
}

impl Lanes for Avx2 {
    type Vector = __m256;

    const COUNT: usize = 8;

    fn run<T: Task>(self, task: T) -> T::Output {
        // SAFETY: `self` proves AVX2 and FMA.
        unsafe { run_avx2(self, task) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        let from = &from[..8];
        // SAFETY: `self` proves AVX2; the slice has 8 elements, and the load needs no alignment.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> __m256 {
        let from = &from[..8];
        // SAFETY: `self` proves AVX2; the slice has 8 elements of 16 bits, and the load needs no alignment.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> __m256 {
        let from = &from[..8];
        // SAFETY: `self` proves F16C; the slice has 8 elements of 16 bits, and the load needs no alignment.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn prefetch<T>(self, line: *const T) {
        // SAFETY: a prefetch may name any address; every x86-64 has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }

    #[inline(always)]
    fn store(self, value: __m256, to: &mut [f32]) {
        let to = &mut to[..8];
        // SAFETY: `self` proves AVX2; the slice has 8 elements, and the store needs no alignment.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), value) };
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn subtract(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn multiply(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn divide(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn multiply_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` proves FMA.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn maximum(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn minimum(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    fn round_half_even(self, a: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn where_negative(self, a: __m256, then: __m256, otherwise: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let negative = _mm256_cmp_ps::<_CMP_LT_OQ>(a, _mm256_setzero_ps());
            _mm256_blendv_ps(otherwise, then, negative)
        }
    }

    #[inline(always)]
    fn add_weighted_square(self, weight: f64, a: __m256, sums: &mut [f64]) {
        let (low, high) = sums[..8].split_at_mut(4);
        // SAFETY: `self` proves AVX2 and FMA; both halves of the sums have 4 elements.
        unsafe {
            let weight = _mm256_set1_pd(weight);
            let halves = [_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a)];
            for (half, sums) in halves.into_iter().zip([low, high]) {
                let a = _mm256_cvtps_pd(half);
                let sum = _mm256_loadu_pd(sums.as_ptr());
                _mm256_storeu_pd(sums.as_mut_ptr(), _mm256_fmadd_pd(_mm256_mul_pd(a, a), weight, sum));
            }
        }
    }
}

impl Lanes for Avx512 {
    type Vector = __m512;

    const COUNT: usize = 16;

    fn run<T: Task>(self, task: T) -> T::Output {
        // SAFETY: `self` proves every feature that the function enables.
        unsafe { run_avx512(self, task) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        let from = &from[..16];
        // SAFETY: `self` proves AVX-512 F; the slice has 16 elements, and the load needs no alignment.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> __m512 {
        let from = &from[..16];
        // SAFETY: `self` proves AVX-512F; the slice has 16 elements of 16 bits, and the load needs no alignment.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> __m512 {
        let from = &from[..16];
        // SAFETY: `self` proves AVX-512F; the slice has 16 elements of 16 bits, and the load needs no alignment.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn prefetch<T>(self, line: *const T) {
        // SAFETY: a prefetch may name any address; every x86-64 has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }

    #[inline(always)]
    fn store(self, value: __m512, to: &mut [f32]) {
        let to = &mut to[..16];
        // SAFETY: `self` proves AVX-512 F; the slice has 16 elements, and the store needs no alignment.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) };
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn subtract(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn multiply(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn divide(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn multiply_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn maximum(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn minimum(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn round_half_even(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn where_negative(self, a: __m512, then: __m512, otherwise: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe {
            let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, _mm512_setzero_ps());
            _mm512_mask_blend_ps(negative, otherwise, then)
        }
    }

    #[inline(always)]
    fn add_weighted_square(self, weight: f64, a: __m512, sums: &mut [f64]) {
        let (low, high) = sums[..16].split_at_mut(8);
        // SAFETY: `self` proves AVX-512 F and DQ; both halves of the sums have 8 elements.
        unsafe {
            let weight = _mm512_set1_pd(weight);
            let halves = [_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a)];
            for (half, sums) in halves.into_iter().zip([low, high]) {
                let a = _mm512_cvtps_pd(half);
                let sum = _mm512_loadu_pd(sums.as_ptr());
                _mm512_storeu_pd(sums.as_mut_ptr(), _mm512_fmadd_pd(_mm512_mul_pd(a, a), weight, sum));
            }
        }
    }
}
