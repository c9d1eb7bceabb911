//! Activations, rounded to eight bits.

use ndarray::{ArrayView2, Axis};
use rayon::prelude::*;

use super::kernel::{DWORDS, Piece, TOKENS, Tokens};
use crate::arch::lanes::{Lanes, Task, Unit};

/// The largest magnitude of a rounded activation.
const MOST: f32 = 127.0;
/// Adding `1.5 * 2^23` rounds to the nearest integer, which is then in the low bits.
const ROUND: f32 = 12_582_912.0;
/// Tokens that a thread rounds at once.
const RUN: usize = 16;

/// Some tokens' activations: see the module above for what they are.
pub(super) struct Activations {
    /// `[tokens, units, DWORDS]`, four to a number; what pads a piece to whole units is zero.
    codes: Vec<i32>,
    dwords: usize,
    pieces: usize,
    /// `[tokens, pieces]`
    steps: Vec<f32>,
    /// `[tokens, pieces]`
    sums: Vec<i32>,
}

impl Activations {
    /// `x` is `[tokens, in_features]`; the pieces are those of its columns and take `units`.
    pub(super) fn round(x: ArrayView2<'_, f32>, pieces: &[Piece], units: usize) -> Self {
        let tokens = x.nrows();
        let dwords = units * DWORDS;
        let mut codes = vec![0; tokens * dwords];
        let mut steps = vec![0.0; tokens * pieces.len()];
        let mut sums = vec![0; tokens * pieces.len()];
        let x = x.as_standard_layout();
        let unit = Unit::widest();
        let by_run = codes.par_chunks_mut(RUN * dwords).zip(steps.par_chunks_mut(RUN * pieces.len()));
        by_run.zip(sums.par_chunks_mut(RUN * pieces.len())).enumerate().for_each(
            |(run, ((codes, steps), sums))| {
                let rows = x.axis_iter(Axis(0)).skip(run * RUN);
                let grid = steps.chunks_exact_mut(pieces.len()).zip(sums.chunks_exact_mut(pieces.len()));
                for ((x, codes), (steps, sums)) in rows.zip(codes.chunks_exact_mut(dwords)).zip(grid) {
                    let x = x.to_slice().expect("rows are contiguous");
                    unit.run(RoundToken { x, pieces, codes, steps, sums });
                }
            },
        );
        Self { codes, dwords, pieces: pieces.len(), steps, sums }
    }

    /// Tokens from `first` on, at most so many and at most [`TOKENS`].
    pub(super) fn tokens(&self, first: usize, most: usize) -> Tokens<'_> {
        let count = most.min(TOKENS);
        let by = |length: usize| first * length..(first + count) * length;
        Tokens::new(
            count,
            &self.codes[by(self.dwords)],
            &self.steps[by(self.pieces)],
            &self.sums[by(self.pieces)],
        )
    }
}

struct RoundToken<'a> {
    x: &'a [f32],
    pieces: &'a [Piece],
    codes: &'a mut [i32],
    steps: &'a mut [f32],
    sums: &'a mut [i32],
}

impl Task for RoundToken<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let Self { x, pieces, codes, steps, sums } = self;
        for (piece, (step, sum)) in pieces.iter().zip(steps.iter_mut().zip(sums)) {
            let x = &x[piece.columns.clone()];
            // Without a sign, the bits of numbers are in the order of the numbers, and what is not finite is above.
            let largest = x.iter().map(|value| value.to_bits() & !(1 << 31)).fold(0, u32::max);
            let largest = f32::from_bits(largest);
            let inverse = MOST / largest;
            if !largest.is_finite() {
                *step = f32::NAN;
                continue;
            }
            // Smaller ones have no inverse; they are zero.
            if !inverse.is_finite() {
                continue;
            }
            *step = largest / MOST;
            let codes = &mut codes[piece.first_unit * DWORDS..];
            let (fours, rest) = x.as_chunks::<4>();
            let rounded = |value: f32| (value * inverse + ROUND).to_bits();
            let mut total = 0_i32;
            for (code, four) in codes.iter_mut().zip(fours) {
                let bits = four.map(rounded);
                // The low byte of each.
                *code =
                    (bits[0] & 0xFF | (bits[1] & 0xFF) << 8 | (bits[2] & 0xFF) << 16 | bits[3] << 24) as i32;
                total += bits.iter().map(|&bits| i32::from(bits as i8)).sum::<i32>();
            }
            if let Some(code) = codes.get_mut(fours.len()) {
                for (place, &value) in rest.iter().enumerate() {
                    let byte = rounded(value) as u8;
                    *code |= i32::from_le_bytes((u32::from(byte) << (8 * place)).to_le_bytes());
                    total += i32::from(byte as i8);
                }
            }
            *sum = total;
        }
    }
}
