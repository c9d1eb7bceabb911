//! Granite 3 (IBM, 2024), dense: Llama with four factors.

use super::llama::LLAMA;
use crate::architecture::{Architecture, Divisors, Factor, Factors, LlamaCpp, Setting};

/// Llama with factors on embedding, products of queries and keys, branches and logits.
pub(super) const GRANITE: Architecture = Architecture {
    model_type: "granite",
    class: "GraniteForCausalLM",
    summary: "Granite 3, dense",
    defaults: &[
        ("embedding_multiplier", Setting::Number(1.0)),
        ("attention_multiplier", Setting::Number(1.0)),
        ("residual_multiplier", Setting::Number(1.0)),
        ("logits_scaling", Setting::Number(1.0)),
    ],
    factors: Factors {
        embedding: Factor::Key("embedding_multiplier"),
        attention: Factor::Key("attention_multiplier"),
        residual: Factor::Key("residual_multiplier"),
        logits: Factor::OneOver("logits_scaling"),
        ..Factors::PLAIN
    },
    llama_cpp: Some(LlamaCpp { divisors: Divisors::One, ..LlamaCpp::neighbours("granite") }),
    ..LLAMA
};
