//! The Hessian of the layer-wise problem, from its mean to its factor.
//!
//! [`HessianAccumulator`] -> [`Hessian`] -> [`Damped`] -> [`Factor`]: no solver sees a matrix
//! that was not damped, and no factor exists of one that was not positive definite. `H + λI` with `λ = damping * mean diag(H)` (GPTQ,
//! arXiv 2210.17323, section 3.3) is factored as `R Rᵀ`, `R` upper triangular; an input that was never active (`H_jj = 0`) gets the mean
//! diagonal, which keeps it apart from all others.
//!
//! [`PreparedHessian`](crate::prepared::PreparedHessian) is what solvers work with, and what the linears of one stage share.

use std::io;
use std::sync::Arc;

use kernels::stripes::{FactorError, HEIGHT, Triangle};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Zip};

pub use crate::accumulator::HessianAccumulator;
use crate::order::{Order, Permutation};

/// `H = Xᵀ X / tokens`, `[in_features, in_features]`, in double precision. A copy shares its numbers.
#[derive(Clone, Debug)]
pub struct Hessian {
    /// Symmetric in its tiles on the diagonal.
    moment: Arc<Triangle<f64>>,
    diagonal: Vec<f64>,
    tokens: u64,
}

impl Hessian {
    /// A Hessian from a matrix whose lower triangle is read, gathered over `tokens` tokens.
    ///
    /// # Errors
    /// A matrix that is not square, holds an entry that is not finite, or has a negative diagonal.
    pub fn from_lower(matrix: Array2<f64>, tokens: u64) -> Result<Self, HessianError> {
        let (rows, columns) = matrix.dim();
        if rows != columns {
            return Err(HessianError::NotSquare { rows, columns });
        }
        Self::of_moment(Triangle::of_symmetric(matrix.view()), tokens)
    }

    pub(crate) fn of_moment(moment: Triangle<f64>, tokens: u64) -> Result<Self, HessianError> {
        let bad = moment.map(|rows, stripe| {
            stripe.outer_iter().zip(rows).find_map(|(entries, row)| {
                let column = entries.iter().take(row + 1).position(|x| !x.is_finite())?;
                Some((row, column, entries[column]))
            })
        })?;
        if let Some((row, column, found)) = bad.into_iter().flatten().next() {
            return Err(HessianError::Entry { row, column, found });
        }
        let diagonal = moment.diagonal()?;
        if let Some(row) = diagonal.iter().position(|&x| x < 0.0) {
            return Err(HessianError::Entry { row, column: row, found: diagonal[row] });
        }
        Ok(Self { moment: Arc::new(moment), diagonal, tokens })
    }

    /// `[in_features, in_features]`, symmetric: a copy.
    ///
    /// # Errors
    /// The shelf that it lies on fails.
    pub fn matrix(&self) -> Result<Array2<f64>, HessianError> {
        Ok(self.moment.dense(false, |entry| entry)?)
    }

    pub(crate) fn moment(&self) -> &Triangle<f64> {
        &self.moment
    }

    /// Columns.
    #[must_use]
    pub fn in_features(&self) -> usize {
        self.diagonal.len()
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
    /// # Errors
    /// A shelf that one lies on fails.
    ///
    /// # Panics
    /// When the widths differ.
    pub fn merge(self, other: Self) -> Result<Self, HessianError> {
        let tokens = self.tokens + other.tokens;
        let share = self.tokens as f64 / tokens as f64;
        let mut merged = match Arc::try_unwrap(self.moment) {
            Ok(own) => own,
            Err(shared) => shared.copy()?,
        };
        merged.combine(&other.moment, |a, &b| *a = share * *a + (1.0 - share) * b)?;
        Self::of_moment(merged, tokens)
    }

    /// Inputs that were never active.
    #[must_use]
    pub fn dead_inputs(&self) -> Vec<usize> {
        self.diagonal.iter().enumerate().filter(|&(_, &x)| x == 0.0).map(|(column, _)| column).collect()
    }

    /// The mean diagonal over the inputs that were active; 1 where none was.
    #[must_use]
    pub fn mean_diagonal(&self) -> f64 {
        let alive = self.diagonal.iter().filter(|&&x| x > 0.0).count();
        if alive == 0 { 1.0 } else { self.diagonal.iter().sum::<f64>() / alive as f64 }
    }

    /// `H + λI`, `λ = damping * mean diag(H)`.
    #[must_use]
    pub fn damp(self, damping: f64) -> Damped {
        let mean = self.mean_diagonal();
        let dead = self.dead_inputs();
        let live = self.diagonal.iter().map(|&x| if x == 0.0 { mean } else { x }).collect();
        Damped { moment: self.moment, live, dead, mean, damping }
    }
}

/// `H + λI` with every diagonal entry positive.
#[derive(Clone, Debug)]
pub struct Damped {
    /// `H` as it was gathered: only `live` and `λ` count on the diagonal.
    moment: Arc<Triangle<f64>>,
    /// The diagonal before damping, dead inputs replaced.
    live: Vec<f64>,
    dead: Vec<usize>,
    mean: f64,
    damping: f64,
}

impl Damped {
    /// `[in_features, in_features]`, symmetric: a copy.
    ///
    /// # Errors
    /// The shelf that it lies on fails.
    pub fn matrix(&self) -> Result<Array2<f64>, HessianError> {
        self.dense(|entry| entry)
    }

    pub(crate) fn single(&self) -> Result<Array2<f32>, HessianError> {
        self.dense(|entry| entry as f32)
    }

    fn dense<T: kernels::stripes::Number>(
        &self,
        entry: impl Fn(f64) -> T + Sync,
    ) -> Result<Array2<T>, HessianError> {
        let mut matrix = self.moment.dense(false, &entry)?;
        matrix.diag_mut().iter_mut().zip(self.diagonal()).for_each(|(to, x)| *to = entry(x));
        Ok(matrix)
    }

    /// Its diagonal.
    pub fn diagonal(&self) -> impl Iterator<Item = f64> + '_ {
        let lambda = self.lambda();
        self.live.iter().map(move |live| live + lambda)
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
    }

    /// The processing order that `order` asks for.
    ///
    /// # Errors
    /// The shelf that it lies on fails.
    pub fn permutation(&self, order: Order) -> Result<Permutation, HessianError> {
        Ok(match order {
            Order::Natural => Permutation::natural(self.live.len()),
            Order::Activation => Permutation::descending(&self.diagonal().collect::<Vec<_>>()),
            Order::Pivot => Permutation::least_pivots(self.matrix()?.view()),
        })
    }

    /// The factor of the diagonal alone: what is left of the problem is rounding weighted by the diagonal.
    ///
    /// # Errors
    /// The shelf that it lies on fails.
    pub fn diagonal_factor(&self, order: &Permutation) -> Result<Factor, HessianError> {
        let diagonal: Vec<f64> = self.diagonal().collect();
        let roots: Vec<f64> = order.columns().iter().map(|&column| diagonal[column].sqrt()).collect();
        Ok(Factor { r: Triangle::of_diagonal(&roots, self.moment.shelf())? })
    }

    /// `R` with `P (H + λI) Pᵀ = R Rᵀ`, `P` putting columns into processing order.
    ///
    /// # Errors
    /// The matrix is not positive definite to working precision; the pivot is a position in `order`. Or the shelf fails.
    pub fn factor(&self, order: &Permutation) -> Result<Factor, FactorError> {
        Ok(Factor { r: self.ordered(order)?.factor()? })
    }

    /// `P (H + λI) Pᵀ`, on and below the diagonal.
    fn ordered(&self, order: &Permutation) -> io::Result<Triangle<f64>> {
        let (columns, lambda) = (order.columns(), self.lambda());
        let inverse = order.inverse();
        let positions = inverse.columns();
        let mut ordered = Triangle::zeros(columns.len(), self.moment.shelf());
        ordered.fill_groups(|group, stripes| {
            let first = group.start * HEIGHT;
            let rows = stripes.iter_mut().flat_map(|stripe| stripe.outer_iter_mut());
            let mut targets: Vec<_> = (first..).zip(rows).collect();
            for number in 0..self.moment.stripes() {
                let (rows, from) = (self.moment.rows(number), self.moment.read(number)?);
                targets.par_iter_mut().for_each(|(position, to)| {
                    let own = columns[*position];
                    if rows.contains(&own) {
                        let entries = from.row(own - rows.start);
                        for (&place, &entry) in positions[..own].iter().zip(entries) {
                            if place < *position {
                                to[place] = entry;
                            }
                        }
                    }
                    for other in rows.start.max(own + 1)..rows.end {
                        let place = positions[other];
                        if place < *position {
                            to[place] = from[[other - rows.start, own]];
                        }
                    }
                });
            }
            targets.par_iter_mut().for_each(|(position, to)| {
                to[*position] = self.live[columns[*position]] + lambda;
            });
            Ok::<_, io::Error>(())
        })?;
        Ok(ordered)
    }
}

/// Upper triangular `R`, `H + λI = R Rᵀ` in processing order.
#[derive(Debug)]
pub struct Factor {
    /// `Rᵀ`.
    r: Triangle<f64>,
}

impl Factor {
    /// `[in_features, in_features]`, upper triangular: a copy.
    ///
    /// # Errors
    /// The shelf that it lies on fails.
    pub fn r(&self) -> Result<Array2<f64>, HessianError> {
        Ok(self.r.dense(true, |entry| entry)?.reversed_axes())
    }

    pub(crate) fn stripes(&self) -> &Triangle<f64> {
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
    /// What lies elsewhere than in memory cannot be written or read.
    #[error("a matrix that memory has no room for cannot be kept: {problem}")]
    Shelf {
        /// What the system says.
        problem: String,
    },
}

impl From<io::Error> for HessianError {
    fn from(error: io::Error) -> Self {
        Self::Shelf { problem: error.to_string() }
    }
}

/// The mean of two means over so many tokens each.
fn weighted_mean(mut a: Array2<f64>, a_tokens: u64, b: Array2<f64>, b_tokens: u64) -> Array2<f64> {
    let share = a_tokens as f64 / (a_tokens + b_tokens) as f64;
    Zip::from(&mut a).and(&b).par_for_each(|a, &b| *a = share * *a + (1.0 - share) * b);
    a
}
