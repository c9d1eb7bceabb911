//! Gemma 1, 2 and 3, text (arXiv 2403.08295, 2408.00118, 2503.19786): norms with `1 + weight`, a scaled embedding, and, from the second
//! on, norms on both sides of each branch, windows on some layers and soft caps.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, BranchNorms, DecoderLayer, Factor, Factors, HeadNorms, LlamaCpp, LlamaCppParts,
    LoadedBiases, Norm, NormKind, NormWidth, Pairs, Positions, Setting, Unturned, Window,
};

const fn norm(name: &'static str) -> Norm {
    Norm { name, kind: NormKind::RmsPlusOne }
}

/// Llama with `1 + weight` and an embedding times the root of its width.
pub(super) const GEMMA: Architecture = Architecture {
    model_type: "gemma",
    class: "GemmaForCausalLM",
    summary: "Gemma 1",
    when: &[("use_bidirectional_attention", Setting::Flag(false))],
    defaults: &[
        ("tie_word_embeddings", Setting::Flag(true)),
        ("hidden_act", Setting::Text("gelu_pytorch_tanh")),
        ("head_dim", Setting::Number(256.0)),
    ],
    final_norm: Some(norm("model.norm")),
    factors: Factors { embedding: Factor::RoundedRootOf("hidden_size"), ..Factors::PLAIN },
    llama_cpp: Some(LlamaCpp { biases: LoadedBiases::Never, tied_head: true, ..LlamaCpp::halves("gemma") }),
    layer: DecoderLayer {
        attention_norms: BranchNorms::before(norm("input_layernorm")),
        mlp_norms: BranchNorms::before(norm("post_attention_layernorm")),
        ..LLAMA.layer
    },
    ..LLAMA
};

/// Gemma with norms after the branches, caps, and a window on every other layer.
pub(super) const GEMMA2: Architecture = Architecture {
    model_type: "gemma2",
    class: "Gemma2ForCausalLM",
    summary: "Gemma 2",
    defaults: &[
        ("tie_word_embeddings", Setting::Flag(true)),
        ("hidden_act", Setting::Text("gelu_pytorch_tanh")),
        ("head_dim", Setting::Number(256.0)),
        ("query_pre_attn_scalar", Setting::Number(256.0)),
        ("sliding_window", Setting::Number(4096.0)),
        ("attn_logit_softcapping", Setting::Number(50.0)),
        ("final_logit_softcapping", Setting::Number(30.0)),
    ],
    factors: Factors {
        attention: Factor::OneOverRootOf("query_pre_attn_scalar"),
        attention_cap: Some("attn_logit_softcapping"),
        logit_cap: Some("final_logit_softcapping"),
        ..GEMMA.factors
    },
    llama_cpp: Some(LlamaCpp {
        biases: LoadedBiases::Never,
        tied_head: true,
        rooted_by_hidden: Some(46),
        parts: LlamaCppParts { caps: true, ..LlamaCppParts::NONE },
        ..LlamaCpp::halves("gemma2")
    }),
    layer: DecoderLayer {
        attention_norms: BranchNorms {
            after: Some(norm("post_attention_layernorm")),
            ..GEMMA.layer.attention_norms
        },
        attention: Attention { window: Window::AllButEvery(2), ..GEMMA.layer.attention },
        mlp_norms: BranchNorms {
            before: Some(norm("pre_feedforward_layernorm")),
            after: Some(norm("post_feedforward_layernorm")),
            joined: None,
        },
        ..GEMMA.layer
    },
    ..GEMMA
};

/// Gemma 2 with norms of heads, and frequencies of their own for the layers with a window, five of six.
pub(super) const GEMMA3: Architecture = Architecture {
    model_type: "gemma3_text",
    class: "Gemma3ForCausalLM",
    summary: "Gemma 3, text and the text tower of the others",
    defaults: &[
        ("tie_word_embeddings", Setting::Flag(true)),
        ("hidden_act", Setting::Text("gelu_pytorch_tanh")),
        ("num_attention_heads", Setting::Number(8.0)),
        ("num_key_value_heads", Setting::Number(4.0)),
        ("head_dim", Setting::Number(256.0)),
        ("vocab_size", Setting::Number(262_208.0)),
        ("max_position_embeddings", Setting::Number(131_072.0)),
        ("query_pre_attn_scalar", Setting::Number(256.0)),
        ("sliding_window", Setting::Number(4096.0)),
        ("rope_theta", Setting::Number(1e6)),
        ("rope_local_base_freq", Setting::Number(1e4)),
    ],
    llama_cpp: Some(LlamaCpp {
        biases: LoadedBiases::Never,
        rooted_by_hidden: Some(62),
        parts: LlamaCppParts { local_frequencies: true, ..LlamaCppParts::NONE },
        ..LlamaCpp::halves("gemma3")
    }),
    layer: DecoderLayer {
        attention: Attention {
            head_norms: Some(HeadNorms {
                query: "self_attn.q_norm",
                key: "self_attn.k_norm",
                kind: NormKind::RmsPlusOne,
                over: NormWidth::EachHead,
            }),
            positions: Positions::Rotary { pairs: Pairs::Halves, unturned: Unturned::None, local: true },
            window: Window::AllButEvery(6),
            ..GEMMA2.layer.attention
        },
        ..GEMMA2.layer
    },
    ..GEMMA2
};
