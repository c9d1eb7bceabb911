//! The registry: one const for each architecture, one line here.

mod bloom;
mod cohere;
mod deepseek_v2;
mod deepseek_v3;
mod falcon;
mod gemma;
mod glm;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod opt;
mod phi;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod smollm3;
mod stablelm;
mod starcoder2;

use crate::architecture::Architecture;

/// Every architecture that is known.
pub static ALL: &[&Architecture] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &mixtral::MIXTRAL,
    &qwen2_moe::QWEN2_MOE,
    &qwen3_moe::QWEN3_MOE,
    &deepseek_v2::DEEPSEEK_V2,
    &deepseek_v3::DEEPSEEK_V3,
    &gpt_oss::GPT_OSS,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &phi3::PHI3,
    &glm::GLM,
    &glm::GLM4,
    &granite::GRANITE,
    &smollm3::SMOLLM3,
    &olmo2::OLMO2,
    &gpt_neox::GPT_NEOX,
    &gpt_neox::GPT_NEOX_IN_TURN,
    &gpt2::GPT2,
    &opt::OPT,
    &opt::OPT_BEHIND,
    &phi::PHI,
    &falcon::FALCON,
    &falcon::FALCON_GROUPED,
    &falcon::FALCON_TWO_NORMS,
    &bloom::BLOOM,
    &cohere::COHERE,
    &cohere::COHERE2,
    &stablelm::STABLELM,
    &stablelm::STABLELM_PARALLEL,
    &starcoder2::STARCODER2,
    &gptj::GPTJ,
];
