//! Solvers of the layer-wise problem: one file each, and a line in [`ALL`].

pub mod gptq;
pub mod rtn;

use ndarray::{ArrayView2, CowArray, Ix2};
use serde::{Deserialize, Serialize};

#[cfg(doc)]
use crate::guard::held_out::HeldOut;
use crate::guard::held_out::HeldOutLoss;
use crate::hessian::HessianError;
use crate::output::OutputHessian;
use crate::prepared::{DampingReport, PreparedHessian};
use crate::refine::CoupledLoss;
use crate::scheme::{Granularity, Scheme};
use crate::settings::{SettingsError, SolverSettings};
use crate::tensor::{QuantizedTensor, TensorError};

/// Every solver, the simplest first.
pub static ALL: &[&dyn Solver] = &[&rtn::Rtn, &gptq::Gptq];

/// An algorithm that chooses codes.
pub trait Solver: Sync {
    /// As recipes and the command line spell it.
    fn name(&self) -> &'static str;

    /// One line for a list.
    fn summary(&self) -> &'static str;

    /// Whether the solver works with a Hessian; without, calibration would be wasted on it.
    fn needs_hessian(&self) -> bool;

    /// Codes and scales for one matrix.
    ///
    /// # Errors
    /// A weight that is not finite, a Hessian of another width, groups that do not divide the columns, settings out of range.
    fn solve(&self, problem: &Problem<'_>, settings: &SolverSettings) -> Result<Solution, SolveError>;
}

/// The solver of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static dyn Solver> {
    ALL.iter().copied().find(|solver| solver.name() == name)
}

/// One matrix to be quantized.
#[derive(Clone, Copy)]
pub struct Problem<'a> {
    /// `[out_features, in_features]`
    pub weight: ArrayView2<'a, f32>,
    /// What an error costs; `None` = identity. It carries the damping, the order and the error propagation it was prepared with: these
    /// fields of the settings are not read again.
    pub hessian: Option<&'a PreparedHessian>,
    /// What errors in the outputs cost the model; `None` = every output counts alike and alone.
    pub output: Option<&'a OutputHessian>,
    /// The grid's description.
    pub scheme: Scheme,
}

impl<'a> Problem<'a> {
    /// # Errors
    /// As [`Solver::solve`].
    pub fn check(&self) -> Result<(), SolveError> {
        let (rows, columns) = self.weight.dim();
        if rows == 0 || columns == 0 {
            return Err(SolveError::Empty { rows, columns });
        }
        if let Some(found) = self.hessian.map(PreparedHessian::in_features).filter(|&found| found != columns)
        {
            return Err(SolveError::HessianWidth { expected: columns, found });
        }
        if let Some(found) = self.output.map(OutputHessian::out_features).filter(|&found| found != rows) {
            return Err(SolveError::OutputHessianWidth { expected: rows, found });
        }
        if let Granularity::PerGroup(size) = self.scheme.granularity
            && !columns.is_multiple_of(size.get())
        {
            return Err(
                TensorError::GroupDoesNotDivide { group_size: size.get(), in_features: columns }.into()
            );
        }
        match self.weight.indexed_iter().find(|(_, weight)| !weight.is_finite()) {
            Some(((row, column), &found)) => Err(SolveError::NonFiniteWeight { row, column, found }),
            None => Ok(()),
        }
    }

    /// The weight with the columns of dead inputs set to 0.
    fn live_weight(&self) -> CowArray<'a, f32, Ix2> {
        let dead = self.hessian.map_or(&[][..], PreparedHessian::dead_inputs);
        let mut weight = CowArray::from(self.weight);
        for &column in dead {
            weight.column_mut(column).fill(0.0);
        }
        weight
    }
}

/// A quantized matrix and how it came about.
#[derive(Clone, Debug)]
pub struct Solution {
    /// Codes and grid.
    pub tensor: QuantizedTensor,
    /// What to tell the user.
    pub report: SolveReport,
}

/// What happened in one solve. Losses are against the target that was solved for: the weight itself, unless errors are propagated.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SolveReport {
    /// `tr((T-Q) H (T-Q)ᵀ)`, undamped; without a Hessian `‖T-Q‖²`.
    pub loss: f64,
    /// `loss / tr(T H Tᵀ)`; 0 where that is 0.
    pub relative_loss: f64,
    /// The same before any refinement. Coupled descent may raise a loss above it: it lowers the model's instead.
    pub relative_loss_unrefined: f64,
    /// Before and after coupled descent, in its own metric; `None` where there was none.
    pub coupled: Option<CoupledLoss>,
    /// On held-out windows, where there are some and the settings ask for a guard; put here by [`HeldOut::judge`].
    pub held_out: Option<HeldOutLoss>,
    /// How the factorization went; `None` without a Hessian.
    #[serde(flatten)]
    pub damping: Option<DampingReport>,
}

impl SolveReport {
    fn new(
        target: ArrayView2<'_, f32>,
        loss: f64,
        unrefined_loss: f64,
        hessian: Option<&PreparedHessian>,
    ) -> Self {
        let whole = crate::loss::total_loss(target, hessian);
        let relative = |loss: f64| if whole > 0.0 { loss / whole } else { 0.0 };
        Self {
            loss,
            relative_loss: relative(loss),
            relative_loss_unrefined: relative(unrefined_loss),
            coupled: None,
            held_out: None,
            damping: hessian.map(PreparedHessian::damping),
        }
    }
}

/// A problem that cannot be solved.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SolveError {
    /// Nothing to solve.
    #[error("the weight's shape is [{rows}, {columns}], expected at least one row and one column")]
    Empty {
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
    },
    /// Infinity or NaN in the checkpoint.
    #[error("the weight at [{row}, {column}] is {found}, expected a finite number")]
    NonFiniteWeight {
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
        /// The value.
        found: f32,
    },
    /// The Hessian of another input.
    #[error("the hessian has {found} columns, expected {expected} as the weight")]
    HessianWidth {
        /// Columns of the weight.
        expected: usize,
        /// Columns of the Hessian.
        found: usize,
    },
    /// The output Hessian of another linear.
    #[error("the output hessian has {found} rows, expected {expected} as the weight")]
    OutputHessianWidth {
        /// Rows of the weight.
        expected: usize,
        /// Rows of the output Hessian.
        found: usize,
    },
    /// Settings that refine, with a Hessian that was not prepared for any.
    #[error("the hessian was prepared for settings without refinement, expected one for these")]
    NotForRefinement,
    /// What held-out windows say cannot be read.
    #[error(transparent)]
    Statistics(#[from] HessianError),
    /// Groups that do not divide the columns.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// Settings out of range.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}
