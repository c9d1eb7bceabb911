//! Coordinate descent on codes (QuantEase, arXiv 2309.01885; CDQuant, arXiv 2406.17542).
//!
//! One sweep visits every column: `q_j <- nearest(q_j + (D H)_j / H_jj)` for errors `D = T - Q`, with `D H` kept up to date. Each move
//! is the best for its column given all others, so in exact arithmetic the loss never rises.

use kernels::panel::coordinate_descent;
use ndarray::ArrayView2;

use super::{Candidate, Solved};
use crate::loss::damped_losses;
use crate::prepared::PreparedHessian;

/// Moves the candidate's codes and computes its losses afresh.
pub(super) fn descend(
    target: ArrayView2<'_, f32>,
    candidate: &mut Candidate,
    hessian: &PreparedHessian,
    sweeps: usize,
) {
    let Candidate { solved: Solved { grid, codes }, losses } = candidate;
    let groups = grid.groups();
    coordinate_descent(target, hessian.full(), &grid.kernel(&groups), codes.view_mut(), sweeps);
    let errors = grid.errors(target, codes.view());
    *losses = damped_losses(errors.view(), Some(hessian));
}
