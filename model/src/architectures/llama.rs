//! Llama 1, 2 and 3 (arXiv 2302.13971, 2307.09288, 2407.21783), and the many models that share its shape.

use crate::architecture::{
    Architecture, Attention, Bias, BranchNorms, Branches, DecoderLayer, Divisors, Factors, Gating, LlamaCpp,
    Mlp, Norm, NormKind, Pairs, Positions, Qkv, Unturned, Window,
};
use crate::linear::LinearClass;

/// The shape that the others are described against.
pub(super) const LLAMA: Architecture = Architecture {
    model_type: "llama",
    class: "LlamaForCausalLM",
    summary: "Llama 1, 2, 3 and models of their shape",
    when: &[],
    defaults: &[],
    embedding: "model.embed_tokens",
    embedding_norm: None,
    positions: None,
    projections: None,
    layers: "model.layers",
    final_norm: Some(Norm { name: "model.norm", kind: NormKind::Rms }),
    head: "lm_head",
    head_bias: false,
    factors: Factors::PLAIN,
    linears: LinearClass::Plain,
    llama_cpp: Some(LlamaCpp { divisors: Divisors::One, ..LlamaCpp::neighbours("llama") }),
    layer: DecoderLayer {
        branches: Branches::InTurn,
        attention_norms: BranchNorms::before(Norm { name: "input_layernorm", kind: NormKind::Rms }),
        attention: Attention {
            qkv: Qkv::Separate {
                query: "self_attn.q_proj",
                key: "self_attn.k_proj",
                value: "self_attn.v_proj",
            },
            single_key_head: false,
            input_bias: Bias::Key("attention_bias"),
            output: "self_attn.o_proj",
            output_bias: Bias::Key("attention_bias"),
            head_norms: None,
            positions: Positions::Rotary { pairs: Pairs::Halves, unturned: Unturned::None, local: false },
            window: Window::Never,
            sinks: None,
        },
        mlp_norms: BranchNorms::before(Norm { name: "post_attention_layernorm", kind: NormKind::Rms }),
        mlp: Mlp::Gated { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj" },
        mlp_bias: Bias::Key("mlp_bias"),
        gating: Gating::Activated,
    },
};
