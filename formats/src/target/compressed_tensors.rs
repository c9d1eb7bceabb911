//! compressed-tensors `pack-quantized`, as vLLM, llm-compressor and transformers read it.
//!
//! For a linear `P` with `K` input features, `N` output features and `G` groups:
//!
//! | tensor | type | shape | content |
//! |---|---|---|---|
//! | `P.weight_packed` | I32 | `[N, ceil(K*bits/32)]` | codes; each output's stream is contiguous |
//! | `P.weight_scale` | the model's | `[N, G]` | `w = scale * (code - zero_point)` |
//! | `P.weight_zero_point` | I32 | `[ceil(N*bits/32), G]` | zero points; each group's stream runs down its column; asymmetric only |
//! | `P.weight_shape` | I64 | `[2]` | `N`, `K` |
//!
//! The library's codes are signed and stored with `2^(bits-1)` added, which makes the stored field our unsigned code; so with zero points.
//! Widths that do not divide 32 are packed without gaps, as the library does since 2026.

mod config;
mod inputs;
mod numbers;
mod stored;

use std::path::Path;

use model::linear::{Linear, LinearClass, Role};
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use serde_json::Value;

use numbers::{FP8, MXFP4, NVFP4, W8A8_FP8, W8A8_INT8};

use super::grids::{demand_fused_alike, demand_own_grid, demand_whole_codes, lower_groups_by_stage};
use super::registry::{Family, Opened};
use super::safetensors::{self, Described};
use super::{Experts, LoaderRule, PlannedLinear, StoredFormat, TargetFormat};
use crate::checkpoint::Dtype;
use crate::container::{TensorData, TensorSpec};
use crate::error::FormatsError;
use crate::model_writer::{Contents, ModelWriter};
use crate::packing::{pack_rows, to_bytes, words_for};

const ID: &str = "compressed-tensors";
/// Its name in a configuration.
const FORMAT: &str = "pack-quantized";

/// The format, of any grid or of one.
#[derive(Debug)]
pub(super) struct CompressedTensors {
    id: &'static str,
    summary: &'static str,
    /// Whether it is 8 bit with a scale for each row, and nothing else.
    fixed: bool,
}

static PLAIN: CompressedTensors = CompressedTensors {
    id: ID,
    summary: "2 to 8 bit (pack-quantized) for vLLM and transformers; group sizes may differ by linear",
    fixed: false,
};
static INT8: CompressedTensors = CompressedTensors {
    id: "compressed-tensors:int8",
    summary: "8-bit integers (pack-quantized), whole rows",
    fixed: true,
};

static LOADERS: [LoaderRule; 5] = [
    LoaderRule {
        runtime: "vLLM 0.33",
        run_by_us: false,
        symmetric_bits: &[4, 8],
        asymmetric_bits: &[4],
        group_sizes: &[32, 64, 128],
        in_multiple: 32,
        out_multiple: 32,
        experts: Experts::AlikeSymmetric,
        ..LoaderRule::ANY
    },
    LoaderRule {
        runtime: "vLLM 0.33 (with its humming package)",
        run_by_us: false,
        symmetric_bits: &[2, 3, 4, 5, 6, 7, 8],
        asymmetric_bits: &[2, 3, 4, 5, 6, 7, 8],
        group_sizes: &[32, 64, 128],
        in_multiple: 32,
        out_multiple: 32,
        experts: Experts::AlikeSymmetric,
        ..LoaderRule::ANY
    },
    LoaderRule::VLLM_CPU,
    LoaderRule {
        runtime: "SGLang 0.5.10 (marlin kernel)",
        run_by_us: false,
        symmetric_bits: &[4, 8],
        asymmetric_bits: &[],
        group_sizes: &[32, 64, 128],
        in_multiple: 128,
        out_multiple: 64,
        experts: Experts::AlikeSymmetric,
        ..LoaderRule::ANY
    },
    LoaderRule {
        runtime: "transformers 5.23 (with compressed-tensors)",
        linear_classes: &[LinearClass::Plain],
        symmetric_bits: &[2, 3, 4, 5, 6, 7, 8],
        asymmetric_bits: &[2, 3, 4, 5, 6, 7, 8],
        asymmetric_remark: "asymmetric codes with CompressedTensorsConfig(dequantize=True)",
        ..LoaderRule::ANY
    },
];

/// All of the library's formats.
pub(super) static FAMILY: Family =
    Family { written: || vec![&PLAIN, &INT8, &W8A8_INT8, &W8A8_FP8, &FP8, &MXFP4, &NVFP4], open };

fn open(config: &Value) -> Opened {
    (config.get("quant_method")? == ID)
        .then(|| Ok(Box::new(stored::Stored::read(config)?) as Box<dyn StoredFormat>))
}

impl TargetFormat for CompressedTensors {
    fn id(&self) -> &'static str {
        self.id
    }

    fn summary(&self) -> &'static str {
        self.summary
    }

    fn scale_dtype(&self, runtime: Dtype) -> ScaleDtype {
        // Exact in half as well, so that one solution serves formats that store half.
        if runtime == Dtype::Bf16 { ScaleDtype::F16AndBf16 } else { ScaleDtype::F16 }
    }

    fn fixes_grid(&self) -> bool {
        self.fixed
    }

    fn grid(&self, _linear: &Linear, _layers: usize, asked: Scheme) -> Scheme {
        let bits = BitWidth::new(8).unwrap_or(asked.bits);
        let (granularity, symmetry) = (Granularity::PerChannel, Symmetry::Symmetric);
        if self.fixed {
            Scheme { bits, levels: Levels::Uniform, granularity, symmetry, ..asked }
        } else {
            asked
        }
    }

    fn outer_grid(&self, linear: &Linear, _tied: bool, asked: Scheme) -> Result<Scheme, &'static str> {
        match linear.id.role {
            Role::Head => Ok(asked),
            _ => Err("its runtimes look the embedding up in 16 bit"),
        }
    }

    fn settle(&self, plan: &mut [PlannedLinear]) -> Result<Vec<String>, FormatsError> {
        demand_whole_codes(self.id, plan)?;
        demand_fused_alike(self.id, plan)?;
        if self.fixed {
            demand_own_grid(self.id, plan, is_whole_rows_of_8_bit, None)?;
        }
        lower_groups_by_stage(self.id, plan)
    }

    fn loaders(&self) -> &'static [LoaderRule] {
        &LOADERS
    }

    fn mixed_widths(&self) -> &'static [u8] {
        if self.fixed { &[] } else { &[2, 3, 4, 5, 6, 7, 8] }
    }

    fn layout(&self, linear: &Linear, scheme: Scheme) -> Vec<TensorSpec> {
        let bits = scheme.bits.get();
        let (inputs, outputs) = (linear.in_features, linear.out_features);
        let groups = inputs / scheme.granularity.columns_per_scale(inputs);
        let spec = |suffix: &str, dtype, shape| TensorSpec {
            name: format!("{}.{suffix}", linear.name),
            dtype,
            shape,
        };
        let mut specs = vec![
            spec("weight_packed", Dtype::I32, vec![outputs, words_for(inputs, bits)]),
            spec("weight_scale", stored_scale(scheme.scale_dtype), vec![outputs, groups]),
            spec("weight_shape", Dtype::I64, vec![2]),
        ];
        if scheme.symmetry == Symmetry::Asymmetric {
            specs.push(spec("weight_zero_point", Dtype::I32, vec![words_for(outputs, bits), groups]));
        }
        specs
    }

    fn encode(&self, linear: &Linear, tensor: &QuantizedTensor) -> Vec<TensorData> {
        let scheme = tensor.scheme();
        let bits = scheme.bits.get();
        let data = |suffix: &str, bytes| TensorData { name: format!("{}.{suffix}", linear.name), bytes };
        let scales: Vec<f32> = tensor.scales_by_row().iter().copied().collect();
        let scale_bytes = stored_scale(scheme.scale_dtype).encode(&scales);
        let shape = [linear.out_features, linear.in_features];
        let mut tensors = vec![
            data("weight_packed", to_bytes(pack_rows(tensor.codes(), bits).view())),
            data("weight_scale", scale_bytes.expect("scales are floating-point")),
            data("weight_shape", shape.iter().flat_map(|&extent| (extent as i64).to_le_bytes()).collect()),
        ];
        if scheme.symmetry == Symmetry::Asymmetric {
            let zeros = pack_rows(tensor.zero_points_by_row().t(), bits);
            tensors.push(data("weight_zero_point", to_bytes(zeros.t())));
        }
        tensors
    }

    fn begin(
        &'static self,
        directory: &Path,
        contents: &Contents<'_>,
    ) -> Result<Box<dyn ModelWriter>, FormatsError> {
        safetensors::begin(self, directory, contents)
    }

    fn weights_bytes(&self, tensors: &[TensorSpec], max_shard_bytes: Option<u64>) -> u64 {
        safetensors::weights_bytes(self, tensors, max_shard_bytes)
    }
}

impl Described for CompressedTensors {
    fn excluded_key(&self) -> Option<&'static str> {
        Some("ignore")
    }

    fn config(&self, plan: &[PlannedLinear], routers: &[String]) -> Value {
        config::describe(plan, routers, FORMAT, &Value::Null)
    }
}

/// Whether a grid is [`INT8`]'s.
fn is_whole_rows_of_8_bit(scheme: Scheme) -> bool {
    scheme.bits.get() == 8
        && scheme.levels == Levels::Uniform
        && scheme.granularity == Granularity::PerChannel
        && scheme.symmetry == Symmetry::Symmetric
}

fn stored_scale(scale_dtype: ScaleDtype) -> Dtype {
    match scale_dtype {
        ScaleDtype::F16 => Dtype::F16,
        ScaleDtype::Bf16 | ScaleDtype::F16AndBf16 => Dtype::Bf16,
        // What is no single number is refused before it gets here.
        _ => Dtype::F32,
    }
}
