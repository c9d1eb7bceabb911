//! The linears of a decoder layer: what they are for, what they are called, what shape they have.

use serde::{Deserialize, Serialize};

/// What a linear does in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The embedding: its rows are looked up, not multiplied with.
    Embedding,
    /// Queries, keys and values in one projection.
    QueryKeyValue,
    /// Projection into latent features that queries are made of.
    QueryLatent,
    /// Projection into latent features that keys and values are made of.
    KeyValueLatent,
    /// Attention query projection, of the layer's input or of latent features.
    Query,
    /// Attention key projection.
    Key,
    /// Attention value projection.
    Value,
    /// Projection from latent features to keys and values.
    KeyValue,
    /// Attention output projection; writes the residual stream.
    Output,
    /// The gate of a gated MLP and its widening projection in one.
    GateUp,
    /// The gate of a gated MLP.
    Gate,
    /// The widening projection of an MLP.
    Up,
    /// The narrowing projection of an MLP; writes the residual stream.
    Down,
    /// The head, which gives the logits.
    Head,
}

/// What the reference implementation makes of linears, which decides who finds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinearClass {
    /// `torch.nn.Linear`.
    Plain,
    /// `Conv1D`, whose weight is stored as `[in_features, out_features]`.
    Transposed,
    /// A class of the architecture's own.
    Own,
    /// None: it is a part of a tensor of all experts.
    Stacked,
}

/// Which part of its layer a linear belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Attention, or the MLP of a layer without experts.
    #[default]
    Main,
    /// The MLP that every token passes beside the experts.
    Shared,
    /// One of the MLPs that a router chooses from, by number.
    Expert(usize),
}

impl Part {
    /// Its number, where it is an expert.
    #[must_use]
    pub fn expert(self) -> Option<usize> {
        match self {
            Self::Expert(expert) => Some(expert),
            Self::Main | Self::Shared => None,
        }
    }
}

/// A linear's place in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Part of the layer.
    pub part: Part,
    /// Role in it.
    pub role: Role,
}

impl From<Role> for Slot {
    fn from(role: Role) -> Self {
        Self { part: Part::Main, role }
    }
}

/// A linear's place: which decoder layer, which part of it, which role. Ordered as the forward pass meets them. The embedding is with the first
/// layer, the head after the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LinearId {
    /// Index of the decoder layer.
    pub layer: usize,
    /// Part of the layer.
    pub part: Part,
    /// Role in that part.
    pub role: Role,
}

impl LinearId {
    /// The place within the layer.
    #[must_use]
    pub fn slot(self) -> Slot {
        Slot { part: self.part, role: self.role }
    }
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
    /// What the reference implementation makes of it.
    pub class: LinearClass,
}

impl Linear {
    /// Whether it is the embedding or the head, not part of a layer.
    #[must_use]
    pub fn is_outer(&self) -> bool {
        matches!(self.id.role, Role::Embedding | Role::Head)
    }

    /// Name of the weight tensor.
    #[must_use]
    pub fn weight_name(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// Whether the checkpoint stores the weight as `[in_features, out_features]`.
    #[must_use]
    pub fn is_transposed(&self) -> bool {
        self.class == LinearClass::Transposed
    }

    /// Shape of the weight tensor in the checkpoint.
    #[must_use]
    pub fn weight_shape(&self) -> [usize; 2] {
        let shape = [self.out_features, self.in_features];
        if self.is_transposed() { [shape[1], shape[0]] } else { shape }
    }

    /// Name of the bias tensor, if the linear has one.
    #[must_use]
    pub fn bias_name(&self) -> Option<String> {
        self.bias.then(|| format!("{}.bias", self.name))
    }
}
