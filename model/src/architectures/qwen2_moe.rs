//! Qwen1.5-MoE and Qwen2-57B-A14B (arXiv 2407.10671, section 2.2.2): Qwen2 with experts, and one more that every token passes.

use super::qwen2::QWEN2;
use crate::architecture::{
    Architecture, DecoderLayer, ExpertGroups, ExpertKeys, ExpertLayers, Experts, GatedMlp, LlamaCpp, Mlp,
    Normalized, RoutingRule, Scores, SharedExpert, SharedWidth, StoredExperts,
};

/// Qwen2 whose MLPs are experts.
pub(super) const QWEN2_MOE: Architecture = Architecture {
    model_type: "qwen2_moe",
    class: "Qwen2MoeForCausalLM",
    summary: "Qwen1.5-MoE and Qwen2-57B-A14B (mixture of experts, one shared)",
    llama_cpp: Some(LlamaCpp::halves("qwen2moe")),
    layer: DecoderLayer {
        mlp: Mlp::Experts {
            experts: &Experts {
                router: "mlp.gate",
                router_bias: false,
                correction: None,
                prefix: "mlp.experts",
                expert: GatedMlp { gate: "gate_proj", up: "up_proj", down: "down_proj" },
                stored: StoredExperts::OneByOne,
                shared: Some(SharedExpert {
                    mlp: GatedMlp {
                        gate: "mlp.shared_expert.gate_proj",
                        up: "mlp.shared_expert.up_proj",
                        down: "mlp.shared_expert.down_proj",
                    },
                    gate: Some("mlp.shared_expert_gate"),
                    width: SharedWidth::Key("shared_expert_intermediate_size"),
                }),
                routing: RoutingRule {
                    scores: Scores::Softmax,
                    normalized: Normalized::Configured(false),
                    groups: ExpertGroups::Never,
                },
                keys: ExpertKeys {
                    count: &["num_experts"],
                    width: "moe_intermediate_size",
                    layers: ExpertLayers::Sparse,
                },
                llama_cpp_normalizes: false,
            },
            dense: GatedMlp { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj" },
        },
        ..QWEN2.layer
    },
    ..QWEN2
};
