//! Llama 1, 2 and 3 (arXiv 2302.13971, 2307.09288, 2407.21783), and the many models that share its shape.

use crate::architecture::{
    Architecture, Attention, AttentionBias, DecoderLayer, LlamaCpp, Mlp, Norm, NormKind, Qkv, Window,
};

/// The shape that the others are described against.
pub(super) const LLAMA: Architecture = Architecture {
    model_type: "llama",
    class: "LlamaForCausalLM",
    summary: "Llama 1, 2, 3 and models of their shape",
    embedding: "model.embed_tokens",
    layers: "model.layers",
    final_norm: "model.norm",
    head: "lm_head",
    tied_head: false,
    llama_cpp: Some(LlamaCpp { name: "llama", rotates_neighbours: true }),
    layer: DecoderLayer {
        attention_norm: Norm { name: "input_layernorm", kind: NormKind::Rms },
        attention: Attention {
            qkv: Qkv::Separate {
                query: "self_attn.q_proj",
                key: "self_attn.k_proj",
                value: "self_attn.v_proj",
            },
            output: "self_attn.o_proj",
            bias: AttentionBias::Configured,
            head_norms: None,
            window: Window::Never,
        },
        mlp_norm: Norm { name: "post_attention_layernorm", kind: NormKind::Rms },
        mlp: Mlp::Gated { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj" },
    },
};
