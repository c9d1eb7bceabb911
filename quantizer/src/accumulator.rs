//! Second moments of a stage's input, gathered over any number of batches.
//!
//! `H = Xᵀ X / tokens` for the rows `x` that a linear sees, and, where the original model's activations flow beside the quantized
//! ones, cross moments `C = (Y_original - Y)ᵀ X / tokens` of `X` with what the quantized stream lacks: `Y` is the input `X` itself (QEP,
//! arXiv 2504.09629, section 4; Qronos, arXiv 2505.11695), or the residual stream that the linear's output is added to (LoaQ, arXiv
//! 2509.06297). `C` is gathered from the difference itself, since that of two large moments would cancel.
//!
//! Rows are buffered to chunks of a fixed number of tokens: one product with sums in single precision per chunk and moment, added up in double
//! precision; where the caller asks for it, its factors are rounded to bfloat16, once for all moments of a chunk. The
//! chunk boundaries depend on nothing but the position in the stream, so however the caller splits its batches, no bit changes.
//!
//! Not here: which tokens count (the caller leaves padding out), and damping (`hessian.rs`).

use kernels::account;
use kernels::bf16::Precision;
use kernels::elementwise::all_finite;
use ndarray::{Array2, ArrayView2, Axis, Zip};

use crate::hessian::{CrossMoment, Hessian, HessianError};

/// Tokens of one single-precision product.
pub const CHUNK_TOKENS: usize = 2048;

/// Gathers a [`Hessian`] and, where asked for, cross moments with the same input.
#[derive(Clone, Debug)]
pub struct HessianAccumulator {
    input: Chunk,
    moment: Moment,
    crosses: Vec<Cross>,
    precision: Precision,
}

/// Some features in both streams, `[tokens, features]` each.
#[derive(Clone, Copy, Debug)]
pub struct Streams<'a> {
    /// As the original model has them.
    pub original: ArrayView2<'a, f32>,
    /// As the quantized one has them.
    pub quantized: ArrayView2<'a, f32>,
}

/// What a [`CrossMoment`] is gathered in.
#[derive(Clone, Debug)]
struct Cross {
    difference: Chunk,
    moment: Moment,
}

impl HessianAccumulator {
    /// For inputs of `in_features` columns.
    #[must_use]
    pub fn new(in_features: usize) -> Self {
        Self {
            input: Chunk::new(in_features),
            moment: Moment::new(in_features, in_features),
            crosses: Vec::new(),
            precision: Precision::Single,
        }
    }

    /// With factors of products rounded so.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// With one more cross moment: of so many features that both streams have.
    #[must_use]
    pub fn with_cross_moment(mut self, features: usize) -> Self {
        let moment = Moment::new(features, self.input.width());
        self.crosses.push(Cross { difference: Chunk::new(features), moment });
        self
    }

    /// Adds `rows`, `[tokens, in_features]`, where no cross moment is gathered.
    ///
    /// # Errors
    /// Rows of another width, or an activation that is not finite.
    ///
    /// # Panics
    /// When a cross moment is gathered.
    pub fn observe(&mut self, rows: ArrayView2<'_, f32>) -> Result<(), HessianError> {
        self.observe_beside(rows, &[])
    }

    /// Adds `rows`, `[tokens, in_features]`, of the quantized stream, and what both streams have for each cross moment, in the order in which
    /// these were asked for.
    ///
    /// # Errors
    /// Rows of another width or count, or an activation that is not finite.
    ///
    /// # Panics
    /// When there are not as many `streams` as cross moments.
    pub fn observe_beside(
        &mut self,
        rows: ArrayView2<'_, f32>,
        streams: &[Streams<'_>],
    ) -> Result<(), HessianError> {
        assert_eq!(streams.len(), self.crosses.len(), "streams for each cross moment");
        self.input.demand_width(rows)?;
        for (cross, streams) in self.crosses.iter().zip(streams) {
            for part in [streams.original, streams.quantized] {
                cross.difference.demand_width(part)?;
                if part.nrows() != rows.nrows() {
                    return Err(HessianError::TokenCount { original: part.nrows(), quantized: rows.nrows() });
                }
            }
        }
        let mut first = 0;
        while first < rows.nrows() {
            let seen = self.tokens();
            let part = first..rows.nrows().min(first + self.input.room());
            self.input.take(rows.slice_axis(Axis(0), part.clone().into()), None, seen)?;
            for (cross, Streams { original, quantized }) in self.crosses.iter_mut().zip(streams) {
                let original = original.slice_axis(Axis(0), part.clone().into());
                let quantized = quantized.slice_axis(Axis(0), part.clone().into());
                cross.difference.take(original, Some(quantized), seen)?;
            }
            first = part.end;
            if self.input.room() == 0 {
                self.flush();
            }
        }
        Ok(())
    }

    /// Tokens that were observed.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.moment.tokens + self.input.filled as u64
    }

    /// The mean over all tokens.
    ///
    /// # Errors
    /// No token was observed.
    pub fn finish(self) -> Result<Hessian, HessianError> {
        self.finish_all().map(|(hessian, _)| hessian)
    }

    /// The same, and the cross moments in the order in which they were asked for.
    ///
    /// # Errors
    /// No token was observed.
    pub fn finish_all(mut self) -> Result<(Hessian, Vec<CrossMoment>), HessianError> {
        self.flush();
        let hessian = Hessian::from_lower(self.moment.mean()?, self.moment.tokens)?;
        let cross = |mut cross: Cross| Ok(CrossMoment::new(cross.moment.mean()?, cross.moment.tokens));
        Ok((hessian, self.crosses.into_iter().map(cross).collect::<Result<_, HessianError>>()?))
    }

    fn flush(&mut self) {
        let input = self.input.drain();
        let tokens = input.nrows();
        if tokens == 0 {
            return;
        }
        let section = account::section("second moments");
        let input = self.precision.columns(input);
        self.moment.add(tokens, |product| input.gram(product.view_mut()));
        drop(section);
        let _section = account::section("cross moments");
        for Cross { difference, moment } in &mut self.crosses {
            let difference = self.precision.columns(difference.drain());
            moment.add(tokens, |product| difference.product_tn(&input, product.view_mut()));
        }
    }
}

/// Rows waiting for their product.
#[derive(Clone, Debug)]
struct Chunk {
    /// `[CHUNK_TOKENS, features]`
    rows: Array2<f32>,
    filled: usize,
}

impl Chunk {
    fn new(features: usize) -> Self {
        Self { rows: Array2::zeros((CHUNK_TOKENS, features)), filled: 0 }
    }

    fn width(&self) -> usize {
        self.rows.ncols()
    }

    /// Rows that still fit.
    fn room(&self) -> usize {
        CHUNK_TOKENS - self.filled
    }

    fn demand_width(&self, rows: ArrayView2<'_, f32>) -> Result<(), HessianError> {
        let (expected, found) = (self.width(), rows.ncols());
        if expected == found { Ok(()) } else { Err(HessianError::Width { expected, found }) }
    }

    /// Copies `rows`, less `others` where there are some; the first of them is token `seen` of all.
    fn take(
        &mut self,
        rows: ArrayView2<'_, f32>,
        others: Option<ArrayView2<'_, f32>>,
        seen: u64,
    ) -> Result<(), HessianError> {
        let rows = rows.as_standard_layout();
        let others = others.as_ref().map(|others| others.as_standard_layout());
        let mut free = self.rows.slice_axis_mut(Axis(0), (self.filled..self.filled + rows.nrows()).into());
        for (token, (to, row)) in free.outer_iter_mut().zip(rows.rows()).enumerate() {
            let to = to.into_slice().expect("rows of a matrix made here");
            let row = row.to_slice().expect("standard layout");
            match &others {
                None => to.copy_from_slice(row),
                Some(others) => {
                    let other = others.row(token).to_slice().expect("standard layout");
                    for ((to, row), other) in to.iter_mut().zip(row).zip(other) {
                        *to = row - other;
                    }
                }
            }
            // While the row is still in the first cache.
            if !all_finite(to) {
                let column = to.iter().position(|x| !x.is_finite()).unwrap_or(0);
                let other = others.as_ref().map_or(0.0, |others| others[[token, column]]);
                let found = [row[column], other].into_iter().find(|x| !x.is_finite()).unwrap_or(to[column]);
                return Err(HessianError::NonFiniteActivation { column, token: seen + token as u64, found });
            }
        }
        self.filled += rows.nrows();
        Ok(())
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
        multiply(&mut self.product);
        Zip::from(&mut self.sum).and(&self.product).par_for_each(|sum, &x| *sum += f64::from(x));
        self.tokens += tokens as u64;
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
