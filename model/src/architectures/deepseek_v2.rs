//! DeepSeek-V2 and V2-Lite (arXiv 2405.04434): Llama with latent attention, and experts beside one that every token passes.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, DecoderLayer, ExpertGroups, ExpertKeys, ExpertLayers, Experts, Factor, Factors,
    GatedMlp, LatentProjections, LlamaCpp, LlamaCppParts, LoadedBiases, Mlp, Normalized, Pairs, Positions,
    Qkv, RoutingRule, Scores, Setting, SharedExpert, SharedWidth, StoredExperts, Unturned,
};

/// Llama whose queries, keys and values are made of latent features.
pub(super) const DEEPSEEK_V2: Architecture = Architecture {
    model_type: "deepseek_v2",
    class: "DeepseekV2ForCausalLM",
    summary: "DeepSeek-V2 and V2-Lite (latent attention, mixture of experts)",
    when: &[("norm_topk_prob", Setting::Flag(false)), ("scoring_func", Setting::Text("softmax"))],
    defaults: &[
        ("scoring_func", Setting::Text("softmax")),
        ("topk_method", Setting::Text("greedy")),
        ("n_routed_experts", Setting::Number(64.0)),
        ("n_shared_experts", Setting::Number(2.0)),
        ("moe_intermediate_size", Setting::Number(1407.0)),
        ("kv_lora_rank", Setting::Number(512.0)),
        ("qk_nope_head_dim", Setting::Number(128.0)),
        ("qk_rope_head_dim", Setting::Number(64.0)),
        ("v_head_dim", Setting::Number(128.0)),
    ],
    factors: Factors { attention: Factor::TemperedOneOverRootOf("head_dim"), ..Factors::PLAIN },
    llama_cpp: Some(LlamaCpp {
        biases: LoadedBiases::Never,
        part_of_heads: true,
        says_routing: true,
        parts: LlamaCppParts { latent: true, ..LlamaCppParts::NONE },
        ..LlamaCpp::neighbours("deepseek2")
    }),
    layer: DecoderLayer {
        attention: Attention {
            qkv: Qkv::Latent(LatentProjections {
                query: "self_attn.q_proj",
                query_latent: "self_attn.q_a_proj",
                query_norm: "self_attn.q_a_layernorm",
                query_of_latent: "self_attn.q_b_proj",
                key_value_latent: "self_attn.kv_a_proj_with_mqa",
                key_value_norm: "self_attn.kv_a_layernorm",
                key_value_of_latent: "self_attn.kv_b_proj",
            }),
            positions: Positions::Rotary { pairs: Pairs::Neighbours, unturned: Unturned::None, local: false },
            ..LLAMA.layer.attention
        },
        mlp: Mlp::Experts {
            experts: &EXPERTS,
            dense: GatedMlp { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj" },
        },
        ..LLAMA.layer
    },
    ..LLAMA
};

/// Its experts.
pub(super) const EXPERTS: Experts = Experts {
    router: "mlp.gate",
    router_bias: false,
    correction: None,
    prefix: "mlp.experts",
    expert: GatedMlp { gate: "gate_proj", up: "up_proj", down: "down_proj" },
    stored: StoredExperts::OneByOne,
    shared: Some(SharedExpert {
        mlp: GatedMlp {
            gate: "mlp.shared_experts.gate_proj",
            up: "mlp.shared_experts.up_proj",
            down: "mlp.shared_experts.down_proj",
        },
        gate: None,
        width: SharedWidth::Experts("n_shared_experts"),
    }),
    routing: RoutingRule {
        scores: Scores::Softmax,
        normalized: Normalized::Never,
        groups: ExpertGroups::ByMethod,
    },
    keys: ExpertKeys {
        count: &["n_routed_experts", "num_local_experts", "num_experts"],
        width: "moe_intermediate_size",
        layers: ExpertLayers::Later,
    },
    llama_cpp_normalizes: false,
};
