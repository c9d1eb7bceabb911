//! Matrices for the tests of this crate, the same on every run.

use ndarray::{Array2, ArrayView2};

/// A small generator: numbers that look normal, from a seed.
pub(crate) struct Sample(u64);

impl Sample {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03)
    }

    /// Evenly distributed in 0..1.
    pub(crate) fn even(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// About normal: mean 0, variance 1.
    pub(crate) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.even()).sum::<f64>() - 6.0
    }

    /// `[rows, columns]` of independent numbers.
    pub(crate) fn matrix(&mut self, rows: usize, columns: usize) -> Array2<f32> {
        Array2::from_shape_simple_fn((rows, columns), || self.normal() as f32)
    }

    /// A damped second moment `[n, n]` of correlated inputs of uneven size, as layers see them.
    pub(crate) fn hessian(&mut self, n: usize) -> Array2<f64> {
        let tokens = n + n / 2 + 4;
        let scales: Vec<f64> = (0..n).map(|_| (0.7 * self.normal()).exp()).collect();
        let mut inputs = Array2::<f64>::zeros((tokens, n));
        for mut row in inputs.rows_mut() {
            let mut last = 0.0;
            for (value, scale) in row.iter_mut().zip(&scales) {
                last = 0.8 * last + self.normal();
                *value = last * scale;
            }
        }
        let mut h = inputs.t().dot(&inputs) / tokens as f64;
        let damping = 0.01 * h.diag().mean().unwrap_or(0.0);
        h.diag_mut().map_inplace(|value| *value += damping);
        h
    }
}

/// `a b` in double precision, one sum after the other.
pub(crate) fn naive_product(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Array2<f64> {
    Array2::from_shape_fn((a.nrows(), b.ncols()), |(i, j)| {
        a.row(i).iter().zip(b.column(j)).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    })
}

/// Shapes `(m, k, n)` of products that no tile divides.
pub(crate) const AWKWARD: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 7, 33),
    (1, 1000, 576),
    (2, 172, 515),
    (3, 576, 1000),
    (5, 33, 7),
    (8, 1000, 33),
    (7, 64, 2000),
    (33, 172, 576),
    (172, 33, 1),
    (576, 7, 172),
    (600, 100, 1100),
];

/// Products of numbers of size 1 with `k` terms in single precision: the error is some `unit`s, and grows with the root of the length.
pub(crate) fn assert_close(found: &Array2<f32>, expected: &Array2<f64>, unit: f64, k: usize, what: &str) {
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let tolerance = unit * (4.0 * (k as f64).sqrt() + expected.abs());
        assert!((f64::from(found) - expected).abs() <= tolerance, "{what} at {index}: {found} {expected}");
    }
}

/// What `work` returns in pools of 1, 2, 3 and 8 threads.
pub(crate) fn in_pools<T: Send>(work: impl Fn() -> T + Sync) -> Vec<T> {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    [1, 2, 3, 8].into_iter().map(|threads| pool(threads).install(&work)).collect()
}
