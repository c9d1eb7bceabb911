//! StarCoder2 (arXiv 2402.19173): Llama with layer norms, biases everywhere, and a plain MLP.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, Bias, BranchNorms, DecoderLayer, LlamaCpp, LoadedBiases, Mlp, Norm, NormKind,
    Setting, Window,
};

const fn norm(name: &'static str) -> Norm {
    Norm { name, kind: NormKind::Layer }
}

/// Llama with layer norms and a plain MLP.
pub(super) const STARCODER2: Architecture = Architecture {
    model_type: "starcoder2",
    class: "Starcoder2ForCausalLM",
    summary: "StarCoder2",
    defaults: &[
        ("use_bias", Setting::Flag(true)),
        ("tie_word_embeddings", Setting::Flag(true)),
        ("hidden_act", Setting::Text("gelu_pytorch_tanh")),
        ("rms_norm_eps", Setting::Number(1e-5)),
    ],
    final_norm: Some(norm("model.norm")),
    llama_cpp: Some(LlamaCpp { biases: LoadedBiases::Always, ..LlamaCpp::halves("starcoder2") }),
    layer: DecoderLayer {
        attention_norms: BranchNorms::before(norm("input_layernorm")),
        attention: Attention {
            input_bias: Bias::Key("use_bias"),
            output_bias: Bias::Key("use_bias"),
            window: Window::EveryLayer,
            ..LLAMA.layer.attention
        },
        mlp_norms: BranchNorms::before(norm("post_attention_layernorm")),
        mlp: Mlp::Plain { up: "mlp.c_fc", down: "mlp.c_proj" },
        mlp_bias: Bias::Key("use_bias"),
        ..LLAMA.layer
    },
    ..LLAMA
};
