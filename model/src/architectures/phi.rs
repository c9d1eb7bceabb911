//! Phi-1, 1.5 and 2 (arXiv 2306.11644, 2309.05463): layer norms and linears with biases, the head's too, and both branches in parallel behind one
//! norm.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, Bias, BranchNorms, Branches, DecoderLayer, Gating, LlamaCpp, LoadedBiases, Mlp,
    Norm, NormKind, Setting,
};

/// Parallel branches behind one norm.
pub(super) const PHI: Architecture = Architecture {
    model_type: "phi",
    class: "PhiForCausalLM",
    summary: "Phi-1, Phi-1.5 and Phi-2",
    when: &[("qk_layernorm", Setting::Flag(false))],
    defaults: &[
        ("hidden_act", Setting::Text("gelu_new")),
        ("partial_rotary_factor", Setting::Number(0.5)),
        ("rms_norm_eps", Setting::Number(1e-5)),
    ],
    final_norm: Some(Norm { name: "model.final_layernorm", kind: NormKind::Layer }),
    head_bias: true,
    llama_cpp: Some(LlamaCpp {
        biases: LoadedBiases::Always,
        part_of_heads: true,
        ..LlamaCpp::halves("phi2")
    }),
    layer: DecoderLayer {
        branches: Branches::Parallel,
        attention_norms: BranchNorms::before(Norm { name: "input_layernorm", kind: NormKind::Layer }),
        attention: Attention {
            input_bias: Bias::Always,
            output: "self_attn.dense",
            output_bias: Bias::Always,
            ..LLAMA.layer.attention
        },
        mlp_norms: BranchNorms::NONE,
        mlp: Mlp::Plain { up: "mlp.fc1", down: "mlp.fc2" },
        mlp_bias: Bias::Always,
        gating: Gating::Activated,
    },
    ..LLAMA
};
