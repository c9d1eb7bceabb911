//! How much of the earlier layers' error a stage should make up for.
//!
//! The regression behind error propagation, `e ≈ S x` with `S = (W C) (H + λ'I)⁻¹` for the input's shortfall and `Γ (H + λ'I)⁻¹` for the
//! residual stream's, is fitted to the calibration tokens. From few tokens, or where the inputs are nearly dependent, it learns their noise,
//! and a target moved by it is worse than none on any other text. On the held-out moments `H'`, `C'`, `Γ'` the error that is left for shares
//! `α`, `β` of the two parts `S₁`, `S₂` is a constant less
//!
//! ```text
//! gain(u) = 2 bᵀu - uᵀA u      u = (α, β)      b_i = <S_i, W C' + Γ'>      A_ij = <S_i H', S_j>
//! ```
//!
//! whose maximum over `0 ≤ u ≤ 1` is closed-form, for each λ' of a ladder. No gain at any: nothing is made up for. QEP (arXiv 2504.09629) and
//! LoaQ (arXiv 2509.06297) set the shares by hand. The recipe's factors stay, since what lowers a layer's error most is more than what lowers
//! the model's.

use kernels::stripes::Triangle;
use ndarray::{Array2, Axis};
use serde::{Deserialize, Serialize};

use super::held_out::HeldOut;
use super::{Statistics, inner, product, single};
use crate::hessian::{Factor, HessianError};
use crate::order::Permutation;
use crate::settings::SolverSettings;

/// How much is made up for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    /// Of the input's shortfall.
    pub alpha: f64,
    /// Of the residual stream's.
    pub beta: f64,
    /// λ' over the mean diagonal.
    pub damping: f64,
}

/// What some outputs of a stage lack, in both parts of its windows.
pub(super) struct Lack {
    /// `W C` and `Γ`, fitted.
    fitted: [Option<Array2<f32>>; 2],
    /// `W C' + Γ'`.
    held: Array2<f32>,
}

impl Lack {
    /// Of those `rows` of the stage's weights below each other, whose weights are `weight`; none where nothing is asked for or known.
    pub(super) fn of(
        fitted: &Statistics,
        held: &HeldOut,
        weight: &Array2<f32>,
        rows: &[usize],
        settings: &SolverSettings,
    ) -> Option<Self> {
        let (input, residual) = (settings.alpha > 0.0, settings.beta > 0.0);
        let of = |cross: &Array2<f32>| product(weight, cross);
        let held_parts = [
            held.input().filter(|_| input).map(of),
            held.residual().filter(|_| residual).map(|cross| cross.select(Axis(0), rows)),
        ];
        let held = held_parts.into_iter().flatten().reduce(|a, b| a + b)?;
        let cross = &fitted.shortfall;
        let fitted = [
            cross.input.as_ref().filter(|_| input).map(|cross| of(&single(cross.matrix()))),
            cross
                .residual
                .as_ref()
                .filter(|_| residual)
                .map(|cross| single(cross.matrix().select(Axis(0), rows).view())),
        ];
        Some(Self { fitted, held })
    }

    /// The largest gain on the held-out windows, whose `H'` is `moment`, of a regression with this factor, whose columns are in `order`; and
    /// its shares.
    pub(super) fn best_shares(
        &self,
        factor: &Factor,
        order: &Permutation,
        moment: &Triangle<f32>,
    ) -> Result<(f64, [f64; 2]), HessianError> {
        let positions = order.inverse();
        let predict = |part: &Option<Array2<f32>>| -> Result<_, HessianError> {
            let Some(part) = part else { return Ok(None) };
            let mut right = part.select(Axis(1), order.columns()).mapv(f64::from);
            factor.stripes().solve_right(right.view_mut())?;
            Ok(Some(single(right.select(Axis(1), positions.columns()).view())))
        };
        let image = |part: &Option<Array2<f32>>| -> Result<_, HessianError> {
            Ok(part.as_ref().map(|part| moment.product(part.view())).transpose()?)
        };
        let predicted = [predict(&self.fitted[0])?, predict(&self.fitted[1])?];
        let images = [image(&predicted[0])?, image(&predicted[1])?];
        let b = predicted.each_ref().map(|part| part.as_ref().map_or(0.0, |part| inner(part, &self.held)));
        let a = [(0, 0), (0, 1), (1, 1)].map(|(i, j)| match (&images[i], &predicted[j]) {
            (Some(image), Some(part)) => inner(image, part),
            _ => 0.0,
        });
        let u = boxed_maximum(a, b, [1.0, 1.0]);
        Ok((gain(a, b, u), u))
    }
}

fn gain(a: [f64; 3], b: [f64; 2], u: [f64; 2]) -> f64 {
    2.0 * (b[0] * u[0] + b[1] * u[1]) - (a[0] * u[0] * u[0] + 2.0 * a[1] * u[0] * u[1] + a[2] * u[1] * u[1])
}

/// The maximum of [`gain`] in a box: inside, or on one of its sides.
fn boxed_maximum(a: [f64; 3], b: [f64; 2], most: [f64; 2]) -> [f64; 2] {
    let alone = |diagonal: f64, slope: f64, most: f64| {
        if diagonal > 0.0 { (slope / diagonal).clamp(0.0, most) } else { 0.0 }
    };
    let given_beta = |beta: f64| [alone(a[0], b[0] - a[1] * beta, most[0]), beta];
    let given_alpha = |alpha: f64| [alpha, alone(a[2], b[1] - a[1] * alpha, most[1])];
    let mut candidates = vec![given_beta(0.0), given_beta(most[1]), given_alpha(0.0), given_alpha(most[0])];
    let determinant = a[0] * a[2] - a[1] * a[1];
    if determinant > 0.0 {
        let u = [(b[0] * a[2] - b[1] * a[1]) / determinant, (b[1] * a[0] - b[0] * a[1]) / determinant];
        if (0.0..=most[0]).contains(&u[0]) && (0.0..=most[1]).contains(&u[1]) {
            candidates.push(u);
        }
    }
    let better = |x: &[f64; 2], y: &[f64; 2]| gain(a, b, *x).total_cmp(&gain(a, b, *y));
    candidates.into_iter().max_by(better).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maximum_in_a_box_is_found_inside_and_on_its_sides() {
        let grid = |most: f64| (0..=40).map(move |k| most * f64::from(k) / 40.0);
        for (a, b) in [
            ([2.0, 0.3, 1.0], [1.0, 0.5]),
            ([2.0, 0.3, 1.0], [9.0, 0.5]),
            ([1.0, 0.9, 1.0], [1.0, 1.1]),
            ([1.0, -0.9, 1.0], [-0.1, 0.2]),
            ([1.0, 0.0, 0.0], [0.4, 0.0]),
            ([1.0, 0.2, 1.0], [-1.0, -2.0]),
        ] {
            let most = [1.0, 0.75];
            let u = boxed_maximum(a, b, most);
            let searched = grid(most[0])
                .flat_map(|x| grid(most[1]).map(move |y| [x, y]))
                .map(|u| gain(a, b, u))
                .fold(f64::NEG_INFINITY, f64::max);
            assert!(gain(a, b, u) >= searched - 1e-12, "{a:?} {b:?}: {u:?}");
        }
    }
}
