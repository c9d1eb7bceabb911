//! Mistral 7B and its successors (arXiv 2310.06825): Llama with a window on every layer where config.json has one.

use super::llama::LLAMA;
use crate::architecture::{Architecture, Attention, Bias, DecoderLayer, Window};

/// Llama whose layers may all be windowed.
pub(super) const MISTRAL: Architecture = Architecture {
    model_type: "mistral",
    class: "MistralForCausalLM",
    summary: "Mistral 7B, Nemo and Small (sliding window where configured)",
    layer: DecoderLayer {
        attention: Attention {
            input_bias: Bias::Never,
            output_bias: Bias::Never,
            window: Window::EveryLayer,
            ..LLAMA.layer.attention
        },
        ..LLAMA.layer
    },
    ..LLAMA
};
