//! Factors, and solves with them, stripe by stripe.
//!
//! `H = R Rᵀ` with `R` upper triangular, kept as `Rᵀ`, which is lower. From the last stripe up:
//!
//! ```text
//! for each stripe p:   R_pp R_ppᵀ = H_pp                     one thread
//!                      Rᵀ_pj = R_pp⁻¹ H_pj        j < p      chunks of columns
//!                      H_ij -= R_ip Rᵀ_pj         j <= i < p  tiles
//! ```
//!
//! Where stripes are away, some of the last that are not yet done are fetched; those behind them, which are, pass by once for all of them. Each tile
//! sees the same products in the same order either way.

use std::io;

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{Accum, Par};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::{HEIGHT, Triangle, WIDTH};
use crate::dense::{Tile, mat, mat_mut, tiles};
use crate::factor::{NotPositiveDefinite, cholesky_upper};

/// Rows of a right-hand side that one thread solves at once.
const ROWS: usize = 64;

/// Why there is no factor.
#[derive(Debug, thiserror::Error)]
pub enum FactorError {
    /// The matrix has none.
    #[error(transparent)]
    NotPositiveDefinite(#[from] NotPositiveDefinite),
    /// The store's own.
    #[error(transparent)]
    Store(#[from] io::Error),
}

impl Triangle<f64> {
    /// `Rᵀ` with `H = R Rᵀ`, in the place of `H`, of which only what is on and below the diagonal is read. Zeros lie above the diagonal.
    ///
    /// # Errors
    /// No factor to working precision, as [`cholesky_upper`] says it, and those of the store.
    pub fn factor(mut self) -> Result<Self, FactorError> {
        for group in self.groups().into_iter().rev() {
            let mut stripes =
                group.clone().map(|stripe| self.take(stripe)).collect::<io::Result<Vec<_>>>()?;
            for behind in (group.end..self.stripes()).rev() {
                subtract(&mut stripes, group.start, self.read(behind)?.view());
            }
            for stripe in group.clone().rev() {
                let (before, at) = stripes.split_at_mut(stripe - group.start);
                finish(at[0].view_mut(), stripe * HEIGHT)?;
                subtract(before, group.start, at[0].view());
            }
            for (stripe, numbers) in group.zip(stripes) {
                self.put(stripe, numbers)?;
            }
        }
        Ok(self)
    }

    /// Overwrites `b` `[m, n]` with `B (R Rᵀ)⁻¹`, where this is `Rᵀ`. Where the diagonal has a zero, it is not finite.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Panics
    /// When the shapes do not fit each other.
    pub fn solve_right(&self, mut b: ArrayViewMut2<'_, f64>) -> io::Result<()> {
        assert_eq!(b.ncols(), self.size, "columns of a right-hand side for a factor of {}", self.size);
        let mut chunks: Vec<_> = b.axis_chunks_iter_mut(Axis(0), ROWS).collect();
        // Y Rᵀ = B, from behind.
        for stripe in (0..self.stripes()).rev() {
            let (rows, numbers) = (self.rows(stripe), self.read(stripe)?);
            let (left, diagonal) = numbers.view().split_at(Axis(1), rows.start);
            chunks.par_iter_mut().for_each(|chunk| {
                let (mut before, mut at) = chunk.slice_mut(s![.., ..rows.end]).split_at(Axis(1), rows.start);
                let upper = diagonal.reversed_axes();
                solve_upper_triangular_in_place(
                    mat(&upper),
                    mat_mut(at.view_mut().reversed_axes()),
                    Par::Seq,
                );
                take_product(before.view_mut(), at.view(), left);
            });
        }
        // X R = Y, from the front.
        for stripe in 0..self.stripes() {
            let (rows, numbers) = (self.rows(stripe), self.read(stripe)?);
            let (left, diagonal) = numbers.view().split_at(Axis(1), rows.start);
            chunks.par_iter_mut().for_each(|chunk| {
                let (before, mut at) = chunk.slice_mut(s![.., ..rows.end]).split_at(Axis(1), rows.start);
                take_product(at.view_mut(), before.view(), left.reversed_axes());
                solve_lower_triangular_in_place(mat(&diagonal), mat_mut(at.reversed_axes()), Par::Seq);
            });
        }
        Ok(())
    }
}

/// `out -= a b`.
fn take_product(out: ArrayViewMut2<'_, f64>, a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>) {
    if !out.is_empty() && a.ncols() > 0 {
        matmul(mat_mut(out), Accum::Add, mat(&a), mat(&b), -1.0, Par::Seq);
    }
}

/// Takes from the stripes from number `first` on what `done`, a finished one behind them, has of them.
fn subtract(stripes: &mut [Array2<f64>], first: usize, done: ArrayView2<'_, f64>) {
    let tasks = stripes.iter_mut().enumerate().flat_map(|(number, stripe)| {
        let start = (first + number) * HEIGHT;
        let rows = start..start + stripe.nrows();
        tiles(stripe.view_mut(), HEIGHT, WIDTH).into_iter().map(move |tile| (rows.clone(), tile))
    });
    let tasks: Vec<_> = tasks.collect();
    tasks.into_par_iter().for_each(|(rows, Tile { column, view, .. })| {
        let left = done.slice(s![.., rows]).reversed_axes();
        let right = done.slice(s![.., column..column + view.ncols()]);
        take_product(view, left, right);
    });
}

/// Makes a stripe from which all behind it is taken a part of the factor; its diagonal begins in column `first`.
fn finish(stripe: ArrayViewMut2<'_, f64>, first: usize) -> Result<(), NotPositiveDefinite> {
    let (mut left, mut diagonal) = stripe.split_at(Axis(1), first);
    let r = cholesky_upper(diagonal.to_owned())
        .map_err(|error| NotPositiveDefinite { pivot: first + error.pivot, ..error })?;
    diagonal.assign(&r.t());
    let r = r.view();
    let chunks: Vec<_> = left.axis_chunks_iter_mut(Axis(1), WIDTH).collect();
    chunks.into_par_iter().for_each(|columns| {
        solve_upper_triangular_in_place(mat(&r), mat_mut(columns), Par::Seq);
    });
    Ok(())
}
