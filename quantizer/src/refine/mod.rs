//! Making a solution better without leaving its grid's shape: scale refit, another solve with the new scales, coordinate descent.
//!
//! Each step is taken row by row, and only where the row's loss falls; [`Refinement::finish`] checks that once more with losses that
//! were computed afresh. So a refined row is never worse than the solver left it.

mod descent;
mod refit;

use kernels::panel::successive_rounding;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Axis};

use crate::grid::Grid;
use crate::loss::damped_losses;
use crate::prepared::PreparedHessian;

/// Some rows of a matrix while they are being solved.
pub struct Refinement<'a> {
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

/// Rows that are solved.
pub struct Refined {
    /// With the refitted scales.
    pub grid: Grid,
    /// `[rows, in_features]`, natural order.
    pub codes: Array2<u8>,
    /// `Σ d H dᵀ`, undamped.
    pub loss: f64,
}

/// Codes, their grid, and the damped loss of each row.
#[derive(Clone)]
struct Candidate {
    grid: Grid,
    /// `[rows, in_features]`, natural order.
    codes: Array2<u8>,
    losses: Vec<f64>,
}

impl<'a> Refinement<'a> {
    /// Solves by successive rounding on `grid`.
    #[must_use]
    pub fn start(target: ArrayView2<'a, f32>, grid: Grid, hessian: &'a PreparedHessian) -> Self {
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
    #[must_use]
    pub fn first_loss(&self) -> f64 {
        self.undamped(&self.first)
    }

    /// Fits the scales to the codes.
    pub fn refit_scales(&mut self) {
        self.refined = true;
        refit::refit(self.target, &mut self.best, self.hessian);
    }

    /// Solves once more with the scales as they are now.
    pub fn solve_again(&mut self) {
        self.refined = true;
        let candidate = rounded(self.ordered.view(), self.best.grid.clone(), &self.group_of, self.hessian);
        self.best.keep_better(&candidate);
    }

    /// Moves single codes while that lowers the loss.
    pub fn descend(&mut self, sweeps: usize) {
        self.refined = true;
        let mut candidate = self.best.clone();
        descent::descend(self.target, &mut candidate, self.hessian, sweeps);
        self.best.keep_better(&candidate);
    }

    /// The best of what was tried.
    #[must_use]
    pub fn finish(mut self) -> Refined {
        if self.refined {
            let errors = self.best.grid.errors(self.target, self.best.codes.view());
            self.best.losses = damped_losses(errors.view(), Some(self.hessian));
            self.best.keep_better(&self.first);
        }
        let loss = self.undamped(&self.best);
        Refined { grid: self.best.grid, codes: self.best.codes, loss }
    }

    fn undamped(&self, candidate: &Candidate) -> f64 {
        let errors = candidate.grid.errors(self.target, candidate.codes.view());
        crate::loss::undamped(&candidate.losses, errors.view(), self.hessian)
    }
}

impl Candidate {
    /// Takes the rows of `other` that have a lower loss.
    fn keep_better(&mut self, other: &Self) {
        for row in 0..self.losses.len() {
            if other.losses[row] < self.losses[row] {
                self.losses[row] = other.losses[row];
                self.codes.row_mut(row).assign(&other.codes.row(row));
                self.grid.take_row(row, &other.grid);
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
    Candidate { grid, codes, losses }
}
