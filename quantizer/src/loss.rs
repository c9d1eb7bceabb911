//! The loss of the layer-wise problem, `tr(D H Dᵀ)` for errors `D = W - Q`.
//!
//! With `H + λI = R Rᵀ` it is `‖D R‖² - λ ‖D‖²`: a sum of squares, whose rounding error grows with the square root of the condition
//! number only, where the product `D H Dᵀ` in single precision would cancel (a few inputs carry most of a real Hessian, and a good
//! solution is nearly orthogonal to them).

use kernels::elementwise::sum_of_squares;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView1, ArrayView2, Axis};

use crate::prepared::PreparedHessian;

/// `d (H + λI) dᵀ` of each row of `errors`, `[rows, in_features]`, natural order. Without a Hessian, `d dᵀ`.
#[must_use]
pub fn damped_losses(errors: ArrayView2<'_, f32>, hessian: Option<&PreparedHessian>) -> Vec<f64> {
    match hessian {
        None => square_norms(errors),
        Some(hessian) => {
            let mut losses = vec![0.0; errors.nrows()];
            for rows in
                (0..errors.nrows()).step_by(ROWS).map(|first| first..(first + ROWS).min(errors.nrows()))
            {
                let ordered = ordered(errors.slice_axis(Axis(0), rows.clone().into()), hessian);
                whitened_norms(ordered.view(), hessian, &mut losses[rows]);
            }
            losses
        }
    }
}

/// `tr(D H Dᵀ)`, undamped. Without a Hessian, `‖D‖²`.
#[must_use]
pub fn total_loss(errors: ArrayView2<'_, f32>, hessian: Option<&PreparedHessian>) -> f64 {
    let losses = damped_losses(errors, hessian);
    hessian.map_or_else(|| losses.iter().sum(), |hessian| undamped(&losses, errors, hessian))
}

/// `tr(D H Dᵀ)` of errors whose damped losses are known.
pub(crate) fn undamped(losses: &[f64], errors: ArrayView2<'_, f32>, hessian: &PreparedHessian) -> f64 {
    let added = |row: ArrayView1<'_, f32>| hessian.lambda() * square_norm(row) + hessian.dead_loss(row);
    let added: Vec<f64> = errors.axis_iter(Axis(0)).into_par_iter().map(added).collect();
    losses.iter().zip(added).map(|(damped, added)| (damped - added).max(0.0)).sum()
}

/// `D R`, `[rows, in_features]`, columns in processing order: errors in a metric where all count alike. Without a Hessian, `D`.
pub(crate) fn whitened(errors: ArrayView2<'_, f32>, hessian: Option<&PreparedHessian>) -> Array2<f32> {
    let Some(hessian) = hessian else { return errors.to_owned() };
    let ordered = ordered(errors, hessian);
    let mut whitened = Array2::zeros(errors.dim());
    for (panel, mut to) in panels(hessian).zip(whitened.axis_chunks_iter_mut(Axis(1), PANEL)) {
        let inner = panel.nrows();
        kernels::product::product_nn(
            ordered.slice_axis(Axis(1), (..inner).into()),
            panel.view(),
            to.view_mut(),
        );
    }
    whitened
}

/// Rows that are put into processing order at a time.
const ROWS: usize = 2048;
/// Columns of `R` that are multiplied at a time; the zeros below the diagonal are skipped from panel to panel.
const PANEL: usize = 256;

/// Adds `‖(d R)‖²` of each row of `errors`, in processing order.
fn whitened_norms(errors: ArrayView2<'_, f32>, hessian: &PreparedHessian, losses: &mut [f64]) {
    for panel in panels(hessian) {
        let mut whitened = Array2::zeros((errors.nrows(), panel.ncols()));
        let inner = panel.nrows();
        kernels::product::product_nn(
            errors.slice_axis(Axis(1), (..inner).into()),
            panel.view(),
            whitened.view_mut(),
        );
        for (loss, norm) in losses.iter_mut().zip(square_norms(whitened.view())) {
            *loss += norm;
        }
    }
}

/// The panels of `R` down to the diagonal, from the left.
fn panels(hessian: &PreparedHessian) -> impl Iterator<Item = Array2<f32>> {
    let columns = hessian.in_features();
    (0..columns).step_by(PANEL).map(move |first| {
        let last = (first + PANEL).min(columns);
        hessian.feedback().columns(first..last)
    })
}

fn ordered(errors: ArrayView2<'_, f32>, hessian: &PreparedHessian) -> Array2<f32> {
    let mut ordered = errors.to_owned();
    if !hessian.order().is_natural() {
        let columns = hessian.order().columns();
        ordered.axis_iter_mut(Axis(0)).into_par_iter().zip(errors.axis_iter(Axis(0))).for_each(
            |(mut ordered, natural)| {
                for (to, &column) in ordered.iter_mut().zip(columns) {
                    *to = natural[column];
                }
            },
        );
    }
    ordered
}

fn square_norms(rows: ArrayView2<'_, f32>) -> Vec<f64> {
    rows.axis_iter(Axis(0)).into_par_iter().map(square_norm).collect()
}

fn square_norm(row: ArrayView1<'_, f32>) -> f64 {
    match row.as_slice() {
        Some(row) => sum_of_squares(row),
        None => sum_of_squares(&row.to_vec()),
    }
}
