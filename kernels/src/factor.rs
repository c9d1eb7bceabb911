//! Factorizations of symmetric positive definite matrices, in double precision.
//!
//! The solver works with the *reversed* Cholesky factor: `H = R Rᵀ` with `R` upper triangular. It is the ordinary factor of
//! `H` with its rows and columns in reverse order, reversed back. `inv(R)` is the upper Cholesky factor of `inv(H)`, so one
//! factorization replaces the textbook chain of factor, inverse and second factor (GPTQ, arXiv 2210.17323, section 3).
//!
//! The back end is faer, or, with the feature `lapack`, LAPACK from the system's OpenBLAS: one file each, with the same
//! function. [`min_pivot_order`] is ours and needs neither.
//! Results do not depend on the number of threads: work is cut into fixed parts, and each part is computed on one thread.
//! The two back ends' results differ in their last bits.
//!
//! Not here: damping, dead inputs, and what to do when a matrix is not positive definite. Those are the caller's choices.

use ndarray::{Array2, ArrayView1};

#[cfg(feature = "lapack")]
mod lapack;
mod pivot;
#[cfg(not(feature = "lapack"))]
mod tiled;
mod trailing;

pub use pivot::min_pivot_order;

#[cfg(feature = "lapack")]
use lapack as back_end;
#[cfg(not(feature = "lapack"))]
use tiled as back_end;

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
    let failed = back_end::lower_in_place(lower.view_mut()).err();
    // Back ends look for pivots that are not positive, not for ones that are not finite.
    if let Some(pivot) = first_bad_pivot(lower.diag()).or(failed) {
        return Err(NotPositiveDefinite { pivot: n - 1 - pivot, value: lower[[pivot, pivot]] });
    }
    // In memory order the factor's transpose is upper triangular. Clear the rest, then reverse: the transpose of the
    // result is lower triangular, the result itself upper.
    let mut transposed = lower.reversed_axes();
    for (i, mut row) in transposed.rows_mut().into_iter().enumerate() {
        row.slice_mut(ndarray::s![..i]).fill(0.0);
    }
    Ok(reversed(transposed).reversed_axes())
}

/// The first entry of a factor's diagonal that cannot be one.
fn first_bad_pivot(diagonal: ArrayView1<'_, f64>) -> Option<usize> {
    diagonal.iter().position(|&pivot| pivot <= 0.0 || !pivot.is_finite())
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

#[cfg(test)]
mod tests;
