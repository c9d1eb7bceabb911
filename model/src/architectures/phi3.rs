//! Phi-3 and Phi-4 (arXiv 2404.14219, 2412.08905): Llama with one projection for queries, keys and values, and one for gate and up.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, Bias, DecoderLayer, Divisors, FusedRows, LlamaCpp, Mlp, Qkv, Setting, Window,
};

/// Llama, fused.
pub(super) const PHI3: Architecture = Architecture {
    model_type: "phi3",
    class: "Phi3ForCausalLM",
    summary: "Phi-3, Phi-3.5 and Phi-4",
    defaults: &[("rms_norm_eps", Setting::Number(1e-5))],
    llama_cpp: Some(LlamaCpp {
        part_of_heads: true,
        divisors: Divisors::ShortAndLong,
        ..LlamaCpp::halves("phi3")
    }),
    layer: DecoderLayer {
        attention: Attention {
            qkv: Qkv::Fused { name: "self_attn.qkv_proj", rows: FusedRows::Concatenated },
            input_bias: Bias::Never,
            output_bias: Bias::Never,
            window: Window::EveryLayer,
            ..LLAMA.layer.attention
        },
        mlp: Mlp::GatedFused { gate_up: "mlp.gate_up_proj", down: "mlp.down_proj" },
        mlp_bias: Bias::Never,
        ..LLAMA.layer
    },
    ..LLAMA
};
