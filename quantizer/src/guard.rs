//! What held-out windows decide: how much the Hessian is damped, how much of the earlier layers' error is made up for, and whether a solution
//! stands at all.
//!
//! All three are estimated from calibration tokens, and from few tokens they learn those tokens' noise. So a stage's moments are gathered in two
//! parts, and what is fitted to one is judged on the other (one fold of cross-validation, Stone 1974, section 3):
//!
//! - `shares`: the part of a regression that pays;
//! - `trial`: some rows are solved for each damping of a ladder, and the damping with the least loss `tr(D H' Dᵀ)` is taken. `λI` is what a
//!   prior of small errors, equal in all directions, adds to the moment of the tokens that happened to be seen (shrinkage of a covariance
//!   matrix: Ledoit and Wolf 2004), and how much of it is needed depends on how many tokens there are;
//! - [`held_out`]: a solution that is worse than rounding to nearest there gives way to it.
//!
//! What won is then fitted to all tokens.

pub mod held_out;
mod shares;
mod trial;

use kernels::account;
use kernels::elementwise::inner_product;
use kernels::stripes::FactorError;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Axis, Zip};

use crate::hessian::{CrossMoment, Hessian, HessianError, Shortfall};
use crate::prepared::{PreparedHessian, Rung};
use crate::scheme::Scheme;
use crate::settings::SolverSettings;
use held_out::HeldOut;
pub use shares::Shares;

/// Moments of some tokens.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Of the stage's input.
    pub hessian: Hessian,
    /// Against what the quantized stream lacks.
    pub shortfall: Shortfall,
}

/// A linear that is to be solved.
#[derive(Clone, Copy, Debug)]
pub struct Unsolved<'a> {
    /// `[out_features, in_features]`.
    pub weight: ArrayView2<'a, f32>,
    /// What it is to become.
    pub scheme: Scheme,
}

/// What the held-out windows say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// λ over the mean diagonal: what the settings ask for, or more.
    pub damping: f64,
    /// How much is made up for.
    pub shares: Shares,
}

/// λ and λ' over the mean diagonal, besides the damping that is asked for.
const LADDER: [f64; 4] = [0.01, 0.05, 0.2, 1.0];
/// Outputs that have a say; the more, the less the choice depends on single ones.
const MOST_OUTPUTS: usize = 128;

impl Statistics {
    /// Of the tokens of both.
    ///
    /// # Errors
    /// A shelf fails.
    pub fn merge(self, other: Self) -> Result<Self, HessianError> {
        let merged = |a: Option<CrossMoment>, b: Option<CrossMoment>| Some(a?.merge(b?));
        Ok(Self {
            hessian: self.hessian.merge(other.hessian)?,
            shortfall: Shortfall {
                input: merged(self.shortfall.input, other.shortfall.input),
                residual: merged(self.shortfall.residual, other.shortfall.residual),
            },
        })
    }
}

/// The damping with which rows solved on `fitted` have the least error on `held`, if the settings ask for a guard; and the shares by which a
/// regression on `fitted` lowers the error there most, times those of the settings. Every λ is tried for both with one factorization; where
/// nothing is made up for, larger ones are left out once the error rises.
///
/// # Errors
/// A shelf fails.
pub fn decide(
    fitted: &Statistics,
    held: &HeldOut,
    linears: &[Unsolved<'_>],
    settings: &SolverSettings,
) -> Result<Verdict, HessianError> {
    let _section = account::section("trial of dampings");
    let mut verdict = Verdict { damping: settings.damping, shares: Shares::default() };
    let weights: Vec<_> = linears.iter().map(|linear| linear.weight).collect();
    let rows = sampled_rows(&weights);
    let mut damped = fitted.hessian.clone().damp(settings.damping);
    let order = damped.permutation(settings.order)?;
    let lack = shares::Lack::of(fitted, held, &select(&weights, &rows), &rows, settings);
    let mut samples = if settings.guard { trial::samples(linears, &rows) } else { Vec::new() };
    let (mut least, mut most_gain) = (f64::INFINITY, 0.0);
    for damping in ladder(settings) {
        if lack.is_none() && samples.is_empty() {
            break;
        }
        damped.set(damping);
        let factor = match damped.factor(&order) {
            Ok(factor) => factor,
            Err(FactorError::NotPositiveDefinite(_)) => continue,
            Err(FactorError::Store(error)) => return Err(error.into()),
        };
        if let Some(lack) = lack.as_ref().filter(|_| LADDER.contains(&damping)) {
            let (gain, u) = lack.best_shares(&factor, &order, held.moment())?;
            if gain > most_gain {
                most_gain = gain;
                let [alpha, beta] = [settings.alpha * u[0], settings.beta * u[1]];
                verdict.shares = Shares { alpha, beta, damping };
            }
        }
        if !samples.is_empty() && damping >= settings.damping {
            let hessian = PreparedHessian::of_factor(&damped, order.clone(), &factor, Rung::AsAsked)?;
            drop(factor);
            let loss = trial::held_out_loss(&samples, &hessian, held.moment(), settings)?;
            if loss < least {
                (least, verdict.damping) = (loss, damping);
            } else {
                samples.clear();
            }
        }
    }
    Ok(verdict)
}

/// Every λ to try, ascending.
fn ladder(settings: &SolverSettings) -> Vec<f64> {
    let mut ladder = LADDER.to_vec();
    if settings.guard && !ladder.contains(&settings.damping) {
        ladder.push(settings.damping);
        ladder.sort_by(f64::total_cmp);
    }
    ladder
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

fn product(a: &Array2<f32>, b: &Array2<f32>) -> Array2<f32> {
    let mut out = Array2::zeros((a.nrows(), b.ncols()));
    kernels::product::product_nn(a.view(), b.view(), out.view_mut());
    out
}

fn inner(a: &Array2<f32>, b: &Array2<f32>) -> f64 {
    let (a, b) = (a.as_standard_layout(), b.as_standard_layout());
    let rows: Vec<f64> = a
        .axis_iter(Axis(0))
        .into_par_iter()
        .zip(b.axis_iter(Axis(0)))
        .map(|(a, b)| match (a.as_slice(), b.as_slice()) {
            (Some(a), Some(b)) => inner_product(a, b),
            _ => unreachable!("rows of standard layout have no gaps"),
        })
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
}
