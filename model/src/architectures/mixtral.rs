//! Mixtral (arXiv 2401.04088): Mistral with experts, of which each token takes the two best.

use super::mistral::MISTRAL;
use crate::architecture::{
    Architecture, DecoderLayer, Divisors, ExpertGroups, ExpertKeys, ExpertLayers, Experts, GatedMlp,
    LlamaCpp, Mlp, Normalized, RoutingRule, Scores, StoredExperts,
};

/// Mistral whose MLPs are experts.
pub(super) const MIXTRAL: Architecture = Architecture {
    model_type: "mixtral",
    class: "MixtralForCausalLM",
    summary: "Mixtral 8x7B and 8x22B (mixture of experts)",
    llama_cpp: Some(LlamaCpp { divisors: Divisors::One, ..LlamaCpp::neighbours("llama") }),
    layer: DecoderLayer {
        mlp: Mlp::Experts {
            experts: &Experts {
                router: "block_sparse_moe.gate",
                router_bias: false,
                correction: None,
                prefix: "block_sparse_moe.experts",
                expert: GatedMlp { gate: "w1", up: "w3", down: "w2" },
                stored: StoredExperts::OneByOne,
                shared: None,
                routing: RoutingRule {
                    scores: Scores::Softmax,
                    normalized: Normalized::Always,
                    groups: ExpertGroups::Never,
                },
                keys: ExpertKeys {
                    count: &["num_local_experts"],
                    width: "intermediate_size",
                    layers: ExpertLayers::Every,
                },
                llama_cpp_normalizes: true,
            },
            dense: GatedMlp { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj" },
        },
        ..MISTRAL.layer
    },
    ..MISTRAL
};
