//! A layer's weights in double precision, between reading and rounding.

use std::collections::BTreeMap;

use model::Layer;
use model::graph::StageInput;
use model::linear::Role;
use ndarray::{Array1, Array2};

use crate::weights::{LayerWeights, LinearOperator, LinearWeights, SourceError};

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
    pub linears: BTreeMap<Role, DenseLinear>,
    /// The norm before attention, `[hidden]`.
    pub attention_norm: Array1<f64>,
    /// The norm before the MLP, `[hidden]`.
    pub mlp_norm: Array1<f64>,
    /// Norms over query and key heads, `[head_dim]` each; no transform touches them.
    pub head_norms: Option<(Array1<f32>, Array1<f32>)>,
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
        let name = |role| layer.linear(role).map_or("linear", |linear| linear.name.as_str());
        let linears = weights.linears.into_iter();
        Ok(Self {
            linears: linears
                .map(|(role, operator)| Ok((role, DenseLinear::of(operator, name(role))?)))
                .collect::<Result<_, SourceError>>()?,
            attention_norm: weights.attention_norm.mapv(f64::from),
            mlp_norm: weights.mlp_norm.mapv(f64::from),
            head_norms: weights.head_norms,
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
                .map(|(&role, linear)| {
                    let weights = linear.weight.mapv(|value| value as f32).into();
                    (role, LinearOperator { weights, bias: linear.bias.as_ref().map(single) })
                })
                .collect(),
            attention_norm: single(&self.attention_norm),
            mlp_norm: single(&self.mlp_norm),
            head_norms: self.head_norms.clone(),
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
            let Some(dense) = self.linears.get(&linear.id.role) else { continue };
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
    pub(super) fn linear(&self, role: Role) -> &DenseLinear {
        self.linears.get(&role).unwrap_or_else(|| panic!("the weight source gave no {role:?} linear"))
    }

    /// As [`DenseLayer::linear`].
    pub(super) fn linear_mut(&mut self, role: Role) -> &mut DenseLinear {
        self.linears.get_mut(&role).unwrap_or_else(|| panic!("the weight source gave no {role:?} linear"))
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
