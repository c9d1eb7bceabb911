//! StableLM (arXiv 2402.17834): Llama with layer norms, and a quarter of each head turned; StableLM 2 12B with parallel branches, but that one norms its
//! heads one by one, which is not described.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, Bias, BranchNorms, Branches, DecoderLayer, LlamaCpp, Norm, NormKind, Setting,
};

const fn norm(name: &'static str) -> Norm {
    Norm { name, kind: NormKind::Layer }
}

/// Llama with layer norms.
pub(super) const STABLELM: Architecture = Architecture {
    model_type: "stablelm",
    class: "StableLmForCausalLM",
    summary: "StableLM 3B and StableLM 2 1.6B",
    when: &[("use_parallel_residual", Setting::Flag(false)), ("qk_layernorm", Setting::Flag(false))],
    defaults: &[("partial_rotary_factor", Setting::Number(0.25)), ("rms_norm_eps", Setting::Number(1e-5))],
    final_norm: Some(norm("model.norm")),
    llama_cpp: Some(LlamaCpp { part_of_heads: true, asks_parallel: true, ..LlamaCpp::halves("stablelm") }),
    layer: DecoderLayer {
        attention_norms: BranchNorms::before(norm("input_layernorm")),
        attention: Attention {
            input_bias: Bias::Key("use_qkv_bias"),
            output_bias: Bias::Never,
            ..LLAMA.layer.attention
        },
        mlp_norms: BranchNorms::before(norm("post_attention_layernorm")),
        mlp_bias: Bias::Never,
        ..LLAMA.layer
    },
    ..LLAMA
};

/// Both branches behind one norm.
pub(super) const STABLELM_PARALLEL: Architecture = Architecture {
    summary: "StableLM with parallel residuals",
    when: &[("use_parallel_residual", Setting::Flag(true)), ("qk_layernorm", Setting::Flag(false))],
    layer: DecoderLayer { branches: Branches::Parallel, mlp_norms: BranchNorms::NONE, ..STABLELM.layer },
    ..STABLELM
};
