//! DeepSeek-V3 and R1 (arXiv 2412.19437): DeepSeek-V2 with experts whose sigmoid scores are corrected for the choice, by groups.

use super::deepseek_v2::{DEEPSEEK_V2, EXPERTS};
use crate::architecture::{
    Architecture, DecoderLayer, ExpertGroups, Experts, GatedMlp, Mlp, Normalized, RoutingRule, Scores,
    Setting,
};

/// The numbers of the largest are what config.json may leave out.
pub(super) const DEEPSEEK_V3: Architecture = Architecture {
    model_type: "deepseek_v3",
    class: "DeepseekV3ForCausalLM",
    summary: "DeepSeek-V3, R1 and models of their shape (latent attention, mixture of experts)",
    when: &[
        ("topk_method", Setting::Text("noaux_tc")),
        ("scoring_func", Setting::Text("sigmoid")),
        ("rope_interleave", Setting::Flag(true)),
    ],
    defaults: &[
        ("topk_method", Setting::Text("noaux_tc")),
        ("scoring_func", Setting::Text("sigmoid")),
        ("rope_interleave", Setting::Flag(true)),
        ("norm_topk_prob", Setting::Flag(true)),
        ("routed_scaling_factor", Setting::Number(2.5)),
        ("n_routed_experts", Setting::Number(256.0)),
        ("n_shared_experts", Setting::Number(1.0)),
        ("num_experts_per_tok", Setting::Number(8.0)),
        ("n_group", Setting::Number(8.0)),
        ("topk_group", Setting::Number(4.0)),
        ("first_k_dense_replace", Setting::Number(3.0)),
        ("moe_intermediate_size", Setting::Number(2048.0)),
        ("kv_lora_rank", Setting::Number(512.0)),
        ("qk_nope_head_dim", Setting::Number(128.0)),
        ("qk_rope_head_dim", Setting::Number(64.0)),
        ("v_head_dim", Setting::Number(128.0)),
    ],
    layer: DecoderLayer {
        mlp: Mlp::Experts {
            experts: &Experts {
                correction: Some("mlp.gate.e_score_correction_bias"),
                routing: RoutingRule {
                    scores: Scores::Sigmoid,
                    normalized: Normalized::Configured(true),
                    groups: ExpertGroups::ByBestTwo,
                },
                ..EXPERTS
            },
            dense: GatedMlp { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj" },
        },
        ..DEEPSEEK_V2.layer
    },
    ..DEEPSEEK_V2
};
