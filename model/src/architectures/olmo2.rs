//! OLMo 2 (arXiv 2501.00656): Llama with norms after its branches instead of before, and norms over all queries and all keys.

use super::llama::LLAMA;
use crate::architecture::{
    Architecture, Attention, Bias, BranchNorms, DecoderLayer, HeadNorms, LlamaCpp, LoadedBiases, Norm,
    NormKind, NormWidth, Setting,
};

const fn after(name: &'static str) -> BranchNorms {
    BranchNorms { after: Some(Norm { name, kind: NormKind::Rms }), ..BranchNorms::NONE }
}

/// Llama, normed after.
pub(super) const OLMO2: Architecture = Architecture {
    model_type: "olmo2",
    class: "Olmo2ForCausalLM",
    summary: "OLMo 2",
    defaults: &[("rms_norm_eps", Setting::Number(1e-5))],
    llama_cpp: Some(LlamaCpp { biases: LoadedBiases::Never, ..LlamaCpp::halves("olmo2") }),
    layer: DecoderLayer {
        attention_norms: after("post_attention_layernorm"),
        attention: Attention {
            head_norms: Some(HeadNorms {
                query: "self_attn.q_norm",
                key: "self_attn.k_norm",
                kind: NormKind::Rms,
                over: NormWidth::AllHeads,
            }),
            ..LLAMA.layer.attention
        },
        mlp_norms: after("post_feedforward_layernorm"),
        mlp_bias: Bias::Never,
        ..LLAMA.layer
    },
    ..LLAMA
};
