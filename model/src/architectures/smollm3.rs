//! SmolLM3 (Hugging Face, 2025): Llama, of whose layers every fourth does not rotate.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, DecoderLayer, LlamaCpp, LoadedBiases, Pairs, Positions, Setting, Unturned,
    Window,
};

/// Llama with layers without positions.
pub(super) const SMOLLM3: Architecture = Architecture {
    model_type: "smollm3",
    class: "SmolLM3ForCausalLM",
    summary: "SmolLM3",
    defaults: &[
        ("tie_word_embeddings", Setting::Flag(true)),
        ("rope_theta", Setting::Number(2e6)),
        ("num_key_value_heads", Setting::Number(4.0)),
    ],
    llama_cpp: Some(LlamaCpp { biases: LoadedBiases::Never, ..LlamaCpp::neighbours("smollm3") }),
    layer: DecoderLayer {
        attention: Attention {
            positions: Positions::Rotary { pairs: Pairs::Halves, unturned: Unturned::Listed, local: false },
            window: Window::Switched,
            ..LLAMA.layer.attention
        },
        ..LLAMA.layer
    },
    ..LLAMA
};
