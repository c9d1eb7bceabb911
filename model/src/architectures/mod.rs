//! The registry: one const for each architecture, one line here.

mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use crate::architecture::Architecture;

/// Every architecture that is known.
pub static ALL: &[&Architecture] = &[&llama::LLAMA, &mistral::MISTRAL, &qwen2::QWEN2, &qwen3::QWEN3];
