//! The vocabulary that architectures are described in: names and choices, no arithmetic.
//!
//! Everything else is derived from a description: tensor names and shapes, the stages of a layer, who shares a Hessian, the forward pass.
//! A case that every consumer has to understand is an enum variant, so that adding one lets the compiler list the work.

/// A family of models: how its checkpoints name things and how its layers compute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Architecture {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// The class that `architectures` in config.json names.
    pub class: &'static str,
    /// Which models belong to it, for people.
    pub summary: &'static str,
    /// Module of the token embedding, `[vocabulary, hidden]`.
    pub embedding: &'static str,
    /// Prefix of the decoder layers; a layer's modules are `{layers}.{index}.{module}`.
    pub layers: &'static str,
    /// Module of the norm before the head.
    pub final_norm: &'static str,
    /// Module of the head, `[vocabulary, hidden]`.
    pub head: &'static str,
    /// Value of `tie_word_embeddings` where config.json has none.
    pub tied_head: bool,
    /// How llama.cpp runs it; none: not at all.
    pub llama_cpp: Option<LlamaCpp>,
    /// What a decoder layer is made of.
    pub layer: DecoderLayer,
}

/// What llama.cpp makes of an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LlamaCpp {
    /// Its name there. Several architectures may share one: files of it are read as the first in the registry.
    pub name: &'static str,
    /// Whether it rotates neighbouring features of a head, for which the rows of query and key projections change their order, and takes
    /// factors of the rotation's frequencies from a tensor; otherwise it rotates a head's halves, and takes none.
    pub rotates_neighbours: bool,
}

/// A decoder layer: `x += attention(norm(x)); x += mlp(norm(x))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecoderLayer {
    /// The norm before attention.
    pub attention_norm: Norm,
    /// Attention.
    pub attention: Attention,
    /// The norm before the MLP.
    pub mlp_norm: Norm,
    /// The MLP.
    pub mlp: Mlp,
}

/// A norm over the hidden features.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Its module.
    pub name: &'static str,
    /// What it computes.
    pub kind: NormKind,
}

/// What a norm computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps) * weight`.
    Rms,
}

/// Causal self-attention with rotary positions and grouped key-value heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// How queries, keys and values are projected.
    pub qkv: Qkv,
    /// Module of the output projection.
    pub output: &'static str,
    /// Which projections have a bias.
    pub bias: AttentionBias,
    /// Modules of norms over each head of the queries and keys, before the rotation.
    pub head_norms: Option<HeadNorms>,
    /// Which layers see only a window.
    pub window: Window,
}

/// How queries, keys and values are projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qkv {
    /// One linear each.
    Separate {
        /// Module of the query projection.
        query: &'static str,
        /// Module of the key projection.
        key: &'static str,
        /// Module of the value projection.
        value: &'static str,
    },
}

/// Which projections of attention have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionBias {
    /// All four as `attention_bias` says; none where config.json has no such key.
    Configured,
    /// Query, key and value, not the output.
    Inputs,
    /// None.
    Never,
}

/// RMS norms over each head of the queries and keys, weight `[head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadNorms {
    /// Module of the norm of query heads.
    pub query: &'static str,
    /// Module of the norm of key heads.
    pub key: &'static str,
}

/// Which layers attend only to the last `sliding_window` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// None, whatever config.json says.
    Never,
    /// All, when `sliding_window` is a number.
    EveryLayer,
    /// When `use_sliding_window` holds: those that `layer_types` marks, or those from `max_window_layers` on.
    Switched,
}

/// The feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mlp {
    /// `down(activation(gate(x)) * up(x))`.
    Gated {
        /// Module of the gate projection.
        gate: &'static str,
        /// Module of the up projection.
        up: &'static str,
        /// Module of the down projection.
        down: &'static str,
    },
    /// In some layers a router sends each token through a few of many gated MLPs; their results are added, weighted. The other layers are
    /// dense.
    Experts {
        /// The experts.
        experts: &'static Experts,
        /// The MLP of dense layers.
        dense: GatedMlp,
    },
}

/// The modules of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatedMlp {
    /// Module of the gate projection.
    pub gate: &'static str,
    /// Module of the up projection.
    pub up: &'static str,
    /// Module of the down projection.
    pub down: &'static str,
}

/// Gated MLPs that a router chooses from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// Module of the router, weight `[experts, hidden]`; never quantized.
    pub router: &'static str,
    /// Tensor that is added to scores for the choice alone, `[experts]`.
    pub correction: Option<&'static str>,
    /// Prefix of the experts; an expert's modules are `{prefix}.{number}.{module}`.
    pub prefix: &'static str,
    /// Modules of an expert.
    pub expert: GatedMlp,
    /// The expert that every token passes.
    pub shared: Option<SharedExpert>,
    /// How tokens are sent.
    pub routing: RoutingRule,
    /// Keys of config.json that count them.
    pub keys: ExpertKeys,
    /// Whether llama.cpp divides the chosen experts' scores by their sum.
    pub llama_cpp_normalizes: bool,
}

/// An MLP that every token passes beside the experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedExpert {
    /// Its modules.
    pub mlp: GatedMlp,
    /// Module whose output's sigmoid its result is multiplied by, weight `[1, hidden]`; never quantized.
    pub gate: Option<&'static str>,
    /// Its inner features.
    pub width: SharedWidth,
}

/// Where config.json has the inner features of the shared expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedWidth {
    /// Under this key.
    Key(&'static str),
    /// Those of one expert times the number under this key; none there: no shared expert.
    Experts(&'static str),
}

/// How a router's outputs become weights of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutingRule {
    /// What scores are.
    pub scores: Scores,
    /// Whether the chosen experts' scores are divided by their sum.
    pub normalized: Normalized,
}

/// What becomes of a router's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// A softmax over all experts. Divided by the sum of the chosen ones it is a softmax over those.
    Softmax,
    /// A sigmoid each.
    Sigmoid,
}

/// Whether weights are made to add up to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalized {
    /// Yes.
    Always,
    /// No.
    Never,
    /// As `norm_topk_prob` says; this where config.json has no such key.
    Configured(bool),
}

/// Where config.json has the numbers of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertKeys {
    /// How many there are, the first key that is there.
    pub count: &'static [&'static str],
    /// Inner features of one.
    pub width: &'static str,
    /// Which layers have them.
    pub layers: ExpertLayers,
}

/// Which layers have experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertLayers {
    /// All.
    Every,
    /// Every `decoder_sparse_step`th, but none that `mlp_only_layers` lists.
    Sparse,
    /// From `first_k_dense_replace` on, every `moe_layer_freq`th.
    Later,
}
