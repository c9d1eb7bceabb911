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

use std::path::Path;

use kernels::{CodeLayout, PackedMatrix};
use model::linear::Linear;
use ndarray::Array2;
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use regex::Regex;
use serde_json::{Map, Value, json};

use super::packed_parts::{PackedParts, StoredLinear};
use super::safetensors::{self, Described};
use super::{
    LoaderRule, PlannedLinear, StoredFormat, TargetFormat, demand_fused_alike, demand_whole_codes,
    lower_groups_by_stage,
};
use crate::checkpoint::{Checkpoint, Dtype};
use crate::container::{TensorData, TensorSpec};
use crate::error::FormatsError;
use crate::model_writer::{Contents, ModelWriter};
use crate::packing::{pack_rows, to_bytes, unpack_rows, words_for};

const ID: &str = "compressed-tensors";

/// The format.
#[derive(Debug)]
pub(super) struct CompressedTensors;

static LOADERS: [LoaderRule; 4] = [
    LoaderRule {
        runtime: "vLLM 0.33",
        symmetric_bits: &[4, 8],
        asymmetric_bits: &[4],
        group_sizes: &[32, 64, 128],
        in_multiple: 32,
        out_multiple: 32,
        ..LoaderRule::ANY
    },
    LoaderRule {
        runtime: "vLLM 0.33 (with its humming package)",
        symmetric_bits: &[2, 3, 4, 5, 6, 7, 8],
        asymmetric_bits: &[2, 3, 4, 5, 6, 7, 8],
        group_sizes: &[32, 64, 128],
        in_multiple: 32,
        out_multiple: 32,
        remark: "by its declared rules; not run by us",
        ..LoaderRule::ANY
    },
    LoaderRule {
        runtime: "SGLang 0.5.10 (marlin kernel)",
        symmetric_bits: &[4, 8],
        asymmetric_bits: &[],
        group_sizes: &[32, 64, 128],
        in_multiple: 128,
        out_multiple: 64,
        ..LoaderRule::ANY
    },
    LoaderRule {
        runtime: "transformers 5.23 (with compressed-tensors)",
        symmetric_bits: &[2, 3, 4, 5, 6, 7, 8],
        asymmetric_bits: &[2, 3, 4, 5, 6, 7, 8],
        asymmetric_remark: "asymmetric codes with CompressedTensorsConfig(dequantize=True)",
        ..LoaderRule::ANY
    },
];

impl TargetFormat for CompressedTensors {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "2 to 8 bit (pack-quantized) for vLLM and transformers; group sizes may differ by linear"
    }

    fn scale_dtype(&self, runtime: Dtype) -> ScaleDtype {
        // Exact in half as well, so that one solution serves formats that store half.
        if runtime == Dtype::Bf16 { ScaleDtype::F16AndBf16 } else { ScaleDtype::F16 }
    }

    fn settle(&self, plan: &mut [PlannedLinear]) -> Result<Vec<String>, FormatsError> {
        demand_whole_codes(ID, plan)?;
        demand_fused_alike(ID, plan)?;
        lower_groups_by_stage(ID, plan)
    }

    fn loaders(&self) -> &'static [LoaderRule] {
        &LOADERS
    }

    fn mixed_widths(&self) -> &'static [u8] {
        &[2, 3, 4, 5, 6, 7, 8]
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

    fn weights_bytes(&self, tensors: &[TensorSpec], max_shard_bytes: u64) -> u64 {
        safetensors::weights_bytes(self, tensors, max_shard_bytes)
    }

    fn open(&self, config: &Value) -> Option<Result<Box<dyn StoredFormat>, FormatsError>> {
        (config.get("quant_method")? == ID)
            .then(|| Ok(Box::new(Stored::read(config)?) as Box<dyn StoredFormat>))
    }
}

impl Described for CompressedTensors {
    fn config(&self, plan: &[PlannedLinear]) -> Value {
        let mut schemes: Vec<(Scheme, Vec<&str>)> = Vec::new();
        for planned in plan {
            let Some(scheme) = planned.scheme else { continue };
            match schemes.iter_mut().find(|(known, _)| *known == scheme) {
                Some((_, names)) => names.push(&planned.linear.name),
                None => schemes.push((scheme, vec![&planned.linear.name])),
            }
        }
        let several = schemes.len() > 1;
        let groups: Map<String, Value> = schemes
            .iter()
            .enumerate()
            .map(|(number, (scheme, names))| {
                let targets = if several { json!(names) } else { json!(["Linear"]) };
                let group = json!({
                    "targets": targets, "input_activations": null, "output_activations": null, "weights": arguments(*scheme)
                });
                (format!("group_{number}"), group)
            })
            .collect();
        let kept = plan
            .iter()
            .filter(|planned| planned.scheme.is_none())
            .map(|planned| planned.linear.name.as_str());
        let ignore: Vec<&str> = std::iter::once("lm_head").chain(kept).collect();
        json!({
            "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "global_compression_ratio": null, "config_groups": groups, "ignore": ignore, "kv_cache_scheme": null
        })
    }
}

fn stored_scale(scale_dtype: ScaleDtype) -> Dtype {
    match scale_dtype {
        ScaleDtype::F16 => Dtype::F16,
        ScaleDtype::Bf16 | ScaleDtype::F16AndBf16 => Dtype::Bf16,
        // What is no single number is refused before it gets here.
        ScaleDtype::F32 | ScaleDtype::E8m0 | ScaleDtype::Integers { .. } | ScaleDtype::E4m3 => Dtype::F32,
    }
}

/// `QuantizationArgs` of the library, which refuses keys that it does not know.
fn arguments(scheme: Scheme) -> Value {
    let (strategy, group_size) = match scheme.granularity {
        Granularity::PerGroup(size) => ("group", json!(size.get())),
        Granularity::PerChannel | Granularity::PerTensor => ("channel", Value::Null),
    };
    json!({
        "num_bits": scheme.bits.get(), "type": "int", "symmetric": scheme.symmetry == Symmetry::Symmetric, "strategy": strategy,
        "group_size": group_size, "dynamic": false, "actorder": null, "block_structure": null, "observer": "minmax",
        "observer_kwargs": {}
    })
}

/// A checkpoint in this format, as its configuration describes it.
#[derive(Debug)]
struct Stored {
    groups: Vec<(Vec<Target>, Scheme)>,
    ignore: Vec<Target>,
}

/// What a group or an exclusion names.
#[derive(Debug)]
enum Target {
    /// Every linear.
    Linear,
    /// One module.
    Module(String),
    /// Modules whose path matches from its start.
    Pattern(Regex),
}

impl Target {
    fn read(value: &Value) -> Result<Self, String> {
        let text = value.as_str().ok_or_else(|| format!("names the target {value}"))?;
        Ok(match text.strip_prefix("re:") {
            Some(pattern) => {
                let anchored = Regex::new(&format!("^(?:{pattern})"));
                Self::Pattern(anchored.map_err(|e| format!("names the target `{text}`: {e}"))?)
            }
            None if text == "Linear" => Self::Linear,
            None => Self::Module(text.to_owned()),
        })
    }

    fn read_all(value: Option<&Value>) -> Result<Vec<Self>, String> {
        value.and_then(Value::as_array).into_iter().flatten().map(Self::read).collect()
    }

    fn matches(&self, linear: &Linear) -> bool {
        match self {
            Self::Linear => true,
            Self::Module(name) => *name == linear.name,
            Self::Pattern(pattern) => pattern.is_match(&linear.name),
        }
    }
}

impl Stored {
    fn read(config: &Value) -> Result<Self, FormatsError> {
        let bad = |problem: String| {
            FormatsError::malformed("config.json".as_ref(), format!("`quantization_config` {problem}"))
        };
        match config.get("format").and_then(Value::as_str) {
            None | Some("pack-quantized") => {}
            Some(other) => {
                return Err(bad(format!("has the format `{other}`, only `pack-quantized` is read")));
            }
        }
        // Weights behind these would decode to numbers that no runtime multiplies with.
        for key in ["transform_config", "sparsity_config"] {
            let given =
                config.get(key).filter(|value| value.as_object().is_some_and(|object| !object.is_empty()));
            if given.is_some() {
                return Err(bad(format!("has a `{key}`, which is not read")));
            }
        }
        let groups = config.get("config_groups").and_then(Value::as_object);
        let groups = groups.ok_or_else(|| bad("has no `config_groups`".to_owned()))?;
        let groups = groups.values().map(|group| {
            for key in ["input_activations", "output_activations"] {
                if group.get(key).is_some_and(|value| !value.is_null()) {
                    return Err(format!("quantizes activations (`{key}`), which is not read"));
                }
            }
            let weights = group.get("weights").ok_or_else(|| "has a group without `weights`".to_owned())?;
            Ok((Target::read_all(group.get("targets"))?, scheme(weights)?))
        });
        Ok(Self {
            groups: groups.collect::<Result<_, String>>().map_err(&bad)?,
            ignore: Target::read_all(config.get("ignore")).map_err(&bad)?,
        })
    }

    fn parts(stored: &StoredLinear<'_>) -> Result<PackedParts, FormatsError> {
        let (_, groups) = stored.groups()?;
        let scheme = stored.scheme;
        let (inputs, outputs) = (stored.linear.in_features, stored.linear.out_features);
        let words = stored.streams("weight_packed", outputs, inputs, false)?;
        let name = stored.name("weight_scale");
        let scales = stored.checkpoint.read_matrix(&name, (outputs, groups))?.reversed_axes();
        let shape = stored.checkpoint.read_as(&stored.name("weight_shape"), Dtype::I64, &[2])?;
        let shape: Vec<u64> = shape.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        if shape != [outputs as u64, inputs as u64] {
            return Err(
                stored.fail("weight_shape", format!("holds {shape:?}, expected [{outputs}, {inputs}]"))
            );
        }
        if stored.checkpoint.contains(&stored.name("weight_g_idx")) {
            let problem = "gives columns groups out of order (`actorder`), which is not read";
            return Err(stored.fail("weight_g_idx", problem));
        }
        let zero_points = if scheme.symmetry == Symmetry::Asymmetric {
            let packed = stored.streams("weight_zero_point", groups, outputs, true)?;
            unpack_rows(packed.t(), scheme.bits.get(), outputs)
        } else {
            Array2::from_elem((groups, outputs), scheme.bits.symmetric_zero())
        };
        Ok(PackedParts { scheme, words, layout: CodeLayout::OutputMajor, scales, zero_points })
    }
}

impl StoredFormat for Stored {
    fn id(&self) -> &'static str {
        ID
    }

    fn scheme(&self, linear: &Linear) -> Option<Scheme> {
        if self.ignore.iter().any(|target| target.matches(linear)) {
            return None;
        }
        let group =
            self.groups.iter().find(|(targets, _)| targets.iter().any(|target| target.matches(linear)));
        group.map(|(_, scheme)| *scheme)
    }

    fn tensors(&self, linear: &Linear, scheme: Scheme) -> Vec<String> {
        CompressedTensors.layout(linear, scheme).into_iter().map(|spec| spec.name).collect()
    }

    fn decode(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<QuantizedTensor, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        Self::parts(&stored)?.decode(&stored)
    }

    fn packed(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<Option<PackedMatrix>, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        Self::parts(&stored)?.packed(&stored).map(Some)
    }
}

fn scheme(weights: &Value) -> Result<Scheme, String> {
    let get = |key: &str| weights.get(key).filter(|value| !value.is_null());
    if let Some(kind) = get("type").filter(|kind| *kind != "int") {
        return Err(format!("has codes of type {kind}, only integers are read"));
    }
    if let Some(order) =
        get("actorder").filter(|order| !["static", "weight"].iter().any(|fixed| *order == fixed))
    {
        return Err(format!("orders columns by {order}, only groups of consecutive columns are read"));
    }
    if get("dynamic").is_some_and(|dynamic| *dynamic != false) {
        return Err("has dynamic weights, which is not read".to_owned());
    }
    let bits = get("num_bits").and_then(Value::as_u64).and_then(|bits| u8::try_from(bits).ok());
    let bits = bits.and_then(|bits| BitWidth::new(bits).ok()).ok_or("has no usable `num_bits`")?;
    let granularity = match get("strategy").and_then(Value::as_str) {
        Some("channel") => Granularity::PerChannel,
        Some("group") => get("group_size")
            .and_then(Value::as_u64)
            .and_then(|columns| GroupSize::new(columns as usize).ok())
            .map(Granularity::PerGroup)
            .ok_or("has no usable `group_size`")?,
        other => return Err(format!("has the strategy {other:?}, expected channel or group")),
    };
    let symmetric = get("symmetric").and_then(Value::as_bool).unwrap_or(true);
    let symmetry = if symmetric { Symmetry::Symmetric } else { Symmetry::Asymmetric };
    Ok(Scheme { bits, levels: Levels::Uniform, granularity, symmetry, scale_dtype: ScaleDtype::F32 })
}
