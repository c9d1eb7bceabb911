//! The vocabulary that architectures are described in: names and choices, no arithmetic.
//!
//! Everything else is derived from a description: tensor names and shapes, the stages of a layer, who shares a Hessian, the forward pass.
//! A case that every consumer has to understand is an enum variant, so that adding one lets the compiler list the work.

mod llama_cpp;

use serde::{Deserialize, Serialize};

use crate::linear::LinearClass;

pub use llama_cpp::{Divisors, LlamaCpp, LlamaCppParts, LoadedBiases, NormNames};

/// A family of models: how its checkpoints name things and how its layers compute.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// `model_type` in config.json. Several may share one, told apart by `when`.
    pub model_type: &'static str,
    /// The class that `architectures` in config.json names.
    pub class: &'static str,
    /// Which models belong to it, for people.
    pub summary: &'static str,
    /// What config.json must say for this description to be meant.
    #[serde(deserialize_with = "leaked")]
    pub when: &'static [(&'static str, Setting)],
    /// Values of keys that config.json does not have: the defaults of the reference implementation.
    #[serde(deserialize_with = "leaked")]
    pub defaults: &'static [(&'static str, Setting)],
    /// Module of the token embedding, `[vocabulary, hidden]`.
    pub embedding: &'static str,
    /// The norm of what the embedding gives.
    pub embedding_norm: Option<Norm>,
    /// A table of learned positions, added to what the embedding gives.
    pub positions: Option<LearnedPositions>,
    /// Where rows of the embedding are narrower than the residual stream (`word_embed_proj_dim`): what widens and what narrows them.
    pub projections: Option<Projections>,
    /// Prefix of the decoder layers; a layer's modules are `{layers}.{index}.{module}`.
    pub layers: &'static str,
    /// The norm before the head.
    pub final_norm: Option<Norm>,
    /// Module of the head, `[vocabulary, hidden]`.
    pub head: &'static str,
    /// Whether the head has a bias, `[vocabulary]`.
    pub head_bias: bool,
    /// Factors and caps.
    pub factors: Factors,
    /// What the reference implementation makes of the layers' linears.
    pub linears: LinearClass,
    /// How llama.cpp runs it; none: not at all.
    pub llama_cpp: Option<LlamaCpp>,
    /// What a decoder layer is made of.
    pub layer: DecoderLayer,
}

/// A value in config.json.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    /// True or false.
    Flag(bool),
    /// A number.
    Number(f64),
    /// Text.
    Text(&'static str),
}

/// A decoder layer: two branches, attention and MLP, that read the residual stream and are added to it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "'de: 'static"))]
pub struct DecoderLayer {
    /// Whether the MLP reads what attention has written.
    pub branches: Branches,
    /// Norms of the attention branch.
    pub attention_norms: BranchNorms,
    /// Attention.
    pub attention: Attention,
    /// Norms of the MLP branch. In parallel branches without a norm before the MLP, it reads what attention reads.
    pub mlp_norms: BranchNorms,
    /// The MLP.
    pub mlp: Mlp,
    /// Which projections of the MLP have a bias.
    pub mlp_bias: Bias,
    /// What a gated MLP makes of gate and up.
    pub gating: Gating,
}

/// What a gated MLP makes of what its gate and its up projection give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gating {
    /// `activation(gate) * up`.
    Activated,
    /// `g sigmoid(swiglu_alpha g) (u + 1)` of a gate `g` of at most `swiglu_limit` and an up `u` between minus that and that.
    Clamped,
}

/// How the two branches of a layer follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Branches {
    /// `x += attention(x); x += mlp(x)`.
    InTurn,
    /// `x += attention(x) + mlp(x)`.
    Parallel,
}

/// Norms of a branch `f`: `x = joined(x + after(f(before(x))))`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "'de: 'static"))]
pub struct BranchNorms {
    /// Of what it reads.
    pub before: Option<Norm>,
    /// Of what it gives.
    pub after: Option<Norm>,
    /// Of the residual stream with what it gave.
    pub joined: Option<Norm>,
}

impl BranchNorms {
    /// No norm at all.
    pub const NONE: Self = Self { before: None, after: None, joined: None };

    /// A norm before the branch alone.
    #[must_use]
    pub const fn before(norm: Norm) -> Self {
        Self { before: Some(norm), ..Self::NONE }
    }
}

/// A norm over the features of each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Norm {
    /// Its module.
    pub name: &'static str,
    /// What it computes.
    pub kind: NormKind,
}

/// What a norm computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps) * weight`.
    Rms,
    /// `x / sqrt(mean(x²) + eps) * (1 + weight)`.
    RmsPlusOne,
    /// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`.
    Layer,
    /// The same without a bias.
    LayerWithoutBias,
}

/// Learned positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnedPositions {
    /// Module of the table, `[offset + context, hidden]`.
    pub name: &'static str,
    /// Row of position 0.
    pub offset: usize,
}

/// Linears between the embedding's width and the residual stream's, without biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Projections {
    /// Module after the embedding.
    pub widening: &'static str,
    /// Module before the head.
    pub narrowing: &'static str,
}

/// Factors and caps of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Factors {
    /// On what the embedding gives.
    pub embedding: Factor,
    /// On the products of queries and keys.
    pub attention: Factor,
    /// On what a branch adds to the residual stream.
    pub residual: Factor,
    /// On the logits.
    pub logits: Factor,
    /// The key of `c` where `c tanh(s / c)` takes the place of the scaled products `s` of queries and keys.
    pub attention_cap: Option<&'static str>,
    /// The same for logits.
    pub logit_cap: Option<&'static str>,
}

impl Factors {
    /// Products of queries and keys over the root of the head's features, all else as it is.
    pub const PLAIN: Self = Self {
        embedding: Factor::One,
        attention: Factor::OneOverRootOf("head_dim"),
        residual: Factor::One,
        logits: Factor::One,
        attention_cap: None,
        logit_cap: None,
    };
}

/// A factor, by keys of config.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Factor {
    /// 1.
    One,
    /// A key's value.
    Key(&'static str),
    /// One over it.
    OneOver(&'static str),
    /// One over its square root.
    OneOverRootOf(&'static str),
    /// The same times the square of the temperature that a stretch of rotary positions has by `mscale_all_dim` (YaRN, arXiv 2309.00071,
    /// section 3.4).
    TemperedOneOverRootOf(&'static str),
    /// Its square root, rounded to the checkpoint's type.
    RoundedRootOf(&'static str),
}

/// Whether something has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// No.
    Never,
    /// Yes.
    Always,
    /// As a key of config.json says; no, where there is none.
    Key(&'static str),
}

/// Causal self-attention with grouped key-value heads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// How queries, keys and values are projected.
    pub qkv: Qkv,
    /// Whether all queries share one key head, whatever config.json says.
    pub single_key_head: bool,
    /// Whether the projections of queries, keys and values have biases.
    pub input_bias: Bias,
    /// Module of the output projection.
    pub output: &'static str,
    /// Whether it has a bias.
    pub output_bias: Bias,
    /// Norms of queries and keys, before the rotation.
    pub head_norms: Option<HeadNorms>,
    /// How a token knows where others are.
    pub positions: Positions,
    /// Which layers see only a window.
    pub window: Window,
    /// Tensor of what each head's softmax counts beside the products with keys, and drops again, `[heads]`.
    pub sinks: Option<&'static str>,
}

/// How queries, keys and values are projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
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
    /// One linear for all.
    Fused {
        /// Its module.
        name: &'static str,
        /// How its rows lie.
        rows: FusedRows,
    },
    /// Each token has a few latent features, of which the queries, keys and values of all heads are made.
    Latent(LatentProjections),
}

/// Projections into latent features and out of them (DeepSeek-V2, arXiv 2405.04434, section 2.1). A head's queries and keys are `qk_nope_head_dim`
/// features and, behind them, `qk_rope_head_dim` that are turned; all heads share these of the key, which are made from the input directly. The
/// latent features are normed (RMS, epsilon 1e-6 whatever config.json says).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentProjections {
    /// Module of the query projection where queries have no latent features: config.json has no `q_lora_rank`.
    pub query: &'static str,
    /// Module of the projection into the queries' latent features, `q_lora_rank`.
    pub query_latent: &'static str,
    /// Module of their norm.
    pub query_norm: &'static str,
    /// Module of the projection from them to queries.
    pub query_of_latent: &'static str,
    /// Module of the projection into the latent features of keys and values, `kv_lora_rank`, and the key's turned ones.
    pub key_value_latent: &'static str,
    /// Module of the norm of the former.
    pub key_value_norm: &'static str,
    /// Module of the projection from them to the other features of keys, and to values, head by head.
    pub key_value_of_latent: &'static str,
}

/// How the rows of a fused projection of queries, keys and values lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FusedRows {
    /// All queries, all keys, all values.
    Concatenated,
    /// For each key head the queries that share it, the key, the value.
    ByKeyHead,
}

/// Norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadNorms {
    /// Module of the norm of queries.
    pub query: &'static str,
    /// Module of the norm of keys.
    pub key: &'static str,
    /// What they compute.
    pub kind: NormKind,
    /// Over how many features.
    pub over: NormWidth,
}

/// What a norm of queries or keys goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormWidth {
    /// Each head, weight `[head_dim]`.
    EachHead,
    /// All heads together, weight `[heads * head_dim]`.
    AllHeads,
}

/// How attention knows positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Positions {
    /// It does not; the embedding may.
    None,
    /// Products of queries and keys fall with the distance, each head with its slope (arXiv 2108.12409).
    Alibi,
    /// Queries and keys are rotated.
    Rotary {
        /// Which features of a head are turned together.
        pairs: Pairs,
        /// Which layers do not rotate.
        unturned: Unturned,
        /// Whether layers with a window have frequencies of their own.
        local: bool,
    },
}

/// Which features of a head are turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pairs {
    /// `i` and `i + dim / 2`.
    Halves,
    /// `2 i` and `2 i + 1`.
    Neighbours,
}

/// Which layers do not rotate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unturned {
    /// None.
    None,
    /// Those that `no_rope_layers` gives a 0, or every `no_rope_layer_interval`-th.
    Listed,
    /// Those without a window.
    WithoutWindow,
}

/// Which layers attend only to the last `sliding_window` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// None, whatever config.json says.
    Never,
    /// All, when `sliding_window` is a number.
    EveryLayer,
    /// When `use_sliding_window` holds: those that `layer_types` marks, or those from `max_window_layers` on.
    Switched,
    /// Those that `layer_types` marks, or all but every so many (`sliding_window_pattern`, or this number).
    AllButEvery(usize),
}

/// The feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
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
    /// The same with gate and up as one linear, gate's rows first.
    GatedFused {
        /// Module of both.
        gate_up: &'static str,
        /// Module of the down projection.
        down: &'static str,
    },
    /// `down(activation(up(x)))`.
    Plain {
        /// Module of the up projection.
        up: &'static str,
        /// Module of the down projection.
        down: &'static str,
    },
    /// In some layers a router sends each token through a few of many gated MLPs; their results are added, weighted. The other layers are
    /// dense.
    #[serde(skip)]
    Experts {
        /// The experts.
        experts: &'static Experts,
        /// The MLP of dense layers.
        dense: GatedMlp,
    },
}

impl DecoderLayer {
    /// Whether both branches read the same.
    #[must_use]
    pub fn shares_input(&self) -> bool {
        self.branches == Branches::Parallel && self.mlp_norms.before.is_none()
    }
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
    /// Whether it has a bias, `[experts]`.
    pub router_bias: bool,
    /// Tensor that is added to scores for the choice alone, `[experts]`.
    pub correction: Option<&'static str>,
    /// Prefix of the experts; an expert's modules are `{prefix}.{number}.{module}`.
    pub prefix: &'static str,
    /// Modules of an expert.
    pub expert: GatedMlp,
    /// How the reference implementation stores them.
    pub stored: StoredExperts,
    /// The expert that every token passes.
    pub shared: Option<SharedExpert>,
    /// How tokens are sent.
    pub routing: RoutingRule,
    /// Keys of config.json that count them.
    pub keys: ExpertKeys,
    /// Whether llama.cpp divides the chosen experts' scores by their sum.
    pub llama_cpp_normalizes: bool,
}

/// How the reference implementation stores experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredExperts {
    /// One by one; some checkpoints have them in `gate_up_proj`, `[experts, 2 width, hidden]`, gate's rows first, and `down_proj`.
    OneByOne,
    /// In tensors of all of them alone, with outputs side by side: `gate_up_proj`, `[experts, hidden, 2 width]`, those of gate and up by turns,
    /// and `down_proj`, `[experts, width, hidden]`; biases in `gate_up_proj_bias` and `down_proj_bias`. In four-bit floats `_blocks` and
    /// `_scales`, row by row.
    SideBySide,
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
    /// Whether groups of experts are chosen first.
    pub groups: ExpertGroups,
}

/// Whether experts lie in groups (`n_group`) of which a token takes a few first (`topk_group`), and then experts of those alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertGroups {
    /// No.
    Never,
    /// Those with the largest sums of their two best scores.
    ByBestTwo,
    /// Where `topk_method` is `group_limited_greedy`, those with the best scores.
    ByMethod,
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

/// Lists live as long as the program.
fn leaked<'de: 'static, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<&'static [(&'static str, Setting)], D::Error> {
    let list = Vec::<(&'static str, Setting)>::deserialize(deserializer)?;
    Ok(Vec::leak(list))
}
