//! The output's side of the objective: what an error in one output, or in several at once, costs the model.
//!
//! The layer-wise loss `tr(D H Dᵀ)` takes every output of a linear to matter alike and alone. To the model they do not: with `ȳ` the gradient
//! of its loss with respect to the linear's output, the change of the model's predictions is, to second order,
//!
//! ```text
//! KL ≈ ½ E[(ȳᵀ D x)²] ≈ ½ tr(A D H Dᵀ)          A = E[ȳ ȳᵀ]      H = E[x xᵀ]
//! ```
//!
//! the second step taking gradients and inputs to be independent, as in Kronecker-factored curvature (K-FAC, arXiv 1503.05671, section 3) and
//! in YAQA (arXiv 2505.22988, section 3), where `A` is called `H_O`. `ȳ` comes from one backward pass of the original model for labels that
//! the model itself would choose, so the expectation is the Fisher matrix, and no label of the text is fitted.
//!
//! `A` is `[out_features, out_features]`. Wide linears get it in blocks along the diagonal, of at most [`MOST_ROWS`] outputs: outputs of
//! different blocks count as unrelated. The lower triangles are kept, in single precision.

use kernels::bf16::Precision;
use kernels::elementwise::all_finite;
use ndarray::{Array2, ArrayView2, Axis};

use crate::hessian::HessianError;

/// Outputs of a block at most.
pub const MOST_ROWS: usize = 1024;

/// `A = E[ȳ ȳᵀ]` in blocks.
#[derive(Clone, Debug)]
pub struct OutputHessian {
    out_features: usize,
    /// Lower triangles, row after row.
    blocks: Vec<Vec<f32>>,
}

/// Gathers an [`OutputHessian`].
#[derive(Clone, Debug)]
pub struct OutputHessianAccumulator {
    out_features: usize,
    /// Sums; lower triangles, row after row.
    blocks: Vec<Vec<f32>>,
    tokens: u64,
    precision: Precision,
}

impl OutputHessianAccumulator {
    /// For a linear of `out_features` rows.
    #[must_use]
    pub fn new(out_features: usize) -> Self {
        let triangle = |rows: usize| vec![0.0; rows * (rows + 1) / 2];
        Self {
            out_features,
            blocks: blocks(out_features).map(|rows| triangle(rows.len())).collect(),
            tokens: 0,
            precision: Precision::Single,
        }
    }

    /// With factors of products rounded so.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Adds the gradients of some tokens, `[tokens, out_features]`.
    ///
    /// # Errors
    /// Gradients of another width, or one that is not finite.
    pub fn observe(&mut self, gradients: ArrayView2<'_, f32>) -> Result<(), HessianError> {
        let (tokens, found) = gradients.dim();
        if found != self.out_features {
            return Err(HessianError::Width { expected: self.out_features, found });
        }
        for (token, row) in gradients.rows().into_iter().enumerate() {
            let finite = row.as_slice().map_or_else(|| row.iter().all(|x| x.is_finite()), all_finite);
            if let Some(column) = (!finite).then(|| row.iter().position(|x| !x.is_finite())).flatten() {
                return Err(HessianError::NonFiniteActivation {
                    column,
                    token: self.tokens + token as u64,
                    found: row[column],
                });
            }
        }
        for (rows, sums) in blocks(self.out_features).zip(&mut self.blocks) {
            let part = gradients.slice_axis(Axis(1), rows.clone().into());
            let mut moment = Array2::zeros((rows.len(), rows.len()));
            self.precision.gram(part, moment.view_mut());
            let mut rest = &mut sums[..];
            for (row, entries) in moment.outer_iter().enumerate() {
                let (own, below) = rest.split_at_mut(row + 1);
                let entries = entries.to_slice().expect("rows of a matrix made here");
                own.iter_mut().zip(entries).for_each(|(sum, entry)| *sum += entry);
                rest = below;
            }
        }
        self.tokens += tokens as u64;
        Ok(())
    }

    /// The mean over all tokens.
    ///
    /// # Errors
    /// No token was observed.
    pub fn finish(mut self) -> Result<OutputHessian, HessianError> {
        if self.tokens == 0 {
            return Err(HessianError::NoTokens);
        }
        let share = 1.0 / self.tokens as f32;
        self.blocks.iter_mut().flatten().for_each(|entry| *entry *= share);
        Ok(OutputHessian { out_features: self.out_features, blocks: self.blocks })
    }
}

impl OutputHessian {
    /// Rows of the linear.
    #[must_use]
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// The lower triangles of all blocks, row after row: what [`OutputHessian::from_triangles`] takes.
    #[must_use]
    pub fn triangles(&self) -> &[Vec<f32>] {
        &self.blocks
    }

    /// One that was gathered before; none where the triangles are not those of so many rows.
    #[must_use]
    pub fn from_triangles(out_features: usize, triangles: Vec<Vec<f32>>) -> Option<Self> {
        let lengths = blocks(out_features).map(|rows| rows.len() * (rows.len() + 1) / 2);
        let fit = lengths.eq(triangles.iter().map(Vec::len));
        fit.then_some(Self { out_features, blocks: triangles })
    }

    /// Each block's outputs.
    pub fn blocks(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        blocks(self.out_features)
    }

    /// `A + damping * mean diag(A) I` of the block with this number, `[rows, rows]`.
    ///
    /// # Panics
    /// When there is no such block.
    #[must_use]
    pub fn damped(&self, block: usize, damping: f64) -> Array2<f32> {
        let lower = &self.blocks[block];
        let rows = blocks(self.out_features).nth(block).map_or(0, |rows| rows.len());
        let at = |row: usize, column: usize| lower[row * (row + 1) / 2 + column];
        let mean = (0..rows).map(|row| f64::from(at(row, row))).sum::<f64>() / rows.max(1) as f64;
        let mut matrix =
            Array2::from_shape_fn((rows, rows), |(row, column)| at(row.max(column), row.min(column)));
        matrix.diag_mut().mapv_inplace(|entry| entry + (damping * mean) as f32);
        matrix
    }
}

/// As even as can be.
fn blocks(out_features: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let count = out_features.div_ceil(MOST_ROWS);
    (0..count).map(move |block| block * out_features / count..(block + 1) * out_features / count)
}
