//! GPTQ (arXiv 2210.17323) in its inverse-free form (LDLQ, arXiv 2307.13304; Babai's nearest plane, arXiv 2507.18553).
//!
//! With `H + λI = R Rᵀ`, `R` upper triangular, and columns `k = 1..n` in processing order,
//!
//! ```text
//! w'_k = w_k + (Σ_{j<k} δ_j R_jk) / R_kk      q_k = nearest(w'_k)      δ_k = w_k - q_k      loss = Σ_k R_kk² (w'_k - q_k)²
//! ```
//!
//! The codes are those of the textbook form; there is no inverse, and the weight is never overwritten: scales come from the original
//! columns, each column keeps its group in any order, and another solve with better scales starts from the same target.
//!
//! Optionally followed, row by row and only where the loss falls, by scale refit and coordinate descent (`refine/`). Without a Hessian
//! there are no other columns to learn from, and this is round to nearest.
//!
//! | here | paper | is |
//! |---|---|---|
//! | `target` | `W` | what the codes approximate, `[rows, n]` |
//! | `hessian.feedback()` | `R` | the factor, processing order |
//! | `best` | `Q` | codes and scales with the least loss so far |
//! | `coupling` | `H_O` | what errors of several outputs cost together, `[m, m]` |

use kernels::account::section;
use ndarray::Axis;

use crate::loss::total_loss;
use crate::prepared::Rung;
use crate::range;
use crate::refine::{Refinement, Solved, coupled};
use crate::settings::SolverSettings;
use crate::solver::{Problem, Solution, SolveError, SolveReport, Solver};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Gptq;

/// Rows in memory at a time, beside the weight, its target and its codes.
const ROWS: usize = 2048;

impl Solver for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn summary(&self) -> &'static str {
        "GPTQ, inverse-free, any column order; optional scale refit and coordinate descent"
    }

    fn needs_hessian(&self) -> bool {
        true
    }

    fn solve(&self, problem: &Problem<'_>, settings: &SolverSettings) -> Result<Solution, SolveError> {
        settings.check()?;
        problem.check()?;
        let Some(hessian) = problem.hessian else {
            return super::rtn::Rtn.solve(problem, settings);
        };
        if settings.refines() && hessian.damped().is_none() {
            return Err(SolveError::NotForRefinement);
        }
        let target = {
            let _section = section("targets and losses");
            hessian.target(problem.weight)
        };
        let grid = {
            let _section = section("range search");
            range::choose(problem.live_weight().view(), problem.scheme, settings, Some(hessian))
        };
        // Where the Hessian has no factor, its columns do not see each other, and neither do rows.
        let factored = hessian.damping().rung != Rung::Diagonal;
        let coupling = problem.output.filter(|_| settings.coupled_sweeps > 0 && factored);
        let mut solved = Solved::unsolved(grid, target.dim());
        let mut plain = coupling.map(|_| solved.clone());
        let (mut loss, mut unrefined_loss) = (0.0, 0.0);
        for first in (0..target.nrows()).step_by(ROWS) {
            let rows = first..(first + ROWS).min(target.nrows());
            let part = target.slice_axis(Axis(0), rows.clone().into());
            let mut best = {
                let _section = section("solve");
                Refinement::start(part, solved.grid.rows(rows), hessian)
            };
            if let Some(plain) = &mut plain {
                plain.set_rows(first, best.first());
            }
            unrefined_loss += best.first_loss();
            for _ in 0..settings.refits {
                best.refit_scales();
                best.solve_again();
            }
            for sweeps in pairs(settings.sweeps) {
                best.descend(sweeps);
                best.refit_scales();
            }
            let _section = section("targets and losses");
            let (rows, row_loss) = best.finish();
            solved.set_rows(first, &rows);
            loss += row_loss;
        }
        let mut found = None;
        if let (Some(output), Some(plain)) = (coupling, plain) {
            let _section = section("coupled descent");
            found = Some(coupled::descend(target.view(), &plain, &mut solved, hessian, output, settings));
            let errors = solved.grid.errors(target.view(), solved.codes.view());
            loss = total_loss(errors.view(), Some(hessian));
        }
        let _section = section("targets and losses");
        let report = SolveReport::new(target.view(), loss, unrefined_loss, Some(hessian));
        let report = SolveReport { coupled: found, ..report };
        Ok(Solution { tensor: solved.grid.into_tensor(solved.codes)?, report })
    }
}

/// `sweeps` in twos, the last one alone if they are odd.
fn pairs(sweeps: usize) -> impl Iterator<Item = usize> {
    (0..sweeps).step_by(2).map(move |done| (sweeps - done).min(2))
}
