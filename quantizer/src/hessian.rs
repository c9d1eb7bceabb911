//! The Hessian of the layer-wise problem, from its mean to its factor.
//!
//! [`HessianAccumulator`] -> [`Hessian`] -> [`Damped`] -> [`Factor`]: no solver sees a matrix
//! that was not damped, and no factor exists of one that was not positive definite. `H + λI` with `λ = damping * mean diag(H)` (GPTQ,
//! arXiv 2210.17323, section 3.3) is factored as `R Rᵀ`, `R` upper triangular; an input that was never active (`H_jj = 0`) gets the mean
//! diagonal, which keeps it apart from all others.
//!
//! [`PreparedHessian`](crate::prepared::PreparedHessian) is what solvers work with, and what the linears of one stage share.

use kernels::factor::{NotPositiveDefinite, cholesky_upper};
use ndarray::parallel::prelude::*;
use ndarray::{Array1, Array2, ArrayView2, Axis, Zip};

pub use crate::accumulator::HessianAccumulator;
use crate::order::Permutation;

/// `H = Xᵀ X / tokens`, `[in_features, in_features]`, in double precision.
#[derive(Clone, Debug)]
pub struct Hessian {
    /// Symmetric.
    matrix: Array2<f64>,
    tokens: u64,
}

impl Hessian {
    /// A Hessian from a matrix whose lower triangle is read, gathered over `tokens` tokens.
    ///
    /// # Errors
    /// A matrix that is not square, holds an entry that is not finite, or has a negative diagonal.
    pub fn from_lower(mut matrix: Array2<f64>, tokens: u64) -> Result<Self, HessianError> {
        let (rows, columns) = matrix.dim();
        if rows != columns {
            return Err(HessianError::NotSquare { rows, columns });
        }
        mirror(&mut matrix);
        let bad = matrix.axis_iter(Axis(0)).into_par_iter().enumerate().find_map_first(|(row, entries)| {
            let column = entries.iter().position(|x| !x.is_finite())?;
            Some((row, column, entries[column]))
        });
        if let Some((row, column, found)) = bad {
            return Err(HessianError::Entry { row, column, found });
        }
        if let Some(row) = matrix.diag().iter().position(|&x| x < 0.0) {
            return Err(HessianError::Entry { row, column: row, found: matrix[[row, row]] });
        }
        Ok(Self { matrix, tokens })
    }

    /// `[in_features, in_features]`, symmetric.
    #[must_use]
    pub fn matrix(&self) -> ArrayView2<'_, f64> {
        self.matrix.view()
    }

    /// Columns.
    #[must_use]
    pub fn in_features(&self) -> usize {
        self.matrix.nrows()
    }

    /// Tokens that it is the mean of.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The same mean, taken to be over so many tokens where it is merged with another.
    #[must_use]
    pub fn counting_as(self, tokens: u64) -> Self {
        Self { tokens, ..self }
    }

    /// The mean over the tokens of both.
    ///
    /// # Panics
    /// When the widths differ.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let tokens = self.tokens + other.tokens;
        Self { matrix: weighted_mean(self.matrix, self.tokens, other.matrix, other.tokens), tokens }
    }

    /// Inputs that were never active.
    #[must_use]
    pub fn dead_inputs(&self) -> Vec<usize> {
        self.matrix.diag().iter().enumerate().filter(|&(_, &x)| x == 0.0).map(|(column, _)| column).collect()
    }

    /// The mean diagonal over the inputs that were active; 1 where none was.
    #[must_use]
    pub fn mean_diagonal(&self) -> f64 {
        let alive = self.matrix.diag().iter().filter(|&&x| x > 0.0).count();
        if alive == 0 { 1.0 } else { self.matrix.diag().sum() / alive as f64 }
    }

    /// `H + λI`, `λ = damping * mean diag(H)`.
    #[must_use]
    pub fn damp(self, damping: f64) -> Damped {
        let mean = self.mean_diagonal();
        let dead = self.dead_inputs();
        let live = self.matrix.diag().mapv(|x| if x == 0.0 { mean } else { x });
        let mut damped = Damped { matrix: self.matrix, live, dead, mean, damping };
        damped.set(damping);
        damped
    }
}

/// `H + λI` with every diagonal entry positive.
#[derive(Clone, Debug)]
pub struct Damped {
    /// Symmetric.
    matrix: Array2<f64>,
    /// The diagonal before damping, dead inputs replaced.
    live: Array1<f64>,
    dead: Vec<usize>,
    mean: f64,
    damping: f64,
}

impl Damped {
    /// `[in_features, in_features]`, symmetric.
    #[must_use]
    pub fn matrix(&self) -> ArrayView2<'_, f64> {
        self.matrix.view()
    }

    /// Inputs that were never active, ascending.
    #[must_use]
    pub fn dead_inputs(&self) -> &[usize] {
        &self.dead
    }

    /// The mean diagonal over the inputs that were active, which stands for the others' too.
    #[must_use]
    pub fn mean_diagonal(&self) -> f64 {
        self.mean
    }

    /// λ over the mean diagonal.
    #[must_use]
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// λ.
    #[must_use]
    pub fn lambda(&self) -> f64 {
        self.damping * self.mean
    }

    /// Damps with another λ instead.
    pub fn set(&mut self, damping: f64) {
        self.damping = damping;
        let lambda = self.lambda();
        for (entry, &live) in self.matrix.diag_mut().iter_mut().zip(&self.live) {
            *entry = live + lambda;
        }
    }

    /// The factor of the diagonal alone: what is left of the problem is rounding weighted by the diagonal.
    #[must_use]
    pub fn diagonal_factor(&self, order: &Permutation) -> Factor {
        let diagonal = self.matrix.diag();
        let roots: Array1<f64> = order.columns().iter().map(|&column| diagonal[column].sqrt()).collect();
        Factor { r: Array2::from_diag(&roots) }
    }

    /// `R` with `P (H + λI) Pᵀ = R Rᵀ`, `P` putting columns into processing order.
    ///
    /// # Errors
    /// The matrix is not positive definite to working precision; the pivot is a position in `order`.
    pub fn factor(&self, order: &Permutation) -> Result<Factor, NotPositiveDefinite> {
        let n = self.matrix.nrows();
        let columns = order.columns();
        let mut permuted = Array2::<f64>::zeros((n, n));
        permuted.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(row, mut entries)| {
            let source = self.matrix.row(columns[row]);
            for (entry, &column) in entries.iter_mut().zip(&columns[..=row]) {
                *entry = source[column];
            }
        });
        cholesky_upper(permuted).map(|r| Factor { r })
    }
}

/// Upper triangular `R`, `H + λI = R Rᵀ` in processing order.
#[derive(Clone, Debug)]
pub struct Factor {
    r: Array2<f64>,
}

impl Factor {
    /// `[in_features, in_features]`, upper triangular.
    #[must_use]
    pub fn r(&self) -> &Array2<f64> {
        &self.r
    }
}

/// `C = (Y_original - Y)ᵀ X / tokens`, `[features, in_features]`: what the quantized stream lacks, seen by a stage's input.
#[derive(Clone, Debug)]
pub struct CrossMoment {
    matrix: Array2<f64>,
    tokens: u64,
}

impl CrossMoment {
    pub(crate) fn new(matrix: Array2<f64>, tokens: u64) -> Self {
        Self { matrix, tokens }
    }

    /// `[features of the difference, in_features of the quantized inputs]`.
    #[must_use]
    pub fn matrix(&self) -> ArrayView2<'_, f64> {
        self.matrix.view()
    }

    /// Tokens that it is the mean of.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The mean over the tokens of both.
    ///
    /// # Panics
    /// When the widths differ.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let tokens = self.tokens + other.tokens;
        Self { matrix: weighted_mean(self.matrix, self.tokens, other.matrix, other.tokens), tokens }
    }

    pub(crate) fn into_matrix(self) -> Array2<f64> {
        self.matrix
    }
}

/// What the quantized stream lacks against the original's, where that is known.
#[derive(Clone, Debug, Default)]
pub struct Shortfall {
    /// Of the stage's input, `[in_features, in_features]`.
    pub input: Option<CrossMoment>,
    /// Of the residual stream that the stage's output is added to, `[out_features, in_features]`.
    pub residual: Option<CrossMoment>,
}

/// Statistics that cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum HessianError {
    /// Rows of another width.
    #[error("activations have {found} columns, expected {expected}")]
    Width {
        /// Columns of the accumulator.
        expected: usize,
        /// Columns given.
        found: usize,
    },
    /// Both models must see the same tokens.
    #[error("the original model's activations have {original} tokens, the quantized model's {quantized}")]
    TokenCount {
        /// Rows of the original.
        original: usize,
        /// Rows of the quantized.
        quantized: usize,
    },
    /// Infinity or NaN flowed out of the model.
    #[error("the activation in column {column} of token {token} is {found}, expected a finite number")]
    NonFiniteActivation {
        /// Input feature.
        column: usize,
        /// Position in the stream, from 0.
        token: u64,
        /// The value.
        found: f32,
    },
    /// A mean over nothing.
    #[error("no token was observed, expected at least one")]
    NoTokens,
    /// Not a matrix of second moments.
    #[error("the shape of the hessian is [{rows}, {columns}], expected a square")]
    NotSquare {
        /// Rows given.
        rows: usize,
        /// Columns given.
        columns: usize,
    },
    /// Not a matrix of second moments.
    #[error(
        "the hessian's entry at [{row}, {column}] is {found}, expected a finite number, not negative on the diagonal"
    )]
    Entry {
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
        /// The value.
        found: f64,
    },
    /// A cross moment of another stage.
    #[error("the cross moment has {found} columns, expected {expected}")]
    CrossWidth {
        /// Columns of the Hessian.
        expected: usize,
        /// Columns of the cross moment.
        found: usize,
    },
    /// Settings out of range.
    #[error(transparent)]
    Settings(#[from] crate::settings::SettingsError),
}

/// The mean of two means over so many tokens each.
fn weighted_mean(mut a: Array2<f64>, a_tokens: u64, b: Array2<f64>, b_tokens: u64) -> Array2<f64> {
    let share = a_tokens as f64 / (a_tokens + b_tokens) as f64;
    Zip::from(&mut a).and(&b).par_for_each(|a, &b| *a = share * *a + (1.0 - share) * b);
    a
}

/// Copies the lower triangle to the upper one, in tiles that stay in cache.
fn mirror(matrix: &mut Array2<f64>) {
    const TILE: usize = 64;
    let n = matrix.nrows();
    for row in (0..n).step_by(TILE) {
        for column in (0..=row).step_by(TILE) {
            for i in row..(row + TILE).min(n) {
                for j in column..(column + TILE).min(i) {
                    matrix[[j, i]] = matrix[[i, j]];
                }
            }
        }
    }
}
