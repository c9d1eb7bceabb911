//! In which order a solver visits the columns.
//!
//! Scales are static (chosen from the original columns, each column keeps its group), so any order may be used inside the solver and
//! codes still come back in natural order: no file needs a `g_idx`.

use ndarray::ArrayView2;
use serde::{Deserialize, Serialize};

/// How the processing order is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// As stored.
    Natural,
    /// Largest mean square activation first (`act-order` of GPTQ, arXiv 2210.17323).
    #[default]
    Activation,
    /// From the back: the last column is the one with the least variance given those before it, then its Schur complement, and so on
    /// (arXiv 2507.18553). Costs another factorization.
    Pivot,
}

/// A processing order: position -> column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permutation(Vec<usize>);

impl Permutation {
    /// The order of `columns` columns as stored.
    #[must_use]
    pub fn natural(columns: usize) -> Self {
        Self((0..columns).collect())
    }

    /// The columns with the largest entries first; of equal ones the lowest.
    #[must_use]
    pub fn descending(diagonal: &[f64]) -> Self {
        let mut columns: Vec<usize> = (0..diagonal.len()).collect();
        columns.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
        Self(columns)
    }

    /// [`Order::Pivot`]'s, for a damped Hessian `[n, n]`, symmetric.
    #[must_use]
    pub fn least_pivots(hessian: ArrayView2<'_, f64>) -> Self {
        Self(kernels::factor::min_pivot_order(hessian))
    }

    /// The column at each position.
    #[must_use]
    pub fn columns(&self) -> &[usize] {
        &self.0
    }

    /// Whether every column is at its own position.
    #[must_use]
    pub fn is_natural(&self) -> bool {
        self.0.iter().enumerate().all(|(position, &column)| position == column)
    }

    /// The position of each column.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let mut positions = vec![0; self.0.len()];
        for (position, &column) in self.0.iter().enumerate() {
            positions[column] = position;
        }
        Self(positions)
    }

    /// Copies `from[self[k]]` to `to[k]`.
    ///
    /// # Panics
    /// If a slice is shorter than the permutation.
    pub fn gather<T: Copy>(&self, from: &[T], to: &mut [T]) {
        for (value, &column) in to.iter_mut().zip(&self.0) {
            *value = from[column];
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn activation_order_is_descending_and_stable() {
        let hessian = ndarray::Array2::from_diag(&array![1.0, 3.0, 3.0, 2.0]);
        assert_eq!(Permutation::descending(&hessian.diag().to_vec()).columns(), [1, 2, 3, 0]);
        assert!(Permutation::natural(4).is_natural());
    }

    #[test]
    fn pivot_order_ends_with_the_least_variance() {
        let hessian = array![[4.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]];
        assert_eq!(Permutation::least_pivots(hessian.view()).columns(), [0, 2, 1]);
    }

    #[test]
    fn the_inverse_undoes_the_order() {
        let order = Permutation(vec![2, 0, 3, 1]);
        let (mut there, mut back) = ([0; 4], [0; 4]);
        order.gather(&[10, 11, 12, 13], &mut there);
        order.inverse().gather(&there, &mut back);
        assert_eq!(there, [12, 10, 13, 11]);
        assert_eq!(back, [10, 11, 12, 13]);
    }
}
