//! A layer's weights in double precision, between reading and rounding.

use std::collections::BTreeMap;

use model::Layer;
use model::graph::StageInput;
use model::linear::Slot;
use ndarray::{Array1, Array2};

use crate::weights::{LayerWeights, LinearOperator, LinearWeights, RouterWeights, SourceError};

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
    /// The norm before attention, `[hidden]`.
    pub attention_norm: Array1<f64>,
    /// The norm before the MLP, `[hidden]`.
    pub mlp_norm: Array1<f64>,
    /// Norms over query and key heads, `[head_dim]` each; no transform touches them.
    pub head_norms: Option<(Array1<f32>, Array1<f32>)>,
    /// What sends tokens to experts; no transform touches it.
    pub router: Option<RouterWeights>,
}

impl DenseLinear {
    /// From the single precision that sources give; `name` is for the message.
    pub(super) fn of(operator: LinearOperator, name: &str) -> Result<Self, SourceError> {
        match operator.weights {
            LinearWeights::Dense(weight) => Ok(Self {
                weight: weight.mapv(f64::from),
                bias: operator.bias.map(|bias| bias.mapv(f64::from)),
            }),
            LinearWeights::Packed(_) => {
                Err(format!("`{name}` is packed, and only dense weights can be transformed").into())
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
            attention_norm: weights.attention_norm.mapv(f64::from),
            mlp_norm: weights.mlp_norm.mapv(f64::from),
            head_norms: weights.head_norms,
            router: weights.router,
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
                    (slot, LinearOperator { weights, bias: linear.bias.as_ref().map(single) })
                })
                .collect(),
            attention_norm: single(&self.attention_norm),
            mlp_norm: single(&self.mlp_norm),
            head_norms: self.head_norms.clone(),
            router: self.router.clone(),
        }
    }

    /// Tensors of the layer by name, row by row.
    #[must_use]
    pub fn tensors(&self, layer: &Layer) -> BTreeMap<String, Vec<f64>> {
        let mut tensors = BTreeMap::from([
            (layer.attention_norm.weight.clone(), self.attention_norm.to_vec()),
            (layer.mlp_norm.weight.clone(), self.mlp_norm.to_vec()),
        ]);
        if let (Some(names), Some((query, key))) = (&layer.head_norms, &self.head_norms) {
            for (name, norm) in [(&names.query, query), (&names.key, key)] {
                tensors.insert(name.clone(), norm.iter().copied().map(f64::from).collect());
            }
        }
        for linear in layer.stages.iter().flat_map(|stage| &stage.linears) {
            let Some(dense) = self.linears.get(&linear.id.slot()) else { continue };
            tensors.insert(linear.weight_name(), dense.weight.iter().copied().collect());
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

    /// The norm in front of a stage, where it has one.
    pub(super) fn norm_mut(&mut self, input: StageInput) -> Option<&mut Array1<f64>> {
        match input {
            StageInput::AttentionInput => Some(&mut self.attention_norm),
            StageInput::MlpInput => Some(&mut self.mlp_norm),
            StageInput::AttentionOutput | StageInput::MlpOutput => None,
        }
    }
}
