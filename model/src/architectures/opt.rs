//! OPT (arXiv 2205.01068): layer norms with biases, learned positions that begin at row 2, a plain MLP with ReLU; the 350 M model has its norms
//! behind the branches, and an embedding narrower than its residual stream.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, Bias, BranchNorms, DecoderLayer, LearnedPositions, Mlp, Norm, NormKind,
    Positions, Projections, Setting,
};

const fn norm(name: &'static str) -> Norm {
    Norm { name, kind: NormKind::Layer }
}

const fn behind(name: &'static str) -> BranchNorms {
    BranchNorms { joined: Some(norm(name)), ..BranchNorms::NONE }
}

/// Norms before the branches.
pub(super) const OPT: Architecture = Architecture {
    model_type: "opt",
    class: "OPTForCausalLM",
    summary: "OPT",
    when: &[
        ("do_layer_norm_before", Setting::Flag(true)),
        ("layer_norm_elementwise_affine", Setting::Flag(true)),
        ("_remove_final_layer_norm", Setting::Flag(false)),
    ],
    defaults: &[
        ("do_layer_norm_before", Setting::Flag(true)),
        ("layer_norm_elementwise_affine", Setting::Flag(true)),
        ("enable_bias", Setting::Flag(true)),
        ("tie_word_embeddings", Setting::Flag(true)),
        ("hidden_act", Setting::Text("relu")),
        ("rms_norm_eps", Setting::Number(1e-5)),
    ],
    embedding: "model.decoder.embed_tokens",
    positions: Some(LearnedPositions { name: "model.decoder.embed_positions", offset: 2 }),
    projections: Some(Projections {
        widening: "model.decoder.project_in",
        narrowing: "model.decoder.project_out",
    }),
    layers: "model.decoder.layers",
    final_norm: Some(norm("model.decoder.final_layer_norm")),
    llama_cpp: None,
    layer: DecoderLayer {
        attention_norms: BranchNorms::before(norm("self_attn_layer_norm")),
        attention: Attention {
            input_bias: Bias::Key("enable_bias"),
            output: "self_attn.out_proj",
            output_bias: Bias::Key("enable_bias"),
            positions: Positions::None,
            ..LLAMA.layer.attention
        },
        mlp_norms: BranchNorms::before(norm("final_layer_norm")),
        mlp: Mlp::Plain { up: "fc1", down: "fc2" },
        mlp_bias: Bias::Key("enable_bias"),
        ..LLAMA.layer
    },
    ..LLAMA
};

/// Norms behind the branches, none before the head.
pub(super) const OPT_BEHIND: Architecture = Architecture {
    summary: "OPT with norms behind its branches (350 M)",
    when: &[
        ("do_layer_norm_before", Setting::Flag(false)),
        ("layer_norm_elementwise_affine", Setting::Flag(true)),
    ],
    final_norm: None,
    layer: DecoderLayer {
        attention_norms: behind("self_attn_layer_norm"),
        mlp_norms: behind("final_layer_norm"),
        ..OPT.layer
    },
    ..OPT
};
