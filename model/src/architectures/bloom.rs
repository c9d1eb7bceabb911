//! BLOOM (arXiv 2211.05100): a norm behind the embedding, ALiBi, one projection for queries, keys and values with the rows of each head together.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, Bias, BranchNorms, DecoderLayer, FusedRows, LlamaCpp, LlamaCppParts,
    LoadedBiases, Mlp, Norm, NormKind, Positions, Qkv, Setting,
};

const fn norm(name: &'static str) -> Norm {
    Norm { name, kind: NormKind::Layer }
}

/// ALiBi.
pub(super) const BLOOM: Architecture = Architecture {
    model_type: "bloom",
    class: "BloomForCausalLM",
    summary: "BLOOM",
    when: &[("apply_residual_connection_post_layernorm", Setting::Flag(false))],
    defaults: &[
        ("tie_word_embeddings", Setting::Flag(true)),
        ("hidden_act", Setting::Text("gelu_new")),
        ("max_position_embeddings", Setting::Number(2048.0)),
        ("rms_norm_eps", Setting::Number(1e-5)),
    ],
    embedding: "transformer.word_embeddings",
    embedding_norm: Some(norm("transformer.word_embeddings_layernorm")),
    layers: "transformer.h",
    final_norm: Some(norm("transformer.ln_f")),
    llama_cpp: Some(LlamaCpp {
        biases: LoadedBiases::Always,
        parts: LlamaCppParts { embedding_norm: true, alibi: true, ..LlamaCppParts::NONE },
        ..LlamaCpp::halves("bloom")
    }),
    layer: DecoderLayer {
        attention_norms: BranchNorms::before(norm("input_layernorm")),
        attention: Attention {
            qkv: Qkv::Fused { name: "self_attention.query_key_value", rows: FusedRows::ByKeyHead },
            input_bias: Bias::Always,
            output: "self_attention.dense",
            output_bias: Bias::Always,
            positions: Positions::Alibi,
            ..LLAMA.layer.attention
        },
        mlp_norms: BranchNorms::before(norm("post_attention_layernorm")),
        mlp: Mlp::Plain { up: "mlp.dense_h_to_4h", down: "mlp.dense_4h_to_h" },
        mlp_bias: Bias::Always,
        ..LLAMA.layer
    },
    ..LLAMA
};
