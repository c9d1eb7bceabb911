//! GPT-J (Wang and Komatsuzaki, 2021): both branches in parallel behind one layer norm, neighbouring features turned, biases in the MLP and the head.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, Bias, BranchNorms, Branches, DecoderLayer, Gating, Mlp, Norm, NormKind, Pairs,
    Positions, Qkv, Setting, Unturned,
};

/// Parallel branches, neighbouring pairs.
pub(super) const GPTJ: Architecture = Architecture {
    model_type: "gptj",
    class: "GPTJForCausalLM",
    summary: "GPT-J",
    defaults: &[
        ("hidden_act", Setting::Text("gelu_new")),
        ("rotary_dim", Setting::Number(64.0)),
        ("rms_norm_eps", Setting::Number(1e-5)),
    ],
    embedding: "transformer.wte",
    layers: "transformer.h",
    final_norm: Some(Norm { name: "transformer.ln_f", kind: NormKind::Layer }),
    head_bias: true,
    llama_cpp: None,
    layer: DecoderLayer {
        branches: Branches::Parallel,
        attention_norms: BranchNorms::before(Norm { name: "ln_1", kind: NormKind::Layer }),
        attention: Attention {
            qkv: Qkv::Separate { query: "attn.q_proj", key: "attn.k_proj", value: "attn.v_proj" },
            input_bias: Bias::Never,
            output: "attn.out_proj",
            output_bias: Bias::Never,
            positions: Positions::Rotary { pairs: Pairs::Neighbours, unturned: Unturned::None, local: false },
            ..LLAMA.layer.attention
        },
        mlp_norms: BranchNorms::NONE,
        mlp: Mlp::Plain { up: "mlp.fc_in", down: "mlp.fc_out" },
        mlp_bias: Bias::Always,
        gating: Gating::Activated,
    },
    ..LLAMA
};
