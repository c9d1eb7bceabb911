//! Packed products with AVX2 and FMA: eight outputs to a vector.

use std::arch::x86_64::*;

use crate::packed::kernel::{
    Codes, GroupActivations, GroupGrid, LANES, MAGIC, PackedKernel, Placement, UNIT, for_each_column, middle,
};

const LANES_PER_VECTOR: usize = 8;
const VECTORS: usize = LANES / LANES_PER_VECTOR;

/// Vectors of a strip, and of a pass over the codes for few tokens: what fits in sixteen registers.
const STRIP_VECTORS: usize = 2;

/// Proof that the machine has AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

impl PackedKernel for Avx2 {
    const STRIP: usize = STRIP_VECTORS * LANES_PER_VECTOR;
    const ROWS: usize = 6;

    fn interleave(self, from: &[u32], words_per_lane: usize, to: &mut [u32]) {
        let words = to.len() / LANES;
        assert!((LANES - 1) * words_per_lane + words <= from.len());
        // SAFETY: `self` proves AVX2; the slices hold `words` words of all lanes.
        unsafe { interleave(from.as_ptr(), words_per_lane, words, to.as_mut_ptr()) }
    }

    fn decode(self, codes: Codes<'_>, grid: GroupGrid<'_>, weights: &mut [f32], strip_stride: usize) {
        let strip = codes.units() * UNIT * Self::STRIP;
        assert!(strip <= strip_stride && (LANES / Self::STRIP - 1) * strip_stride + strip <= weights.len());
        let weights = weights.as_mut_ptr();
        // SAFETY: `self` proves AVX2; `Codes` holds the words of its units and `weights` their values.
        unsafe {
            match codes.bits() {
                2 => decode::<2>(codes, grid, weights, strip_stride),
                3 => decode::<3>(codes, grid, weights, strip_stride),
                4 => decode::<4>(codes, grid, weights, strip_stride),
                5 => decode::<5>(codes, grid, weights, strip_stride),
                6 => decode::<6>(codes, grid, weights, strip_stride),
                7 => decode::<7>(codes, grid, weights, strip_stride),
                _ => decode::<8>(codes, grid, weights, strip_stride),
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
        assert!(columns * Self::STRIP <= weights.len() && rows * Self::STRIP <= sums.len());
        let (x, weights, sums) = (x.as_ptr(), weights.as_ptr(), sums.as_mut_ptr());
        // SAFETY: `self` proves AVX2 and FMA; the slices hold what is read and written for `rows` and `columns`.
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
        Placement::new(bits, column).factor()
    }

    fn multiply_group(self, codes: Codes<'_>, grid: GroupGrid<'_>, x: GroupActivations<'_>, out: &mut [f32]) {
        let tokens = x.sums.len();
        assert!(tokens >= 1 && (tokens - 1) * x.stride + codes.units() * UNIT <= x.scaled.len());
        assert!(tokens * LANES <= out.len());
        // SAFETY: `self` proves AVX2 and FMA; the slices hold what is read and written for these tokens and units.
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

/// Asks for the cache line at any address, which need not be one that may be read.
#[inline(always)]
pub(super) fn fetch_line<const HINT: i32>(line: *const u32) {
    // SAFETY: prefetching never faults. (Newer compilers know that it is safe.)
    #[allow(unused_unsafe)]
    unsafe {
        _mm_prefetch::<HINT>(line.cast());
    };
}

/// # Safety
/// AVX2; `from` holds `words` words of each lane, `to` has room for them.
#[target_feature(enable = "avx2")]
unsafe fn interleave(from: *const u32, words_per_lane: usize, words: usize, to: *mut u32) {
    for first in (0..words).step_by(8) {
        let count = 8.min(words - first);
        let counts = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let present = _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), counts);
        for first_lane in (0..LANES).step_by(LANES_PER_VECTOR) {
            let rows: [__m256i; 8] = std::array::from_fn(|lane| {
                let row = from.wrapping_add((first_lane + lane) * words_per_lane + first);
                // The lanes are far apart: the processor does not foresee where each goes on.
                fetch_line::<_MM_HINT_T1>(row.wrapping_add(32));
                // SAFETY: only the `count` words that exist are read.
                unsafe { _mm256_maskload_epi32(row.cast(), present) }
            });
            for (word, &column) in transpose(rows).iter().enumerate().take(count) {
                // SAFETY: `first + word` is one of the words.
                unsafe { _mm256_storeu_si256(to.add((first + word) * LANES + first_lane).cast(), column) };
            }
        }
    }
}

/// Eight by eight.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: [__m256i; 8]) -> [__m256i; 8] {
    // Four by four within halves: vector `4 i + j` gets, in half `h`, column `4 h + j` of rows `4 i .. 4 i + 4`.
    let mut halves = rows;
    for four in halves.as_chunks_mut::<4>().0 {
        let [a, b, c, d] = *four;
        let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        *four = [
            _mm256_unpacklo_epi64(ab_low, cd_low),
            _mm256_unpackhi_epi64(ab_low, cd_low),
            _mm256_unpacklo_epi64(ab_high, cd_high),
            _mm256_unpackhi_epi64(ab_high, cd_high),
        ];
    }
    let mut columns = rows;
    for j in 0..4 {
        columns[j] = _mm256_permute2x128_si256::<0x20>(halves[j], halves[4 + j]);
        columns[4 + j] = _mm256_permute2x128_si256::<0x31>(halves[j], halves[4 + j]);
    }
    columns
}

/// The word of eight lanes with a column's code from bit `shift` of its placement on; other bits are anything.
///
/// # Safety
/// AVX2; `words` is word 0 of a unit for eight lanes that may be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn placed<const BITS: usize>(words: *const u32, stride: usize, column: usize) -> __m256i {
    let at = Placement::new(BITS, column);
    // SAFETY: a unit has BITS words, and `at.word` is one of them.
    let word = unsafe { _mm256_loadu_si256(words.add(at.word * stride).cast()) };
    if at.straddles(BITS) {
        // SAFETY: a code that straddles goes on in a word of the same unit.
        let next = unsafe { _mm256_loadu_si256(words.add((at.word + 1) * stride).cast()) };
        let low = _mm256_srlv_epi32(word, _mm256_set1_epi32(at.offset as i32));
        let high = _mm256_sllv_epi32(next, _mm256_set1_epi32(32 - at.offset as i32));
        _mm256_or_si256(low, high)
    } else if at.shift == at.offset {
        word
    } else {
        _mm256_srli_epi32::<16>(word)
    }
}

/// # Safety
/// AVX2; `weights` has room for the columns of `codes` in each strip.
#[target_feature(enable = "avx2")]
unsafe fn decode<const BITS: usize>(
    codes: Codes<'_>,
    grid: GroupGrid<'_>,
    weights: *mut f32,
    strip_stride: usize,
) {
    const STRIP: usize = Avx2::STRIP;
    let stride = codes.stride();
    let mask = _mm256_set1_epi32((1 << BITS) - 1);
    for unit in 0..codes.units() {
        for vector in 0..VECTORS {
            let lane = vector * LANES_PER_VECTOR;
            // SAFETY: `Codes` holds this unit, `grid` all lanes, and `weights` this unit's columns.
            unsafe {
                let scale = _mm256_loadu_ps(grid.scales.as_ptr().add(lane));
                let zero_point = _mm256_loadu_ps(grid.zero_points.as_ptr().add(lane));
                let words = codes.words().as_ptr().add(unit * BITS * stride + lane);
                let weights = weights.add(lane / STRIP * strip_stride + unit * UNIT * STRIP + lane % STRIP);
                for_each_column!(COLUMN => {
                    let placed = placed::<BITS>(words, stride, COLUMN);
                    let shift = Placement::new(BITS, COLUMN).shift as i32;
                    let code = _mm256_and_si256(_mm256_srlv_epi32(placed, _mm256_set1_epi32(shift)), mask);
                    let value = _mm256_sub_ps(_mm256_cvtepi32_ps(code), zero_point);
                    _mm256_storeu_ps(weights.add(COLUMN * STRIP), _mm256_mul_ps(value, scale));
                });
            }
        }
    }
}

/// # Safety
/// AVX2 and FMA; `x` has ROWS rows of `columns`, `weights` a strip of `columns`, `sums` room for ROWS strips.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const ROWS: usize>(
    x: *const f32,
    x_stride: usize,
    weights: *const f32,
    columns: usize,
    sums: *mut f32,
) {
    let mut totals = [[_mm256_setzero_ps(); STRIP_VECTORS]; ROWS];
    for k in 0..columns {
        // SAFETY: `k` is a column of `x` and of `weights`.
        unsafe {
            let weights: [__m256; STRIP_VECTORS] = std::array::from_fn(|vector| {
                _mm256_loadu_ps(weights.add(k * Avx2::STRIP + vector * LANES_PER_VECTOR))
            });
            for (row, totals) in totals.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*x.add(row * x_stride + k));
                for (total, weights) in totals.iter_mut().zip(weights) {
                    *total = _mm256_fmadd_ps(weights, x, *total);
                }
            }
        }
    }
    for (index, &total) in totals.as_flattened().iter().enumerate() {
        // SAFETY: `sums` has room for ROWS * STRIP values.
        unsafe { _mm256_storeu_ps(sums.add(index * LANES_PER_VECTOR), total) };
    }
}

/// # Safety
/// AVX2 and FMA; the slices of `x` and `out` hold all tokens.
#[inline]
#[target_feature(enable = "avx2,fma")]
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
                1 => fused::<BITS, 1, 4>(codes, grid, some, out),
                2 => fused::<BITS, 2, 4>(codes, grid, some, out),
                3 => fused::<BITS, 3, 2>(codes, grid, some, out),
                _ => fused::<BITS, 4, 2>(codes, grid, some, out),
            }
        }
        first += tokens;
    }
}

/// `(code - middle) * 2^shift`.
#[inline]
#[target_feature(enable = "avx2")]
fn centred<const BITS: usize>(placed: __m256i, shift: usize) -> __m256 {
    let mask = _mm256_set1_epi32(((1 << BITS) - 1) << shift);
    let magic = _mm256_set1_epi32(MAGIC.to_bits() as i32);
    let encoded = _mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(placed, mask), magic));
    _mm256_sub_ps(encoded, _mm256_set1_ps(MAGIC + (middle(BITS) << shift) as f32))
}

/// `WIDTH` vectors of outputs at a time; each code is used for all `TOKENS`.
///
/// # Safety
/// AVX2 and FMA; `x` and `out` hold TOKENS tokens of the units of `codes`.
#[target_feature(enable = "avx2,fma")]
unsafe fn fused<const BITS: usize, const TOKENS: usize, const WIDTH: usize>(
    codes: Codes<'_>,
    grid: GroupGrid<'_>,
    x: GroupActivations<'_>,
    out: *mut f32,
) {
    let stride = codes.stride();
    for first in (0..VECTORS).step_by(WIDTH) {
        let mut totals = [[_mm256_setzero_ps(); TOKENS]; WIDTH];
        for unit in 0..codes.units() {
            // SAFETY: `Codes` holds this unit for all lanes, and `x` its columns for all tokens.
            unsafe {
                let words = codes.words().as_ptr().add(unit * BITS * stride + first * LANES_PER_VECTOR);
                let x_unit = x.scaled.as_ptr().add(unit * UNIT);
                for_each_column!(COLUMN => {
                    for (vector, totals) in totals.iter_mut().enumerate() {
                        let placed = placed::<BITS>(words.add(vector * LANES_PER_VECTOR), stride, COLUMN);
                        let code = centred::<BITS>(placed, Placement::new(BITS, COLUMN).shift);
                        for (token, total) in totals.iter_mut().enumerate() {
                            let x = _mm256_set1_ps(*x_unit.add(token * x.stride + COLUMN));
                            *total = _mm256_fmadd_ps(code, x, *total);
                        }
                    }
                });
            }
        }
        for (vector, totals) in totals.iter().enumerate() {
            let lane = (first + vector) * LANES_PER_VECTOR;
            // SAFETY: `lane` starts one of the vectors of a panel, for each token.
            unsafe {
                let scale = _mm256_loadu_ps(grid.scales.as_ptr().add(lane));
                let zero_point = _mm256_loadu_ps(grid.zero_points.as_ptr().add(lane));
                let below = _mm256_sub_ps(_mm256_set1_ps(middle(BITS) as f32), zero_point);
                for (token, &total) in totals.iter().enumerate() {
                    let out = out.add(token * LANES + lane);
                    let sum = _mm256_fmadd_ps(below, _mm256_set1_ps(x.sums[token]), total);
                    _mm256_storeu_ps(out, _mm256_fmadd_ps(scale, sum, _mm256_loadu_ps(out)));
                }
            }
        }
    }
}
