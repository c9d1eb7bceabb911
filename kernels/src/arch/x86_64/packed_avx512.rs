//! Packed products with AVX-512F: sixteen outputs to a vector.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_and_si512, _mm512_castsi512_ps, _mm512_cvtepi32_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_sllv_epi32, _mm512_srlv_epi32, _mm512_storeu_ps, _mm512_sub_ps,
    _mm512_ternarylogic_epi32,
};

use crate::packed::kernel::{
    Codes, GroupActivations, GroupGrid, LANES, MAGIC, PackedKernel, Placement, UNIT, middle,
};

const LANES_PER_VECTOR: usize = 16;
const VECTORS: usize = LANES / LANES_PER_VECTOR;

/// Proof that the machine has AVX-512F.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx512f").then_some(Self(()))
    }
}

impl PackedKernel for Avx512 {
    const STRIP: usize = LANES;
    const ROWS: usize = 6;

    fn interleave(self, from: &[u32], words_per_lane: usize, to: &mut [u32]) {
        crate::arch::generic::packed::interleave(from, words_per_lane, to);
    }

    fn decode(self, codes: Codes<'_>, grid: GroupGrid<'_>, weights: &mut [f32], strip_stride: usize) {
        let columns = codes.units() * UNIT;
        assert!(columns * LANES <= weights.len() && columns * LANES <= strip_stride);
        let weights = weights.as_mut_ptr();
        // SAFETY: `self` proves AVX-512F; `Codes` holds the words of its units and `weights` their values.
        unsafe {
            match codes.bits() {
                2 => decode::<2>(codes, grid, weights),
                3 => decode::<3>(codes, grid, weights),
                4 => decode::<4>(codes, grid, weights),
                5 => decode::<5>(codes, grid, weights),
                6 => decode::<6>(codes, grid, weights),
                7 => decode::<7>(codes, grid, weights),
                _ => decode::<8>(codes, grid, weights),
            }
        }
    }

    fn tile(
        self,
        x: &[f32],
        x_stride: usize,
        rows: usize,
        weights: &[f32],
        columns: usize,
        sums: &mut [f32],
    ) {
        assert!(rows >= 1 && (rows - 1) * x_stride + columns <= x.len());
        assert!(columns * LANES <= weights.len() && rows * LANES <= sums.len());
        let (x, weights, sums) = (x.as_ptr(), weights.as_ptr(), sums.as_mut_ptr());
        // SAFETY: `self` proves AVX-512F; the slices hold what is read and written for `rows` and `columns`.
        unsafe {
            match rows {
                1 => tile::<1>(x, x_stride, weights, columns, sums),
                2 => tile::<2>(x, x_stride, weights, columns, sums),
                3 => tile::<3>(x, x_stride, weights, columns, sums),
                4 => tile::<4>(x, x_stride, weights, columns, sums),
                5 => tile::<5>(x, x_stride, weights, columns, sums),
                6 => tile::<6>(x, x_stride, weights, columns, sums),
                _ => panic!("more rows than a tile has"),
            }
        }
    }

    fn multiply_group(self, codes: Codes<'_>, grid: GroupGrid<'_>, x: GroupActivations<'_>, out: &mut [f32]) {
        let tokens = x.sums.len();
        assert!(
            (tokens - 1) * x.stride + codes.units() * UNIT <= x.scaled.len() && tokens * LANES <= out.len()
        );
        // SAFETY: `self` proves AVX-512F; the slices hold what is read and written for these tokens and units.
        unsafe {
            match codes.bits() {
                2 => multiply_group::<2>(codes, grid, x, out),
                3 => multiply_group::<3>(codes, grid, x, out),
                4 => multiply_group::<4>(codes, grid, x, out),
                5 => multiply_group::<5>(codes, grid, x, out),
                6 => multiply_group::<6>(codes, grid, x, out),
                7 => multiply_group::<7>(codes, grid, x, out),
                _ => multiply_group::<8>(codes, grid, x, out),
            }
        }
    }
}

/// Calls the body for each column of a unit with a constant number, so that every shift is an immediate.
macro_rules! for_each_column {
    ($column:ident => $body:expr) => {
        for_each_column!(@ $column, $body,
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
    };
    (@ $column:ident, $body:expr, $($number:literal)*) => {
        $({ const $column: usize = $number; $body; })*
    };
}

/// The word of `lanes` with a column's code from bit `shift` of its placement on; other bits are anything.
///
/// # Safety
/// `words` is word 0 of a unit for 16 lanes that may be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn placed<const BITS: usize>(words: *const u32, stride: usize, column: usize) -> __m512i {
    let at = Placement::new(BITS, column);
    // SAFETY: a unit has BITS words, and `at.word` is one of them.
    let word = unsafe { _mm512_loadu_si512(words.add(at.word * stride).cast()) };
    if at.straddles(BITS) {
        // SAFETY: a code that straddles goes on in a word of the same unit.
        let next = unsafe { _mm512_loadu_si512(words.add((at.word + 1) * stride).cast()) };
        let low = _mm512_srlv_epi32(word, _mm512_set1_epi32(at.offset as i32));
        let high = _mm512_sllv_epi32(next, _mm512_set1_epi32(32 - at.offset as i32));
        _mm512_or_si512(low, high)
    } else if at.shift == at.offset {
        word
    } else {
        _mm512_srlv_epi32(word, _mm512_set1_epi32(16))
    }
}

/// # Safety
/// AVX-512F; `weights` has room for the columns of `codes`.
#[target_feature(enable = "avx512f")]
unsafe fn decode<const BITS: usize>(codes: Codes<'_>, grid: GroupGrid<'_>, weights: *mut f32) {
    let stride = codes.stride();
    let mask = _mm512_set1_epi32((1 << BITS) - 1);
    for unit in 0..codes.units() {
        for vector in 0..VECTORS {
            let lane = vector * LANES_PER_VECTOR;
            // SAFETY: `Codes` holds this unit, `grid` all lanes, and `weights` this unit's columns.
            unsafe {
                let scale = _mm512_loadu_ps(grid.scales.as_ptr().add(lane));
                let zero_point = _mm512_loadu_ps(grid.zero_points.as_ptr().add(lane));
                let words = codes.words().as_ptr().add(unit * BITS * stride + lane);
                let weights = weights.add(unit * UNIT * LANES + lane);
                for_each_column!(COLUMN => {
                    let placed = placed::<BITS>(words, stride, COLUMN);
                    let shift = Placement::new(BITS, COLUMN).shift as i32;
                    let code = _mm512_and_si512(_mm512_srlv_epi32(placed, _mm512_set1_epi32(shift)), mask);
                    let value = _mm512_sub_ps(_mm512_cvtepi32_ps(code), zero_point);
                    _mm512_storeu_ps(weights.add(COLUMN * LANES), _mm512_mul_ps(value, scale));
                });
            }
        }
    }
}

/// # Safety
/// AVX-512F; `x` has ROWS rows of `columns`, `weights` a strip of `columns`, `sums` room for ROWS strips.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const ROWS: usize>(
    x: *const f32,
    x_stride: usize,
    weights: *const f32,
    columns: usize,
    sums: *mut f32,
) {
    let mut totals = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    for k in 0..columns {
        // SAFETY: `k` is a column of `x` and of `weights`.
        unsafe {
            let weights: [__m512; VECTORS] = std::array::from_fn(|vector| {
                _mm512_loadu_ps(weights.add(k * LANES + vector * LANES_PER_VECTOR))
            });
            for (row, totals) in totals.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*x.add(row * x_stride + k));
                for (total, weights) in totals.iter_mut().zip(weights) {
                    *total = _mm512_fmadd_ps(weights, x, *total);
                }
            }
        }
    }
    for (index, &total) in totals.as_flattened().iter().enumerate() {
        // SAFETY: `sums` has room for ROWS * LANES values.
        unsafe { _mm512_storeu_ps(sums.add(index * LANES_PER_VECTOR), total) };
    }
}

/// # Safety
/// AVX-512F; the slices of `x` and `out` hold what 1, 2, 4 or 8 tokens need.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn multiply_group<const BITS: usize>(
    codes: Codes<'_>,
    grid: GroupGrid<'_>,
    x: GroupActivations<'_>,
    out: &mut [f32],
) {
    // SAFETY: as promised by the caller.
    unsafe {
        match x.sums.len() {
            1 => fused::<BITS, 1, 4>(codes, grid, x, out.as_mut_ptr()),
            2 => fused::<BITS, 2, 4>(codes, grid, x, out.as_mut_ptr()),
            4 => fused::<BITS, 4, 4>(codes, grid, x, out.as_mut_ptr()),
            8 => fused::<BITS, 8, 2>(codes, grid, x, out.as_mut_ptr()),
            _ => panic!("the number of tokens is not 1, 2, 4 or 8"),
        }
    }
}

/// `WIDTH` vectors of outputs at a time, each code used for all `TOKENS`.
///
/// # Safety
/// AVX-512F; `x` and `out` hold TOKENS tokens of the units of `codes`.
#[target_feature(enable = "avx512f")]
unsafe fn fused<const BITS: usize, const TOKENS: usize, const WIDTH: usize>(
    codes: Codes<'_>,
    grid: GroupGrid<'_>,
    x: GroupActivations<'_>,
    out: *mut f32,
) {
    let stride = codes.stride();
    let magic = _mm512_set1_epi32(MAGIC.to_bits() as i32);
    for first in (0..VECTORS).step_by(WIDTH) {
        let mut totals = [[_mm512_setzero_ps(); TOKENS]; WIDTH];
        for unit in 0..codes.units() {
            // SAFETY: `Codes` holds this unit for all lanes, and `x` its columns for all tokens.
            unsafe {
                let words = codes.words().as_ptr().add(unit * BITS * stride + first * LANES_PER_VECTOR);
                let x_unit = x.scaled.as_ptr().add(unit * UNIT);
                for word in 0..BITS {
                    for vector in 0..WIDTH {
                        // A prefetch past the end is harmless: it never faults.
                        let ahead = words.wrapping_add((BITS + word) * stride + vector * LANES_PER_VECTOR);
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                    }
                }
                for_each_column!(COLUMN => {
                    let shift = Placement::new(BITS, COLUMN).shift;
                    let mask = _mm512_set1_epi32(((1 << BITS) - 1) << shift);
                    let offset = _mm512_set1_ps(MAGIC + (middle(BITS) << shift) as f32);
                    for (vector, totals) in totals.iter_mut().enumerate() {
                        let placed = placed::<BITS>(words.add(vector * LANES_PER_VECTOR), stride, COLUMN);
                        // (placed & mask) | magic
                        let encoded = _mm512_ternarylogic_epi32::<0xF8>(magic, placed, mask);
                        let code = _mm512_sub_ps(_mm512_castsi512_ps(encoded), offset);
                        for (token, total) in totals.iter_mut().enumerate() {
                            let x = _mm512_set1_ps(*x_unit.add(token * x.stride + COLUMN));
                            *total = _mm512_fmadd_ps(code, x, *total);
                        }
                    }
                });
            }
        }
        for (vector, totals) in totals.iter().enumerate() {
            let lane = (first + vector) * LANES_PER_VECTOR;
            // SAFETY: `lane` starts one of the vectors of a panel, for each token.
            unsafe {
                let scale = _mm512_loadu_ps(grid.scales.as_ptr().add(lane));
                let zero_point = _mm512_loadu_ps(grid.zero_points.as_ptr().add(lane));
                let below = _mm512_sub_ps(_mm512_set1_ps(middle(BITS) as f32), zero_point);
                for (token, &total) in totals.iter().enumerate() {
                    let out = out.add(token * LANES + lane);
                    let sum = _mm512_fmadd_ps(below, _mm512_set1_ps(x.sums[token]), total);
                    _mm512_storeu_ps(out, _mm512_fmadd_ps(scale, sum, _mm512_loadu_ps(out)));
                }
            }
        }
    }
}
