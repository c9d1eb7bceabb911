//! Factorizations of symmetric positive definite matrices, in double precision.
//!
//! The solver works with the *reversed* Cholesky factor: `H = R Rᵀ` with `R` upper triangular. It is the ordinary factor of
//! `H` with its rows and columns in reverse order, reversed back. `inv(R)` is the upper Cholesky factor of `inv(H)`, so one
//! factorization replaces the textbook chain of factor, inverse and second factor (GPTQ, arXiv 2210.17323, section 3).
//!
//! The back end is faer.
//! Results do not depend on the number of threads: work is cut into fixed tiles, and each tile is computed on one thread.
//!
//! Not here: damping, dead inputs, and what to do when a matrix is not positive definite. Those are the caller's choices.

use faer::{MatRef, Par};
use ndarray::{Array2, Axis};
use rayon::prelude::*;

use crate::dense::{mat, mat_mut};

mod cholesky;
mod pivot;

pub use pivot::min_pivot_order;

/// A matrix that has no Cholesky factor.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("not positive definite: what is left of column {pivot} after the columns behind it is {value:e}")]
pub struct NotPositiveDefinite {
    /// The column of `H` whose pivot failed. Columns are eliminated from the last to the first.
    pub pivot: usize,
    /// The pivot, which should have been positive and finite.
    pub value: f64,
}

/// The upper triangular `R` `[n, n]` with `H = R Rᵀ`.
///
/// Only the lower triangle of `h` `[n, n]` is read, and its memory is reused. The columns of the result are contiguous in
/// memory (ndarray's `F` order): column `k` says how the errors of columns `0..k` feed into column `k`.
///
/// # Errors
/// [`NotPositiveDefinite`] with the first pivot, counted from the last column, that is not positive and finite.
///
/// # Panics
/// When `h` is not square.
pub fn cholesky_upper(h: Array2<f64>) -> Result<Array2<f64>, NotPositiveDefinite> {
    let n = h.nrows();
    assert_eq!(h.ncols(), n, "a Cholesky factor of a matrix {:?}", h.dim());
    let mut lower = reversed(h).reversed_axes();
    cholesky::lower_in_place(lower.view_mut())
        .map_err(|error| NotPositiveDefinite { pivot: n - 1 - error.pivot, ..error })?;
    // In memory order the factor's transpose is upper triangular. Clear the rest, then reverse: the transpose of the
    // result is lower triangular, the result itself upper.
    let mut transposed = lower.reversed_axes();
    for (i, mut row) in transposed.rows_mut().into_iter().enumerate() {
        row.slice_mut(ndarray::s![..i]).fill(0.0);
    }
    Ok(reversed(transposed).reversed_axes())
}

/// `h` in standard layout with its rows and its columns in reverse order: its flat buffer reversed.
fn reversed(h: Array2<f64>) -> Array2<f64> {
    let dim = h.dim();
    let h = if h.is_standard_layout() { h } else { h.as_standard_layout().into_owned() };
    let length = h.len();
    let (mut buffer, first) = h.into_raw_vec_and_offset();
    buffer.drain(..first.unwrap_or(0));
    buffer.truncate(length);
    buffer.reverse();
    Array2::from_shape_vec(dim, buffer).expect("a standard layout has one number after the other")
}

/// `B (R Rᵀ)⁻¹` for an upper triangular `r` `[n, n]` and `b` `[m, n]`: a right-hand solve with the matrix that `r` factors.
///
/// The strict lower triangle of `r` is not read. The result has the memory of `b`.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn solve_right(r: &Array2<f64>, mut b: Array2<f64>) -> Array2<f64> {
    /// Rows of `b` that one thread solves at once.
    const ROWS: usize = 256;
    let n = r.nrows();
    assert_eq!(r.ncols(), n, "a triangular factor {:?}", r.dim());
    assert_eq!(b.ncols(), n, "columns of a right-hand side for a factor [{n}, {n}]");
    let r: MatRef<'_, f64> = mat(&r.view());
    let chunks: Vec<_> = b.axis_chunks_iter_mut(Axis(0), ROWS).collect();
    chunks.into_par_iter().for_each(|rows| {
        // X R Rᵀ = B, transposed: R (Rᵀ Xᵀ) = Bᵀ.
        let mut columns = mat_mut(rows.reversed_axes());
        faer::linalg::triangular_solve::solve_upper_triangular_in_place(r, columns.as_mut(), Par::Seq);
        faer::linalg::triangular_solve::solve_lower_triangular_in_place(r.transpose(), columns, Par::Seq);
    });
    b
}

#[cfg(test)]
mod tests;
