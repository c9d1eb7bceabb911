//! Packed products in plain Rust: the definition of the results, and the way on machines without a faster one.

use crate::packed::kernel::{
    Codes, GroupActivations, GroupGrid, LANES, PackedKernel, Placement, UNIT, middle,
};

/// No special instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

impl PackedKernel for Portable {
    const STRIP: usize = 16;
    const ROWS: usize = 4;

    fn interleave(self, from: &[u32], words_per_lane: usize, to: &mut [u32]) {
        interleave(from, words_per_lane, to);
    }

    fn decode(self, codes: Codes<'_>, grid: GroupGrid<'_>, weights: &mut [f32], strip_stride: usize) {
        for_each_column(codes, |k, column| {
            for lane in 0..LANES {
                let value = (column[lane] as f32 - grid.zero_points[lane]) * grid.scales[lane];
                weights[lane / Self::STRIP * strip_stride + k * Self::STRIP + lane % Self::STRIP] = value;
            }
        });
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
        let mut registers = [[0.0_f32; Self::STRIP]; Self::ROWS];
        for (k, weights) in weights.chunks_exact(Self::STRIP).take(columns).enumerate() {
            for (row, register) in registers.iter_mut().enumerate().take(rows) {
                let x = x[row * x_stride + k];
                for lane in 0..Self::STRIP {
                    register[lane] += x * weights[lane];
                }
            }
        }
        sums[..rows * Self::STRIP].copy_from_slice(&registers.as_flattened()[..rows * Self::STRIP]);
    }

    fn activation_factor(self, _bits: usize, _column: usize) -> f32 {
        1.0
    }

    fn multiply_group(self, codes: Codes<'_>, grid: GroupGrid<'_>, x: GroupActivations<'_>, out: &mut [f32]) {
        let middle = middle(codes.bits()) as f32;
        let mut first = 0;
        for out in out.chunks_mut(TOKENS_AT_A_TIME * LANES) {
            let scaled = &x.scaled[first * x.stride..];
            let sums = &x.sums[first..x.sums.len().min(first + TOKENS_AT_A_TIME)];
            let mut totals = [[0.0_f32; LANES]; TOKENS_AT_A_TIME];
            for_each_column(codes, |k, column| {
                let column = column.map(|code| code as f32 - middle);
                for (token, totals) in totals[..sums.len()].iter_mut().enumerate() {
                    let x = scaled[token * x.stride + k];
                    for lane in 0..LANES {
                        totals[lane] += column[lane] * x;
                    }
                }
            });
            for ((out, totals), sum) in out.chunks_exact_mut(LANES).zip(totals).zip(sums) {
                for lane in 0..LANES {
                    let correction = (middle - grid.zero_points[lane]) * sum;
                    out[lane] += grid.scales[lane] * (totals[lane] + correction);
                }
            }
            first += sums.len();
        }
    }
}

/// For few tokens: each code is read once for so many.
const TOKENS_AT_A_TIME: usize = 4;

/// Calls with each column's number and its codes.
fn for_each_column(codes: Codes<'_>, mut visit: impl FnMut(usize, [u32; LANES])) {
    let (words, stride, bits) = (codes.words(), codes.stride(), codes.bits());
    let mask = (1 << bits) - 1;
    for k in 0..codes.units() * UNIT {
        let at = Placement::new(bits, k % UNIT);
        let first = k / UNIT * bits + at.word;
        let low = &words[first * stride..][..LANES];
        let mut column: [u32; LANES] = std::array::from_fn(|lane| low[lane] >> at.offset);
        if at.straddles(bits) {
            let high = &words[(first + 1) * stride..][..LANES];
            for lane in 0..LANES {
                column[lane] |= high[lane] << (32 - at.offset);
            }
        }
        visit(k, column.map(|code| code & mask));
    }
}

/// [`PackedKernel::interleave`] where lanes past the end of `from` are left as they are.
pub(crate) fn interleave(from: &[u32], words_per_lane: usize, to: &mut [u32]) {
    for (lane, from) in from.chunks(words_per_lane).take(LANES).enumerate() {
        for (to, &word) in to.chunks_exact_mut(LANES).zip(from) {
            to[lane] = word;
        }
    }
}
