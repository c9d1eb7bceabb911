//! GPT-NeoX and Pythia (arXiv 2204.06745, 2304.01373): layer norms with biases, one projection for queries, keys and values with the rows of
//! each head together, a plain MLP, and branches that run in parallel, each with its own norm.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, Bias, BranchNorms, Branches, DecoderLayer, FusedRows, Gating, LlamaCpp,
    LoadedBiases, Mlp, Norm, NormKind, Qkv, Setting,
};

const fn norm(name: &'static str) -> Norm {
    Norm { name, kind: NormKind::Layer }
}

/// Parallel branches.
pub(super) const GPT_NEOX: Architecture = Architecture {
    model_type: "gpt_neox",
    class: "GPTNeoXForCausalLM",
    summary: "GPT-NeoX and Pythia",
    when: &[("use_parallel_residual", Setting::Flag(true))],
    defaults: &[
        ("use_parallel_residual", Setting::Flag(true)),
        ("attention_bias", Setting::Flag(true)),
        ("hidden_act", Setting::Text("gelu")),
        ("partial_rotary_factor", Setting::Number(0.25)),
        ("rms_norm_eps", Setting::Number(1e-5)),
    ],
    embedding: "gpt_neox.embed_in",
    layers: "gpt_neox.layers",
    final_norm: Some(norm("gpt_neox.final_layer_norm")),
    head: "embed_out",
    llama_cpp: Some(LlamaCpp {
        biases: LoadedBiases::Always,
        part_of_heads: true,
        asks_parallel: true,
        ..LlamaCpp::halves("gptneox")
    }),
    layer: DecoderLayer {
        branches: Branches::Parallel,
        attention_norms: BranchNorms::before(norm("input_layernorm")),
        attention: Attention {
            qkv: Qkv::Fused { name: "attention.query_key_value", rows: FusedRows::ByKeyHead },
            output: "attention.dense",
            ..LLAMA.layer.attention
        },
        mlp_norms: BranchNorms::before(norm("post_attention_layernorm")),
        mlp: Mlp::Plain { up: "mlp.dense_h_to_4h", down: "mlp.dense_4h_to_h" },
        mlp_bias: Bias::Always,
        gating: Gating::Activated,
    },
    ..LLAMA
};

/// Branches in turn.
pub(super) const GPT_NEOX_IN_TURN: Architecture = Architecture {
    summary: "GPT-NeoX without parallel residuals",
    when: &[("use_parallel_residual", Setting::Flag(false))],
    layer: DecoderLayer { branches: Branches::InTurn, ..GPT_NEOX.layer },
    ..GPT_NEOX
};
