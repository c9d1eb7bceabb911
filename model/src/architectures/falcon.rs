//! Falcon (arXiv 2311.16867): parallel branches behind one layer norm or two, one projection for queries, keys and values, one key head or groups
//! of them. Those with ALiBi (falcon-rw) are not described: they add it before the division by the root of the head's width, rounded to bfloat16.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, Bias, BranchNorms, Branches, DecoderLayer, FusedRows, Gating, LlamaCpp,
    LoadedBiases, Mlp, Norm, NormKind, NormNames, Qkv, Setting,
};
use crate::linear::LinearClass;

const fn norm(name: &'static str) -> Norm {
    Norm { name, kind: NormKind::Layer }
}

/// One key head (7B).
pub(super) const FALCON: Architecture = Architecture {
    model_type: "falcon",
    class: "FalconForCausalLM",
    summary: "Falcon 7B",
    when: &[
        ("new_decoder_architecture", Setting::Flag(false)),
        ("multi_query", Setting::Flag(true)),
        ("parallel_attn", Setting::Flag(true)),
        ("alibi", Setting::Flag(false)),
    ],
    defaults: &[
        ("multi_query", Setting::Flag(true)),
        ("parallel_attn", Setting::Flag(true)),
        ("num_ln_in_parallel_attn", Setting::Number(2.0)),
        ("tie_word_embeddings", Setting::Flag(true)),
        ("hidden_act", Setting::Text("gelu")),
        ("max_position_embeddings", Setting::Number(2048.0)),
        ("rms_norm_eps", Setting::Number(1e-5)),
    ],
    embedding: "transformer.word_embeddings",
    layers: "transformer.h",
    final_norm: Some(norm("transformer.ln_f")),
    linears: LinearClass::Own,
    llama_cpp: Some(LlamaCpp {
        biases: LoadedBiases::Never,
        norms: NormNames::Numbered,
        ..LlamaCpp::halves("falcon")
    }),
    layer: DecoderLayer {
        branches: Branches::Parallel,
        attention_norms: BranchNorms::before(norm("input_layernorm")),
        attention: Attention {
            qkv: Qkv::Fused { name: "self_attention.query_key_value", rows: FusedRows::ByKeyHead },
            single_key_head: true,
            input_bias: Bias::Key("bias"),
            output: "self_attention.dense",
            output_bias: Bias::Key("bias"),
            ..LLAMA.layer.attention
        },
        mlp_norms: BranchNorms::NONE,
        mlp: Mlp::Plain { up: "mlp.dense_h_to_4h", down: "mlp.dense_4h_to_h" },
        mlp_bias: Bias::Key("bias"),
        gating: Gating::Activated,
    },
    ..LLAMA
};

/// Groups of queries, one norm (11B).
pub(super) const FALCON_GROUPED: Architecture = Architecture {
    summary: "Falcon 2 11B",
    when: &[
        ("new_decoder_architecture", Setting::Flag(true)),
        ("num_ln_in_parallel_attn", Setting::Number(1.0)),
        ("parallel_attn", Setting::Flag(true)),
        ("alibi", Setting::Flag(false)),
    ],
    layer: DecoderLayer {
        attention: Attention { single_key_head: false, ..FALCON.layer.attention },
        ..FALCON.layer
    },
    ..FALCON
};

/// Groups of queries, a norm for each branch (40B, 180B).
pub(super) const FALCON_TWO_NORMS: Architecture = Architecture {
    summary: "Falcon 40B and 180B",
    when: &[
        ("new_decoder_architecture", Setting::Flag(true)),
        ("num_ln_in_parallel_attn", Setting::Number(2.0)),
        ("parallel_attn", Setting::Flag(true)),
        ("alibi", Setting::Flag(false)),
    ],
    layer: DecoderLayer {
        attention_norms: BranchNorms::before(norm("ln_attn")),
        mlp_norms: BranchNorms::before(norm("ln_mlp")),
        ..FALCON_GROUPED.layer
    },
    ..FALCON_GROUPED
};
