//! How much of the earlier layers' error a stage should make up for, by what held-out tokens say.
//!
//! The regression behind error propagation, `e ≈ S x` with `S = (W C) (H + λ'I)⁻¹` for the input's shortfall and `Γ (H + λ'I)⁻¹` for the
//! residual stream's, is fitted to the calibration tokens. From few tokens, or where the inputs are nearly dependent, it learns their noise,
//! and a target moved by it is worse than none on any other text. So it is fitted to a part of the tokens, and the others decide: on the
//! held-out moments `H'`, `C'`, `Γ'` the error that is left for shares `α`, `β` of the two parts `S₁`, `S₂` is a constant less
//!
//! ```text
//! gain(u) = 2 bᵀu - uᵀA u      u = (α, β)      b_i = <S_i, W C' + Γ'>      A_ij = <S_i H', S_j>
//! ```
//!
//! whose maximum over `0 ≤ u ≤ 1` is closed-form, for each λ' of a ladder. No gain at any: nothing is made up for. The winner, times the
//! recipe's `alpha` and `beta`, moves targets by a regression on all tokens.
//!
//! This is shrinkage by one fold of cross-validation (Stone 1974, section 3); QEP (arXiv 2504.09629) and LoaQ (arXiv 2509.06297) set the
//! shares by hand. The recipe's factors stay, since what lowers a layer's error most is more than what lowers the model's.

use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Axis, Zip};

use crate::hessian::{CrossMoment, Hessian, Shortfall};
use crate::order::Order;
use crate::settings::SolverSettings;
use serde::Serialize;

/// Moments of some tokens.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Of the stage's input.
    pub hessian: Hessian,
    /// Against what the quantized stream lacks.
    pub shortfall: Shortfall,
}

/// How much is made up for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Shares {
    /// Of the input's shortfall.
    pub alpha: f64,
    /// Of the residual stream's.
    pub beta: f64,
    /// λ' over the mean diagonal.
    pub damping: f64,
}

/// λ' over the mean diagonal.
const LADDER: [f64; 4] = [0.01, 0.05, 0.2, 1.0];
/// Outputs that have a say; the more, the less the choice depends on single ones.
const MOST_OUTPUTS: usize = 128;

impl Statistics {
    /// Of the tokens of both.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let merged = |a: Option<CrossMoment>, b: Option<CrossMoment>| Some(a?.merge(b?));
        Self {
            hessian: self.hessian.merge(other.hessian),
            shortfall: Shortfall {
                input: merged(self.shortfall.input, other.shortfall.input),
                residual: merged(self.shortfall.residual, other.shortfall.residual),
            },
        }
    }
}

/// The shares by which a regression on `fitted` lowers the error on `held` most, times those of `settings`; `weights` are the stage's
/// linears, `[out_features, in_features]` each.
#[must_use]
pub fn shares(
    fitted: &Statistics,
    held: &Statistics,
    weights: &[ArrayView2<'_, f32>],
    settings: &SolverSettings,
) -> Shares {
    let rows = sampled_rows(weights);
    let weight = select(weights, &rows);
    let parts = |statistics: &Statistics| {
        let input = statistics.shortfall.input.as_ref().filter(|_| settings.alpha > 0.0);
        let residual = statistics.shortfall.residual.as_ref().filter(|_| settings.beta > 0.0);
        [
            input.map(|cross| product(&weight, &single(cross.matrix()))),
            residual.map(|c| single(c.matrix()).select(Axis(0), &rows)),
        ]
    };
    let (lacking, held_lacking) = (parts(fitted), parts(held));
    let Some(held_error) = held_lacking.into_iter().flatten().reduce(|a, b| a + b) else {
        return Shares::default();
    };
    let held_moment = single(held.hessian.matrix());

    let mut best = (0.0, Shares::default());
    let mut damped = fitted.hessian.clone().damp(LADDER[0]);
    let order = Order::Natural.permutation(damped.matrix());
    for damping in LADDER {
        damped.set(damping);
        let Ok(factor) = damped.factor(&order) else { continue };
        let predicted = lacking.each_ref().map(|part| {
            let part = part.as_ref()?.mapv(f64::from);
            Some(single(kernels::factor::solve_right(factor.r(), part).view()))
        });
        let images = predicted.each_ref().map(|part| part.as_ref().map(|part| product(part, &held_moment)));
        let b = predicted.each_ref().map(|part| part.as_ref().map_or(0.0, |part| inner(part, &held_error)));
        let a = [(0, 0), (0, 1), (1, 1)].map(|(i, j)| match (&images[i], &predicted[j]) {
            (Some(image), Some(part)) => inner(image, part),
            _ => 0.0,
        });
        let u = boxed_maximum(a, b, [1.0, 1.0]);
        let gain = gain(a, b, u);
        if gain > best.0 {
            let [alpha, beta] = [settings.alpha * u[0], settings.beta * u[1]];
            best = (gain, Shares { alpha, beta, damping });
        }
    }
    best.1
}

/// Evenly spread rows of all weights, numbered through.
fn sampled_rows(weights: &[ArrayView2<'_, f32>]) -> Vec<usize> {
    let rows: usize = weights.iter().map(ArrayView2::nrows).sum();
    let count = rows.min(MOST_OUTPUTS);
    (0..count).map(|k| k * rows / count).collect()
}

/// Those `rows`, ascending, of the weights below each other.
fn select(weights: &[ArrayView2<'_, f32>], rows: &[usize]) -> Array2<f32> {
    let numbered = weights.iter().flat_map(|weight| weight.axis_iter(Axis(0))).enumerate();
    let sampled: Vec<_> =
        numbered.filter(|(row, _)| rows.binary_search(row).is_ok()).map(|(_, row)| row).collect();
    ndarray::stack(Axis(0), &sampled).expect("linears of a stage share their input")
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

fn product(a: &Array2<f32>, b: &Array2<f32>) -> Array2<f32> {
    let mut out = Array2::zeros((a.nrows(), b.ncols()));
    kernels::product::product_nn(a.view(), b.view(), out.view_mut());
    out
}

fn inner(a: &Array2<f32>, b: &Array2<f32>) -> f64 {
    let rows: Vec<f64> = a
        .axis_iter(Axis(0))
        .into_par_iter()
        .zip(b.axis_iter(Axis(0)))
        .map(|(a, b)| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum())
        .collect();
    rows.iter().sum()
}

fn single(matrix: ArrayView2<'_, f64>) -> Array2<f32> {
    let mut single = Array2::zeros(matrix.dim());
    Zip::from(&mut single).and(matrix).par_for_each(|single, &double| *single = double as f32);
    single
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampled_rows_are_those_of_the_weights_below_each_other() {
        let whole = Array2::from_shape_fn((500, 3), |(row, column)| (row * 3 + column) as f32);
        let (top, bottom) = whole.view().split_at(Axis(0), 123);
        let rows = sampled_rows(&[top, bottom]);
        assert_eq!(rows.len(), MOST_OUTPUTS);
        assert_eq!(select(&[top, bottom], &rows), whole.select(Axis(0), &rows));
        assert_eq!(sampled_rows(&[top]).len(), 123);
    }

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
