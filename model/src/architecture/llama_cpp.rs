//! How llama.cpp runs an architecture, as part of its description.

use serde::{Deserialize, Serialize};

/// What llama.cpp makes of an architecture, and what it computes beyond what a file can say: a model that differs is refused. Facts of
/// `src/models` at 0c1e570.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlamaCpp {
    /// Its name there. Several architectures may share one: files of it are read as the first in the registry that fits.
    pub name: &'static str,
    /// Whether it rotates neighbouring features of a head, for which the rows of query and key projections change their order where the model
    /// rotates halves; otherwise it rotates a head's halves.
    pub rotates_neighbours: bool,
    /// Which biases of linears it loads.
    #[serde(default)]
    pub biases: LoadedBiases,
    /// Whether fewer features than a head has may be rotated.
    #[serde(default)]
    pub part_of_heads: bool,
    /// The tensors of divisors of frequencies that it takes.
    #[serde(default)]
    pub divisors: Divisors,
    /// Whether its head always is the embedding.
    #[serde(default)]
    pub tied_head: bool,
    /// Whether it asks if the branches of a layer run in parallel.
    #[serde(default)]
    pub asks_parallel: bool,
    /// Whether a file says how tokens are sent to experts, and which layers have them.
    #[serde(default)]
    pub says_routing: bool,
    /// Models of so many layers have products of queries and keys over the root of the hidden size over the number of heads; others, as
    /// usual, over that of the features of a head.
    #[serde(default)]
    pub rooted_by_hidden: Option<usize>,
    /// What it calls the norms before the branches.
    #[serde(default)]
    pub norms: NormNames,
    /// Parts that not all of its architectures have.
    #[serde(default)]
    pub parts: LlamaCppParts,
}

impl LlamaCpp {
    /// One that rotates halves of heads, all else usual.
    #[must_use]
    pub const fn halves(name: &'static str) -> Self {
        Self {
            name,
            rotates_neighbours: false,
            biases: LoadedBiases::Present,
            part_of_heads: false,
            divisors: Divisors::None,
            tied_head: false,
            asks_parallel: false,
            says_routing: false,
            rooted_by_hidden: None,
            norms: NormNames::Usual,
            parts: LlamaCppParts::NONE,
        }
    }

    /// One that rotates neighbouring features, all else usual.
    #[must_use]
    pub const fn neighbours(name: &'static str) -> Self {
        Self { rotates_neighbours: true, ..Self::halves(name) }
    }
}

/// Which biases of linears llama.cpp loads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadedBiases {
    /// Those that are there.
    #[default]
    Present,
    /// None.
    Never,
    /// All.
    Always,
}

/// By which tensors llama.cpp divides frequencies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Divisors {
    /// None.
    #[default]
    None,
    /// One.
    One,
    /// One for contexts up to the original one, and one for longer ones.
    ShortAndLong,
}

/// What llama.cpp calls the norms before the branches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormNames {
    /// `attn_norm` and `ffn_norm`.
    #[default]
    Usual,
    /// Where both branches have one: `attn_norm_2`, and `attn_norm` for the MLP.
    Numbered,
    /// `attn_norm`, and `post_attention_norm` for the MLP.
    AfterAttention,
}

/// Parts of a model that only some of llama.cpp's architectures have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LlamaCppParts {
    /// A norm behind the embedding.
    pub embedding_norm: bool,
    /// A table of learned positions, from row 0.
    pub positions: bool,
    /// Products that fall with the distance.
    pub alibi: bool,
    /// Caps of logits and of products of queries and keys.
    pub caps: bool,
    /// Latent features of attention.
    pub latent: bool,
    /// Attention sinks, a bias of the router, and gates that are clamped at 7 with a factor of 1.702.
    pub sinks: bool,
    /// Frequencies of their own for layers with a window.
    pub local_frequencies: bool,
}

impl LlamaCppParts {
    /// None of them.
    pub const NONE: Self = Self {
        embedding_norm: false,
        positions: false,
        alibi: false,
        caps: false,
        latent: false,
        sinks: false,
        local_frequencies: false,
    };
}
