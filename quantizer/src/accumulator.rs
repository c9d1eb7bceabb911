//! Second moments of a stage's input, gathered over any number of batches.
//!
//! `H = Xᵀ X / tokens` for the rows `x` that a linear sees, and, where the original model's activations flow beside the quantized
//! ones, cross moments `C = (Y_original - Y)ᵀ X / tokens` of `X` with what the quantized stream lacks: `Y` is the input `X` itself (QEP,
//! arXiv 2504.09629, section 4; Qronos, arXiv 2505.11695), or the residual stream that the linear's output is added to (LoaQ, arXiv
//! 2509.06297). `C` is gathered from the difference itself, since that of two large moments would cancel.
//!
//! Rows are buffered to chunks of a fixed number of tokens: one product with sums in single precision per chunk, added up in double
//! precision; where the caller asks for it, its factors are rounded to bfloat16. The
//! chunk boundaries depend on nothing but the position in the stream, so however the caller splits its batches, no bit changes.
//!
//! Not here: which tokens count (the caller leaves padding out), and damping (`hessian.rs`).

use kernels::bf16::Precision;
use kernels::elementwise::all_finite;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Axis, Zip};

use crate::hessian::{CrossMoment, Hessian, HessianError};

/// Tokens of one single-precision product.
pub const CHUNK_TOKENS: usize = 2048;

/// Gathers a [`Hessian`].
#[derive(Clone, Debug)]
pub struct HessianAccumulator {
    chunk: Chunk,
    moment: Moment,
    precision: Precision,
}

impl HessianAccumulator {
    /// For inputs of `in_features` columns.
    #[must_use]
    pub fn new(in_features: usize) -> Self {
        Self {
            chunk: Chunk::new(in_features),
            moment: Moment::new(in_features, in_features),
            precision: Precision::Single,
        }
    }

    /// With factors of products rounded so.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Adds `rows`, `[tokens, in_features]`.
    ///
    /// # Errors
    /// Rows of another width, or an activation that is not finite.
    pub fn observe(&mut self, rows: ArrayView2<'_, f32>) -> Result<(), HessianError> {
        check(self.chunk.width(), rows, self.moment.tokens + self.chunk.filled as u64)?;
        let mut rest = rows;
        while rest.nrows() > 0 {
            rest = self.chunk.take(rest);
            if self.chunk.is_full() {
                self.flush();
            }
        }
        Ok(())
    }

    /// Tokens that were observed.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.moment.tokens + self.chunk.filled as u64
    }

    /// The mean over all tokens.
    ///
    /// # Errors
    /// No token was observed.
    pub fn finish(mut self) -> Result<Hessian, HessianError> {
        self.flush();
        Hessian::from_lower(self.moment.mean()?, self.moment.tokens)
    }

    fn flush(&mut self) {
        let (chunk, precision) = (self.chunk.drain(), self.precision);
        self.moment.add(chunk.nrows(), |product| precision.gram(chunk, product.view_mut()));
    }
}

/// Gathers a [`CrossMoment`].
#[derive(Clone, Debug)]
pub struct CrossMomentAccumulator {
    difference: Chunk,
    input: Chunk,
    moment: Moment,
    precision: Precision,
}

impl CrossMomentAccumulator {
    /// For `features` that both models have and inputs of `in_features` columns.
    #[must_use]
    pub fn new(features: usize, in_features: usize) -> Self {
        Self {
            difference: Chunk::new(features),
            input: Chunk::new(in_features),
            moment: Moment::new(features, in_features),
            precision: Precision::Single,
        }
    }

    /// With factors of products rounded so.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Adds some tokens: the features in the original model and in the quantized one, both `[tokens, features]`, and the quantized
    /// model's `input`, `[tokens, in_features]`.
    ///
    /// # Errors
    /// Rows of another width or count, or an activation that is not finite.
    pub fn observe(
        &mut self,
        original: ArrayView2<'_, f32>,
        quantized: ArrayView2<'_, f32>,
        input: ArrayView2<'_, f32>,
    ) -> Result<(), HessianError> {
        let seen = self.moment.tokens + self.input.filled as u64;
        check(self.difference.width(), original, seen)?;
        check(self.difference.width(), quantized, seen)?;
        check(self.input.width(), input, seen)?;
        if let Some(other) = [quantized.nrows(), input.nrows()].into_iter().find(|&n| n != original.nrows()) {
            return Err(HessianError::TokenCount { original: original.nrows(), quantized: other });
        }
        let difference = &original - &quantized;
        let (mut rest, mut rest_difference) = (input, difference.view());
        while rest.nrows() > 0 {
            rest = self.input.take(rest);
            rest_difference = self.difference.take(rest_difference);
            if self.input.is_full() {
                self.flush();
            }
        }
        Ok(())
    }

    /// The mean over all tokens.
    ///
    /// # Errors
    /// No token was observed.
    pub fn finish(mut self) -> Result<CrossMoment, HessianError> {
        self.flush();
        Ok(CrossMoment::new(self.moment.mean()?, self.moment.tokens))
    }

    fn flush(&mut self) {
        let (difference, input) = (self.difference.drain(), self.input.drain());
        let precision = self.precision;
        self.moment.add(input.nrows(), |product| {
            precision.product_tn(difference, input, product.view_mut());
        });
    }
}

/// Rows waiting for their product.
#[derive(Clone, Debug)]
struct Chunk {
    /// `[CHUNK_TOKENS, in_features]`
    rows: Array2<f32>,
    filled: usize,
}

impl Chunk {
    fn new(in_features: usize) -> Self {
        Self { rows: Array2::zeros((CHUNK_TOKENS, in_features)), filled: 0 }
    }

    fn width(&self) -> usize {
        self.rows.ncols()
    }

    fn is_full(&self) -> bool {
        self.filled == CHUNK_TOKENS
    }

    /// Copies as many rows as fit; returns those that are left.
    fn take<'a>(&mut self, rows: ArrayView2<'a, f32>) -> ArrayView2<'a, f32> {
        let count = rows.nrows().min(CHUNK_TOKENS - self.filled);
        let (now, later) = rows.split_at(Axis(0), count);
        self.rows.slice_axis_mut(Axis(0), (self.filled..self.filled + count).into()).assign(&now);
        self.filled += count;
        later
    }

    /// The rows gathered so far; the next row starts a new chunk.
    fn drain(&mut self) -> ArrayView2<'_, f32> {
        let filled = std::mem::take(&mut self.filled);
        self.rows.slice_axis(Axis(0), (..filled).into())
    }
}

/// A double-precision sum of single-precision products.
#[derive(Clone, Debug)]
struct Moment {
    /// `[features, in_features]`
    sum: Array2<f64>,
    /// The last chunk's product, kept so that its memory is mapped once.
    product: Array2<f32>,
    tokens: u64,
}

impl Moment {
    fn new(features: usize, in_features: usize) -> Self {
        let shape = (features, in_features);
        Self { sum: Array2::zeros(shape), product: Array2::zeros(shape), tokens: 0 }
    }

    fn add(&mut self, tokens: usize, multiply: impl FnOnce(&mut Array2<f32>)) {
        if tokens > 0 {
            multiply(&mut self.product);
            Zip::from(&mut self.sum).and(&self.product).par_for_each(|sum, &x| *sum += f64::from(x));
            self.tokens += tokens as u64;
        }
    }

    fn mean(&mut self) -> Result<Array2<f64>, HessianError> {
        if self.tokens == 0 {
            return Err(HessianError::NoTokens);
        }
        let mut mean = std::mem::take(&mut self.sum);
        let tokens = self.tokens as f64;
        mean.par_mapv_inplace(|sum| sum / tokens);
        Ok(mean)
    }
}

fn check(expected: usize, rows: ArrayView2<'_, f32>, seen: u64) -> Result<(), HessianError> {
    if rows.ncols() != expected {
        return Err(HessianError::Width { expected, found: rows.ncols() });
    }
    let bad = rows.axis_iter(Axis(0)).into_par_iter().enumerate().find_map_first(|(token, row)| {
        if row.as_slice().is_some_and(all_finite) {
            return None;
        }
        row.iter().position(|x| !x.is_finite()).map(|column| (token, column))
    });
    match bad {
        Some((token, column)) => Err(HessianError::NonFiniteActivation {
            column,
            token: seen + token as u64,
            found: rows[[token, column]],
        }),
        None => Ok(()),
    }
}
