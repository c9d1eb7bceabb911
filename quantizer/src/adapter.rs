//! Low-rank recovery: the best correction of a solution that two thin matrices can hold.
//!
//! A solution leaves `E = T - Q`, the target less the grid's values, `[m, n]`. An adapter adds `B A`, `B` `[m, r]` and `A` `[r, n]`, to the
//! output of a linear that stays as it is. In the metric of the layer-wise problem, with `H + λI = R Rᵀ`, the best one minimizes
//!
//! ```text
//! tr((E - B A)(H + λI)(E - B A)ᵀ) = ‖E R - B A R‖²
//! ```
//!
//! which by Eckart and Young (1936) is solved by the truncated singular value decomposition of `E R = U S Vᵀ`: `B A = U_r S_r V_rᵀ R⁻¹` (LQER,
//! arXiv 2402.02446, with a diagonal metric; QERA, arXiv 2410.06040, theorem 1, with this one). Since `S_r V_rᵀ = U_rᵀ E R`, that is
//! `B = U_r`, `A = U_rᵀ E`: no inverse is needed, and `U_r` are the leading eigenvectors of `E (H + λI) Eᵀ`. Of a matrix with more rows than
//! columns we take those of `Rᵀ Eᵀ E R` instead, and `U_r` is their image.
//!
//! Not here: the type that adapters are stored in.

use ndarray::{Array2, ArrayView2, Axis, s};

use kernels::eigen::leading_eigenvectors;
use kernels::product::{gram, product_nn, product_tn};

use crate::loss::whitened;
use crate::prepared::PreparedHessian;

/// A correction `B A`.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// `A`, `[rank, in_features]`.
    pub down: Array2<f32>,
    /// `B`, `[out_features, rank]`.
    pub up: Array2<f32>,
}

impl Adapter {
    /// `B A`, `[out_features, in_features]`.
    #[must_use]
    pub fn product(&self) -> Array2<f32> {
        let mut product = Array2::zeros((self.up.nrows(), self.down.ncols()));
        product_nn(self.up.view(), self.down.view(), product.view_mut());
        product
    }
}

/// The best correction of `errors`, `[out_features, in_features]`, of rank `rank`; without a Hessian in the metric `H = I`.
///
/// # Errors
/// A rank of 0 or above the smaller side, errors that are not finite.
pub fn best_adapter(
    errors: ArrayView2<'_, f32>,
    hessian: Option<&PreparedHessian>,
    rank: usize,
) -> Result<Adapter, AdapterError> {
    let (rows, columns) = errors.dim();
    let most = rows.min(columns);
    if rank == 0 || rank > most {
        return Err(AdapterError::Rank { found: rank, most });
    }
    let whitened = whitened(errors, hessian);
    // The smaller gram matrix.
    let tall = rows > columns;
    let side = if tall { whitened.view() } else { whitened.t() };
    let mut moment = Array2::<f32>::zeros((most, most));
    gram(side, moment.view_mut());
    let moment = moment.mapv(f64::from);
    let vectors = leading_eigenvectors(moment.view(), rank).ok_or(AdapterError::NotFinite)?;
    let vectors = vectors.mapv(|x| x as f32);
    let up = if tall { image(whitened.view(), vectors.view()) } else { vectors };
    let mut down = Array2::zeros((rank, columns));
    product_tn(up.view(), errors, down.view_mut());
    Ok(Adapter { down, up })
}

/// `M V` with columns of length 1; a column that vanishes stays 0.
fn image(matrix: ArrayView2<'_, f32>, vectors: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut image = Array2::zeros((matrix.nrows(), vectors.ncols()));
    product_nn(matrix, vectors, image.view_mut());
    for k in 0..image.ncols() {
        // Images of eigenvectors are orthogonal; what rounding left of the earlier ones goes.
        for earlier in 0..k {
            let (done, mut column) = image.multi_slice_mut((s![.., earlier], s![.., k]));
            let share = inner(done.view(), column.view());
            column.zip_mut_with(&done, |x, &y| *x -= (share * f64::from(y)) as f32);
        }
        let mut column = image.index_axis_mut(Axis(1), k);
        let norm = inner(column.view(), column.view()).sqrt();
        column.mapv_inplace(|x| if norm > 0.0 { (f64::from(x) / norm) as f32 } else { 0.0 });
    }
    image
}

fn inner(a: ndarray::ArrayView1<'_, f32>, b: ndarray::ArrayView1<'_, f32>) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// An adapter that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// No rank, or more than the matrix has.
    #[error("the rank is {found}, expected 1 to {most}, the smaller side of the weight")]
    Rank {
        /// What was asked for.
        found: usize,
        /// The smaller side.
        most: usize,
    },
    /// Errors that no decomposition exists of.
    #[error("the errors have no singular value decomposition, as where one is not finite")]
    NotFinite,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hessian::Hessian;
    use crate::loss::damped_losses;
    use crate::settings::SolverSettings;

    fn noise(shape: (usize, usize), seed: u64) -> Array2<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Array2::from_shape_fn(shape, |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
    }

    fn prepared(columns: usize) -> PreparedHessian {
        let x = noise((4 * columns, columns), 7).mapv(f64::from);
        let scale = Array2::from_shape_fn((1, columns), |(_, j)| 1.0 + (j % 5) as f64 * 2.0);
        let x = &x * &scale + x.slice(s![.., ..1]);
        let hessian = Hessian::from_lower(x.t().dot(&x), 1).unwrap();
        hessian.prepare(&SolverSettings { alpha: 0.0, beta: 0.0, ..SolverSettings::default() }, None).unwrap()
    }

    fn loss(errors: &Array2<f32>, hessian: Option<&PreparedHessian>) -> f64 {
        damped_losses(errors.view(), hessian).iter().sum()
    }

    #[test]
    fn what_is_left_is_the_tail_of_the_spectrum_whatever_the_shape() {
        for shape in [(24, 40), (40, 24), (16, 16)] {
            let hessian = prepared(shape.1);
            for hessian in [Some(&hessian), None] {
                let errors = noise(shape, 3);
                let whitened = whitened(errors.view(), hessian).mapv(f64::from);
                let moment = whitened.dot(&whitened.t());
                let vectors = leading_eigenvectors(moment.view(), shape.0).unwrap();
                let values = vectors.t().dot(&moment).dot(&vectors).diag().to_vec();
                for rank in [1, 4, 16] {
                    let adapter = best_adapter(errors.view(), hessian, rank).unwrap();
                    assert_eq!((adapter.up.dim(), adapter.down.dim()), ((shape.0, rank), (rank, shape.1)));
                    let left = loss(&(&errors - &adapter.product()), hessian);
                    let tail: f64 = values[rank..].iter().sum();
                    let whole: f64 = values.iter().sum();
                    assert!((left - tail).abs() < 1e-4 * whole, "{shape:?} {rank}: {left} and {tail}");
                }
            }
        }
    }

    #[test]
    fn no_other_correction_of_the_rank_is_better() {
        let (errors, hessian) = (noise((20, 32), 11), prepared(32));
        let best = best_adapter(errors.view(), Some(&hessian), 3).unwrap();
        let least = loss(&(&errors - &best.product()), Some(&hessian));
        for seed in 0..50 {
            let other = Adapter {
                down: &best.down + &(noise(best.down.dim(), seed) * 0.05),
                up: &best.up + &(noise(best.up.dim(), seed + 100) * 0.02),
            };
            assert!(loss(&(&errors - &other.product()), Some(&hessian)) > least);
        }
        // Ignoring the metric is worse.
        let plain = best_adapter(errors.view(), None, 3).unwrap();
        assert!(loss(&(&errors - &plain.product()), Some(&hessian)) > least);
    }

    #[test]
    fn a_rank_that_cannot_be_and_errors_that_are_no_numbers_are_refused() {
        let errors = noise((4, 8), 1);
        assert_eq!(best_adapter(errors.view(), None, 5), Err(AdapterError::Rank { found: 5, most: 4 }));
        assert!(best_adapter(errors.view(), None, 0).is_err());
        let none = Array2::from_elem((4, 8), f32::NAN);
        assert_eq!(best_adapter(none.view(), None, 1), Err(AdapterError::NotFinite));
        let zero = best_adapter(Array2::zeros((9, 4)).view(), None, 2).unwrap();
        assert!(zero.product().iter().all(|&x| x == 0.0));
    }
}
