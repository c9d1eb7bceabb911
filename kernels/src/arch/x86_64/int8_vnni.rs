//! Products of arranged codes with rounded activations by AVX512-VNNI: four products for each of sixteen outputs in one instruction.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;

use super::int8::{self, Int8Unit};
use super::lanes::Avx512;
use crate::packed::arranged::kernel::{Int8Kernel, Panel, Place, Tokens};
use crate::packed::kernel::LANES;

const LANES_PER_VECTOR: usize = 16;

/// Proof that the machine has AVX-512 VNNI, and all of [`Avx512`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vnni(Avx512);

impl Vnni {
    pub(crate) fn detect() -> Option<Self> {
        Avx512::detect().filter(|_| is_x86_feature_detected!("avx512vnni")).map(Self)
    }

    /// [`crate::peak::multiply_and_add_bytes`].
    pub(crate) fn busy<const SUMS: usize>(self, rounds: usize) -> usize {
        // SAFETY: `self` proves the instructions.
        unsafe { busy::<SUMS>(rounds) };
        2 * 4 * LANES_PER_VECTOR * SUMS * rounds
    }
}

/// # Safety
/// AVX-512 F and VNNI.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn busy<const SUMS: usize>(rounds: usize) {
    let (codes, x) = (_mm512_set1_epi8(std::hint::black_box(3)), _mm512_set1_epi8(std::hint::black_box(5)));
    let mut sums = [_mm512_setzero_si512(); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, codes, x);
        }
    }
    std::hint::black_box(&sums);
}

impl Int8Kernel for Vnni {
    fn multiply(self, panel: Panel<'_>, x: Tokens<'_>, out: &mut [[f32; LANES]]) {
        int8::multiply(self, panel, x, out);
    }
}

impl Int8Unit for Vnni {
    type Floats = Avx512;
    type Ints = __m512i;

    #[inline(always)]
    fn floats(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    fn splat(self, value: i32) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u32) -> __m512i {
        // SAFETY: `self` proves AVX-512 F; the caller promises 16 words, and the load needs no alignment.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    fn shifted_right(self, a: __m512i, by: usize) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_srlv_epi32(a, _mm512_set1_epi32(by as i32)) }
    }

    #[inline(always)]
    fn shifted_left(self, a: __m512i, by: usize) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_sllv_epi32(a, _mm512_set1_epi32(by as i32)) }
    }

    #[inline(always)]
    fn or_masked(self, a: __m512i, b: __m512i, mask: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_ternarylogic_epi32::<0xF8>(a, b, mask) }
    }

    #[inline(always)]
    fn add_products<const BITS: usize>(self, sums: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        // SAFETY: `self` proves VNNI.
        unsafe { _mm512_dpbusd_epi32(sums, codes, x) }
    }

    #[inline(always)]
    fn to_floats(self, a: __m512i) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_cvtepi32_ps(a) }
    }

    fn together(left: usize) -> usize {
        match left {
            6.. => 6,
            4.. => 4,
            2.. => 2,
            _ => 1,
        }
    }

    fn panel<const BITS: usize>(self, panel: Panel<'_>, x: Tokens<'_>, out: &mut [[f32; LANES]]) {
        match x.count() {
            1 => int8::over_panel::<Self, BITS, 1, 4>(self, panel, x, out),
            2 => int8::over_panel::<Self, BITS, 2, 4>(self, panel, x, out),
            4 => int8::over_panel::<Self, BITS, 4, 2>(self, panel, x, out),
            _ => int8::over_panel::<Self, BITS, 6, 2>(self, panel, x, out),
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
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512dq,avx512vnni")]
unsafe fn group<const BITS: usize, const TOKENS: usize, const VECTORS: usize>(
    unit: Vnni,
    at: Place,
    out: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe { int8::add_group::<Vnni, BITS, TOKENS, VECTORS>(unit, at, out) }
}
