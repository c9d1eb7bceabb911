//! Formats of the library whose codes are numbers themselves: `int-quantized`, `float-quantized`, `mxfp4-pack-quantized` and
//! `nvfp4-pack-quantized`.
//!
//! For a linear `P` with `K` input features and `N` output features:
//!
//! | tensor | type | shape | content |
//! |---|---|---|---|
//! | `P.weight` | I8, `F8_E4M3` | `[N, K]` | `w = scale * number` |
//! | `P.weight_scale` | the model's | `[N, 1]` | |
//! | or `P.weight_packed` | U8 | `[N, K/2]` | pairs of four-bit floats, the first in the low nibble |
//! | `P.weight_scale` | U8 | `[N, K/32]` | `e` of the scale `2^(e-127)` |
//! | or `P.weight_scale` | `F8_E4M3` | `[N, K/16]` | a scale, to be divided by ... |
//! | `P.weight_global_scale` | F32 | `[1]` | ... this, a power of two here, so that the quotient is exact; the same for all linears of a stage |
//!
//! Inputs of the forms with `w8a8` in their name are rounded to eight bits by the runtime, token by token ([`inputs`]). Floats have a sign, which zero has
//! too; ours has none.

use std::path::Path;

use model::linear::{Linear, LinearClass};
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use serde_json::Value;

use super::super::floats::{self, F8};
use super::super::grids::{demand_fused_alike, demand_own_grid};
use super::super::safetensors::{self, Described};
use super::super::{Experts, LoaderRule, PlannedLinear, TargetFormat};
use super::{PLAIN, config, inputs, stored_scale};
use crate::checkpoint::Dtype;
use crate::container::{TensorData, TensorSpec};
use crate::error::FormatsError;
use crate::model_writer::{Contents, ModelWriter};

/// One of them.
#[derive(Debug)]
pub(in super::super) struct Numbers {
    id: &'static str,
    summary: &'static str,
    /// Its name in a configuration.
    format: &'static str,
    pub(super) levels: Levels,
    scales: Scales,
    /// Whether the runtime rounds inputs.
    rounds_inputs: bool,
    loaders: &'static [LoaderRule],
}

/// Which weights share a scale, and as what it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scales {
    /// One number for each row.
    Rows,
    /// A power of two for each group of 32.
    Exponents,
    /// An eight-bit float for each group of 16, and a number for the matrix.
    TwoLevel,
}

pub(in super::super) static W8A8_INT8: Numbers = Numbers {
    id: "compressed-tensors:w8a8-int8",
    summary: "8-bit integers, whole rows; the runtime rounds inputs to 8 bit as well",
    format: "int-quantized",
    levels: Levels::Uniform,
    scales: Scales::Rows,
    rounds_inputs: true,
    loaders: &[Numbers::vllm(8, 16, "NVIDIA GPUs from Turing on"), VLLM_CPU, Numbers::transformers(8, "")],
};
pub(in super::super) static W8A8_FP8: Numbers = Numbers {
    id: "compressed-tensors:w8a8-fp8",
    summary: "8-bit floats, whole rows; the runtime rounds inputs to 8 bit as well",
    format: "float-quantized",
    levels: Levels::E4m3,
    scales: Scales::Rows,
    rounds_inputs: true,
    loaders: &[Numbers::vllm(8, 16, "NVIDIA GPUs from Ada on"), VLLM_CPU, Numbers::transformers(8, "")],
};
pub(in super::super) static FP8: Numbers = Numbers {
    id: "compressed-tensors:fp8",
    summary: "8-bit floats, whole rows",
    format: "float-quantized",
    levels: Levels::E4m3,
    scales: Scales::Rows,
    rounds_inputs: false,
    loaders: &[Numbers::vllm(8, 64, "marlin kernel"), LoaderRule::NOT_VLLM_CPU, Numbers::transformers(8, "")],
};
pub(in super::super) static MXFP4: Numbers = Numbers {
    id: "compressed-tensors:mxfp4",
    summary: "4-bit floats in groups of 32, scales powers of two",
    format: "mxfp4-pack-quantized",
    levels: Levels::E2m1,
    scales: Scales::Exponents,
    rounds_inputs: false,
    loaders: FOUR_BITS,
};
pub(in super::super) static NVFP4: Numbers = Numbers {
    id: "compressed-tensors:nvfp4",
    summary: "4-bit floats in groups of 16, scales 8-bit floats",
    format: "nvfp4-pack-quantized",
    levels: Levels::E2m1,
    scales: Scales::TwoLevel,
    rounds_inputs: false,
    loaders: FOUR_BITS,
};

/// Of the forms whose inputs are rounded as well.
const VLLM_CPU: LoaderRule =
    LoaderRule { symmetric_bits: &[8], asymmetric_bits: &[], ..LoaderRule::VLLM_CPU };

const FOUR_BITS: &[LoaderRule] = &[
    Numbers::vllm(4, 64, "marlin kernel"),
    LoaderRule::NOT_VLLM_CPU,
    Numbers::transformers(4, "models in other than bfloat16 with CompressedTensorsConfig(dequantize=True)"),
];

/// Those that are known.
static ALL: [&Numbers; 5] = [&W8A8_INT8, &W8A8_FP8, &FP8, &MXFP4, &NVFP4];

impl Numbers {
    const fn vllm(bits: u8, multiple: usize, remark: &'static str) -> LoaderRule {
        LoaderRule {
            runtime: "vLLM 0.33",
            run_by_us: false,
            symmetric_bits: if bits == 8 { &[8] } else { &[4] },
            in_multiple: multiple,
            out_multiple: multiple,
            experts: Experts::Alike,
            remark,
            ..LoaderRule::ANY
        }
    }

    const fn transformers(bits: u8, remark: &'static str) -> LoaderRule {
        LoaderRule {
            runtime: "transformers 5.23 (with compressed-tensors)",
            linear_classes: &[LinearClass::Plain],
            symmetric_bits: if bits == 8 { &[8] } else { &[4] },
            remark,
            ..LoaderRule::ANY
        }
    }

    /// The one that a configuration names, with or without rounding of inputs.
    pub(super) fn named(format: &str, activations: &Value) -> Option<&'static Self> {
        ALL.into_iter().find(|known| {
            let rounded = inputs::are_dynamic_tokens(activations, known.levels);
            known.format == format && if known.rounds_inputs { rounded } else { activations.is_null() }
        })
    }

    fn is_packed(&self) -> bool {
        self.levels == Levels::E2m1
    }

    fn bits(&self) -> u8 {
        if self.is_packed() { 4 } else { 8 }
    }

    /// Columns that share a scale where not the whole row does.
    fn columns(&self) -> Option<usize> {
        match self.scales {
            Scales::Rows => None,
            Scales::Exponents => Some(32),
            Scales::TwoLevel => Some(16),
        }
    }

    fn granularity(&self) -> Granularity {
        let size = self.columns().and_then(|columns| GroupSize::new(columns).ok());
        size.map_or(Granularity::PerChannel, Granularity::PerGroup)
    }

    /// Whether a grid is the format's own.
    pub(super) fn holds(&self, scheme: Scheme) -> bool {
        scheme.levels == self.levels
            && scheme.bits.get() == self.bits()
            && scheme.granularity == self.granularity()
            && scheme.symmetry == Symmetry::Symmetric
    }

    fn codes_spec(&self) -> (&'static str, Dtype) {
        match self.levels {
            Levels::Uniform => ("weight", Dtype::I8),
            Levels::E2m1 => ("weight_packed", Dtype::U8),
            _ => ("weight", F8),
        }
    }
}

impl TargetFormat for Numbers {
    fn id(&self) -> &'static str {
        self.id
    }

    fn summary(&self) -> &'static str {
        self.summary
    }

    fn scale_dtype(&self, runtime: Dtype) -> ScaleDtype {
        match self.scales {
            Scales::Rows => PLAIN.scale_dtype(runtime),
            Scales::Exponents => ScaleDtype::E8m0,
            Scales::TwoLevel => ScaleDtype::SharedE4m3 { exponent: 0 },
        }
    }

    fn grid(&self, _linear: &Linear, _layers: usize, asked: Scheme) -> Scheme {
        Scheme {
            bits: BitWidth::new(self.bits()).unwrap_or(asked.bits),
            levels: self.levels,
            granularity: self.granularity(),
            symmetry: Symmetry::Symmetric,
            ..asked
        }
    }

    fn fixes_grid(&self) -> bool {
        true
    }

    fn settle(&self, plan: &mut [PlannedLinear]) -> Result<Vec<String>, FormatsError> {
        demand_fused_alike(self.id, plan)?;
        demand_own_grid(self.id, plan, |scheme| self.holds(scheme), self.columns())?;
        Ok(Vec::new())
    }

    fn loaders(&self) -> &'static [LoaderRule] {
        self.loaders
    }

    fn layout(&self, linear: &Linear, scheme: Scheme) -> Vec<TensorSpec> {
        let (inputs, outputs) = (linear.in_features, linear.out_features);
        let groups = inputs / scheme.granularity.columns_per_scale(inputs).max(1);
        let spec = |suffix: &str, dtype, shape: &[usize]| TensorSpec {
            name: format!("{}.{suffix}", linear.name),
            dtype,
            shape: shape.to_vec(),
        };
        let (suffix, dtype) = self.codes_spec();
        let columns = if self.is_packed() { inputs / 2 } else { inputs };
        let scale = match self.scales {
            Scales::Rows => stored_scale(scheme.scale_dtype),
            Scales::Exponents => Dtype::U8,
            Scales::TwoLevel => F8,
        };
        let mut specs =
            vec![spec(suffix, dtype, &[outputs, columns]), spec("weight_scale", scale, &[outputs, groups])];
        if self.scales == Scales::TwoLevel {
            specs.push(spec("weight_global_scale", Dtype::F32, &[1]));
        }
        specs
    }

    fn encode(&self, linear: &Linear, tensor: &QuantizedTensor) -> Vec<TensorData> {
        let data = |suffix: &str, bytes| TensorData { name: format!("{}.{suffix}", linear.name), bytes };
        let patterns: Vec<u8> =
            tensor.codes().iter().map(|&code| floats::pattern(self.levels, code)).collect();
        let scales: Vec<f32> = tensor.scales_by_row().iter().copied().collect();
        let codes = if self.is_packed() { floats::pairs(&patterns) } else { patterns };
        let dtype = tensor.scheme().scale_dtype;
        let unit = dtype.unit();
        let stored = match self.scales {
            Scales::Rows => stored_scale(dtype).encode(&scales).expect("scales are floating-point"),
            Scales::Exponents => scales.iter().map(|&scale| floats::exponent(scale)).collect(),
            Scales::TwoLevel => scales.iter().map(|scale| floats::e4m3_pattern(scale / unit)).collect(),
        };
        let mut tensors = vec![data(self.codes_spec().0, codes), data("weight_scale", stored)];
        if self.scales == Scales::TwoLevel {
            tensors.push(data("weight_global_scale", (1.0 / unit).to_le_bytes().to_vec()));
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

impl Described for Numbers {
    fn excluded_key(&self) -> Option<&'static str> {
        Some("ignore")
    }

    fn config(&self, plan: &[PlannedLinear], routers: &[String]) -> Value {
        let inputs = if self.rounds_inputs { inputs::dynamic_tokens(self.levels) } else { Value::Null };
        config::describe(plan, routers, self.format, &inputs)
    }
}
