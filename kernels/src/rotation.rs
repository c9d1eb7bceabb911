//! Random orthogonal matrices that are cheap to apply, in double precision.
//!
//! `R = D (M ⊗ W)`: random signs `D`, a small orthogonal `M` `[m, m]`, and the Walsh-Hadamard matrix `W` of order `n / m`, a power of two.
//! A row of `n` numbers takes `n (m + log2(n / m))` operations, and `R` itself is never built (QuIP#, arXiv 2402.04396, section 3.1;
//! QuaRot, arXiv 2404.00456, section 3.1).
//!
//! `M` is a Hadamard matrix of the smallest order that the quadratic residues of a prime give (Paley 1933): order `q + 1` where
//! `q mod 4 = 3`, order `2 (q + 1)` where `q mod 4 = 1`. With them 576 = 36 · 16, 768 = 12 · 64, 896 = 28 · 32, 5120 = 20 · 256. Where there is
//! none of at most `MOST_MIXED` rows, `M` is a random orthogonal matrix of the odd part: the `Q` of a QR factorization of a matrix of
//! independent normal numbers, made directly of its reflections (Stewart 1980, SIAM J. Numer. Anal. 17).

use ndarray::{Array2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use crate::random::SplitMix;

/// Rows of the largest Hadamard matrix that is tried for `M`.
const MOST_MIXED: usize = 512;

/// A random orthogonal matrix `R` `[size, size]`.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// The diagonal of `D`.
    signs: Vec<f64>,
    /// `M`, with the factor that makes `W` orthogonal.
    mixer: Array2<f64>,
    /// Order of `W`.
    run: usize,
}

impl Rotation {
    /// The rotation that `seed` gives; the same on every machine.
    ///
    /// # Panics
    /// When `size` is zero.
    #[must_use]
    pub fn random(size: usize, seed: u64) -> Self {
        assert!(size > 0, "a rotation of nothing");
        let mut random = SplitMix::new(seed);
        let signs = (0..size).map(|_| if random.bits() >> 63 == 0 { 1.0 } else { -1.0 }).collect();
        let odd = size >> size.trailing_zeros();
        let orders = (0..=size.trailing_zeros()).map(|doublings| odd << doublings);
        let mut mixer = orders
            .take_while(|&order| order <= MOST_MIXED)
            .find_map(hadamard)
            .unwrap_or_else(|| random_orthogonal(odd, &mut random));
        let run = size / mixer.nrows();
        mixer /= (run as f64).sqrt();
        Self { signs, mixer, run }
    }

    /// Extent of the matrix.
    #[must_use]
    pub fn size(&self) -> usize {
        self.signs.len()
    }

    /// `rows R`, in place; `rows` is `[any, size]`, each row contiguous in memory.
    ///
    /// # Panics
    /// When the rows are not of this size, or not contiguous.
    pub fn rotate_rows(&self, mut rows: ArrayViewMut2<'_, f64>) {
        assert_eq!(rows.ncols(), self.size(), "columns of what is rotated");
        rows.axis_iter_mut(Axis(0)).into_par_iter().for_each_init(
            || vec![0.0; self.size()],
            |mixed, mut row| self.rotate(row.as_slice_mut().expect("rows are contiguous"), mixed),
        );
    }

    /// `Rᵀ columns`, in place; `columns` is `[size, any]`.
    ///
    /// # Panics
    /// When the columns are not of this size.
    pub fn rotate_columns(&self, mut columns: ArrayViewMut2<'_, f64>) {
        let mut turned = columns.t().as_standard_layout().into_owned();
        self.rotate_rows(turned.view_mut());
        columns.assign(&turned.t());
    }

    fn rotate(&self, row: &mut [f64], mixed: &mut [f64]) {
        for (value, sign) in row.iter_mut().zip(&self.signs) {
            *value *= sign;
        }
        row.chunks_exact_mut(self.run).for_each(walsh_hadamard);
        if self.mixer.nrows() == 1 {
            row.iter_mut().for_each(|value| *value *= self.mixer[[0, 0]]);
            return;
        }
        mixed.fill(0.0);
        for (part, factors) in row.chunks_exact(self.run).zip(self.mixer.rows()) {
            for (mixed, &factor) in mixed.chunks_exact_mut(self.run).zip(factors) {
                for (mixed, value) in mixed.iter_mut().zip(part) {
                    *mixed += factor * value;
                }
            }
        }
        row.copy_from_slice(mixed);
    }
}

/// Multiplies by the Walsh-Hadamard matrix, not normalized.
fn walsh_hadamard(values: &mut [f64]) {
    let mut half = 1;
    while half < values.len() {
        for pair in values.chunks_exact_mut(2 * half) {
            let (first, second) = pair.split_at_mut(half);
            for (a, b) in first.iter_mut().zip(second) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// A Hadamard matrix over the square root of its order, where Paley's constructions give one.
fn hadamard(order: usize) -> Option<Array2<f64>> {
    let matrix = if order == 1 {
        Array2::ones((1, 1))
    } else if order.is_multiple_of(4) && is_prime(order - 1) {
        // q = order - 1 is 3 mod 4, and its residues make a skew matrix S with S Sᵀ = q I.
        bordered_residues(order - 1, -1.0) + Array2::<f64>::eye(order)
    } else if order.is_multiple_of(4) && is_prime(order / 2 - 1) && (order / 2 - 1) % 4 == 1 {
        let conference = bordered_residues(order / 2 - 1, 1.0);
        Array2::from_shape_fn((order, order), |(i, j)| {
            let (row, column) = (i / 2, j / 2);
            match (row == column, i % 2, j % 2) {
                (true, 0, 0) => 1.0,
                (true, ..) => -1.0,
                (false, 1, 1) => -conference[[row, column]],
                (false, ..) => conference[[row, column]],
            }
        })
    } else {
        return None;
    };
    Some(matrix / (order as f64).sqrt())
}

/// The matrix `[q + 1, q + 1]` of zero diagonal whose core is the quadratic character of `i - j` modulo the prime `q`, bordered by ones above
/// and by `left` at the left.
fn bordered_residues(q: usize, left: f64) -> Array2<f64> {
    let mut character = vec![-1.0; q];
    character[0] = 0.0;
    for root in 1..q {
        character[root * root % q] = 1.0;
    }
    Array2::from_shape_fn((q + 1, q + 1), |place| match place {
        (0, 0) => 0.0,
        (0, _) => 1.0,
        (_, 0) => left,
        (i, j) => character[(q + i - j) % q],
    })
}

fn is_prime(number: usize) -> bool {
    number >= 2 && (2..).take_while(|d| d * d <= number).all(|d| !number.is_multiple_of(d))
}

/// A product of reflections at independent normal vectors of growing length.
fn random_orthogonal(size: usize, random: &mut SplitMix) -> Array2<f64> {
    let mut q = Array2::eye(size);
    for first in (0..size.saturating_sub(1)).rev() {
        let normal: Vec<f64> = (first..size).map(|_| random.normal()).collect();
        let length = normal.iter().map(|x| x * x).sum::<f64>().sqrt();
        let mut axis = ndarray::Array1::from(normal);
        // The reflection that takes the vector to the first axis, away from cancellation.
        axis[0] += length.copysign(axis[0]);
        let square = axis.dot(&axis);
        let mut below = q.slice_mut(s![first.., first..]);
        let shares = axis.dot(&below);
        below
            .axis_iter_mut(Axis(0))
            .into_par_iter()
            .zip(axis.as_slice().expect("it is contiguous"))
            .for_each(|(mut row, &along)| row.scaled_add(-2.0 * along / square, &shares));
    }
    q
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(size: usize, seed: u64) -> Array2<f64> {
        let mut identity = Array2::eye(size);
        Rotation::random(size, seed).rotate_rows(identity.view_mut());
        identity
    }

    #[test]
    fn every_size_gives_an_orthogonal_matrix() {
        for size in [1, 2, 3, 7, 8, 12, 14, 20, 24, 28, 36, 48, 52, 64, 76, 92, 96, 130, 576, 896] {
            let r = matrix(size, 5);
            let worst =
                (r.dot(&r.t()) - Array2::<f64>::eye(size)).iter().fold(0.0_f64, |w, x| w.max(x.abs()));
            assert!(worst < 1e-13, "{size}: {worst:e}");
        }
    }

    #[test]
    fn sizes_with_a_hadamard_order_spread_a_feature_evenly_over_all() {
        for size in [1, 2, 4, 12, 20, 28, 36, 60, 256, 576, 768, 896, 1536, 2560] {
            let mut row = Array2::<f64>::zeros((1, size));
            row[[0, size / 3]] = 1.0;
            Rotation::random(size, 1).rotate_rows(row.view_mut());
            let even = 1.0 / (size as f64).sqrt();
            assert!(row.iter().all(|x| (x.abs() - even).abs() < 1e-14), "{size}");
        }
    }

    #[test]
    fn columns_are_turned_by_the_transpose_and_seeds_differ() {
        let r = matrix(24, 3);
        let columns = Array2::from_shape_fn((24, 5), |(i, j)| ((i * 5 + j) as f64 * 0.37).sin());
        let mut turned = columns.clone();
        Rotation::random(24, 3).rotate_columns(turned.view_mut());
        assert!((turned - r.t().dot(&columns)).iter().all(|x| x.abs() < 1e-14));
        assert_ne!(r, matrix(24, 4));
        assert_eq!(r, matrix(24, 3));
    }
}
