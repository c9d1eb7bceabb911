//! What is left of a matrix once some of its columns are eliminated.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Par};
use ndarray::{ArrayView2, ArrayViewMut2, s};
use rayon::prelude::*;

use crate::dense::{Tile, mat, mat_mut, tiles};

/// Rows and columns of a tile.
const TILE: usize = 512;

/// Subtracts `l lᵀ` from the lower triangle of `a`: `a` `[m, m]`, `l` `[m, k]`.
pub(super) fn subtract_square(a: ArrayViewMut2<'_, f64>, l: ArrayView2<'_, f64>) {
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
