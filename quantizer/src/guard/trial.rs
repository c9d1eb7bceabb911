//! What a damping is worth: some rows solved with it on the fitted windows, judged on the held-out ones.
//!
//! Rows are solved as plain GPTQ does it (`solver/gptq.rs`), without refinement: that fits the same Hessian more closely, so it needs at least
//! as much damping, and costs many times as much.

use ndarray::{Array2, Axis};

use kernels::stripes::Triangle;

use super::Unsolved;
use crate::hessian::HessianError;
use crate::prepared::PreparedHessian;
use crate::range;
use crate::refine::Refinement;
use crate::scheme::Scheme;
use crate::settings::SolverSettings;
use crate::solver::Problem;

/// Some rows of one linear.
pub(super) struct Sample {
    weight: Array2<f32>,
    scheme: Scheme,
}

/// Those `rows`, ascending, of the stage's linears below each other. What no solver would take is left out: that is for the solver to say.
pub(super) fn samples(linears: &[Unsolved<'_>], rows: &[usize]) -> Vec<Sample> {
    let mut samples = Vec::with_capacity(linears.len());
    let mut first = 0;
    for &Unsolved { weight, scheme } in linears {
        let last = first + weight.nrows();
        let own: Vec<usize> =
            rows.iter().filter(|&row| (first..last).contains(row)).map(|row| row - first).collect();
        let sample = Sample { weight: weight.select(Axis(0), &own), scheme };
        let problem = Problem { weight: sample.weight.view(), hessian: None, output: None, scheme };
        if problem.check().is_ok() {
            samples.push(sample);
        }
        first = last;
    }
    samples
}

/// `tr(D H' Dᵀ)` of the samples, `moment` being `H'`.
pub(super) fn held_out_loss(
    samples: &[Sample],
    hessian: &PreparedHessian,
    moment: &Triangle<f32>,
    settings: &SolverSettings,
) -> Result<f64, HessianError> {
    let mut loss = 0.0;
    for Sample { weight, scheme } in samples {
        let target = hessian.target(weight.view());
        let grid = range::choose(target.view(), *scheme, settings, Some(hessian));
        let solved = Refinement::start(target.view(), grid, hessian);
        let errors = solved.first().grid.errors(weight.view(), solved.first().codes.view());
        loss += moment.quadratic_form(errors.view())?;
    }
    Ok(loss)
}
