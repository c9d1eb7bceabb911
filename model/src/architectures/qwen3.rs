//! Qwen3, dense (arXiv 2505.09388): Llama with RMS norms on each query and key head.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, DecoderLayer, HeadNorms, LlamaCpp, NormKind, NormWidth, Window,
};

/// Llama with normalized heads.
pub(super) const QWEN3: Architecture = Architecture {
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    summary: "Qwen3, dense",
    llama_cpp: Some(LlamaCpp::halves("qwen3")),
    layer: DecoderLayer {
        attention: Attention {
            head_norms: Some(HeadNorms {
                query: "self_attn.q_norm",
                key: "self_attn.k_norm",
                kind: NormKind::Rms,
                over: NormWidth::EachHead,
            }),
            window: Window::Switched,
            ..LLAMA.layer.attention
        },
        ..LLAMA.layer
    },
    ..LLAMA
};
