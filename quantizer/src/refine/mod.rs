//! Making a solution better without leaving its grid's shape: scale refit, another solve with the new scales, coordinate descent.
//!
//! Each step is taken row by row, and only where the row's loss falls; the end checks that once more with losses that
//! were computed afresh. So a refined row is never worse than the solver left it. Coupled
//! descent, which follows, trades rows' losses for the model's (`coupled.rs`).

pub(crate) mod coupled;
mod descent;
mod refit;
mod two_sided;

pub use coupled::CoupledLoss;

use std::ops::Range;

use kernels::account::section;
use kernels::panel::successive_rounding;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Axis};

use crate::grid::Grid;
use crate::loss::damped_losses;
use crate::prepared::PreparedHessian;

/// Some rows of a matrix while they are being solved.
pub(crate) struct Refinement<'a> {
    /// `[rows, in_features]`
    target: ArrayView2<'a, f32>,
    /// The same in processing order.
    ordered: Array2<f32>,
    /// The group of each column in processing order.
    group_of: Vec<u32>,
    hessian: &'a PreparedHessian,
    first: Candidate,
    best: Candidate,
    refined: bool,
}

/// Some rows' codes and their grid.
#[derive(Clone)]
pub(crate) struct Solved {
    pub(crate) grid: Grid,
    /// `[rows, in_features]`, natural order.
    pub(crate) codes: Array2<u8>,
}

impl Solved {
    /// A matrix on `grid`, to be filled in.
    pub(crate) fn unsolved(grid: Grid, shape: (usize, usize)) -> Self {
        Self { grid, codes: Array2::zeros(shape) }
    }

    pub(crate) fn rows(&self, rows: Range<usize>) -> Self {
        let codes = self.codes.slice_axis(Axis(0), rows.clone().into()).to_owned();
        Self { grid: self.grid.rows(rows), codes }
    }

    /// Replaces the rows from `first` on.
    pub(crate) fn set_rows(&mut self, first: usize, rows: &Self) {
        self.grid.set_rows(first, &rows.grid);
        let range = first..first + rows.codes.nrows();
        self.codes.slice_axis_mut(Axis(0), range.into()).assign(&rows.codes);
    }
}

/// A solution and the damped loss of each row.
#[derive(Clone)]
struct Candidate {
    solved: Solved,
    losses: Vec<f64>,
}

impl<'a> Refinement<'a> {
    /// Solves by successive rounding on `grid`.
    pub(crate) fn start(target: ArrayView2<'a, f32>, grid: Grid, hessian: &'a PreparedHessian) -> Self {
        let columns = hessian.order().columns();
        let mut ordered = Array2::zeros(target.dim());
        ordered.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(row, mut ordered)| {
            let natural = target.row(row);
            for (to, &column) in ordered.iter_mut().zip(columns) {
                *to = natural[column];
            }
        });
        let groups = grid.groups();
        let group_of: Vec<u32> = columns.iter().map(|&column| groups[column]).collect();
        let first = rounded(ordered.view(), grid, &group_of, hessian);
        let best = first.clone();
        Self { target, ordered, group_of, hessian, first, best, refined: false }
    }

    /// `Σ d H dᵀ` of the solution before any refinement, undamped.
    pub(crate) fn first_loss(&self) -> f64 {
        self.undamped(&self.first)
    }

    /// Fits the scales to the codes.
    pub(crate) fn refit_scales(&mut self) {
        let _section = section("refit");
        self.refined = true;
        refit::refit(self.target, &mut self.best, self.hessian);
    }

    /// Solves once more with the scales as they are now.
    pub(crate) fn solve_again(&mut self) {
        let _section = section("solve");
        self.refined = true;
        let candidate =
            rounded(self.ordered.view(), self.best.solved.grid.clone(), &self.group_of, self.hessian);
        self.best.keep_better(&candidate);
    }

    /// Moves single codes while that lowers the loss.
    pub(crate) fn descend(&mut self, sweeps: usize) {
        let _section = section("descent");
        self.refined = true;
        let mut candidate = self.best.clone();
        descent::descend(self.target, &mut candidate, self.hessian, sweeps);
        self.best.keep_better(&candidate);
    }

    /// The solution before any refinement.
    pub(crate) fn first(&self) -> &Solved {
        &self.first.solved
    }

    /// The best of what was tried, and its `Σ d H dᵀ`, undamped.
    pub(crate) fn finish(mut self) -> (Solved, f64) {
        if self.refined {
            let errors = self.best.errors(self.target);
            self.best.losses = damped_losses(errors.view(), Some(self.hessian));
            self.best.keep_better(&self.first);
        }
        let loss = self.undamped(&self.best);
        (self.best.solved, loss)
    }

    fn undamped(&self, candidate: &Candidate) -> f64 {
        let errors = candidate.errors(self.target);
        crate::loss::undamped(&candidate.losses, errors.view(), self.hessian)
    }
}

impl Candidate {
    fn errors(&self, target: ArrayView2<'_, f32>) -> Array2<f32> {
        self.solved.grid.errors(target, self.solved.codes.view())
    }

    /// Takes the rows of `other` that have a lower loss.
    fn keep_better(&mut self, other: &Self) {
        for row in 0..self.losses.len() {
            if other.losses[row] < self.losses[row] {
                self.losses[row] = other.losses[row];
                self.solved.codes.row_mut(row).assign(&other.solved.codes.row(row));
                self.solved.grid.take_row(row, &other.solved.grid, row);
            }
        }
    }
}

/// Successive rounding; `target` is in processing order.
fn rounded(
    target: ArrayView2<'_, f32>,
    grid: Grid,
    group_of: &[u32],
    hessian: &PreparedHessian,
) -> Candidate {
    let mut ordered = Array2::zeros(target.dim());
    let losses = successive_rounding(target, hessian.feedback(), &grid.kernel(group_of), ordered.view_mut());
    let mut codes = Array2::zeros(target.dim());
    codes.axis_iter_mut(Axis(0)).into_par_iter().zip(ordered.axis_iter(Axis(0))).for_each(
        |(mut codes, ordered)| {
            for (&code, &column) in ordered.iter().zip(hessian.order().columns()) {
                codes[column] = code;
            }
        },
    );
    Candidate { solved: Solved { grid, codes }, losses }
}
