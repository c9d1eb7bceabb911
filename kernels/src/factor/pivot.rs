//! The processing order that leaves the least error behind: pivoted Cholesky with minimum pivots.

use faer::linalg::matmul::matmul;
use faer::{Accum, Par};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, ShapeBuilder, s};

use super::trailing::subtract_square;
use crate::dense::{Tile, mat, mat_mut, tiles};

/// Columns whose effect on the trailing matrix is applied at once.
const PANEL: usize = 128;

/// The order in which to process columns: `order[k]` is the column of `h` that comes `k`-th.
///
/// With `H = R Rᵀ` the rounding loss of column `k` weighs `R_kk²`, and `R_nn² = H_nn`, so the order is chosen from the back:
/// the last column is the one with the least diagonal entry, its Schur complement takes the place of `H`, and so on
/// (arXiv 2507.18553, "GPTQ as Babai's algorithm"). Of equal pivots the lowest column is taken first, that is, it is processed last.
///
/// Only the lower triangle of `h` `[n, n]` is read. Where `h` is not positive definite the remaining order is still a
/// permutation, but means nothing. Cost: `n³/3` multiply-adds.
///
/// # Panics
/// When `h` is not square.
pub fn min_pivot_order(h: ArrayView2<'_, f64>) -> Vec<usize> {
    let n = h.nrows();
    assert_eq!(h.ncols(), n, "an order for a matrix {:?}", h.dim());
    let mut state =
        Elimination { lower: columns_contiguous(h), pivots: h.diag().to_vec(), columns: (0..n).collect() };
    for start in (0..n).step_by(PANEL) {
        let end = n.min(start + PANEL);
        for k in start..end {
            state.exchange(start, k, state.least_pivot(k));
            state.eliminate(start, k);
        }
        let (done, trailing) = state.lower.view_mut().split_at(Axis(1), end);
        let (_, trailing) = trailing.split_at(Axis(0), end);
        subtract_square(trailing, done.slice(s![end.., start..]));
    }
    state.columns.reverse();
    state.columns
}

/// A factorization half done: columns `0..k` eliminated, the rest a Schur complement. Within a panel the columns still to
/// come have not seen the panel's own columns; `pivots` has.
struct Elimination {
    /// `[n, n]`, lower triangle.
    lower: Array2<f64>,
    /// The diagonal of the current Schur complement.
    pivots: Vec<f64>,
    /// The original column at each position.
    columns: Vec<usize>,
}

impl Elimination {
    /// The position from `k` on with the least pivot; of equal ones that of the lowest original column.
    fn least_pivot(&self, k: usize) -> usize {
        let key = |&i: &usize| (self.pivots[i], self.columns[i]);
        let least = |a: &usize, b: &usize| {
            let ((a, i), (b, j)) = (key(a), key(b));
            a.total_cmp(&b).then(i.cmp(&j))
        };
        (k..self.columns.len()).min_by(least).unwrap_or(k)
    }

    /// Exchanges positions `i <= j`, symmetrically. Of the eliminated columns only those from `start` on are kept right.
    fn exchange(&mut self, start: usize, i: usize, j: usize) {
        if i == j {
            return;
        }
        self.pivots.swap(i, j);
        self.columns.swap(i, j);
        let a = &mut self.lower;
        for k in start..i {
            a.swap([i, k], [j, k]);
        }
        a.swap([i, i], [j, j]);
        for k in i + 1..j {
            a.swap([k, i], [j, k]);
        }
        for k in j + 1..a.nrows() {
            a.swap([k, i], [k, j]);
        }
    }

    /// Turns column `k` into a column of the factor, and updates the pivots behind it. The columns `start..k` of the same
    /// panel, which the trailing matrix has not seen yet, are subtracted first.
    fn eliminate(&mut self, start: usize, k: usize) {
        let pivot = self.pivots[k];
        let (done, mut rest) = self.lower.view_mut().split_at(Axis(1), k);
        let mut column = rest.slice_mut(s![k + 1.., 0]);
        // A column that cannot be eliminated (`h` was not positive definite) is left out.
        if pivot <= 0.0 || !pivot.is_finite() {
            column.fill(0.0);
            return;
        }
        if k > start {
            let panel = done.slice(s![k + 1.., start..]);
            let row = done.slice(s![k..=k, start..]).reversed_axes();
            subtract_product(column.view_mut().insert_axis(Axis(1)), panel, row);
        }
        let scale = pivot.sqrt().recip();
        for (value, pivot) in column.iter_mut().zip(&mut self.pivots[k + 1..]) {
            *value *= scale;
            *pivot -= *value * *value;
        }
    }
}

/// A copy of the lower triangle of `h` with contiguous columns, as every loop here runs down a column; the rest is zero but
/// near the diagonal. Tile by tile, so that both memory orders stay in cache.
fn columns_contiguous(h: ArrayView2<'_, f64>) -> Array2<f64> {
    const TILE: usize = 64;
    let mut copy = Array2::zeros(h.dim().f());
    for tile in tiles(copy.view_mut(), TILE, TILE) {
        let Tile { row, column, mut view } = tile;
        if row >= column {
            let (height, width) = view.dim();
            view.assign(&h.slice(s![row..row + height, column..column + width]));
        }
    }
    copy
}

/// `out -= a b`.
fn subtract_product(out: ArrayViewMut2<'_, f64>, a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>) {
    matmul(mat_mut(out), Accum::Add, mat(&a), mat(&b), -1.0, Par::Seq);
}
