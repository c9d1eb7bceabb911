//! Sums of products of bfloat16 by AVX512-BF16: two terms for each of 16 columns in one instruction.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;

use crate::bf16::layout::Left;
use crate::bf16::tiled::{COLUMNS, ROWS, Sums};

/// AVX-512 F and BF16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Bf16(());

impl Avx512Bf16 {
    /// The unit, if this machine has it.
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")).then_some(Self(()))
    }

    /// The products of [`ROWS`] rows with the columns of a panel, `[pairs][COLUMNS]`.
    pub(crate) fn sum(self, left: Left<'_>, panel: &[u32], sums: &mut Sums) {
        let pairs = panel.len() / COLUMNS;
        if pairs > 0 {
            let last = (ROWS - 1) * left.row_stride + (pairs - 1) * left.pair_stride;
            assert!(last < left.words.len(), "the left side is shorter than the panel");
        }
        // SAFETY: `self` proves the instructions; every word that is read lies before `last` or inside the panel.
        unsafe { sum(left, panel.as_ptr(), pairs, sums) }
    }
}

/// # Safety
/// `left` must have [`ROWS`] rows of `pairs` words, `panel` that many times [`COLUMNS`] words.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn sum(left: Left<'_>, mut panel: *const u32, pairs: usize, sums: &mut Sums) {
    let mut low = [_mm512_setzero_ps(); ROWS];
    let mut high = [_mm512_setzero_ps(); ROWS];
    let mut word = left.words.as_ptr();
    for _ in 0..pairs {
        // SAFETY: the caller's promise. A vector of words and one of pairs of bfloat16 are the same 64 bytes.
        unsafe {
            let columns: [__m512bh; 2] = [
                std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(panel.cast())),
                std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(panel.add(16).cast())),
            ];
            for row in 0..ROWS {
                let pair = _mm512_set1_epi32(*word.add(row * left.row_stride) as i32);
                let pair = std::mem::transmute::<__m512i, __m512bh>(pair);
                low[row] = _mm512_dpbf16_ps(low[row], pair, columns[0]);
                high[row] = _mm512_dpbf16_ps(high[row], pair, columns[1]);
            }
            panel = panel.add(COLUMNS);
            word = word.wrapping_add(left.pair_stride);
        }
    }
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: a row of sums has 32 elements; the stores need no alignment.
        unsafe {
            _mm512_storeu_ps(sums.as_mut_ptr(), low[row]);
            _mm512_storeu_ps(sums.as_mut_ptr().add(16), high[row]);
        }
    }
}
