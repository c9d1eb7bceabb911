//! GLM-4 (arXiv 2406.12793) and GLM-4-0414: Llama with gate and up in one projection, biases on queries, keys and values, and the first half
//! of each head turned in neighbouring pairs; the later ones with norms after the branches.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, Bias, BranchNorms, DecoderLayer, LlamaCpp, Mlp, Norm, NormKind, Pairs,
    Positions, Setting, Unturned,
};

/// Llama with half-turned heads.
pub(super) const GLM: Architecture = Architecture {
    model_type: "glm",
    class: "GlmForCausalLM",
    summary: "GLM-4 9B",
    defaults: &[
        ("attention_bias", Setting::Flag(true)),
        ("partial_rotary_factor", Setting::Number(0.5)),
        ("rms_norm_eps", Setting::Number(1.5625e-7)),
    ],
    llama_cpp: Some(LlamaCpp { part_of_heads: true, ..LlamaCpp::neighbours("chatglm") }),
    layer: DecoderLayer {
        attention: Attention {
            output_bias: Bias::Never,
            positions: Positions::Rotary { pairs: Pairs::Neighbours, unturned: Unturned::None, local: false },
            ..LLAMA.layer.attention
        },
        mlp: Mlp::GatedFused { gate_up: "mlp.gate_up_proj", down: "mlp.down_proj" },
        mlp_bias: Bias::Never,
        ..LLAMA.layer
    },
    ..LLAMA
};

/// GLM with norms on both sides of the branches.
pub(super) const GLM4: Architecture = Architecture {
    model_type: "glm4",
    class: "Glm4ForCausalLM",
    summary: "GLM-4-0414 and GLM-Z1",
    llama_cpp: Some(LlamaCpp { part_of_heads: true, ..LlamaCpp::neighbours("glm4") }),
    layer: DecoderLayer {
        attention_norms: BranchNorms {
            after: Some(Norm { name: "post_self_attn_layernorm", kind: NormKind::Rms }),
            ..GLM.layer.attention_norms
        },
        mlp_norms: BranchNorms {
            after: Some(Norm { name: "post_mlp_layernorm", kind: NormKind::Rms }),
            ..GLM.layer.mlp_norms
        },
        ..GLM.layer
    },
    ..GLM
};
