//! The linears of a decoder layer: what they are for, what they are called, what shape they have.

use serde::{Deserialize, Serialize};

/// What a linear does in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Attention query projection.
    Query,
    /// Attention key projection.
    Key,
    /// Attention value projection.
    Value,
    /// Attention output projection; writes the residual stream.
    Output,
    /// The gate of a gated MLP.
    Gate,
    /// The widening projection of an MLP.
    Up,
    /// The narrowing projection of an MLP; writes the residual stream.
    Down,
}

/// A linear's place: which decoder layer, which role. Ordered as the forward pass meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LinearId {
    /// Index of the decoder layer.
    pub layer: usize,
    /// Role in the layer.
    pub role: Role,
}

/// A matrix `y = x Wᵀ (+ bias)` with `W` of shape `[out_features, in_features]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Linear {
    /// Its place.
    pub id: LinearId,
    /// Module path in the checkpoint; the tensors are `{name}.weight` and, with a bias, `{name}.bias`.
    pub name: String,
    /// Rows of the weight.
    pub out_features: usize,
    /// Columns of the weight.
    pub in_features: usize,
    /// Whether `{name}.bias` `[out_features]` exists.
    pub bias: bool,
}

impl Linear {
    /// Name of the weight tensor.
    #[must_use]
    pub fn weight_name(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// Name of the bias tensor, if the linear has one.
    #[must_use]
    pub fn bias_name(&self) -> Option<String> {
        self.bias.then(|| format!("{}.bias", self.name))
    }
}
