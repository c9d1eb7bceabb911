//! Changes of a model's weights that leave its function as it is, and that make them lose less when they are rounded.
//!
//! All of them are folded into the weights: what comes out is a plain checkpoint of the same architecture, and no runtime needs to know.
//! [`Transformed`] is the changed model as a [`WeightSource`]: it computes one layer, or some rows of the embedding or the head, when they are
//! asked for, in double precision, and rounds once at the end.
//!
//! | lever | what is free | file |
//! |---|---|---|
//! | [`Transform::RotateResidual`] | an orthogonal basis of the residual stream | `rotate_residual.rs` |
//! | [`Transform::RotateValues`] | an orthogonal basis of each value head | `rotate_values.rs` |
//! | [`Transform::EqualizeInputs`] | a factor for each feature behind a norm | `equalize_inputs.rs` |
//! | [`Transform::EqualizeOutputs`] | a factor for each value feature and each feature inside the MLP | `equalize_outputs.rs` |
//!
//! Rotations come before factors, whatever order they are asked for in: a rotation behind factors would undo them. Queries and keys are not
//! rotated: norms over heads and rotary positions are in the way.

mod balance;
mod dense;
mod equalize_inputs;
mod equalize_outputs;
mod observe;
mod rotate_residual;
mod rotate_values;
mod suitable;

use std::ops::{ControlFlow, Range};

use model::{Layer, Model};
use ndarray::{Array1, Array2};
use serde::{Deserialize, Serialize};

use crate::error::CalibrationError;
use crate::weights::{LayerWeights, LinearOperator, Linears, OuterWeights, SourceError, WeightSource};
pub use dense::{DenseLayer, DenseLinear};
use kernels::rotation::Rotation;

/// A change of the weights that leaves the function as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transform {
    /// A random rotation of the residual stream.
    RotateResidual,
    /// A random rotation of each value head.
    RotateValues,
    /// Factors on the features behind norms, folded into the norms.
    EqualizeInputs,
    /// Factors on value features and on the MLP's inner features, folded into the value and up projections.
    EqualizeOutputs,
}

/// Every transform, with what people read about it.
pub const ALL: [(Transform, &str, &str); 4] = [
    (
        Transform::RotateResidual,
        "rotate-residual",
        "random rotation of the residual stream (QuaRot); a tied model needs --untie",
    ),
    (Transform::RotateValues, "rotate-values", "random rotation of each value head (QuaRot, SpinQuant R2)"),
    (
        Transform::EqualizeInputs,
        "equalize-inputs",
        "factors for features behind norms, from calibration text (AWQ), folded into the norms",
    ),
    (
        Transform::EqualizeOutputs,
        "equalize-outputs",
        "factors for value and MLP features, from calibration text (AWQ), folded into value and up projections",
    ),
];

impl Transform {
    /// Whether it looks at activations.
    #[must_use]
    pub fn needs_data(self) -> bool {
        matches!(self, Self::EqualizeInputs | Self::EqualizeOutputs)
    }
}

/// A number as the type rounds it that norms are written in.
pub type Rounding = fn(f64) -> f64;

/// A model whose weights are transformed as they are read.
pub struct Transformed<'s> {
    source: &'s dyn WeightSource,
    model: Model,
    residual: Option<Rotation>,
    values: bool,
    /// For each layer; none before activations were observed.
    factors: Vec<LayerFactors>,
}

/// Factors of one layer.
#[derive(Clone, Debug, Default)]
struct LayerFactors {
    inputs: Option<equalize_inputs::Factors>,
    outputs: Option<equalize_outputs::Factors>,
}

impl<'s> Transformed<'s> {
    /// Rotates as `transforms` say. With `untie` the result has a head of its own, whatever `model` has. Factors need
    /// [`Transformed::equalize`] as well.
    ///
    /// # Panics
    /// When the residual stream is to be rotated under a head that stays tied to the embedding: the norm in front of the head cannot be folded
    /// into one of the two. When a transform does not suit the model ([`Transform::check`]).
    #[must_use]
    pub fn new(source: &'s dyn WeightSource, model: &Model, transforms: &[Transform], untie: bool) -> Self {
        let mut model = model.clone();
        model.hyperparameters.tied_head &= !untie;
        for transform in transforms {
            if let Err(problem) = transform.check(&model) {
                panic!("{problem}");
            }
        }
        let rotates = transforms.contains(&Transform::RotateResidual);
        assert!(!(rotates && model.hyperparameters.tied_head), "a tied head and a rotated residual stream");
        let residual =
            rotates.then(|| Rotation::random(model.hyperparameters.hidden_size, rotate_residual::SEED));
        let values = transforms.contains(&Transform::RotateValues);
        Self { source, model, residual, values, factors: Vec::new() }
    }

    /// Chooses the factors that `transforms` ask for, by the activations of the model, rotated as it is, on `windows`. `round` is the type
    /// that norms are written in; `step` is called after each layer, and a break ends the work.
    ///
    /// # Errors
    /// A break, those of the source, and a forward pass that leaves the finite numbers.
    pub fn equalize(
        &mut self,
        transforms: &[Transform],
        windows: &[Vec<u32>],
        round: Rounding,
        step: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<(), CalibrationError> {
        let (inputs, outputs) = (
            transforms.contains(&Transform::EqualizeInputs),
            transforms.contains(&Transform::EqualizeOutputs),
        );
        let mut factors = Vec::with_capacity(self.model.layers.len());
        observe::layers(&self.model, self, windows, &mut |layer, sizes| {
            let dense = self.dense_layer(layer).map_err(CalibrationError::Source)?;
            factors.push(LayerFactors {
                inputs: inputs.then(|| equalize_inputs::Factors::choose(layer, &dense, sizes, round)),
                outputs: outputs
                    .then(|| equalize_outputs::Factors::choose(&self.model, layer, &dense, sizes)),
            });
            if step().is_break() { Err(CalibrationError::Interrupted) } else { Ok(()) }
        })?;
        self.factors = factors;
        Ok(())
    }

    /// The transformed model: the original's structure, except for a head of its own where one was asked for.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// One layer, transformed, in double precision.
    ///
    /// # Errors
    /// The source's own, and weights that are packed.
    pub fn dense_layer(&self, layer: &Layer) -> Result<DenseLayer, SourceError> {
        let mut dense = DenseLayer::of(self.source.layer(layer)?, layer)?;
        if let Some(rotation) = &self.residual {
            rotate_residual::layer(rotation, layer, &mut dense);
        }
        if self.values {
            rotate_values::layer(&self.model.hyperparameters, layer, &mut dense);
        }
        if let Some(factors) = self.factors.get(layer.index) {
            if let Some(factors) = &factors.inputs {
                factors.apply(layer, &mut dense);
            }
            if let Some(factors) = &factors.outputs {
                factors.apply(&self.model, &mut dense);
            }
        }
        Ok(dense)
    }

    /// Rows of the embedding, transformed, `[tokens, hidden]`.
    ///
    /// # Errors
    /// The source's own.
    pub fn dense_embedding(&self, tokens: &[u32]) -> Result<Array2<f64>, SourceError> {
        let mut rows = self.source.embed(tokens)?.mapv(f64::from);
        if let Some(rotation) = &self.residual {
            rotation.rotate_rows(rows.view_mut());
        }
        Ok(rows)
    }

    /// Rows of the head, transformed, `[rows, hidden]`.
    ///
    /// # Errors
    /// The source's own, and weights that are packed.
    pub fn dense_head(&self, rows: Range<usize>) -> Result<Array2<f64>, SourceError> {
        let mut head = DenseLinear::of(self.source.head_rows(rows)?, "head")?.weight;
        if let Some(rotation) = &self.residual {
            rotate_residual::head(rotation, &self.source_gains()?, &mut head);
        }
        Ok(head)
    }

    /// The weight of the norm before the head, transformed, as it is stored, `[hidden]`; none where there is no such norm.
    ///
    /// # Errors
    /// The source's own.
    pub fn dense_final_norm(&self) -> Result<Option<Array1<f64>>, SourceError> {
        Ok(self.outer()?.final_norm.map(|norm| norm.weight.mapv(f64::from)))
    }

    /// What the original's last norm multiplies features with.
    fn source_gains(&self) -> Result<Array1<f64>, SourceError> {
        let norm = self.source.outer()?.final_norm;
        norm.map(|norm| norm.gains().mapv(f64::from))
            .ok_or_else(|| "the model has no norm before its head".into())
    }
}

impl WeightSource for Transformed<'_> {
    fn embed(&self, tokens: &[u32]) -> Result<Array2<f32>, SourceError> {
        Ok(self.dense_embedding(tokens)?.mapv(|value| value as f32))
    }

    fn layer(&self, layer: &Layer) -> Result<LayerWeights, SourceError> {
        Ok(self.dense_layer(layer)?.rounded())
    }

    /// As the source has it: no transform knows experts yet, and models that have some are refused.
    fn expert(&self, layer: &Layer, expert: usize) -> Result<Linears, SourceError> {
        self.source.expert(layer, expert)
    }

    fn positions(&self, rows: Range<usize>) -> Result<Array2<f32>, SourceError> {
        self.source.positions(rows)
    }

    fn outer(&self) -> Result<OuterWeights, SourceError> {
        let mut outer = self.source.outer()?;
        if let (Some(_), Some(norm)) = (&self.residual, &mut outer.final_norm) {
            norm.weight.fill(1.0);
        }
        Ok(outer)
    }

    fn head_rows(&self, rows: Range<usize>) -> Result<LinearOperator, SourceError> {
        let bias = self.source.head_rows(rows.clone())?.bias;
        let weights = self.dense_head(rows)?.mapv(|value| value as f32).into();
        Ok(LinearOperator { weights, bias, inputs: None })
    }
}
