//! The default back end: faer, cut into tiles here, so that any number of threads computes the same.
//!
//! The Cholesky factor of a lower triangle, in place, right-looking over panels of columns:
//!
//! ```text
//! for each panel p:   L_pp L_ppᵀ = A_pp              one thread
//!                     L_ip = A_ip L_pp⁻ᵀ             chunks of rows
//!                     A_ij -= L_ip L_jpᵀ   i >= j    tiles
//! ```

use faer::Par;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltError, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use ndarray::{ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::trailing::subtract_square;
use crate::dense::{mat, mat_mut};

/// Columns of a panel.
const PANEL: usize = 256;
/// Rows below a panel that one thread solves at once.
const ROWS_BELOW: usize = 512;

/// Overwrites the lower triangle of `a` `[n, n]` with `L`, `A = L Lᵀ`. What lies above the diagonal is neither read nor
/// meaningful afterwards.
///
/// # Errors
/// The pivot that was not positive; it is left in its place, behind a part that is factored.
pub(super) fn lower_in_place(mut a: ArrayViewMut2<'_, f64>) -> Result<(), usize> {
    let n = a.nrows();
    for start in (0..n).step_by(PANEL) {
        let trailing = a.slice_mut(s![start.., start..]);
        let width = PANEL.min(n - start);
        let (panel, trailing) = trailing.split_at(Axis(1), width);
        let (mut diagonal, mut below) = panel.split_at(Axis(0), width);
        let (_, trailing) = trailing.split_at(Axis(0), width);
        diagonal_in_place(diagonal.view_mut()).map_err(|pivot| start + pivot)?;
        let diagonal = diagonal.view();
        let chunks: Vec<_> = below.axis_chunks_iter_mut(Axis(0), ROWS_BELOW).collect();
        chunks.into_par_iter().for_each(|rows| {
            solve_lower_triangular_in_place(mat(&diagonal), mat_mut(rows.reversed_axes()), Par::Seq);
        });
        subtract_square(trailing, below.view());
    }
    Ok(())
}

fn diagonal_in_place(a: ArrayViewMut2<'_, f64>) -> Result<(), usize> {
    let scratch = cholesky_in_place_scratch::<f64>(a.nrows(), Par::Seq, Default::default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    cholesky_in_place(mat_mut(a), Default::default(), Par::Seq, stack, Default::default())
        .map(|_| ())
        .map_err(|LltError::NonPositivePivot { index }| index)
}
