//! Products over tiles of [`ROWS`] x [`COLUMNS`] sums, which stay in registers while a run of pairs passes.

use ndarray::{ArrayViewMut2, Axis};
use rayon::prelude::*;

use super::Machine;
use super::layout::{Left, LeftSide, Pairs, Panels};
use crate::dense::{Tile, tiles};

/// Rows of a register tile.
pub(crate) const ROWS: usize = 8;
/// Columns of a register tile.
pub(crate) const COLUMNS: usize = 32;
/// Pairs that pass before sums go to memory: the run of a panel stays in the second cache.
const RUN: usize = 512;
/// Rows and columns of what one thread computes: narrow models have few rows, and two threads are to share them.
const TASK: [usize; 2] = [64, 256];

/// The sums of a register tile.
pub(crate) type Sums = [[f32; COLUMNS]; ROWS];

/// `out = left right`.
pub(crate) fn product(machine: Machine, left: &impl LeftSide, right: &Panels, out: ArrayViewMut2<'_, f32>) {
    with_contiguous_rows(out, |out| {
        tiles(out, TASK[0], TASK[1]).into_par_iter().for_each(|tile| task(machine, left, right, tile, false));
    });
}

/// `out = left right'` on this thread alone, for the part of `right` that begins at this pair and column. Its sums are short: a run each.
pub(crate) fn part(
    machine: Machine,
    left: &Pairs,
    right: &Panels,
    (pair, column): (usize, usize),
    out: ArrayViewMut2<'_, f32>,
) {
    let width = out.ncols();
    let mut sums = [[0.0; COLUMNS]; ROWS];
    with_contiguous_rows(out, |mut out| {
        for (tile, mut rows) in out.axis_chunks_iter_mut(Axis(0), ROWS).enumerate() {
            let words = left.rows(tile * ROWS, 0);
            for first in (0..width).step_by(COLUMNS) {
                let panel = &right.panel(column + first, pair)[..left.pairs() * COLUMNS];
                machine.sum(words, panel, &mut sums);
                let count = COLUMNS.min(width - first);
                for (out, sums) in rows.outer_iter_mut().zip(&sums) {
                    let out = out.into_slice().expect("rows without gaps");
                    out[first..first + count].copy_from_slice(&sums[..count]);
                }
            }
        }
    });
}

/// The lower triangle of `xᵀ x`.
pub(crate) fn gram(machine: Machine, x: &Panels, out: ArrayViewMut2<'_, f32>) {
    with_contiguous_rows(out, |out| {
        let lower = tiles(out, TASK[0], TASK[1])
            .into_par_iter()
            .filter(|tile| tile.row + tile.view.nrows() > tile.column);
        lower.for_each(|tile| task(machine, x, x, tile, true));
    });
}

/// Lets a matrix with gaps in its rows be written through one without.
fn with_contiguous_rows(mut out: ArrayViewMut2<'_, f32>, write: impl FnOnce(ArrayViewMut2<'_, f32>)) {
    if out.ncols() <= 1 || out.strides()[1] == 1 {
        write(out);
    } else {
        let mut contiguous = out.to_owned().as_standard_layout().into_owned();
        write(contiguous.view_mut());
        out.assign(&contiguous);
    }
}

/// One tile of the result, whose rows are contiguous; of `lower` ones only what is on or below the diagonal.
pub(crate) fn task(machine: Machine, left: &impl LeftSide, right: &Panels, tile: Tile<'_, f32>, lower: bool) {
    let Tile { row: top, column: start, mut view } = tile;
    let width = view.ncols();
    let pairs = left.pairs();
    let mut sums = [[0.0; COLUMNS]; ROWS];
    // Even a sum over nothing is written.
    for first in (0..pairs.max(1)).step_by(RUN) {
        let count = RUN.min(pairs - first);
        for (tile, mut rows) in view.axis_chunks_iter_mut(Axis(0), ROWS).enumerate() {
            let row = top + tile * ROWS;
            let words = left.rows(row, first);
            let rows = rows.outer_iter_mut().map(|row| row.into_slice().expect("rows without gaps"));
            let mut rows: Vec<&mut [f32]> = rows.collect();
            for column in (0..width).step_by(COLUMNS) {
                if lower && row + ROWS <= start + column {
                    break;
                }
                let panel = &right.panel(start + column, first)[..count * COLUMNS];
                machine.sum(words, panel, &mut sums);
                for (index, (out, sums)) in rows.iter_mut().zip(&sums).enumerate() {
                    let mut count = COLUMNS.min(width - column);
                    if lower {
                        count = count.min((row + index + 1).saturating_sub(start + column));
                    }
                    let out = &mut out[column..column + count];
                    if first == 0 {
                        out.copy_from_slice(&sums[..count]);
                    } else {
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                    }
                }
            }
        }
    }
}

impl Machine {
    /// The products of eight rows with the columns of a panel, `[pairs][COLUMNS]`.
    #[inline]
    fn sum(self, left: Left<'_>, panel: &[u32], sums: &mut Sums) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(machine) => machine.sum(left, panel, sums),
        }
    }
}
