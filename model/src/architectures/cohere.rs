//! Command R and its successors (Cohere, 2024): parallel branches behind one layer norm without bias, neighbouring features turned, a factor on the
//! logits; Command R7B with windows on three of four layers, of which the fourth does not rotate.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, BranchNorms, Branches, DecoderLayer, Factor, Factors, LlamaCpp, LoadedBiases,
    Norm, NormKind, Pairs, Positions, Setting, Unturned, Window,
};

/// Parallel branches behind one norm.
pub(super) const COHERE: Architecture = Architecture {
    model_type: "cohere",
    class: "CohereForCausalLM",
    summary: "Command R and Aya",
    when: &[("use_qk_norm", Setting::Flag(false))],
    defaults: &[
        ("tie_word_embeddings", Setting::Flag(true)),
        ("logit_scale", Setting::Number(0.0625)),
        ("rms_norm_eps", Setting::Number(1e-5)),
    ],
    final_norm: Some(Norm { name: "model.norm", kind: NormKind::LayerWithoutBias }),
    factors: Factors { logits: Factor::Key("logit_scale"), ..Factors::PLAIN },
    llama_cpp: Some(LlamaCpp {
        biases: LoadedBiases::Never,
        tied_head: true,
        ..LlamaCpp::neighbours("command-r")
    }),
    layer: DecoderLayer {
        branches: Branches::Parallel,
        attention_norms: BranchNorms::before(Norm {
            name: "input_layernorm",
            kind: NormKind::LayerWithoutBias,
        }),
        attention: Attention {
            positions: Positions::Rotary { pairs: Pairs::Neighbours, unturned: Unturned::None, local: false },
            ..LLAMA.layer.attention
        },
        mlp_norms: BranchNorms::NONE,
        ..LLAMA.layer
    },
    ..LLAMA
};

/// Command R with windows.
pub(super) const COHERE2: Architecture = Architecture {
    model_type: "cohere2",
    class: "Cohere2ForCausalLM",
    summary: "Command R7B and Command A",
    llama_cpp: Some(LlamaCpp {
        biases: LoadedBiases::Never,
        tied_head: true,
        ..LlamaCpp::neighbours("cohere2")
    }),
    defaults: &[
        ("tie_word_embeddings", Setting::Flag(true)),
        ("logit_scale", Setting::Number(0.0625)),
        ("sliding_window", Setting::Number(4096.0)),
        ("rms_norm_eps", Setting::Number(1e-5)),
    ],
    layer: DecoderLayer {
        attention: Attention {
            positions: Positions::Rotary {
                pairs: Pairs::Neighbours,
                unturned: Unturned::WithoutWindow,
                local: false,
            },
            window: Window::AllButEvery(4),
            ..COHERE.layer.attention
        },
        ..COHERE.layer
    },
    ..COHERE
};
