//! A layer's weights in double precision, between reading and rounding.

use std::collections::BTreeMap;

use model::Layer;
use model::architecture::NormKind;
use model::graph::{NormPlace, StageInput};
use model::linear::Slot;
use ndarray::{Array1, Array2};

use crate::weights::{LayerWeights, LinearOperator, LinearWeights, NormWeights, RouterWeights, SourceError};

/// A linear in double precision.
#[derive(Clone, Debug)]
pub struct DenseLinear {
    /// `[out_features, in_features]`.
    pub weight: Array2<f64>,
    /// `[out_features]`.
    pub bias: Option<Array1<f64>>,
}

/// A decoder layer in double precision.
#[derive(Clone, Debug)]
pub struct DenseLayer {
    /// Its linears.
    pub linears: BTreeMap<Slot, DenseLinear>,
    /// Its norms.
    pub norms: BTreeMap<NormPlace, DenseNorm>,
    /// What sends tokens to experts; no transform touches it.
    pub router: Option<RouterWeights>,
    /// What the softmax of each head counts besides; no transform touches it.
    pub sinks: Option<Array1<f32>>,
}

/// A norm in double precision.
#[derive(Clone, Debug)]
pub struct DenseNorm {
    /// What features are multiplied with, `[features]`.
    pub gains: Array1<f64>,
    /// `[features]`.
    pub bias: Option<Array1<f64>>,
    /// What it computes.
    pub kind: NormKind,
}

impl DenseLinear {
    /// From the single precision that sources give; `name` is for the message.
    pub(super) fn of(operator: LinearOperator, name: &str) -> Result<Self, SourceError> {
        match operator.weights {
            LinearWeights::Dense(weight) => Ok(Self {
                weight: weight.mapv(f64::from),
                bias: operator.bias.map(|bias| bias.mapv(f64::from)),
            }),
            _ => {
                Err(format!("`{name}` is packed or rounded, and only dense weights can be transformed")
                    .into())
            }
        }
    }
}

impl DenseLayer {
    /// From the single precision that sources give.
    pub(super) fn of(weights: LayerWeights, layer: &Layer) -> Result<Self, SourceError> {
        let name = |slot| {
            layer.linears().find(|linear| linear.id.slot() == slot).map_or("linear", |linear| &linear.name)
        };
        let linears = weights.linears.into_iter();
        Ok(Self {
            linears: linears
                .map(|(slot, operator)| Ok((slot, DenseLinear::of(operator, name(slot))?)))
                .collect::<Result<_, SourceError>>()?,
            norms: weights.norms.iter().map(|(&place, norm)| (place, DenseNorm::of(norm))).collect(),
            router: weights.router,
            sinks: weights.sinks,
        })
    }

    /// In single precision, each number rounded once.
    #[must_use]
    pub fn rounded(&self) -> LayerWeights {
        let single = |values: &Array1<f64>| values.mapv(|value| value as f32);
        LayerWeights {
            linears: self
                .linears
                .iter()
                .map(|(&slot, linear)| {
                    let weights = linear.weight.mapv(|value| value as f32).into();
                    let bias = linear.bias.as_ref().map(single);
                    (slot, LinearOperator { weights, bias, inputs: None })
                })
                .collect(),
            norms: self
                .norms
                .iter()
                .map(|(&place, norm)| {
                    let (weight, bias) = (single(&norm.weight()), norm.bias.as_ref().map(single));
                    (place, NormWeights { weight, bias, kind: norm.kind })
                })
                .collect(),
            router: self.router.clone(),
            sinks: self.sinks.clone(),
        }
    }

    /// Tensors of the layer by name, row by row.
    #[must_use]
    pub fn tensors(&self, layer: &Layer) -> BTreeMap<String, Vec<f64>> {
        let mut tensors = BTreeMap::new();
        for (place, names) in &layer.norms {
            let Some(norm) = self.norms.get(place) else { continue };
            tensors.insert(names.weight.clone(), norm.weight().to_vec());
            if let (Some(name), Some(bias)) = (&names.bias, &norm.bias) {
                tensors.insert(name.clone(), bias.to_vec());
            }
        }
        if let (Some((name, _)), Some(sinks)) = (&layer.sinks, &self.sinks) {
            tensors.insert(name.clone(), sinks.iter().map(|&value| f64::from(value)).collect());
        }
        for linear in layer.stages.iter().flat_map(|stage| &stage.linears) {
            let Some(dense) = self.linears.get(&linear.id.slot()) else { continue };
            let stored = if linear.is_transposed() { dense.weight.t() } else { dense.weight.view() };
            tensors.insert(linear.weight_name(), stored.iter().copied().collect());
            if let (Some(name), Some(bias)) = (linear.bias_name(), &dense.bias) {
                tensors.insert(name, bias.to_vec());
            }
        }
        tensors
    }

    /// The linear with this role.
    ///
    /// # Panics
    /// Where the source gave no such linear, although the layer's description has one.
    pub(super) fn linear(&self, slot: impl Into<Slot>) -> &DenseLinear {
        let slot = slot.into();
        self.linears.get(&slot).unwrap_or_else(|| panic!("the weight source gave no linear {slot:?}"))
    }

    /// As [`DenseLayer::linear`].
    pub(super) fn linear_mut(&mut self, slot: impl Into<Slot>) -> &mut DenseLinear {
        let slot = slot.into();
        self.linears.get_mut(&slot).unwrap_or_else(|| panic!("the weight source gave no linear {slot:?}"))
    }

    /// The gains of the norm in front of a stage, where it has one.
    pub(super) fn gains_mut(&mut self, input: StageInput) -> Option<&mut Array1<f64>> {
        let place = match input {
            StageInput::AttentionInput | StageInput::SharedInput => NormPlace::AttentionInput,
            StageInput::MlpInput => NormPlace::MlpInput,
            // Those of latent features are not in the residual stream's basis.
            StageInput::QueryLatent
            | StageInput::KeyValueLatent
            | StageInput::AttentionOutput
            | StageInput::MlpOutput => return None,
        };
        self.norms.get_mut(&place).map(|norm| &mut norm.gains)
    }
}

impl DenseNorm {
    /// From the single precision that sources give.
    pub(super) fn of(norm: &NormWeights) -> Self {
        let mut gains = norm.weight.mapv(f64::from);
        if norm.kind == NormKind::RmsPlusOne {
            gains += 1.0;
        }
        Self { gains, bias: norm.bias.as_ref().map(|bias| bias.mapv(f64::from)), kind: norm.kind }
    }

    /// The weight as it is stored, `[features]`.
    #[must_use]
    pub fn weight(&self) -> Array1<f64> {
        if self.kind == NormKind::RmsPlusOne { &self.gains - 1.0 } else { self.gains.clone() }
    }
}
