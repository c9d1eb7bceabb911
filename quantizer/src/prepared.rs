//! A Hessian made ready for solving, once for all linears that share an input.
//!
//! What it holds, with `n` input features: the processing order; `R` packed for the solver, `n²/2` numbers; where the settings refine, the damped
//! Hessian, `n²`; and the matrices that move a weight to the target which makes up for earlier layers' errors. All in single precision;
//! the double-precision matrices live only while this is made.

use kernels::account;
use kernels::panel::FeedbackFactor;
use kernels::stripes::FactorError;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView1, ArrayView2, Axis, Zip};
use serde::{Deserialize, Serialize};

use crate::guard::Shares;
use crate::hessian::{CrossMoment, Damped, Factor, Hessian, HessianError, Shortfall};
use crate::order::Permutation;
use crate::settings::SolverSettings;

/// A damped, ordered and factored Hessian.
pub struct PreparedHessian {
    order: Permutation,
    feedback: FeedbackFactor,
    /// `H + λI`, `[n, n]`, natural order; where the settings refine.
    damped: Option<Array2<f32>>,
    /// Its diagonal.
    diagonal: Vec<f32>,
    /// `R_kk²` of each column, natural order.
    pivots: Vec<f32>,
    /// `α C (H + λ'I)⁻¹`, `[n, n]`, natural order.
    propagation: Option<Array2<f32>>,
    /// `β Γ (H + λ'I)⁻¹`, `[out_features, n]`, natural order.
    correction: Option<Array2<f32>>,
    dead: Vec<usize>,
    lambda: f64,
    /// What stands on the diagonal for dead inputs, before damping.
    mean_diagonal: f64,
    damping: DampingReport,
}

/// How the factorization went.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DampingReport {
    /// λ over the mean diagonal, as used.
    pub damping: f64,
    /// How far from what was asked.
    pub rung: Rung,
    /// Shares of the earlier layers' error that targets make up for, and how the regression behind them was damped.
    pub made_up_for: Option<Shares>,
    /// Inputs that were never active; their weights count as 0.
    pub dead_inputs: usize,
}

/// How far a Hessian had to be bent to be factored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// With the damping that was asked for.
    AsAsked,
    /// With more damping.
    Raised,
    /// Not at all: its diagonal stands in for it, so every column is rounded on its own.
    Diagonal,
}

impl Hessian {
    /// Damps, orders and factors, once for all linears of a stage. With what the quantized stream lacks, and the shares of it that are
    /// made up for, targets move by `(α W C + β Γ) (H + λ'I)⁻¹`, where `C` is the input's shortfall and `Γ` the residual stream's, which
    /// only a stage of one linear that writes to that stream has.
    ///
    /// # Errors
    /// Settings out of range, or a cross moment of another width. A matrix that is not positive definite is no error: damping
    /// is raised, and the rung is reported.
    pub fn prepare(
        self,
        settings: &SolverSettings,
        lacking: Option<(Shortfall, Shares)>,
    ) -> Result<PreparedHessian, HessianError> {
        settings.check()?;
        let _section = account::section("factorization");
        let expected = self.in_features();
        let (Shortfall { input, residual }, shares) = lacking.unwrap_or_default();
        let widths = [
            input.as_ref().map(|cross| cross.matrix().nrows()),
            input.as_ref().map(|cross| cross.matrix().ncols()),
            residual.as_ref().map(|cross| cross.matrix().ncols()),
        ];
        if let Some(found) = widths.into_iter().flatten().find(|&width| width != expected) {
            return Err(HessianError::CrossWidth { expected, found });
        }
        let input = input.filter(|_| shares.alpha > 0.0);
        let residual = residual.filter(|_| shares.beta > 0.0);
        let mut damped = self.damp(settings.damping);
        let order = damped.permutation(settings.order)?;
        let (factor, rung) = climb(&mut damped, &order)?;
        let mut ready = PreparedHessian::of_factor(&damped, order, &factor, rung)?;
        if settings.refines() {
            ready.damped = Some(damped.single()?);
        }
        if input.is_some() || residual.is_some() {
            // A regression wants as much damping as held-out windows gave it, but no less than its factor needs.
            let (found, wanted) = (damped.damping(), shares.damping);
            let regression =
                if wanted == found || rung == Rung::Diagonal || (rung == Rung::Raised && wanted < found) {
                    factor
                } else {
                    drop(factor);
                    damped.set(wanted);
                    climb(&mut damped, &ready.order)?.0
                };
            ready.damping.made_up_for = Some(Shares { damping: damped.damping(), ..shares });
            drop(damped);
            let guess = |cross, share| regress(cross, &regression, &ready.order, share);
            ready.propagation = input.map(|cross| guess(cross, shares.alpha)).transpose()?;
            ready.correction = residual.map(|cross| guess(cross, shares.beta)).transpose()?;
        }
        Ok(ready)
    }
}

impl PreparedHessian {
    /// With the factor of `damped` in `order`, nothing made up for, and nothing for refinement.
    pub(crate) fn of_factor(
        damped: &Damped,
        order: Permutation,
        factor: &Factor,
        rung: Rung,
    ) -> Result<Self, HessianError> {
        let dead = damped.dead_inputs().to_vec();
        let report =
            DampingReport { damping: damped.damping(), rung, made_up_for: None, dead_inputs: dead.len() };
        Ok(Self {
            feedback: FeedbackFactor::of_stripes(factor.stripes())?,
            damped: None,
            diagonal: damped.diagonal().map(|x| x as f32).collect(),
            pivots: pivots(factor, &order)?,
            order,
            propagation: None,
            correction: None,
            dead,
            lambda: damped.lambda(),
            mean_diagonal: damped.mean_diagonal(),
            damping: report,
        })
    }
}

/// Raises the damping tenfold, at most to 1, until there is a factor; then falls back to the diagonal.
fn climb(damped: &mut Damped, order: &Permutation) -> Result<(Factor, Rung), HessianError> {
    let mut rung = Rung::AsAsked;
    loop {
        match damped.factor(order) {
            Ok(factor) => return Ok((factor, rung)),
            Err(FactorError::Store(error)) => return Err(error.into()),
            Err(_) if damped.damping() < 1.0 => {
                rung = Rung::Raised;
                damped.set((damped.damping() * 10.0).clamp(LEAST_RAISED_DAMPING, 1.0));
            }
            Err(_) => return Ok((damped.diagonal_factor(order)?, Rung::Diagonal)),
        }
    }
}

const LEAST_RAISED_DAMPING: f64 = 1e-4;

fn pivots(factor: &Factor, order: &Permutation) -> Result<Vec<f32>, HessianError> {
    let mut pivots = vec![0.0; order.columns().len()];
    for (r, &column) in factor.stripes().diagonal()?.into_iter().zip(order.columns()) {
        pivots[column] = (r * r) as f32;
    }
    Ok(pivots)
}

/// `share * cross (H + λ'I)⁻¹` in natural order: the best linear guess of what is lacking from the input that is there.
fn regress(
    cross: CrossMoment,
    factor: &Factor,
    order: &Permutation,
    share: f64,
) -> Result<Array2<f32>, HessianError> {
    let columns = order.columns();
    let mut right = cross.into_matrix();
    reorder_rows(&mut right, order);
    factor.stripes().solve_right(right.view_mut())?;
    let mut out = Array2::<f32>::zeros(right.dim());
    Zip::from(out.rows_mut()).and(right.rows()).par_for_each(|mut out, solved| {
        for (&column, &value) in columns.iter().zip(solved) {
            out[column] = (share * value) as f32;
        }
    });
    Ok(out)
}

/// Puts the entries of every row into processing order.
fn reorder_rows(matrix: &mut Array2<f64>, order: &Permutation) {
    matrix.axis_iter_mut(Axis(0)).into_par_iter().for_each(|mut row| {
        let natural = row.to_vec();
        for (entry, &column) in row.iter_mut().zip(order.columns()) {
            *entry = natural[column];
        }
    });
}

impl PreparedHessian {
    /// Columns.
    #[must_use]
    pub fn in_features(&self) -> usize {
        self.diagonal.len()
    }

    /// How the factorization went.
    #[must_use]
    pub fn damping(&self) -> DampingReport {
        self.damping
    }

    /// Inputs that were never active, ascending.
    #[must_use]
    pub fn dead_inputs(&self) -> &[usize] {
        &self.dead
    }

    /// The processing order.
    #[must_use]
    pub fn order(&self) -> &Permutation {
        &self.order
    }

    /// `H + λI`, `[n, n]`, natural order; there where it was prepared for settings that refine.
    #[must_use]
    pub fn damped(&self) -> Option<ArrayView2<'_, f32>> {
        self.damped.as_ref().map(|damped| damped.view())
    }

    /// The diagonal of `H + λI`, natural order.
    #[must_use]
    pub fn diagonal(&self) -> &[f32] {
        &self.diagonal
    }

    /// `R_kk²` of each column in natural order: its variance given the columns that are processed after it.
    #[must_use]
    pub fn pivots(&self) -> &[f32] {
        &self.pivots
    }

    /// [`PreparedHessian::damped`], for what only runs where it is there.
    pub(crate) fn full(&self) -> ArrayView2<'_, f32> {
        self.damped().expect("solvers refuse to refine without it")
    }

    pub(crate) fn feedback(&self) -> &FeedbackFactor {
        &self.feedback
    }

    pub(crate) fn lambda(&self) -> f64 {
        self.lambda
    }

    /// What the dead inputs' stand-ins on the diagonal add to the loss of one row of errors, natural order.
    pub(crate) fn dead_loss(&self, errors: ArrayView1<'_, f32>) -> f64 {
        let squares = self.dead.iter().map(|&column| f64::from(errors[column]).powi(2));
        self.mean_diagonal * squares.sum::<f64>()
    }

    /// What the codes should approximate, `[rows, n]`: the weight, dead columns set to 0, moved by `(α W C + β Γ) (H + λ'I)⁻¹`.
    ///
    /// # Panics
    /// When the residual stream that `Γ` was gathered from is not as wide as the weight has rows.
    #[must_use]
    pub fn target(&self, weight: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut target = match &self.propagation {
            Some(propagation) => {
                let mut moved = Array2::zeros(weight.dim());
                kernels::product::product_nn(weight, propagation.view(), moved.view_mut());
                moved += &weight;
                moved
            }
            None => weight.to_owned(),
        };
        if let Some(correction) = &self.correction {
            target += correction;
        }
        for &column in &self.dead {
            target.column_mut(column).fill(0.0);
        }
        target
    }
}
