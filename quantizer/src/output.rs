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
//! A moment of few tokens looks structured where there is no structure: of `n` tokens' gradients that have nothing to do with each other, the
//! eigenvalues spread over `(1 ± √(rows / n))²`, and rows would make up for each other's errors in vain. So what was gathered, `S`, is drawn to a multiple of
//! the identity by the share that its tokens say it needs (Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance
//! matrices", section 3.2):
//!
//! ```text
//! A = (1 - ρ) S + ρ μ I      μ = tr S / rows      ρ = min(1, b² / d²)      b² = (mean ‖ȳ‖⁴ - ‖S‖²) / n      d² = ‖S‖² - rows μ²
//! ```
//!
//! `A` is `[out_features, out_features]`. Wide linears get it in blocks along the diagonal, of at most [`MOST_ROWS`] outputs: outputs of
//! different blocks count as unrelated. The lower triangles are kept, in single precision.

use kernels::bf16::Precision;
use kernels::elementwise::{all_finite, sum_of_squares};
use ndarray::{Array2, ArrayView1, ArrayView2, Axis};

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
    /// Of each block, `Σ ‖ȳ‖⁴`.
    fourth_powers: Vec<f64>,
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
            fourth_powers: blocks(out_features).map(|_| 0.0).collect(),
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
        let sums = self.blocks.iter_mut().zip(&mut self.fourth_powers);
        for (rows, (sums, fourth_powers)) in blocks(self.out_features).zip(sums) {
            let part = gradients.slice_axis(Axis(1), rows.clone().into());
            *fourth_powers += part.rows().into_iter().map(|row| square(row).powi(2)).sum::<f64>();
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

    /// The mean over all tokens, drawn to a multiple of the identity by as much as there are too few of them.
    ///
    /// # Errors
    /// No token was observed.
    pub fn finish(mut self) -> Result<OutputHessian, HessianError> {
        if self.tokens == 0 {
            return Err(HessianError::NoTokens);
        }
        let share = 1.0 / self.tokens as f32;
        self.blocks.iter_mut().flatten().for_each(|entry| *entry *= share);
        let sizes = blocks(self.out_features).map(|rows| rows.len());
        for ((rows, block), sum) in sizes.zip(&mut self.blocks).zip(&self.fourth_powers) {
            shrink(rows, block, sum / self.tokens as f64, self.tokens as f64);
        }
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

/// See the module: `block` is the lower triangle of `S`, `fourth` the mean of `‖ȳ‖⁴`.
fn shrink(rows: usize, block: &mut [f32], fourth: f64, tokens: f64) {
    let places = || (0..rows).map(|row| row * (row + 3) / 2);
    let on_diagonal: Vec<f64> = places().map(|place| f64::from(block[place])).collect();
    let mean = on_diagonal.iter().sum::<f64>() / rows.max(1) as f64;
    let below_and_on = block.iter().map(|&entry| f64::from(entry).powi(2)).sum::<f64>();
    let norm = 2.0 * below_and_on - on_diagonal.iter().map(|entry| entry * entry).sum::<f64>();
    let spread = norm - rows as f64 * mean * mean;
    let noise = (fourth - norm) / tokens;
    let share = if spread > noise { (noise / spread).max(0.0) } else { 1.0 };
    block.iter_mut().for_each(|entry| *entry *= (1.0 - share) as f32);
    for place in places() {
        block[place] += (share * mean) as f32;
    }
}

fn square(row: ArrayView1<'_, f32>) -> f64 {
    row.as_slice().map_or_else(|| row.iter().map(|&x| f64::from(x).powi(2)).sum(), sum_of_squares)
}

/// As even as can be.
fn blocks(out_features: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let count = out_features.div_ceil(MOST_ROWS);
    (0..count).map(move |block| block * out_features / count..(block + 1) * out_features / count)
}
