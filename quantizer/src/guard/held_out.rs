//! The last word on a solution: on held-out windows it must not be worse than rounding to nearest.
//!
//! A linear's outputs `Q x` should be what the original's are, and make up for what the residual stream lacks where that is known. With the
//! errors `D = W - Q` and the moments `H'`, `C'`, `Γ'` of the held-out windows, the mean square of what is left is a constant more than
//!
//! ```text
//! tr(D H' Dᵀ) + 2 <D, W C' + Γ'>
//! ```
//!
//! The solution was fitted to all windows, these among them, so that it is seldom worse; where it is, the fit is of no use on any text.
//! Rounding to nearest is what is left, on the full range of each group or on the range that the settings search for, whichever is better.

use kernels::account;
use kernels::stripes::Triangle;
use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use super::{Statistics, inner, single};
use crate::hessian::HessianError;
use crate::settings::{Range, SolverSettings};
use crate::solver::rtn::Rtn;
use crate::solver::{Problem, Solution, SolveError, Solver};
use crate::tensor::QuantizedTensor;

/// Moments of the held-out windows, in single precision.
#[derive(Debug)]
pub struct HeldOut {
    moment: Triangle<f32>,
    input: Option<Array2<f32>>,
    residual: Option<Array2<f32>>,
}

/// Errors on the held-out windows, less what no solution changes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOutLoss {
    /// Of the solution that stands.
    pub solved: f64,
    /// Of rounding to nearest on the full range.
    pub nearest: f64,
    /// Whether the solver's own solution was worse, so that rounding to nearest stands instead.
    pub fell_back: bool,
}

impl HeldOut {
    /// Of the held-out windows' moments.
    ///
    /// # Errors
    /// The shelf that they lie on fails.
    pub fn new(statistics: &Statistics) -> Result<Self, HessianError> {
        let cross = &statistics.shortfall;
        Ok(Self {
            moment: statistics.hessian.moment().convert(|entry| entry as f32)?,
            input: cross.input.as_ref().map(|cross| single(cross.matrix())),
            residual: cross.residual.as_ref().map(|cross| single(cross.matrix())),
        })
    }

    /// `H'`.
    pub(super) fn moment(&self) -> &Triangle<f32> {
        &self.moment
    }

    /// `C'`.
    pub(super) fn input(&self) -> Option<&Array2<f32>> {
        self.input.as_ref()
    }

    /// `Γ'`.
    pub(super) fn residual(&self) -> Option<&Array2<f32>> {
        self.residual.as_ref()
    }

    /// The solution, or rounding to nearest where that is better on the held-out windows.
    ///
    /// # Errors
    /// As [`Solver::solve`].
    pub fn judge(
        &self,
        problem: &Problem<'_>,
        solution: Solution,
        settings: &SolverSettings,
    ) -> Result<Solution, SolveError> {
        let _section = account::section("judging on held-out windows");
        let lack = self.lack(problem.weight);
        let loss = |tensor: &QuantizedTensor| self.loss(problem.weight, tensor, lack.as_ref());
        let full_range = SolverSettings { range: Range::MinMax, ..settings.clone() };
        let mut best = Rtn.solve(problem, &full_range)?;
        let nearest = loss(&best.tensor)?;
        let mut found = HeldOutLoss { solved: loss(&solution.tensor)?, nearest, fell_back: false };
        if found.solved <= nearest {
            best = solution;
        } else {
            found = HeldOutLoss { solved: nearest, nearest, fell_back: true };
            let searched = Rtn.solve(problem, settings)?;
            let searched_loss = loss(&searched.tensor)?;
            if searched_loss < nearest {
                (best, found.solved) = (searched, searched_loss);
            }
        }
        best.report.held_out = Some(found);
        Ok(best)
    }

    /// `W C' + Γ'`.
    fn lack(&self, weight: ArrayView2<'_, f32>) -> Option<Array2<f32>> {
        let input = self.input.as_ref().map(|cross| {
            let mut lack = Array2::zeros(weight.dim());
            kernels::product::product_nn(weight, cross.view(), lack.view_mut());
            lack
        });
        match (input, &self.residual) {
            (Some(input), Some(residual)) => Some(input + residual),
            (input, residual) => input.or_else(|| residual.clone()),
        }
    }

    fn loss(
        &self,
        weight: ArrayView2<'_, f32>,
        tensor: &QuantizedTensor,
        lack: Option<&Array2<f32>>,
    ) -> Result<f64, HessianError> {
        let mut errors = tensor.dequantize();
        errors.zip_mut_with(&weight, |value, weight| *value = weight - *value);
        let crossed = lack.map_or(0.0, |lack| 2.0 * inner(&errors, lack));
        Ok(self.moment.quadratic_form(errors.view())? + crossed)
    }
}
