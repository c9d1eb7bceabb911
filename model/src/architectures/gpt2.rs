//! GPT-2 (Radford et al., 2019): layer norms with biases, learned positions, one projection for queries, keys and values, a plain MLP, and
//! linears stored as `[in_features, out_features]`.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, Bias, BranchNorms, DecoderLayer, FusedRows, LearnedPositions, LlamaCpp,
    LlamaCppParts, LoadedBiases, Mlp, Norm, NormKind, Positions, Qkv, Setting,
};
use crate::linear::LinearClass;

const fn norm(name: &'static str) -> Norm {
    Norm { name, kind: NormKind::Layer }
}

/// The reference of most that came before Llama.
pub(super) const GPT2: Architecture = Architecture {
    model_type: "gpt2",
    class: "GPT2LMHeadModel",
    summary: "GPT-2",
    when: &[
        ("scale_attn_weights", Setting::Flag(true)),
        ("scale_attn_by_inverse_layer_idx", Setting::Flag(false)),
        ("add_cross_attention", Setting::Flag(false)),
    ],
    defaults: &[
        ("scale_attn_weights", Setting::Flag(true)),
        ("tie_word_embeddings", Setting::Flag(true)),
        ("hidden_act", Setting::Text("gelu_new")),
        ("rms_norm_eps", Setting::Number(1e-5)),
    ],
    embedding: "transformer.wte",
    positions: Some(LearnedPositions { name: "transformer.wpe", offset: 0 }),
    layers: "transformer.h",
    final_norm: Some(norm("transformer.ln_f")),
    linears: LinearClass::Transposed,
    llama_cpp: Some(LlamaCpp {
        biases: LoadedBiases::Always,
        parts: LlamaCppParts { positions: true, ..LlamaCppParts::NONE },
        ..LlamaCpp::halves("gpt2")
    }),
    layer: DecoderLayer {
        attention_norms: BranchNorms::before(norm("ln_1")),
        attention: Attention {
            qkv: Qkv::Fused { name: "attn.c_attn", rows: FusedRows::Concatenated },
            input_bias: Bias::Always,
            output: "attn.c_proj",
            output_bias: Bias::Always,
            positions: Positions::None,
            ..LLAMA.layer.attention
        },
        mlp_norms: BranchNorms::before(norm("ln_2")),
        mlp: Mlp::Plain { up: "mlp.c_fc", down: "mlp.c_proj" },
        mlp_bias: Bias::Always,
        ..LLAMA.layer
    },
    ..LLAMA
};
