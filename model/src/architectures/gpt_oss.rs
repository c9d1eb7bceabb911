//! gpt-oss (arXiv 2508.10925): experts alone, windows in every second layer, and something for each head to attend to when nothing is worth it.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, Bias, DecoderLayer, ExpertGroups, ExpertKeys, ExpertLayers, Experts, GatedMlp,
    Gating, LlamaCpp, LlamaCppParts, LoadedBiases, Mlp, NormNames, Normalized, RoutingRule, Scores, Setting,
    StoredExperts, Window,
};

/// Llama with sinks whose MLPs are experts with clamped gates.
pub(super) const GPT_OSS: Architecture = Architecture {
    model_type: "gpt_oss",
    class: "GptOssForCausalLM",
    summary: "gpt-oss-20b and 120b (mixture of experts, attention sinks)",
    defaults: &[
        ("rms_norm_eps", Setting::Number(1e-5)),
        ("attention_bias", Setting::Flag(true)),
        ("head_dim", Setting::Number(64.0)),
        ("num_key_value_heads", Setting::Number(8.0)),
        ("sliding_window", Setting::Number(128.0)),
        ("swiglu_alpha", Setting::Number(1.702)),
        ("swiglu_limit", Setting::Number(7.0)),
    ],
    llama_cpp: Some(LlamaCpp {
        biases: LoadedBiases::Always,
        norms: NormNames::AfterAttention,
        parts: LlamaCppParts { sinks: true, ..LlamaCppParts::NONE },
        ..LlamaCpp::halves("gpt-oss")
    }),
    layer: DecoderLayer {
        attention: Attention {
            window: Window::AllButEvery(2),
            sinks: Some("self_attn.sinks"),
            ..LLAMA.layer.attention
        },
        mlp: Mlp::Experts {
            experts: &Experts {
                router: "mlp.router",
                router_bias: true,
                correction: None,
                prefix: "mlp.experts",
                expert: GatedMlp { gate: "gate_proj", up: "up_proj", down: "down_proj" },
                stored: StoredExperts::SideBySide,
                shared: None,
                routing: RoutingRule {
                    scores: Scores::Softmax,
                    normalized: Normalized::Always,
                    groups: ExpertGroups::Never,
                },
                keys: ExpertKeys {
                    count: &["num_local_experts", "num_experts"],
                    width: "intermediate_size",
                    layers: ExpertLayers::Every,
                },
                llama_cpp_normalizes: true,
            },
            dense: GatedMlp { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj" },
        },
        mlp_bias: Bias::Always,
        gating: Gating::Clamped,
        ..LLAMA.layer
    },
    ..LLAMA
};
