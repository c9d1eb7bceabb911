//! The back end of the feature `lapack`: `dpotrf` of the system's OpenBLAS, through ndarray-linalg.
//!
//! OpenBLAS cuts a factorization by its number of threads, which moves the last bits of the result. So each of its calls
//! is told to stay on one thread.

use std::ffi::c_int;

use ndarray::ArrayViewMut2;
use ndarray_linalg::{Lapack, MatrixLayout, UPLO};

use super::first_bad_pivot;

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
