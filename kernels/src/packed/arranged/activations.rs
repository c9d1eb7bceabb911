//! Activations, rounded to eight bits.

use ndarray::{ArrayView2, Axis};
use rayon::prelude::*;

use super::kernel::{DWORDS, Group, TOKENS, Tokens};
use crate::arch::lanes::{Lanes, Task, Unit};
use crate::packed::kernel::UNIT;

/// The largest magnitude of a rounded activation.
const MOST: f32 = 127.0;
/// Adding `1.5 * 2^23` rounds to the nearest integer, which is then in the low bits.
const ROUND: f32 = 12_582_912.0;
/// Tokens that a thread rounds at once.
const RUN: usize = 16;

/// Some tokens' activations: see the module above for what they are.
pub(super) struct Activations {
    units: usize,
    groups: usize,
    /// `[tokens, units, DWORDS]`, four to a number; what pads a group to whole units is zero.
    codes: Vec<i32>,
    /// `[tokens, units]`
    steps: Vec<f32>,
    /// `[tokens, groups]`, of rounded activations times their steps.
    sums: Vec<f32>,
}

impl Activations {
    /// `x` is `[tokens, in_features]`; the groups are those of its columns and take `units`.
    pub(super) fn round(x: ArrayView2<'_, f32>, groups: &[Group], units: usize) -> Self {
        let tokens = x.nrows();
        let mut codes = vec![0; tokens * units * DWORDS];
        let mut steps = vec![0.0; tokens * units];
        let mut sums = vec![0.0; tokens * groups.len()];
        let x = x.as_standard_layout();
        let unit = Unit::widest();
        let round = |run: usize, codes: &mut [i32], steps: &mut [f32], sums: &mut [f32]| {
            let rows = x.axis_iter(Axis(0)).skip(run * RUN);
            let rows = rows.zip(codes.chunks_exact_mut(units * DWORDS)).zip(steps.chunks_exact_mut(units));
            for (((x, codes), steps), sums) in rows.zip(sums.chunks_exact_mut(groups.len())) {
                let x = x.to_slice().expect("rows are contiguous");
                unit.run(RoundToken { x, groups, codes, steps, sums });
            }
        };
        if tokens <= RUN {
            round(0, &mut codes, &mut steps, &mut sums);
        } else {
            let runs = codes.par_chunks_mut(RUN * units * DWORDS).zip(steps.par_chunks_mut(RUN * units));
            let runs = runs.zip(sums.par_chunks_mut(RUN * groups.len())).enumerate();
            runs.for_each(|(run, ((codes, steps), sums))| round(run, codes, steps, sums));
        }
        Self { units, groups: groups.len(), codes, steps, sums }
    }

    /// Tokens from `first` on, at most so many and at most [`TOKENS`].
    pub(super) fn tokens(&self, first: usize, most: usize) -> Tokens<'_> {
        let count = most.min(TOKENS);
        let by = |length: usize| first * length..(first + count) * length;
        let codes = &self.codes[by(self.units * DWORDS)];
        Tokens::new(count, codes, &self.steps[by(self.units)], &self.sums[by(self.groups)])
    }
}

struct RoundToken<'a> {
    x: &'a [f32],
    groups: &'a [Group],
    codes: &'a mut [i32],
    steps: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Task for RoundToken<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let Self { x, groups, codes, steps, sums } = self;
        for (group, group_sum) in groups.iter().zip(sums) {
            let units = x[group.columns.clone()].chunks(UNIT);
            let grid = codes.chunks_exact_mut(DWORDS).zip(steps.iter_mut()).skip(group.first_unit);
            for (x, (codes, step)) in units.zip(grid) {
                let mut padded = [0.0; UNIT];
                let x = match x.first_chunk::<UNIT>() {
                    Some(whole) => whole,
                    None => {
                        padded[..x.len()].copy_from_slice(x);
                        &padded
                    }
                };
                let sum;
                (*step, sum) = round_unit(x, codes);
                *group_sum += *step * sum as f32;
            }
        }
    }
}

/// Gives the step and the sum of a unit's codes.
#[inline(always)]
fn round_unit(x: &[f32; UNIT], codes: &mut [i32]) -> (f32, i32) {
    // Without a sign, the bits of numbers are in the order of the numbers, and what is not finite is above.
    let largest = x.iter().map(|value| value.to_bits() & !(1 << 31)).fold(0, u32::max);
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        return (f32::NAN, 0);
    }
    let inverse = MOST / largest;
    // Smaller ones have no inverse; they are zero.
    if !inverse.is_finite() {
        return (0.0, 0);
    }
    // Loops over bytes, which compilers turn into few instructions. The low byte of each is the code.
    let mut bytes = [0_u8; UNIT];
    for (byte, value) in bytes.iter_mut().zip(x) {
        *byte = (value * inverse + ROUND).to_bits() as u8;
    }
    let mut sum = 0;
    for &byte in &bytes {
        sum += i32::from(byte as i8);
    }
    for (code, four) in codes.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *code = i32::from_le_bytes(*four);
    }
    (largest / MOST, sum)
}
