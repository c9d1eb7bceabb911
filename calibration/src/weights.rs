//! The weights that the forward pass multiplies with, whatever they are stored as, and where they come from.

use std::collections::BTreeMap;
use std::ops::Range;

use kernels::packed::PackedMatrix;
use kernels::product::{product_nn, product_nt};
use model::Layer;
use model::linear::Role;
use ndarray::{Array1, Array2, ArrayView2};

/// Whatever a [`WeightSource`] can fail with.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Gives the weights of a model, one part at a time, so that nobody holds all of them.
pub trait WeightSource: Sync {
    /// Rows of the embedding, `[tokens, hidden]`.
    ///
    /// # Errors
    /// The source's own.
    fn embed(&self, tokens: &[u32]) -> Result<Array2<f32>, SourceError>;

    /// The weights of one decoder layer.
    ///
    /// # Errors
    /// The source's own.
    fn layer(&self, layer: &Layer) -> Result<LayerWeights, SourceError>;

    /// The norm before the head, `[hidden]`.
    ///
    /// # Errors
    /// The source's own.
    fn final_norm(&self) -> Result<Array1<f32>, SourceError>;

    /// Some rows of the head, `[rows, hidden]`: a vocabulary can be larger than all the rest of a layer.
    ///
    /// # Errors
    /// The source's own.
    fn head_rows(&self, rows: Range<usize>) -> Result<LinearOperator, SourceError>;
}

/// A linear's matrix.
#[derive(Clone, Debug)]
pub enum LinearWeights {
    /// `[out_features, in_features]`.
    Dense(Array2<f32>),
    /// Codes as they are on disk.
    Packed(PackedMatrix),
}

impl From<Array2<f32>> for LinearWeights {
    fn from(matrix: Array2<f32>) -> Self {
        Self::Dense(matrix)
    }
}

impl From<PackedMatrix> for LinearWeights {
    fn from(matrix: PackedMatrix) -> Self {
        Self::Packed(matrix)
    }
}

/// `y = x Wᵀ + bias`.
#[derive(Clone, Debug)]
pub struct LinearOperator {
    /// The matrix.
    pub weights: LinearWeights,
    /// `[out_features]`.
    pub bias: Option<Array1<f32>>,
}

/// The weights of one decoder layer.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// Its linears.
    pub linears: BTreeMap<Role, LinearOperator>,
    /// The norm before attention, `[hidden]`.
    pub attention_norm: Array1<f32>,
    /// The norm before the MLP, `[hidden]`.
    pub mlp_norm: Array1<f32>,
    /// Norms over query and key heads, `[head_dim]` each.
    pub head_norms: Option<(Array1<f32>, Array1<f32>)>,
}

impl LinearOperator {
    /// Rows of the matrix.
    #[must_use]
    pub fn out_features(&self) -> usize {
        match &self.weights {
            LinearWeights::Dense(matrix) => matrix.nrows(),
            LinearWeights::Packed(matrix) => matrix.shape().out_features,
        }
    }

    /// `x` is `[tokens, in_features]`, the result `[tokens, out_features]`.
    #[must_use]
    pub fn apply(&self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut out = Array2::zeros((x.nrows(), self.out_features()));
        match &self.weights {
            LinearWeights::Dense(matrix) => product_nt(x, matrix.view(), out.view_mut()),
            LinearWeights::Packed(matrix) => matrix.product(x, out.view_mut()),
        }
        if let Some(bias) = &self.bias {
            out += bias;
        }
        out
    }

    /// What the gradient of the result, `[tokens, out_features]`, is for `x`: `gradient W`, `[tokens, in_features]`. Packed weights are
    /// unpacked for it as a whole; whoever goes back through many windows keeps them dense.
    #[must_use]
    pub fn apply_transposed(&self, gradient: ArrayView2<'_, f32>) -> Array2<f32> {
        let product = |matrix: ArrayView2<'_, f32>| {
            let mut out = Array2::zeros((gradient.nrows(), matrix.ncols()));
            product_nn(gradient, matrix, out.view_mut());
            out
        };
        match &self.weights {
            LinearWeights::Dense(matrix) => product(matrix.view()),
            LinearWeights::Packed(matrix) => product(matrix.dequantize().view()),
        }
    }
}

impl LayerWeights {
    /// The linear with this role.
    ///
    /// # Panics
    /// Where the source gave no such linear, although the layer's description has one.
    #[must_use]
    pub fn linear(&self, role: Role) -> &LinearOperator {
        self.linears.get(&role).unwrap_or_else(|| panic!("the weight source gave no {role:?} linear"))
    }

    /// Puts other weights in the place of a linear's, its bias kept: what a solver found instead of the original.
    ///
    /// # Panics
    /// Where the source gave no such linear.
    pub fn replace(&mut self, role: Role, weights: impl Into<LinearWeights>) {
        let linear = self.linears.get_mut(&role);
        linear.unwrap_or_else(|| panic!("the weight source gave no {role:?} linear")).weights =
            weights.into();
    }
}
