//! Round to nearest: every weight to its nearest code, with no look at any other.
//!
//! The solution of the layer-wise problem for `H = I`. A Hessian, if there is one, only weighs the range search and the report.

use ndarray::Array2;

use crate::loss::total_loss;
use crate::range;
use crate::settings::SolverSettings;
use crate::solver::{Problem, Solution, SolveError, SolveReport, Solver};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Rtn;

impl Solver for Rtn {
    fn name(&self) -> &'static str {
        "rtn"
    }

    fn summary(&self) -> &'static str {
        "round to nearest"
    }

    fn needs_hessian(&self) -> bool {
        false
    }

    fn solve(&self, problem: &Problem<'_>, settings: &SolverSettings) -> Result<Solution, SolveError> {
        settings.check()?;
        problem.check()?;
        let grid = range::choose(problem.weight, problem.scheme, settings, problem.hessian);
        let mut codes = Array2::zeros(problem.weight.dim());
        grid.round(problem.weight, codes.view_mut());
        let errors = grid.errors(problem.weight, codes.view());
        let loss = total_loss(errors.view(), problem.hessian);
        let report = SolveReport::new(problem.weight, loss, loss, problem.hessian);
        Ok(Solution { tensor: grid.into_tensor(codes)?, report })
    }
}
