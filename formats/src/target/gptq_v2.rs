//! GPTQ safetensors of version 2: zero points are stored as they are, so that any of them can be.

use super::gptq::{ALL_CLASSES, GPTQMODEL_EXPERTS, Gptq, VLLM_CPU, Version};
use super::{Experts, LoaderRule, ONE_TENSOR};
use model::linear::LinearClass;

/// Runtimes that look at `checkpoint_format`. Those that never read the zero points of symmetric grids would do without.
static LOADERS: [LoaderRule; 6] = [
    VLLM_CPU,
    LoaderRule {
        runtime: "SGLang 0.5.10 (marlin kernel)",
        run_by_us: false,
        linear_classes: &ALL_CLASSES,
        symmetric_bits: &[4, 8],
        group_sizes: &[32, 64, 128],
        in_multiple: 128,
        out_multiple: 64,
        experts: Experts::Alike,
        ..LoaderRule::ANY
    },
    LoaderRule {
        runtime: "SGLang 0.5.10 (gptq kernel)",
        run_by_us: false,
        linear_classes: &ALL_CLASSES,
        symmetric_bits: &[2, 3, 4, 8],
        asymmetric_bits: &[2, 3, 4, 8],
        in_multiple: 32,
        out_multiple: 32,
        remark: "with --quantization gptq --dtype float16",
        experts: Experts::Refused("has no such kernel for experts"),
        ..LoaderRule::ANY
    },
    LoaderRule {
        runtime: "transformers 5.23 (with gptqmodel)",
        packed_head: false,
        linear_classes: &[LinearClass::Plain],
        symmetric_bits: &[2, 3, 4, 8],
        asymmetric_bits: &[2, 3, 4, 8],
        in_multiple: 32,
        out_multiple: 32,
        mixed_bits: false,
        single_exclusions: false,
        whole_rows_remark: "whole rows of 4 bits do not run in its CPU kernel",
        experts: Experts::Refused(ONE_TENSOR),
        ..LoaderRule::ANY
    },
    LoaderRule {
        runtime: "GPTQModel 7.7",
        linear_classes: &ALL_CLASSES,
        symmetric_bits: &[2, 3, 4, 8],
        asymmetric_bits: &[2, 3, 4, 8],
        experts: GPTQMODEL_EXPERTS,
        ..LoaderRule::ANY
    },
    LoaderRule {
        runtime: "exllamav2 da07fac (2025-12)",
        run_by_us: false,
        symmetric_bits: &[4],
        asymmetric_bits: &[4],
        group_sizes: &[32, 64, 128],
        in_multiple: 32,
        out_multiple: 32,
        mixed_bits: false,
        packed_head: false,
        experts: Experts::Refused("is not known to take experts"),
        ..LoaderRule::ANY
    },
];

pub(super) static GPTQ_V2: Gptq = Gptq {
    id: "gptq-v2",
    summary: "the same with zero points as they are, for GPTQModel, SGLang, transformers",
    symmetric: Version::Second,
    loaders: &LOADERS,
};
