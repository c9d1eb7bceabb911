//! Eigenvectors of symmetric matrices, in double precision, by faer.
//!
//! On one thread, so that results do not depend on how many there are; whoever has many matrices works on several at once.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{Mat, Par};
use ndarray::{Array2, ArrayView2};

use crate::dense::mat;

/// The eigenvectors of the `count` largest eigenvalues of `symmetric` `[n, n]`, whose lower triangle is read, as columns `[n, count]`, the
/// largest first. None where there are none, as for entries that are not finite.
///
/// # Panics
/// When the matrix is not square, or smaller than `count`.
#[must_use]
pub fn leading_eigenvectors(symmetric: ArrayView2<'_, f64>, count: usize) -> Option<Array2<f64>> {
    let n = symmetric.nrows();
    assert_eq!(symmetric.ncols(), n, "eigenvectors of a matrix {:?}", symmetric.dim());
    assert!(count <= n, "{count} eigenvectors of a matrix [{n}, {n}]");
    let mut values = Diag::<f64>::zeros(n);
    let mut vectors = Mat::<f64>::zeros(n, n);
    let scratch = self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, Default::default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    let matrix = mat(&symmetric);
    self_adjoint_evd(matrix, values.as_mut(), Some(vectors.as_mut()), Par::Seq, stack, Default::default())
        .ok()?;
    // Values ascend. From entries that are not finite come vectors that are not either.
    let leading = Array2::from_shape_fn((n, count), |(row, k)| vectors[(row, n - 1 - k)]);
    leading.iter().all(|x| x.is_finite()).then_some(leading)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_orthonormal_and_carry_the_largest_values() {
        let n = 40;
        let noise = Array2::from_shape_fn((n, n), |(i, j)| ((i * 31 + j * 17) as f64 * 0.7).sin());
        let matrix = noise.dot(&noise.t());
        let vectors = leading_eigenvectors(matrix.view(), 5).unwrap();
        let gram = vectors.t().dot(&vectors);
        assert!((gram - Array2::<f64>::eye(5)).iter().all(|x| x.abs() < 1e-10));
        let rayleigh = vectors.t().dot(&matrix).dot(&vectors);
        let values: Vec<f64> = rayleigh.diag().to_vec();
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1] - 1e-9), "{values:?}");
        let residual = matrix.dot(&vectors) - vectors.dot(&rayleigh);
        assert!(residual.iter().all(|x| x.abs() < 1e-8 * values[0]));
        assert!(leading_eigenvectors(Array2::from_elem((3, 3), f64::NAN).view(), 1).is_none());
    }
}
