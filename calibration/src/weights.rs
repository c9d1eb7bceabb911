//! The weights that the forward pass multiplies with, whatever they are stored as, and where they come from.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use kernels::bf16::{Bf16Matrix, Precision};
use kernels::narrow::NarrowMatrix;
use kernels::packed::{ArrangedMatrix, PackedMatrix};
use kernels::product::{product_nn, product_nt};
use model::architecture::NormKind;
use model::graph::{NormPlace, NormTensor, RouterTensors};
use model::linear::{Part, Slot};
use model::{Layer, Model, Stage};
use ndarray::{Array1, Array2, ArrayView2, CowArray, Ix1};
use quantizer::inputs::InputRounding;

/// Whatever a [`WeightSource`] can fail with.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Gives the weights of a model, one part at a time, so that nobody holds all of them.
pub trait WeightSource: Sync {
    /// Rows of the embedding, `[tokens, embedding_size]`.
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

    /// Rows of the table of learned positions, `[rows, hidden]`, for positions that the model has; asked for only where there is one.
    ///
    /// # Errors
    /// The source's own.
    fn positions(&self, rows: Range<usize>) -> Result<Array2<f32>, SourceError>;

    /// What lies outside of the layers, beside the tables.
    ///
    /// # Errors
    /// The source's own.
    fn outer(&self) -> Result<OuterWeights, SourceError>;

    /// Some rows of the head, `[rows, embedding_size]`, with their bias: a vocabulary can be larger than all the rest of a layer.
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
    /// Codes for products whose activations are rounded to eight bits.
    Arranged(ArrangedMatrix),
    /// Dense, in sixteen bits without loss.
    Narrow(NarrowMatrix),
    /// Rounded to bfloat16, as what is multiplied with it will be.
    Rounded(RoundedWeights),
}

/// A weight `W`, `[out_features, in_features]`, rounded for products whose factors are bfloat16.
#[derive(Clone, Debug)]
pub struct RoundedWeights {
    /// `Wᵀ`.
    forward: Bf16Matrix,
    /// `W`, for passes that go back.
    backward: Option<Bf16Matrix>,
}

/// Which way weights are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// With inputs only.
    Forward,
    /// With gradients of outputs as well.
    Both,
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

impl LinearWeights {
    /// The numbers, `[out_features, in_features]`; none of weights that were rounded for products.
    #[must_use]
    pub fn values(&self) -> Option<Cow<'_, Array2<f32>>> {
        match self {
            Self::Dense(matrix) => Some(Cow::Borrowed(matrix)),
            Self::Packed(matrix) => Some(Cow::Owned(matrix.dequantize())),
            Self::Arranged(matrix) => Some(Cow::Owned(matrix.dequantize())),
            Self::Narrow(matrix) => Some(Cow::Owned(matrix.widened())),
            Self::Rounded(_) => None,
        }
    }
}

/// What the activations are that packed weights are multiplied with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// Single precision.
    #[default]
    F32,
    /// Rounded to eight bits, 32 of a token to a scale (`kernels::packed::arranged`).
    Int8,
}

/// `y = x Wᵀ + bias`.
#[derive(Clone, Debug)]
pub struct LinearOperator {
    /// The matrix.
    pub weights: LinearWeights,
    /// `[out_features]`.
    pub bias: Option<Array1<f32>>,
    /// How `x` is rounded before, where runtimes do so.
    pub inputs: Option<InputRounding>,
}

/// Reads a vector of so many features by name.
pub type ReadVector<'r, E> = dyn Fn(&str, usize) -> Result<Array1<f32>, E> + 'r;
/// Reads a matrix of so many rows and columns by name.
pub type ReadMatrix<'r, E> = dyn Fn(&str, (usize, usize)) -> Result<Array2<f32>, E> + 'r;

/// A norm's weights.
#[derive(Clone, Debug, PartialEq)]
pub struct NormWeights {
    /// As the checkpoint has it, `[features]`.
    pub weight: Array1<f32>,
    /// `[features]`.
    pub bias: Option<Array1<f32>>,
    /// What the norm computes.
    pub kind: NormKind,
}

/// What lies outside of the layers.
#[derive(Clone, Debug)]
pub struct OuterWeights {
    /// Over what the embedding gives, `[hidden]`.
    pub embedding_norm: Option<NormWeights>,
    /// From the embedding's width to the residual stream's, `[hidden, embedding_size]`.
    pub widening: Option<LinearOperator>,
    /// Before the head, `[hidden]`.
    pub final_norm: Option<NormWeights>,
    /// From the residual stream's width to the head's, `[embedding_size, hidden]`.
    pub narrowing: Option<LinearOperator>,
}

/// Linears by their place in a layer.
pub type Linears = BTreeMap<Slot, LinearOperator>;

/// The weights of one decoder layer.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// Its linears, those of experts only while they are in memory.
    pub linears: Linears,
    /// Its norms.
    pub norms: BTreeMap<NormPlace, NormWeights>,
    /// What sends tokens to experts, where the layer has them.
    pub router: Option<RouterWeights>,
    /// What the softmax of each head counts beside the products with keys, `[heads]`.
    pub sinks: Option<Array1<f32>>,
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

impl NormWeights {
    /// What features are multiplied with.
    #[must_use]
    pub fn gains(&self) -> CowArray<'_, f32, Ix1> {
        match self.kind {
            NormKind::RmsPlusOne => (&self.weight + 1.0).into(),
            NormKind::Rms | NormKind::Layer | NormKind::LayerWithoutBias => self.weight.view().into(),
        }
    }
}

/// Reads what lies outside of the layers, given how vectors `[features]` and matrices `[rows, columns]` are read.
///
/// # Errors
/// Those of the readers.
pub fn read_outer<E>(
    model: &Model,
    vector: &ReadVector<'_, E>,
    matrix: &ReadMatrix<'_, E>,
) -> Result<OuterWeights, E> {
    let norm = |norm: Option<NormTensor>| norm.map(|norm| read_norm(&norm, vector)).transpose();
    let (width, hidden) = (model.hyperparameters.embedding_size, model.hyperparameters.hidden_size);
    let linear = |name: &str, shape| {
        matrix(name, shape).map(|weights| LinearOperator {
            weights: weights.into(),
            bias: None,
            inputs: None,
        })
    };
    let (widening, narrowing) = match model.projections() {
        None => (None, None),
        Some([widening, narrowing]) => {
            (Some(linear(&widening, (hidden, width))?), Some(linear(&narrowing, (width, hidden))?))
        }
    };
    Ok(OuterWeights {
        embedding_norm: norm(model.embedding_norm())?,
        widening,
        final_norm: norm(model.final_norm())?,
        narrowing,
    })
}

/// Reads what sends tokens to experts, given how vectors and matrices are read.
///
/// # Errors
/// Those of the readers.
pub fn read_router<E>(
    tensors: &RouterTensors,
    vector: &ReadVector<'_, E>,
    matrix: &ReadMatrix<'_, E>,
) -> Result<RouterWeights, E> {
    let operator = |name: &str, rows| {
        matrix(name, (rows, tensors.hidden)).map(|weights| LinearOperator {
            weights: weights.into(),
            bias: None,
            inputs: None,
        })
    };
    let experts = tensors.routing.experts;
    let bias = tensors.bias.as_ref().map(|name| vector(name, experts)).transpose()?;
    Ok(RouterWeights {
        outputs: LinearOperator { bias, ..operator(&tensors.weight, experts)? },
        correction: tensors.correction.as_ref().map(|name| vector(name, experts)).transpose()?,
        shared_gate: tensors.shared_gate.as_ref().map(|name| operator(name, 1)).transpose()?,
    })
}

/// Reads a norm, given how vectors `[features]` are read.
///
/// # Errors
/// Those of the reader.
pub fn read_norm<E>(norm: &NormTensor, vector: &ReadVector<'_, E>) -> Result<NormWeights, E> {
    Ok(NormWeights {
        weight: vector(&norm.weight, norm.features)?,
        bias: norm.bias.as_deref().map(|name| vector(name, norm.features)).transpose()?,
        kind: norm.kind,
    })
}

impl LinearOperator {
    /// Rows of the matrix.
    #[must_use]
    pub fn out_features(&self) -> usize {
        match &self.weights {
            LinearWeights::Dense(matrix) => matrix.nrows(),
            LinearWeights::Packed(matrix) => matrix.shape().out_features,
            LinearWeights::Arranged(matrix) => matrix.out_features(),
            LinearWeights::Narrow(matrix) => matrix.dim().0,
            LinearWeights::Rounded(matrix) => matrix.forward.dim().1,
        }
    }

    /// `x` is `[tokens, in_features]`, the result `[tokens, out_features]`.
    #[must_use]
    pub fn apply(&self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        let rounded = self.inputs.map(|inputs| inputs.rounded(x));
        let x = rounded.as_ref().map_or(x, |rounded| rounded.view());
        let mut out = Array2::zeros((x.nrows(), self.out_features()));
        match &self.weights {
            LinearWeights::Dense(matrix) => product_nt(x, matrix.view(), out.view_mut()),
            LinearWeights::Packed(matrix) => matrix.product(x, out.view_mut()),
            LinearWeights::Arranged(matrix) => matrix.product(x, out.view_mut()),
            LinearWeights::Narrow(matrix) => matrix.product(x, out.view_mut()),
            LinearWeights::Rounded(matrix) => matrix.forward.product(x, out.view_mut()),
        }
        if let Some(bias) = &self.bias {
            out += bias;
        }
        out
    }

    /// What the gradient of the result, `[tokens, out_features]`, is for `x`: `gradient W`, `[tokens, in_features]`. Packed weights are
    /// unpacked for it as a whole; whoever goes back through many windows keeps them dense. Rounding of inputs has no slope of its own.
    ///
    /// # Panics
    /// When the weights were rounded for the forward pass alone.
    #[must_use]
    pub fn apply_transposed(&self, gradient: ArrayView2<'_, f32>) -> Array2<f32> {
        let product = |matrix: ArrayView2<'_, f32>| {
            let mut out = Array2::zeros((gradient.nrows(), matrix.ncols()));
            product_nn(gradient, matrix, out.view_mut());
            out
        };
        if let LinearWeights::Rounded(matrix) = &self.weights {
            let backward = matrix.backward.as_ref().expect("the weights were rounded for both passes");
            let mut out = Array2::zeros((gradient.nrows(), backward.dim().1));
            backward.product(gradient, out.view_mut());
            return out;
        }
        product(self.weights.values().expect("only rounded weights have no values").view())
    }

    /// The same for products of few tokens: dense weights in sixteen bits where they lose nothing by it. Sums of more than sixteen tokens' products
    /// then run in another order.
    #[must_use]
    pub fn narrowed(self) -> Self {
        let narrow = match &self.weights {
            LinearWeights::Dense(matrix) => NarrowMatrix::exactly(matrix.view()),
            _ => None,
        };
        match narrow {
            Some(narrow) => Self { weights: LinearWeights::Narrow(narrow), ..self },
            None => self,
        }
    }

    /// The same for products whose factors are rounded so. Packed weights stay as they are.
    #[must_use]
    pub fn at(&self, precision: Precision, pass: Pass) -> Self {
        let LinearWeights::Dense(matrix) = &self.weights else { return self.clone() };
        if precision == Precision::Single {
            return self.clone();
        }
        let weights = LinearWeights::Rounded(RoundedWeights {
            forward: Bf16Matrix::of_linear(matrix.view()),
            backward: (pass == Pass::Both).then(|| Bf16Matrix::new(matrix.view())),
        });
        Self { weights, bias: self.bias.clone(), inputs: self.inputs }
    }
}

fn linears_at(linears: Linears, precision: Precision, pass: Pass) -> Linears {
    match precision {
        Precision::Single => linears,
        Precision::Bf16 => linears.iter().map(|(&slot, linear)| (slot, linear.at(precision, pass))).collect(),
    }
}

/// A source's weights with linears for products whose factors are rounded so.
#[derive(Clone, Copy)]
pub struct AtPrecision<'s> {
    /// Where they come from.
    pub source: &'s dyn WeightSource,
    /// What factors are rounded to.
    pub precision: Precision,
    /// Which way they are multiplied.
    pub pass: Pass,
}

impl WeightSource for AtPrecision<'_> {
    fn embed(&self, tokens: &[u32]) -> Result<Array2<f32>, SourceError> {
        self.source.embed(tokens)
    }

    fn layer(&self, layer: &Layer) -> Result<LayerWeights, SourceError> {
        Ok(self.source.layer(layer)?.at(self.precision, self.pass))
    }

    fn expert(&self, layer: &Layer, expert: usize) -> Result<Linears, SourceError> {
        Ok(linears_at(self.source.expert(layer, expert)?, self.precision, self.pass))
    }

    fn positions(&self, rows: Range<usize>) -> Result<Array2<f32>, SourceError> {
        self.source.positions(rows)
    }

    fn outer(&self) -> Result<OuterWeights, SourceError> {
        self.source.outer()
    }

    fn head_rows(&self, rows: Range<usize>) -> Result<LinearOperator, SourceError> {
        Ok(self.source.head_rows(rows)?.at(self.precision, self.pass))
    }
}

impl LayerWeights {
    /// The same with linears for products whose factors are rounded so.
    #[must_use]
    pub fn at(self, precision: Precision, pass: Pass) -> Self {
        Self { linears: linears_at(self.linears, precision, pass), ..self }
    }

    /// The linears of one stage for products whose factors are rounded so, and all that is no linear; for a step through that stage alone.
    #[must_use]
    pub fn of_stage(&self, stage: &Stage, precision: Precision) -> Cow<'_, Self> {
        if precision == Precision::Single {
            return Cow::Borrowed(self);
        }
        let slots = stage.linears.iter().map(|linear| linear.id.slot());
        Cow::Owned(Self {
            linears: slots.map(|slot| (slot, self.linear(slot).at(precision, Pass::Forward))).collect(),
            norms: self.norms.clone(),
            router: self.router.clone(),
            sinks: self.sinks.clone(),
        })
    }

    /// The same for products of few tokens, see [`LinearOperator::narrowed`].
    #[must_use]
    pub fn narrowed(self) -> Self {
        let linears = self.linears.into_iter().map(|(slot, linear)| (slot, linear.narrowed())).collect();
        Self { linears, ..self }
    }

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
