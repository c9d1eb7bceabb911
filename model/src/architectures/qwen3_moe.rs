//! Qwen3 with experts (arXiv 2505.09388, section 2): Qwen3-30B-A3B, Qwen3-235B-A22B. None is shared.

use super::qwen3::QWEN3;
use crate::architecture::{
    Architecture, DecoderLayer, ExpertGroups, ExpertKeys, ExpertLayers, Experts, GatedMlp, LlamaCpp, Mlp,
    Normalized, RoutingRule, Scores, StoredExperts,
};

/// Qwen3 whose MLPs are experts.
pub(super) const QWEN3_MOE: Architecture = Architecture {
    model_type: "qwen3_moe",
    class: "Qwen3MoeForCausalLM",
    summary: "Qwen3-30B-A3B and Qwen3-235B-A22B (mixture of experts)",
    llama_cpp: Some(LlamaCpp::halves("qwen3moe")),
    layer: DecoderLayer {
        mlp: Mlp::Experts {
            experts: &Experts {
                router: "mlp.gate",
                router_bias: false,
                correction: None,
                prefix: "mlp.experts",
                expert: GatedMlp { gate: "gate_proj", up: "up_proj", down: "down_proj" },
                stored: StoredExperts::OneByOne,
                shared: None,
                routing: RoutingRule {
                    scores: Scores::Softmax,
                    normalized: Normalized::Configured(false),
                    groups: ExpertGroups::Never,
                },
                keys: ExpertKeys {
                    count: &["num_local_experts", "num_experts"],
                    width: "moe_intermediate_size",
                    layers: ExpertLayers::Sparse,
                },
                llama_cpp_normalizes: true,
            },
            dense: GatedMlp { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj" },
        },
        ..QWEN3.layer
    },
    ..QWEN3
};
