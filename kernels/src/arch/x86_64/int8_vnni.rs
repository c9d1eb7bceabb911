//! Products of arranged codes with rounded activations by AVX512-VNNI: four products for each of sixteen outputs in one instruction.

use std::arch::x86_64::*;

use crate::packed::arranged::kernel::{DWORDS, Int8Kernel, Panel, Place, Tokens, for_each_dword};
use crate::packed::arranged::planes::Plane;
use crate::packed::kernel::LANES;

const LANES_PER_VECTOR: usize = 16;

/// Proof that the machine has AVX-512 F and VNNI.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vnni(());

impl Vnni {
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")).then_some(Self(()))
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
/// AVX-512 F and VNNI; `x` fits the panel, and `out` has a row for each token.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn multiply<const BITS: usize>(panel: Panel<'_>, x: Tokens<'_>, out: &mut [[f32; LANES]]) {
    let mut done = 0;
    while done < x.count() {
        let tokens = match x.count() - done {
            6.. => 6,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let some = x.some(done, tokens);
        let out = out[done..done + tokens].as_mut_ptr().cast::<f32>();
        // SAFETY: as promised by the caller, for these of the tokens.
        unsafe {
            match tokens {
                1 => strip::<BITS, 1, 4>(panel, 0, some, out),
                2 => strip::<BITS, 2, 4>(panel, 0, some, out),
                4 => {
                    strip::<BITS, 4, 2>(panel, 0, some, out);
                    strip::<BITS, 4, 2>(panel, LANES / 2, some, out);
                }
                _ => {
                    strip::<BITS, 6, 2>(panel, 0, some, out);
                    strip::<BITS, 6, 2>(panel, LANES / 2, some, out);
                }
            }
        }
        done += tokens;
    }
}

/// Four codes of each lane, one to a byte.
///
/// # Safety
/// `words` is word 0 of a unit for 16 lanes that may be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn codes<const BITS: usize>(words: *const u32, dword: usize) -> __m512i {
    let mut codes = _mm512_setzero_si512();
    let mut first_bit = 0;
    while first_bit < BITS {
        let plane = Plane::at(BITS, first_bit);
        let (word, shift) = plane.place(dword);
        // SAFETY: a unit has BITS words, and `word` is one of them.
        let word = unsafe { _mm512_loadu_si512(words.add(word * LANES).cast()) };
        let placed = if shift >= first_bit {
            _mm512_srlv_epi32(word, _mm512_set1_epi32((shift - first_bit) as i32))
        } else {
            _mm512_sllv_epi32(word, _mm512_set1_epi32((first_bit - shift) as i32))
        };
        let mask = _mm512_set1_epi32(plane.masks() as i32);
        // codes | (placed & mask)
        codes = if first_bit == 0 {
            _mm512_and_si512(placed, mask)
        } else {
            _mm512_ternarylogic_epi32::<0xF8>(codes, placed, mask)
        };
        first_bit += plane.width;
    }
    codes
}

/// The products of TOKENS tokens with `VECTORS * 16` lanes from `lane` on.
///
/// # Safety
/// AVX-512 F and VNNI; the lanes are in the panel, `x` has TOKENS tokens and fits the panel, and `out` has a row for each of them.
#[target_feature(enable = "avx512f,avx512vnni")]
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
                _mm512_storeu_ps(out, _mm512_setzero_ps());
            }
        }
    }
    for number in 0..panel.groups().len() {
        // SAFETY: the strip's lanes are in the panel, and there are TOKENS tokens.
        unsafe { group::<BITS, TOKENS, VECTORS>(Place::new(panel, number, lane, x), out.add(lane)) };
    }
}

/// Adds the products of TOKENS tokens with `VECTORS * 16` lanes over one group to `out`, where tokens are [`LANES`] apart.
///
/// A function of its own, so that all sums stay in registers.
///
/// # Safety
/// AVX-512 F and VNNI; there are so many tokens and lanes from the place on, and in `out`.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn group<const BITS: usize, const TOKENS: usize, const VECTORS: usize>(at: Place, out: *mut f32) {
    let mut products = [[_mm512_setzero_ps(); VECTORS]; TOKENS];
    for unit in 0..at.units {
        let mut dots = [[_mm512_setzero_si512(); VECTORS]; TOKENS];
        // SAFETY: the unit is one of the group's, for all lanes and tokens.
        unsafe {
            let words = at.words.add(unit * BITS * LANES);
            let x_unit = at.codes.add(unit * DWORDS);
            for_each_dword!(DWORD => {
                let weights: [__m512i; VECTORS] =
                    std::array::from_fn(|vector| codes::<BITS>(words.add(vector * LANES_PER_VECTOR), DWORD));
                for (token, dots) in dots.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(*x_unit.add(token * at.stride * DWORDS + DWORD));
                    for (dot, weights) in dots.iter_mut().zip(weights) {
                        *dot = _mm512_dpbusd_epi32(*dot, weights, x);
                    }
                }
            });
            for (token, (products, dots)) in products.iter_mut().zip(dots).enumerate() {
                let step = _mm512_set1_ps(*at.steps.add(token * at.stride + unit));
                for (product, dot) in products.iter_mut().zip(dots) {
                    *product = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), step, *product);
                }
            }
        }
    }
    for (token, products) in products.iter().enumerate() {
        for (vector, &product) in products.iter().enumerate() {
            let lane = vector * LANES_PER_VECTOR;
            // SAFETY: the lane starts one of the strip's vectors, and there are a sum and a row for each token.
            unsafe {
                let sum = _mm512_set1_ps(*at.sums.add(token * at.groups));
                let product = _mm512_fnmadd_ps(_mm512_loadu_ps(at.zero_points.add(lane)), sum, product);
                let scale = _mm512_loadu_ps(at.scales.add(lane));
                let out = out.add(token * LANES + lane);
                _mm512_storeu_ps(out, _mm512_fmadd_ps(scale, product, _mm512_loadu_ps(out)));
            }
        }
    }
}
