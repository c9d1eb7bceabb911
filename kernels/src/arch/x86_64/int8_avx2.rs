//! Products of arranged codes with rounded activations by AVX2: pairs of products in sixteen bits, pairs of those in thirty-two.

use std::arch::x86_64::*;

use crate::packed::arranged::kernel::{DWORDS, Int8Kernel, Panel, Place, Tokens, for_each_dword};
use crate::packed::arranged::planes::Plane;
use crate::packed::kernel::LANES;

const LANES_PER_VECTOR: usize = 8;

/// Proof that the machine has AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

impl Int8Kernel for Avx2 {
    fn multiply(self, panel: Panel<'_>, x: Tokens<'_>, out: &mut [[f32; LANES]]) {
        assert!(out.len() == x.count() && x.fit(panel));
        // SAFETY: `self` proves the instructions; `Panel` holds the words and grids of its groups, `x` fits them, and `out` has a row for each
        // token.
        unsafe {
            match panel.bits() {
                2 => multiply::<2>(panel, x, out),
                3 => multiply::<3>(panel, x, out),
                4 => multiply::<4>(panel, x, out),
                5 => multiply::<5>(panel, x, out),
                6 => multiply::<6>(panel, x, out),
                7 => multiply::<7>(panel, x, out),
                _ => multiply::<8>(panel, x, out),
            }
        }
    }
}

/// # Safety
/// AVX2 and FMA; `x` fits the panel, and `out` has a row for each token.
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply<const BITS: usize>(panel: Panel<'_>, x: Tokens<'_>, out: &mut [[f32; LANES]]) {
    let mut done = 0;
    while done < x.count() {
        let tokens = if x.count() - done >= 2 { 2 } else { 1 };
        let some = x.some(done, tokens);
        let out = out[done..done + tokens].as_mut_ptr().cast::<f32>();
        for lane in (0..LANES).step_by(2 * LANES_PER_VECTOR) {
            // SAFETY: as promised by the caller, for these of the tokens; the strips make up the panel.
            unsafe {
                match tokens {
                    2 => strip::<BITS, 2, 2>(panel, lane, some, out),
                    _ => strip::<BITS, 1, 2>(panel, lane, some, out),
                }
            }
        }
        done += tokens;
    }
}

/// Four codes of each lane, one to a byte.
///
/// # Safety
/// `words` is word 0 of a unit for 8 lanes that may be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn codes<const BITS: usize>(words: *const u32, dword: usize) -> __m256i {
    let mut codes = _mm256_setzero_si256();
    let mut first_bit = 0;
    while first_bit < BITS {
        let plane = Plane::at(BITS, first_bit);
        let (word, shift) = plane.place(dword);
        // SAFETY: a unit has BITS words, and `word` is one of them.
        let word = unsafe { _mm256_loadu_si256(words.add(word * LANES).cast()) };
        let placed = if shift >= first_bit {
            _mm256_srlv_epi32(word, _mm256_set1_epi32((shift - first_bit) as i32))
        } else {
            _mm256_sllv_epi32(word, _mm256_set1_epi32((first_bit - shift) as i32))
        };
        codes = _mm256_or_si256(codes, _mm256_and_si256(placed, _mm256_set1_epi32(plane.masks() as i32)));
        first_bit += plane.width;
    }
    codes
}

/// `sums` and the products of four codes with four activations in each lane.
///
/// Two products of codes below 128 with activations from -127 to 127 fit sixteen bits; of those of eight bits only half a code at a time does.
#[inline]
#[target_feature(enable = "avx2")]
fn add_products<const BITS: usize>(sums: __m256i, codes: __m256i, x: __m256i) -> __m256i {
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

/// The products of TOKENS tokens with `VECTORS * 8` lanes from `lane` on.
///
/// # Safety
/// AVX2 and FMA; the lanes are in the panel, `x` has TOKENS tokens and fits the panel, and `out` has a row for each of them.
#[target_feature(enable = "avx2,fma")]
unsafe fn strip<const BITS: usize, const TOKENS: usize, const VECTORS: usize>(
    panel: Panel<'_>,
    lane: usize,
    x: Tokens<'_>,
    out: *mut f32,
) {
    for token in 0..TOKENS {
        for vector in 0..VECTORS {
            // SAFETY: the vector is one of the strip's, and the token has a row.
            unsafe {
                let out = out.add(token * LANES + lane + vector * LANES_PER_VECTOR);
                _mm256_storeu_ps(out, _mm256_setzero_ps());
            }
        }
    }
    for number in 0..panel.groups().len() {
        // SAFETY: the strip's lanes are in the panel, and there are TOKENS tokens.
        unsafe { group::<BITS, TOKENS, VECTORS>(Place::new(panel, number, lane, x), out.add(lane)) };
    }
}

/// Adds the products of TOKENS tokens with `VECTORS * 8` lanes over one group to `out`, where tokens are [`LANES`] apart.
///
/// A function of its own, so that all sums stay in registers.
///
/// # Safety
/// AVX2 and FMA; there are so many tokens and lanes from the place on, and in `out`.
#[target_feature(enable = "avx2,fma")]
unsafe fn group<const BITS: usize, const TOKENS: usize, const VECTORS: usize>(at: Place, out: *mut f32) {
    let mut products = [[_mm256_setzero_ps(); VECTORS]; TOKENS];
    for unit in 0..at.units {
        let mut dots = [[_mm256_setzero_si256(); VECTORS]; TOKENS];
        // SAFETY: the unit is one of the group's, for all lanes and tokens.
        unsafe {
            let words = at.words.add(unit * BITS * LANES);
            let x_unit = at.codes.add(unit * DWORDS);
            for_each_dword!(DWORD => {
                let weights: [__m256i; VECTORS] =
                    std::array::from_fn(|vector| codes::<BITS>(words.add(vector * LANES_PER_VECTOR), DWORD));
                for (token, dots) in dots.iter_mut().enumerate() {
                    let x = _mm256_set1_epi32(*x_unit.add(token * at.stride * DWORDS + DWORD));
                    for (dot, weights) in dots.iter_mut().zip(weights) {
                        *dot = add_products::<BITS>(*dot, weights, x);
                    }
                }
            });
            for (token, (products, dots)) in products.iter_mut().zip(dots).enumerate() {
                let step = _mm256_set1_ps(*at.steps.add(token * at.stride + unit));
                for (product, dot) in products.iter_mut().zip(dots) {
                    *product = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), step, *product);
                }
            }
        }
    }
    for (token, products) in products.iter().enumerate() {
        for (vector, &product) in products.iter().enumerate() {
            let lane = vector * LANES_PER_VECTOR;
            // SAFETY: the lane starts one of the strip's vectors, and there are a sum and a row for each token.
            unsafe {
                let sum = _mm256_set1_ps(*at.sums.add(token * at.groups));
                let product = _mm256_fnmadd_ps(_mm256_loadu_ps(at.zero_points.add(lane)), sum, product);
                let scale = _mm256_loadu_ps(at.scales.add(lane));
                let out = out.add(token * LANES + lane);
                _mm256_storeu_ps(out, _mm256_fmadd_ps(scale, product, _mm256_loadu_ps(out)));
            }
        }
    }
}
