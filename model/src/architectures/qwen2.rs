//! Qwen2 and Qwen2.5 (arXiv 2407.10671): Llama with biases on the query, key and value projections.

use super::llama::LLAMA;
use crate::architecture::{Architecture, Attention, Bias, DecoderLayer, LlamaCpp, Window};

/// Llama with biased attention inputs.
pub(super) const QWEN2: Architecture = Architecture {
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    summary: "Qwen2 and Qwen2.5",
    llama_cpp: Some(LlamaCpp::halves("qwen2")),
    layer: DecoderLayer {
        attention: Attention {
            input_bias: Bias::Always,
            output_bias: Bias::Never,
            window: Window::Switched,
            ..LLAMA.layer.attention
        },
        ..LLAMA.layer
    },
    ..LLAMA
};
