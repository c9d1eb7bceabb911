//! Products over tiles of [`ROWS`] x [`COLUMNS`] sums, which stay in registers while a run of pairs passes.

use ndarray::{ArrayViewMut2, Axis};
use rayon::prelude::*;

use super::Machine;
use super::layout::{Left, LeftSide, Panels};
use crate::dense::{Tile, tiles};

/// Rows of a register tile.
pub(crate) const ROWS: usize = 8;
/// Columns of a register tile.
pub(crate) const COLUMNS: usize = 32;
/// Pairs that pass before sums go to memory: the run of a panel stays in the second cache.
const RUN: usize = 512;
/// Rows and columns of what one thread computes.
const TASK: usize = 256;

/// The sums of a register tile.
pub(crate) type Sums = [[f32; COLUMNS]; ROWS];

/// `out = left right`.
pub(crate) fn product(machine: Machine, left: &impl LeftSide, right: &Panels, out: ArrayViewMut2<'_, f32>) {
    with_contiguous_rows(out, |out| {
        tiles(out, TASK, TASK).into_par_iter().for_each(|tile| task(machine, left, right, tile, false));
    });
}

/// The lower triangle of `xᵀ x`.
pub(crate) fn gram(machine: Machine, x: &Panels, out: ArrayViewMut2<'_, f32>) {
    with_contiguous_rows(out, |out| {
        let lower = tiles(out, TASK, TASK).into_par_iter().filter(|tile| tile.row >= tile.column);
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
