//! The back end of the feature `lapack`: `dpotrf` and `dtrtrs` of the system's OpenBLAS, through ndarray-linalg.
//!
//! OpenBLAS cuts a factorization by its number of threads, which moves the last bits of the result. So each of its calls
//! is told to stay on one thread; right-hand sides are solved in chunks of rows, spread over rayon's pool.

use std::ffi::c_int;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, CowArray, Ix2, ShapeBuilder};
use ndarray_linalg::{Diag, Lapack, MatrixLayout, UPLO};
use rayon::prelude::*;

use super::first_bad_pivot;

/// Rows of a right-hand side that one thread solves at once.
const ROWS: usize = 256;

unsafe extern "C" {
    /// OpenBLAS's own, beside the interface of LAPACK.
    fn openblas_set_num_threads(threads: c_int);
}

/// As the default back end's: overwrites the lower triangle of `a` `[n, n]` with `L`, `A = L Lᵀ`.
///
/// # Errors
/// The pivot that was not positive; it is left in its place, behind a part that is factored.
///
/// # Panics
/// When the columns of `a` are not contiguous.
pub(super) fn lower_in_place(mut a: ArrayViewMut2<'_, f64>) -> Result<(), usize> {
    // LAPACK refuses a leading dimension of 0.
    if a.is_empty() {
        return Ok(());
    }
    let layout = columns_of(a.nrows(), a.ncols());
    let mut transposed = a.view_mut().reversed_axes();
    let columns = transposed.as_slice_mut().expect("the columns are contiguous");
    one_thread();
    match f64::cholesky(layout, UPLO::Lower, columns) {
        Ok(()) => Ok(()),
        // ndarray-linalg keeps the number in a type that it does not export; the matrix says the same.
        Err(_) => Err(first_bad_pivot(a.diag()).unwrap_or(0)),
    }
}

/// As the default back end's: overwrites `b` `[m, n]` with `B (R Rᵀ)⁻¹`, `r` `[n, n]` upper triangular.
///
/// A factor with a zero on its diagonal has no solution to give: the result is then not a number.
pub(super) fn solve_right_in_place(r: ArrayView2<'_, f64>, mut b: ArrayViewMut2<'_, f64>) {
    let n = r.nrows();
    if n == 0 {
        return;
    }
    // ndarray-linalg knows no transposed solve, so one of the two triangles is a copy.
    let (upper, lower) = (columns_contiguous(r), columns_contiguous(r.reversed_axes()));
    let (upper, lower) = (upper.as_slice_memory_order(), lower.as_slice_memory_order());
    let (upper, lower) = upper.zip(lower).expect("the columns are contiguous");
    let factor = columns_of(n, n);
    let chunks: Vec<_> = b.axis_chunks_iter_mut(Axis(0), ROWS).collect();
    chunks.into_par_iter().for_each(|mut rows| {
        // X R Rᵀ = B, transposed: R (Rᵀ Xᵀ) = Bᵀ. The rows of B are the columns of Bᵀ.
        let mut solved = rows.as_standard_layout().into_owned();
        let right = columns_of(n, rows.nrows());
        let columns = solved.as_slice_mut().expect("an array of its own in standard layout");
        one_thread();
        let result = f64::solve_triangular(factor, right, UPLO::Upper, Diag::NonUnit, upper, columns)
            .and_then(|()| f64::solve_triangular(factor, right, UPLO::Lower, Diag::NonUnit, lower, columns));
        match result {
            Ok(()) => rows.assign(&solved),
            Err(_) => rows.fill(f64::NAN),
        }
    });
}

/// Tells OpenBLAS to compute what this thread asks for on this thread. Before every call: a build on OpenMP remembers it
/// for each thread, the others for all, and either way it costs next to nothing.
fn one_thread() {
    // SAFETY: the signature is that of OpenBLAS's header; it may be called at any time and from any thread, and what it
    // does to calls in flight elsewhere is what they asked for themselves.
    unsafe { openblas_set_num_threads(1) }
}

/// `[rows, columns]`, one column after the other.
fn columns_of(rows: usize, columns: usize) -> MatrixLayout {
    let size = |count: usize| c_int::try_from(count).expect("LAPACK counts in 32 bits");
    MatrixLayout::F { col: size(columns), lda: size(rows) }
}

/// `matrix`, copied only where its columns are not contiguous already.
fn columns_contiguous(matrix: ArrayView2<'_, f64>) -> CowArray<'_, f64, Ix2> {
    if matrix.t().is_standard_layout() {
        return matrix.into();
    }
    let mut copy = Array2::zeros(matrix.dim().f());
    copy.assign(&matrix);
    copy.into()
}
