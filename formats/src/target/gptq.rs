//! GPTQ safetensors, as GPTQModel, vLLM, SGLang and transformers read it.
//!
//! For a linear `P` with `K` input features, `N` output features and `G` groups:
//!
//! | tensor | type | shape | content |
//! |---|---|---|---|
//! | `P.qweight` | I32 | `[K*bits/32, N]` | codes; each output's stream runs down its column |
//! | `P.qzeros` | I32 | `[G, N*bits/32]` | zero points; each group's stream runs along its row |
//! | `P.scales` | F16 | `[G, N]` | `w = scale * (code - zero_point)` |
//! | `P.g_idx` | I32 | `[K]` | group of each input feature |
//!
//! Version 1 stores zero points less one, version 2 as they are. A version-1 reader adds the one in ways that differ for a zero point of 0,
//! so asymmetric grids are written as version 2. Groups are consecutive columns (`desc_act` false): whatever order the solver took, the
//! trivial `g_idx` is right, and current vLLM refuses any other.

use std::path::Path;

use model::linear::{Linear, LinearClass, Role};
use quantizer::scheme::{ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use serde_json::{Value, json};

use super::gptq_v2::GPTQ_V2;
use super::grids::{demand_fused_alike, demand_whole_codes, group_size, lower_groups, most_common};
use super::loaders::singly_excluded;
use super::registry::{Family, Opened};
use super::safetensors::{self, Described};
use super::{Experts, LoaderRule, ONE_TENSOR, PlannedLinear, StoredFormat, TargetFormat};
use crate::checkpoint::Dtype;
use crate::container::{TensorData, TensorSpec};
use crate::error::FormatsError;
use crate::model_writer::{Contents, ModelWriter};
use crate::packing::{pack_rows, to_bytes, transposed, words_for};

pub(super) mod rules;
mod stored;

/// A format of this family: `gptq` writes version 1 where every reader knows it, `gptq-v2` version 2 always.
#[derive(Debug)]
pub(super) struct Gptq {
    pub(super) id: &'static str,
    pub(super) summary: &'static str,
    /// The version that symmetric grids are written in.
    pub(super) symmetric: Version,
    pub(super) loaders: &'static [LoaderRule],
}

/// How zero points are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// Less one.
    First,
    /// As they are.
    Second,
}

pub(super) static GPTQ: Gptq = Gptq {
    id: "gptq",
    summary: "2, 3, 4, 8 bit for vLLM, SGLang, transformers, GPTQModel; asymmetric as version 2",
    symmetric: Version::First,
    loaders: &LOADERS,
};

/// Runtimes with layers of their own do not mind whose class the original's linears are.
pub(super) static ALL_CLASSES: [LinearClass; 3] =
    [LinearClass::Plain, LinearClass::Transposed, LinearClass::Own];

/// GPTQModel takes transformers' tensor of all experts apart into linears of these names, whatever older checkpoints call them.
pub(super) const GPTQMODEL_EXPERTS: Experts = Experts::Named(&["gate_proj", "up_proj", "down_proj"]);

/// Versions are one to it: of symmetric grids it reads no zero points.
pub(super) const VLLM_CPU: LoaderRule = LoaderRule {
    linear_classes: &ALL_CLASSES,
    asymmetric_bits: &[],
    group_sizes: &[32, 64, 128],
    ..LoaderRule::VLLM_CPU
};

static LOADERS: [LoaderRule; 7] = [
    LoaderRule {
        runtime: "vLLM 0.33",
        run_by_us: false,
        linear_classes: &ALL_CLASSES,
        symmetric_bits: &[4, 8],
        asymmetric_bits: &[],
        group_sizes: &[32, 64, 128],
        in_multiple: 32,
        out_multiple: 32,
        experts: Experts::Alike,
        ..LoaderRule::ANY
    },
    VLLM_CPU,
    LoaderRule {
        runtime: "SGLang 0.5.10 (marlin kernel)",
        run_by_us: false,
        linear_classes: &ALL_CLASSES,
        symmetric_bits: &[4, 8],
        asymmetric_bits: &[],
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

impl Version {
    /// What is taken from a zero point before it is stored.
    fn less(self) -> u8 {
        u8::from(self == Self::First)
    }

    /// `checkpoint_format`.
    fn name(self) -> &'static str {
        match self {
            Self::First => "gptq",
            Self::Second => "gptq_v2",
        }
    }
}

impl Gptq {
    fn version(&self, symmetry: Symmetry) -> Version {
        match symmetry {
            Symmetry::Symmetric => self.symmetric,
            Symmetry::Asymmetric | Symmetry::Minimum => Version::Second,
        }
    }
}

/// The format of both versions.
pub(super) static FAMILY: Family = Family { written: || vec![&GPTQ, &GPTQ_V2], open };

fn open(config: &Value) -> Opened {
    let method = config.get("quant_method").or_else(|| config.get("method"))?;
    (method == GPTQ.id).then(|| Ok(Box::new(stored::Stored::read(GPTQ.id, config)?) as Box<dyn StoredFormat>))
}

impl TargetFormat for Gptq {
    fn id(&self) -> &'static str {
        self.id
    }

    fn summary(&self) -> &'static str {
        self.summary
    }

    fn scale_dtype(&self, runtime: Dtype) -> ScaleDtype {
        if runtime == Dtype::Bf16 { ScaleDtype::F16AndBf16 } else { ScaleDtype::F16 }
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
        let notes = lower_groups(self.id, plan.iter_mut())?;
        let mut versions = None;
        for planned in plan.iter() {
            let Some(scheme) = planned.scheme else { continue };
            let linear = &planned.linear;
            let refuse = |problem: String, remedy| FormatsError::Unsupported {
                format: self.id,
                linear: linear.name.clone(),
                problem,
                remedy,
            };
            let bits = scheme.bits.get();
            if ![2, 3, 4, 8].contains(&bits) {
                let problem = format!("it has {bits} bits, expected 2, 3, 4 or 8");
                return Err(refuse(problem, "`--to compressed-tensors` holds 2 to 8 bits"));
            }
            let version = self.version(scheme.symmetry);
            if *versions.get_or_insert(version) != version {
                return Err(refuse(
                    "symmetric and asymmetric linears need different versions of the format".to_owned(),
                    "`--to gptq-v2` and `--to compressed-tensors` mix them",
                ));
            }
            for (what, features) in [("input", linear.in_features), ("output", linear.out_features)] {
                if !(features * usize::from(bits)).is_multiple_of(32) {
                    let problem =
                        format!("{features} {what} features of {bits} bits do not fill whole 32-bit words");
                    let remedy =
                        "leave the linear in 16 bit with --exclude, or use `--to compressed-tensors`";
                    return Err(refuse(problem, remedy));
                }
            }
        }
        Ok(notes.into_iter().collect())
    }

    fn loaders(&self) -> &'static [LoaderRule] {
        self.loaders
    }

    fn mixed_widths(&self) -> &'static [u8] {
        &[2, 3, 4, 8]
    }

    fn layout(&self, linear: &Linear, scheme: Scheme) -> Vec<TensorSpec> {
        specs(linear, scheme)
    }

    fn encode(&self, linear: &Linear, tensor: &QuantizedTensor) -> Vec<TensorData> {
        let scheme = tensor.scheme();
        let bits = scheme.bits.get();
        let data = |suffix: &str, bytes| TensorData { name: format!("{}.{suffix}", linear.name), bytes };
        let words = transposed(pack_rows(tensor.codes(), bits).view());
        let less = self.version(scheme.symmetry).less();
        let zeros = tensor
            .zero_points_by_row()
            .reversed_axes()
            .mapv(|zero| zero.wrapping_sub(less) & scheme.bits.max_code());
        let scales: Vec<f32> = tensor.scales_by_row().t().iter().copied().collect();
        let columns = scheme.granularity.columns_per_scale(linear.in_features);
        let groups = (0..linear.in_features).flat_map(|input| ((input / columns) as i32).to_le_bytes());
        vec![
            data("qweight", to_bytes(words.view())),
            data("qzeros", to_bytes(pack_rows(zeros.view(), bits).view())),
            data("scales", Dtype::F16.encode(&scales).expect("half is a floating-point type")),
            data("g_idx", groups.collect()),
        ]
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

impl Described for Gptq {
    fn config(&self, plan: &[PlannedLinear], routers: &[String]) -> Value {
        let schemes: Vec<Scheme> = plan.iter().filter_map(|planned| planned.scheme).collect();
        let base = most_common(&schemes);
        let group_size = base.map_or(-1, group_size);
        let symmetric = base.is_none_or(|scheme| scheme.symmetry == Symmetry::Symmetric);
        let bits = base.map_or(4, |scheme| scheme.bits.get());
        let version = self.version(base.map_or(Symmetry::Symmetric, |scheme| scheme.symmetry)).name();
        let packed_head =
            |planned: &PlannedLinear| planned.linear.id.role == Role::Head && planned.scheme.is_some();
        let mut config = json!({
            "quant_method": "gptq", "method": "gptq", "bits": bits, "group_size": group_size, "desc_act": false, "sym": symmetric,
            "lm_head": plan.iter().any(packed_head), "checkpoint_format": version, "format": version, "pack_dtype": "int32",
            "meta": {"quantizer": [concat!("quantc:", env!("CARGO_PKG_VERSION"))], "static_groups": true, "true_sequential": true}
        });
        let dynamic = rules::dynamic(plan, base, routers);
        if !dynamic.is_empty() {
            config["dynamic"] = Value::Object(dynamic);
        }
        let kept = plan.iter().any(|planned| planned.scheme.is_none());
        if kept && singly_excluded(plan).is_none() {
            config["modules_in_block_to_quantize"] = json!(rules::quantized_modules(plan));
        }
        config
    }

    fn side_files(&self, plan: &[PlannedLinear], routers: &[String]) -> Vec<(&'static str, Value)> {
        vec![("quantize_config.json", self.config(plan, routers))]
    }
}

/// The tensors of a linear, alike in both versions.
fn specs(linear: &Linear, scheme: Scheme) -> Vec<TensorSpec> {
    let bits = scheme.bits.get();
    let (inputs, outputs) = (linear.in_features, linear.out_features);
    let groups = inputs / scheme.granularity.columns_per_scale(inputs);
    let spec =
        |suffix: &str, dtype, shape| TensorSpec { name: format!("{}.{suffix}", linear.name), dtype, shape };
    vec![
        spec("qweight", Dtype::I32, vec![words_for(inputs, bits), outputs]),
        spec("qzeros", Dtype::I32, vec![groups, words_for(outputs, bits)]),
        spec("scales", Dtype::F16, vec![groups, outputs]),
        spec("g_idx", Dtype::I32, vec![inputs]),
    ]
}
