//! The ordinary Cholesky factor of a lower triangle, in place: right-looking over panels of columns.
//!
//! ```text
//! for each panel p:   L_pp L_ppᵀ = A_pp              one thread
//!                     L_ip = A_ip L_pp⁻ᵀ             chunks of rows
//!                     A_ij -= L_ip L_jpᵀ   i >= j    tiles
//! ```

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltError, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Accum, Par};
use ndarray::{ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::NotPositiveDefinite;
use crate::dense::{Tile, mat, mat_mut, tiles};

/// Columns of a panel.
const PANEL: usize = 256;
/// Rows and columns of a tile of the trailing matrix.
const TILE: usize = 512;

/// Overwrites the lower triangle of `a` `[n, n]` with `L`, `A = L Lᵀ`. What lies above the diagonal is neither read nor
/// meaningful afterwards.
pub(super) fn lower_in_place(mut a: ArrayViewMut2<'_, f64>) -> Result<(), NotPositiveDefinite> {
    let n = a.nrows();
    for start in (0..n).step_by(PANEL) {
        let trailing = a.slice_mut(s![start.., start..]);
        let width = PANEL.min(n - start);
        let (panel, trailing) = trailing.split_at(Axis(1), width);
        let (mut diagonal, mut below) = panel.split_at(Axis(0), width);
        let (_, trailing) = trailing.split_at(Axis(0), width);
        diagonal_in_place(diagonal.view_mut())
            .map_err(|error| NotPositiveDefinite { pivot: start + error.pivot, ..error })?;
        let diagonal = diagonal.view();
        let chunks: Vec<_> = below.axis_chunks_iter_mut(Axis(0), TILE).collect();
        chunks.into_par_iter().for_each(|rows| {
            solve_lower_triangular_in_place(mat(&diagonal), mat_mut(rows.reversed_axes()), Par::Seq);
        });
        subtract_square(trailing, below.view());
    }
    Ok(())
}

/// Subtracts `l lᵀ` from the lower triangle of `a`: `a` `[m, m]`, `l` `[m, k]`.
pub(super) fn subtract_square(a: ArrayViewMut2<'_, f64>, l: ndarray::ArrayView2<'_, f64>) {
    let lower = tiles(a, TILE, TILE).into_par_iter().filter(|tile| tile.row >= tile.column);
    lower.for_each(|Tile { row, column, view }| {
        let left = l.slice(s![row..row + view.nrows(), ..]);
        let right = l.slice(s![column..column + view.ncols(), ..]).reversed_axes();
        let (left, right) = (mat(&left), mat(&right));
        if row == column {
            let whole = BlockStructure::Rectangular;
            let triangle = BlockStructure::TriangularLower;
            let view = mat_mut(view);
            triangular::matmul(view, triangle, Accum::Add, left, whole, right, whole, -1.0, Par::Seq);
        } else {
            matmul(mat_mut(view), Accum::Add, left, right, -1.0, Par::Seq);
        }
    });
}

fn diagonal_in_place(mut a: ArrayViewMut2<'_, f64>) -> Result<(), NotPositiveDefinite> {
    let scratch = cholesky_in_place_scratch::<f64>(a.nrows(), Par::Seq, Default::default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    let result =
        cholesky_in_place(mat_mut(a.view_mut()), Default::default(), Par::Seq, stack, Default::default());
    match result {
        Ok(_) => Ok(()),
        // The factorization leaves the pivot it refused in its place.
        Err(LltError::NonPositivePivot { index }) => {
            Err(NotPositiveDefinite { pivot: index, value: a[[index, index]] })
        }
    }
}
