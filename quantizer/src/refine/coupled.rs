//! Coordinate descent in the metric of the model's loss, `tr(A D H Dᵀ)`, see [`crate::output`] (YAQA, arXiv 2505.22988; BOA, arXiv 2406.13474, has
//! the same form for attention).
//!
//! A row is moved not only for its own sake but to make up for the others' errors, in as far as the model cannot tell them apart. The start
//! is, block by block, the best of three: the solution that was refined row by row, the one before that refinement, so that the result is
//! never worse than plain GPTQ in this metric either, and codes on the refined scales that were rounded in this metric (`two_sided.rs`).
//! Each pair of sweeps is followed by a refit of the scales; both are taken only if the block's loss fell: `<D, A D H>` of the slopes that
//! the sweeps go by and leave behind.

use kernels::elementwise::inner_product;
use kernels::panel::coupled_descent;
use kernels::parts::PART_LANES;
use kernels::product::product_nn;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Axis, s};
use serde::{Deserialize, Serialize};

use super::{Candidate, Solved, refit, two_sided};
use crate::loss::whitened;
use crate::output::OutputHessian;
use crate::prepared::PreparedHessian;
use crate::settings::SolverSettings;

/// What coupled descent did: `tr(A D H Dᵀ)` of all blocks, `A` and `H` damped.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoupledLoss {
    /// Of the rows as they were solved one by one.
    pub before: f64,
    /// Of the result.
    pub after: f64,
}

/// Improves the best of what there is of the whole matrix.
pub(crate) fn descend(
    target: ArrayView2<'_, f32>,
    plain: &Solved,
    refined: &mut Solved,
    hessian: &PreparedHessian,
    output: &OutputHessian,
    settings: &SolverSettings,
) -> CoupledLoss {
    let blocks: Vec<_> = output.blocks().collect();
    let improved: Vec<_> = blocks
        .par_iter()
        .enumerate()
        .map(|(number, rows)| {
            let target = target.slice_axis(Axis(0), rows.clone().into());
            let outer = output.damped(number, settings.output_damping);
            let judge = |solved: &Solved| loss(target, solved, outer.view(), hessian);
            let mut best = refined.rows(rows.clone());
            let before = judge(&best);
            let mut least = before;
            let rounded = || two_sided::round(target, &best, outer.view(), hessian);
            let rounded = settings.two_sided.then(rounded).flatten();
            for start in [Some(plain.rows(rows.clone())), rounded].into_iter().flatten() {
                let found = judge(&start);
                if found < least {
                    (best, least) = (start, found);
                }
            }
            let (groups, sweeps) = (best.grid.groups(), settings.coupled_sweeps);
            let mut slopes = slopes_of(target, &best, outer.view(), hessian);
            for pair in (0..sweeps).step_by(2).map(|done| (sweeps - done).min(2)) {
                let (mut candidate, mut moved) = (best.clone(), slopes.clone());
                let grid = candidate.grid.kernel(&groups);
                let (codes, moving) = (candidate.codes.view_mut(), moved.view_mut());
                coupled_descent(outer.view(), hessian.full(), &grid, codes, moving, pair);
                let found = loss_by(target, &candidate, &moved);
                let descended = found < least;
                if descended {
                    (best, slopes, least) = (candidate, moved, found);
                }
                let mut candidate = best.clone();
                refit_scales(target, &mut candidate, outer.view(), hessian);
                let moved = slopes_of(target, &candidate, outer.view(), hessian);
                let found = loss_by(target, &candidate, &moved);
                let refitted = found < least;
                if refitted {
                    (best, slopes, least) = (candidate, moved, found);
                }
                if !descended && !refitted {
                    break;
                }
            }
            (best, CoupledLoss { before, after: least })
        })
        .collect();
    let mut total = CoupledLoss { before: 0.0, after: 0.0 };
    for (rows, (best, loss)) in blocks.into_iter().zip(improved) {
        refined.set_rows(rows.start, &best);
        total.before += loss.before;
        total.after += loss.after;
    }
    total
}

/// Fits each row's scales to what the row should be for the others' sake as well: with the other rows held, row `i`'s part of the loss is
/// `A_ii` times the layer-wise loss against the target `T_i + Σ_{k≠i} A_ik / A_ii D_k`. Some rows far apart are fitted together,
/// each as if the others stayed; whether that helped is for the caller to judge.
fn refit_scales(
    target: ArrayView2<'_, f32>,
    solved: &mut Solved,
    outer: ArrayView2<'_, f32>,
    hessian: &PreparedHessian,
) {
    let rows = target.nrows();
    let turns = rows.div_ceil(PART_LANES);
    let mut errors = solved.grid.errors(target, solved.codes.view());
    for turn in 0..turns {
        let chosen: Vec<usize> = (turn..rows).step_by(turns).filter(|&row| outer[[row, row]] > 0.0).collect();
        let weights = outer.select(Axis(0), &chosen);
        let mut moved = Array2::zeros((chosen.len(), target.ncols()));
        product_nn(weights.view(), errors.view(), moved.view_mut());
        for (mut moved, &row) in moved.rows_mut().into_iter().zip(&chosen) {
            moved /= outer[[row, row]];
            moved += &target.row(row);
            moved -= &errors.row(row);
        }
        let grid = solved.grid.select(&chosen);
        let codes = solved.codes.select(Axis(0), &chosen);
        let mut candidate = Candidate { solved: Solved { grid, codes }, losses: vec![0.0; chosen.len()] };
        refit::refit(moved.view(), &mut candidate, hessian);
        let Solved { grid, codes } = candidate.solved;
        let fitted = grid.errors(target.select(Axis(0), &chosen).view(), codes.view());
        for (place, &row) in chosen.iter().enumerate() {
            solved.grid.take_row(row, &grid, place);
            errors.row_mut(row).assign(&fitted.row(place));
        }
    }
}

/// `A (Q - T) (H + λI)`.
fn slopes_of(
    target: ArrayView2<'_, f32>,
    solved: &Solved,
    outer: ArrayView2<'_, f32>,
    hessian: &PreparedHessian,
) -> Array2<f32> {
    let mut slopes = solved.grid.errors(target, solved.codes.view());
    slopes.mapv_inplace(|error| -error);
    let mut images = Array2::zeros(slopes.dim());
    product_nn(slopes.view(), hessian.full(), images.view_mut());
    product_nn(outer, images.view(), slopes.view_mut());
    slopes
}

/// `tr(A D (H + λI) Dᵀ)`, by the slopes.
fn loss_by(target: ArrayView2<'_, f32>, solved: &Solved, slopes: &Array2<f32>) -> f64 {
    let errors = solved.grid.errors(target, solved.codes.view());
    let rows = errors.outer_iter().zip(slopes.outer_iter());
    -rows
        .map(|(errors, slopes)| match (errors.as_slice(), slopes.as_slice()) {
            (Some(errors), Some(slopes)) => inner_product(errors, slopes),
            _ => unreachable!("rows of matrices made here have no gaps"),
        })
        .sum::<f64>()
}

/// `tr(A D (H + λI) Dᵀ)`.
fn loss(
    target: ArrayView2<'_, f32>,
    solved: &Solved,
    outer: ArrayView2<'_, f32>,
    hessian: &PreparedHessian,
) -> f64 {
    let errors = solved.grid.errors(target, solved.codes.view());
    let whitened = whitened(errors.view(), Some(hessian));
    let mut gram = Array2::<f32>::zeros(outer.dim());
    // Both matrices are symmetric, so half of each will do.
    kernels::product::gram(whitened.view().reversed_axes(), gram.view_mut());
    let rows = gram.outer_iter().zip(outer.outer_iter()).enumerate();
    rows.map(|(row, (gram, outer))| {
        let (gram, outer) = (gram.slice(s![..row]), outer.slice(s![..row]));
        let below = match (gram.as_slice(), outer.as_slice()) {
            (Some(gram), Some(outer)) => inner_product(gram, outer),
            _ => gram.iter().zip(outer).map(|(&g, &a)| f64::from(g) * f64::from(a)).sum::<f64>(),
        };
        2.0 * below
    })
    .sum::<f64>()
        + gram.diag().iter().zip(outer.diag()).map(|(&g, &a)| f64::from(g) * f64::from(a)).sum::<f64>()
}
