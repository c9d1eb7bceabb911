//! The weights that the forward pass multiplies with, whatever they are stored as, and where they come from.

use std::collections::BTreeMap;
use std::ops::Range;

use kernels::packed::PackedMatrix;
use kernels::product::{product_nn, product_nt};
use model::Layer;
use model::linear::{Part, Slot};
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

    /// The weights of one decoder layer, without its experts.
    ///
    /// # Errors
    /// The source's own.
    fn layer(&self, layer: &Layer) -> Result<LayerWeights, SourceError>;

    /// The linears of one expert of a layer: a layer's experts together may be larger than all else that is in memory.
    ///
    /// # Errors
    /// The source's own.
    fn expert(&self, layer: &Layer, expert: usize) -> Result<Linears, SourceError>;

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

/// Linears by their place in a layer.
pub type Linears = BTreeMap<Slot, LinearOperator>;

/// The weights of one decoder layer.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// Its linears, those of experts only while they are in memory.
    pub linears: Linears,
    /// The norm before attention, `[hidden]`.
    pub attention_norm: Array1<f32>,
    /// The norm before the MLP, `[hidden]`.
    pub mlp_norm: Array1<f32>,
    /// Norms over query and key heads, `[head_dim]` each.
    pub head_norms: Option<(Array1<f32>, Array1<f32>)>,
    /// What sends tokens to experts, where the layer has them.
    pub router: Option<RouterWeights>,
}

/// What sends tokens to experts.
#[derive(Clone, Debug)]
pub struct RouterWeights {
    /// One output for each expert.
    pub outputs: LinearOperator,
    /// Added to scores for the choice alone, `[experts]`.
    pub correction: Option<Array1<f32>>,
    /// The output whose sigmoid weighs the shared expert.
    pub shared_gate: Option<LinearOperator>,
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
    /// A linear, by its role in the main part or by its place.
    ///
    /// # Panics
    /// Where the source gave no such linear, although the layer's description has one, or where it is an expert's that is not in memory.
    #[must_use]
    pub fn linear(&self, slot: impl Into<Slot>) -> &LinearOperator {
        let slot = slot.into();
        self.linears.get(&slot).unwrap_or_else(|| panic!("the weight source gave no linear {slot:?}"))
    }

    /// Puts other weights in the place of a linear's, its bias kept: what a solver found instead of the original.
    ///
    /// # Panics
    /// As [`LayerWeights::linear`].
    pub fn replace(&mut self, slot: impl Into<Slot>, weights: impl Into<LinearWeights>) {
        let slot = slot.into();
        let linear = self.linears.get_mut(&slot);
        linear.unwrap_or_else(|| panic!("the weight source gave no linear {slot:?}")).weights =
            weights.into();
    }

    /// Whether the linears of a part are in memory.
    #[must_use]
    pub fn holds(&self, layer: &Layer, part: Part) -> bool {
        layer.linears_of(part).all(|linear| self.linears.contains_key(&linear.id.slot()))
    }

    /// Reads what is not in memory of a part; says whether that was anything.
    ///
    /// # Errors
    /// The source's own.
    pub fn fetch(
        &mut self,
        layer: &Layer,
        part: Part,
        source: &dyn WeightSource,
    ) -> Result<bool, SourceError> {
        match part {
            Part::Expert(expert) if !self.holds(layer, part) => {
                self.linears.extend(source.expert(layer, expert)?);
                Ok(true)
            }
            Part::Main | Part::Shared | Part::Expert(_) => Ok(false),
        }
    }

    /// Frees the linears of a part.
    pub fn release(&mut self, part: Part) {
        self.linears.retain(|slot, _| slot.part != part);
    }
}
