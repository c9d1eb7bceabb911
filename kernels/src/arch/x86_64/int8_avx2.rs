//! Products of arranged codes with rounded activations by AVX2: pairs of products in sixteen bits, pairs of those in thirty-two.

use std::arch::x86_64::*;

use super::int8::{self, Int8Unit};
use super::lanes::Avx2;
use crate::packed::arranged::kernel::{Int8Kernel, Panel, Place, Tokens};
use crate::packed::kernel::LANES;

impl Int8Kernel for Avx2 {
    fn multiply(self, panel: Panel<'_>, x: Tokens<'_>, out: &mut [[f32; LANES]]) {
        int8::multiply(self, panel, x, out);
    }
}

impl Int8Unit for Avx2 {
    type Floats = Self;
    type Ints = __m256i;

    #[inline(always)]
    fn floats(self) -> Self {
        self
    }

    #[inline(always)]
    fn splat(self, value: i32) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u32) -> __m256i {
        // SAFETY: `self` proves AVX2; the caller promises 8 words, and the load needs no alignment.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    fn shifted_right(self, a: __m256i, by: usize) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_srlv_epi32(a, _mm256_set1_epi32(by as i32)) }
    }

    #[inline(always)]
    fn shifted_left(self, a: __m256i, by: usize) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_sllv_epi32(a, _mm256_set1_epi32(by as i32)) }
    }

    #[inline(always)]
    fn or_masked(self, a: __m256i, b: __m256i, mask: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_or_si256(a, _mm256_and_si256(b, mask)) }
    }

    /// Two products of codes below 128 with activations fit sixteen bits; of those of eight bits only half a code at a time does.
    #[inline(always)]
    fn add_products<const BITS: usize>(self, sums: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe {
            if BITS < 8 {
                let pairs = _mm256_maddubs_epi16(codes, x);
                return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
            let half = _mm256_set1_epi8(0x0F);
            let low = _mm256_maddubs_epi16(_mm256_and_si256(codes, half), x);
            let high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16::<4>(codes), half), x);
            let low = _mm256_madd_epi16(low, _mm256_set1_epi16(1));
            let high = _mm256_madd_epi16(high, _mm256_set1_epi16(16));
            _mm256_add_epi32(sums, _mm256_add_epi32(low, high))
        }
    }

    #[inline(always)]
    fn to_floats(self, a: __m256i) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_cvtepi32_ps(a) }
    }

    fn together(left: usize) -> usize {
        left.min(2)
    }

    fn panel<const BITS: usize>(self, panel: Panel<'_>, x: Tokens<'_>, out: &mut [[f32; LANES]]) {
        match x.count() {
            2 => int8::over_panel::<Self, BITS, 2, 2>(self, panel, x, out),
            _ => int8::over_panel::<Self, BITS, 1, 2>(self, panel, x, out),
        }
    }

    unsafe fn group<const BITS: usize, const TOKENS: usize, const VECTORS: usize>(
        self,
        at: Place,
        out: *mut f32,
    ) {
        // SAFETY: `self` proves the instructions; the caller promises the rest.
        unsafe { group::<BITS, TOKENS, VECTORS>(self, at, out) }
    }
}

/// # Safety
/// As [`int8::add_group`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn group<const BITS: usize, const TOKENS: usize, const VECTORS: usize>(
    unit: Avx2,
    at: Place,
    out: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe { int8::add_group::<Avx2, BITS, TOKENS, VECTORS>(unit, at, out) }
}
