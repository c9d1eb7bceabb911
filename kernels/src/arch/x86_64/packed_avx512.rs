//! Packed products with AVX-512F: sixteen outputs to a vector.

use std::arch::x86_64::*;

use super::packed_avx2::fetch_line;
use crate::packed::kernel::{
    Codes, GroupActivations, GroupGrid, LANES, MAGIC, PackedKernel, Placement, UNIT, for_each_column, middle,
};

const LANES_PER_VECTOR: usize = 16;
const VECTORS: usize = LANES / LANES_PER_VECTOR;

/// Codes of up to this many bits are looked up in a vector, which is faster than making a float of them.
const MOST_BITS_IN_TABLE: usize = 4;

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
        let words = to.len() / LANES;
        assert!((LANES - 1) * words_per_lane + words <= from.len());
        // SAFETY: `self` proves AVX-512F; the slices hold `words` words of all lanes.
        unsafe { interleave(from.as_ptr(), words_per_lane, words, to.as_mut_ptr()) }
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

    fn activation_factor(self, bits: usize, column: usize) -> f32 {
        if bits <= MOST_BITS_IN_TABLE { 1.0 } else { Placement::new(bits, column).factor() }
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

/// # Safety
/// AVX-512F; `from` holds `words` words of each lane, `to` has room for them.
#[target_feature(enable = "avx512f")]
unsafe fn interleave(from: *const u32, words_per_lane: usize, words: usize, to: *mut u32) {
    for first in (0..words).step_by(16) {
        let count = 16.min(words - first);
        let present = ((1_u32 << count) - 1) as __mmask16;
        for first_lane in (0..LANES).step_by(LANES_PER_VECTOR) {
            let rows: [__m512i; 16] = std::array::from_fn(|lane| {
                let row = from.wrapping_add((first_lane + lane) * words_per_lane + first);
                // The lanes are far apart: the processor does not foresee where each goes on.
                fetch_line::<_MM_HINT_T1>(row.wrapping_add(32));
                // SAFETY: only the `count` words that exist are read.
                unsafe { _mm512_maskz_loadu_epi32(present, row.cast()) }
            });
            for (word, &column) in transpose(rows).iter().enumerate().take(count) {
                // SAFETY: `first + word` is one of the words.
                unsafe { _mm512_storeu_si512(to.add((first + word) * LANES + first_lane).cast(), column) };
            }
        }
    }
}

/// Sixteen by sixteen.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    // Four by four within quarters: vector `4 i + j` gets, in quarter `q`, column `4 q + j` of rows `4 i .. 4 i + 4`.
    let mut quarters = rows;
    for four in quarters.as_chunks_mut::<4>().0 {
        let [a, b, c, d] = *four;
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        *four = [
            _mm512_unpacklo_epi64(ab_low, cd_low),
            _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ];
    }
    // Then four by four quarters.
    let mut columns = rows;
    for j in 0..4 {
        let [a, b, c, d] = [quarters[j], quarters[4 + j], quarters[8 + j], quarters[12 + j]];
        let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xDD>(a, b));
        let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xDD>(c, d));
        columns[j] = _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even);
        columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd);
        columns[8 + j] = _mm512_shuffle_i32x4::<0xDD>(ab_even, cd_even);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xDD>(ab_odd, cd_odd);
    }
    columns
}

/// The word of sixteen lanes with a column's code from bit `shift` of its placement on; other bits are anything.
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
                    let code = _mm512_srlv_epi32(placed, _mm512_set1_epi32(shift));
                    let code = if BITS <= MOST_BITS_IN_TABLE {
                        _mm512_permutexvar_ps(code, table::<BITS>(0))
                    } else {
                        _mm512_cvtepi32_ps(_mm512_and_si512(code, mask))
                    };
                    let value = _mm512_sub_ps(code, zero_point);
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
/// AVX-512F; the slices of `x` and `out` hold all tokens.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn multiply_group<const BITS: usize>(
    codes: Codes<'_>,
    grid: GroupGrid<'_>,
    x: GroupActivations<'_>,
    out: &mut [f32],
) {
    let mut first = 0;
    while first < x.sums.len() {
        // Four tokens keep the multipliers busy; the codes of a group are still in the first-level cache for the next four.
        let tokens = (x.sums.len() - first).min(4);
        let some = GroupActivations { scaled: &x.scaled[first * x.stride..], sums: &x.sums[first..], ..x };
        let out = out[first * LANES..].as_mut_ptr();
        // SAFETY: as promised by the caller, for these of the tokens.
        unsafe {
            match tokens {
                1 => fused::<BITS, 1>(codes, grid, some, out),
                2 => fused::<BITS, 2>(codes, grid, some, out),
                3 => fused::<BITS, 3>(codes, grid, some, out),
                _ => fused::<BITS, 4>(codes, grid, some, out),
            }
        }
        first += tokens;
    }
}

/// `code - zero` of each code, to be looked up by the lowest four bits: shorter codes are in it more than once.
#[inline]
#[target_feature(enable = "avx512f")]
fn table<const BITS: usize>(zero: u32) -> __m512 {
    let table: [f32; 16] = std::array::from_fn(|index| (index as u32 % (1 << BITS)) as f32 - zero as f32);
    // SAFETY: the table has 16 values.
    unsafe { _mm512_loadu_ps(table.as_ptr()) }
}

/// `code - middle`, times `2^shift` where [`PackedKernel::activation_factor`] takes that back.
#[inline]
#[target_feature(enable = "avx512f")]
fn centred<const BITS: usize>(placed: __m512i, shift: usize) -> __m512 {
    if BITS <= MOST_BITS_IN_TABLE {
        let index = _mm512_srlv_epi32(placed, _mm512_set1_epi32(shift as i32));
        _mm512_permutexvar_ps(index, table::<BITS>(middle(BITS)))
    } else {
        let mask = _mm512_set1_epi32(((1 << BITS) - 1) << shift);
        // (placed & mask) | magic
        let encoded =
            _mm512_ternarylogic_epi32::<0xF8>(_mm512_set1_epi32(MAGIC.to_bits() as i32), placed, mask);
        _mm512_sub_ps(_mm512_castsi512_ps(encoded), _mm512_set1_ps(MAGIC + (middle(BITS) << shift) as f32))
    }
}

/// Asks for a unit before it is needed. The words of a panel are far from each other where outputs lie side by side, so the
/// processor does not foresee them.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch<const BITS: usize>(words: *const u32, stride: usize) {
    for word in 0..BITS {
        for vector in 0..VECTORS {
            let line = words.wrapping_add(word * stride + vector * LANES_PER_VECTOR);
            fetch_line::<_MM_HINT_T0>(line);
        }
    }
}

/// Each code is used for all `TOKENS`.
///
/// # Safety
/// AVX-512F; `x` and `out` hold TOKENS tokens of the units of `codes`.
#[target_feature(enable = "avx512f")]
unsafe fn fused<const BITS: usize, const TOKENS: usize>(
    codes: Codes<'_>,
    grid: GroupGrid<'_>,
    x: GroupActivations<'_>,
    out: *mut f32,
) {
    let stride = codes.stride();
    let mut totals = [[_mm512_setzero_ps(); TOKENS]; VECTORS];
    for unit in 0..codes.units() {
        // SAFETY: `Codes` holds this unit for all lanes, and `x` its columns for all tokens.
        unsafe {
            let words = codes.words().as_ptr().add(unit * BITS * stride);
            let x_unit = x.scaled.as_ptr().add(unit * UNIT);
            if stride != LANES {
                prefetch::<BITS>(words.wrapping_add(BITS * stride), stride);
            }
            for_each_column!(COLUMN => {
                for (vector, totals) in totals.iter_mut().enumerate() {
                    let placed = placed::<BITS>(words.add(vector * LANES_PER_VECTOR), stride, COLUMN);
                    let code = centred::<BITS>(placed, Placement::new(BITS, COLUMN).shift);
                    for (token, total) in totals.iter_mut().enumerate() {
                        let x = _mm512_set1_ps(*x_unit.add(token * x.stride + COLUMN));
                        *total = _mm512_fmadd_ps(code, x, *total);
                    }
                }
            });
        }
    }
    for (vector, totals) in totals.iter().enumerate() {
        let lane = vector * LANES_PER_VECTOR;
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
