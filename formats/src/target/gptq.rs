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

use kernels::{CodeLayout, PackedMatrix};
use model::linear::Linear;
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use regex::Regex;
use serde_json::{Map, Value, json};

use super::loaders::singly_excluded;
use super::packed_parts::{PackedParts, StoredLinear};
use super::{
    LoaderRule, PlannedLinear, StoredFormat, TargetFormat, demand_fused_alike, demand_whole_codes,
    lower_groups,
};
use crate::checkpoint::{Checkpoint, Dtype};
use crate::container::{TensorData, TensorSpec};
use crate::error::FormatsError;
use crate::packing::{from_bytes, pack_rows, to_bytes, transposed, unpack_rows, words_for};

const ID: &str = "gptq";

/// The format.
#[derive(Debug)]
pub(super) struct Gptq;

static LOADERS: [LoaderRule; 5] = [
    LoaderRule {
        runtime: "vLLM 0.33",
        symmetric_bits: &[4, 8],
        asymmetric_bits: &[],
        group_sizes: &[32, 64, 128],
        in_multiple: 32,
        out_multiple: 32,
        mixed_bits: true,
        single_exclusions: true,
        remark: "",
        asymmetric_remark: "",
        whole_rows_remark: "",
    },
    LoaderRule {
        runtime: "SGLang 0.5.10 (marlin kernel)",
        symmetric_bits: &[4, 8],
        asymmetric_bits: &[],
        group_sizes: &[32, 64, 128],
        in_multiple: 128,
        out_multiple: 64,
        mixed_bits: true,
        single_exclusions: true,
        remark: "",
        asymmetric_remark: "",
        whole_rows_remark: "",
    },
    LoaderRule {
        runtime: "SGLang 0.5.10 (gptq kernel)",
        symmetric_bits: &[2, 3, 4, 8],
        asymmetric_bits: &[2, 3, 4, 8],
        group_sizes: &[],
        in_multiple: 32,
        out_multiple: 32,
        mixed_bits: true,
        single_exclusions: true,
        remark: "with --quantization gptq --dtype float16",
        asymmetric_remark: "",
        whole_rows_remark: "",
    },
    LoaderRule {
        runtime: "transformers 5.23 (with gptqmodel)",
        symmetric_bits: &[2, 3, 4, 8],
        asymmetric_bits: &[2, 3, 4, 8],
        group_sizes: &[],
        in_multiple: 32,
        out_multiple: 32,
        mixed_bits: false,
        single_exclusions: false,
        remark: "",
        asymmetric_remark: "",
        whole_rows_remark: "whole rows of 4 bits do not run in its CPU kernel",
    },
    LoaderRule {
        runtime: "GPTQModel 7.7",
        symmetric_bits: &[2, 3, 4, 8],
        asymmetric_bits: &[2, 3, 4, 8],
        group_sizes: &[],
        in_multiple: 1,
        out_multiple: 1,
        mixed_bits: true,
        single_exclusions: true,
        remark: "",
        asymmetric_remark: "",
        whole_rows_remark: "",
    },
];

impl TargetFormat for Gptq {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "2, 3, 4, 8 bit for vLLM, SGLang, transformers, GPTQModel; asymmetric as version 2"
    }

    fn scale_dtype(&self, runtime: Dtype) -> ScaleDtype {
        if runtime == Dtype::Bf16 { ScaleDtype::F16AndBf16 } else { ScaleDtype::F16 }
    }

    fn settle(&self, plan: &mut [PlannedLinear]) -> Result<Vec<String>, FormatsError> {
        demand_whole_codes(ID, plan)?;
        demand_fused_alike(ID, plan)?;
        let notes = lower_groups(ID, plan.iter_mut())?;
        let mut symmetry = None;
        for planned in plan.iter() {
            let Some(scheme) = planned.scheme else { continue };
            let linear = &planned.linear;
            let refuse = |problem: String, remedy| FormatsError::Unsupported {
                format: ID,
                linear: linear.name.clone(),
                problem,
                remedy,
            };
            let bits = scheme.bits.get();
            if ![2, 3, 4, 8].contains(&bits) {
                let problem = format!("it has {bits} bits, expected 2, 3, 4 or 8");
                return Err(refuse(problem, "`--to compressed-tensors` holds 2 to 8 bits"));
            }
            if *symmetry.get_or_insert(scheme.symmetry) != scheme.symmetry {
                return Err(refuse(
                    "symmetric and asymmetric linears need different versions of the format".to_owned(),
                    "`--to compressed-tensors` mixes them",
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
        &LOADERS
    }

    fn mixed_widths(&self) -> &'static [u8] {
        &[2, 3, 4, 8]
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
        vec![
            spec("qweight", Dtype::I32, vec![words_for(inputs, bits), outputs]),
            spec("qzeros", Dtype::I32, vec![groups, words_for(outputs, bits)]),
            spec("scales", Dtype::F16, vec![groups, outputs]),
            spec("g_idx", Dtype::I32, vec![inputs]),
        ]
    }

    fn encode(&self, linear: &Linear, tensor: &QuantizedTensor) -> Vec<TensorData> {
        let scheme = tensor.scheme();
        let bits = scheme.bits.get();
        let data = |suffix: &str, bytes| TensorData { name: format!("{}.{suffix}", linear.name), bytes };
        let words = transposed(pack_rows(tensor.codes(), bits).view());
        let less = version_one(scheme.symmetry);
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

    fn config(&self, plan: &[PlannedLinear]) -> Value {
        let schemes: Vec<Scheme> = plan.iter().filter_map(|planned| planned.scheme).collect();
        let base = most_common(&schemes);
        let group_size = base.map_or(-1, group_size);
        let symmetric = base.is_none_or(|scheme| scheme.symmetry == Symmetry::Symmetric);
        let bits = base.map_or(4, |scheme| scheme.bits.get());
        let version = if symmetric { "gptq" } else { "gptq_v2" };
        let mut config = json!({
            "quant_method": "gptq", "method": "gptq", "bits": bits, "group_size": group_size, "desc_act": false, "sym": symmetric,
            "lm_head": false, "checkpoint_format": version, "format": version, "pack_dtype": "int32",
            "meta": {"quantizer": [concat!("quantc:", env!("CARGO_PKG_VERSION"))], "static_groups": true, "true_sequential": true}
        });
        let dynamic = dynamic(plan, base);
        if !dynamic.is_empty() {
            config["dynamic"] = Value::Object(dynamic);
        }
        let kept = plan.iter().any(|planned| planned.scheme.is_none());
        if kept && singly_excluded(plan).is_none() {
            config["modules_in_block_to_quantize"] = json!(quantized_modules(plan));
        }
        config
    }

    fn side_files(&self, plan: &[PlannedLinear]) -> Vec<(&'static str, Value)> {
        vec![("quantize_config.json", self.config(plan))]
    }

    fn open(&self, config: &Value) -> Option<Result<Box<dyn StoredFormat>, FormatsError>> {
        let method = config.get("quant_method").or_else(|| config.get("method"))?;
        (method == ID).then(|| Ok(Box::new(Stored::read(config)?) as Box<dyn StoredFormat>))
    }
}

/// What version 1 takes from a zero point; symmetric grids are written so, since every reader knows it.
fn version_one(symmetry: Symmetry) -> u8 {
    u8::from(symmetry == Symmetry::Symmetric)
}

fn most_common(schemes: &[Scheme]) -> Option<Scheme> {
    let mut counts: Vec<(Scheme, usize)> = Vec::new();
    for scheme in schemes {
        match counts.iter_mut().find(|(known, _)| known == scheme) {
            Some((_, count)) => *count += 1,
            None => counts.push((*scheme, 1)),
        }
    }
    counts.iter().rev().max_by_key(|(_, count)| count).map(|(scheme, _)| *scheme)
}

/// Linears that differ from the rest, as patterns on module paths: exclusions first, since the first match wins.
fn dynamic(plan: &[PlannedLinear], base: Option<Scheme>) -> Map<String, Value> {
    let kept: Vec<&Linear> =
        plan.iter().filter(|planned| planned.scheme.is_none()).map(|p| &p.linear).collect();
    let mut rules: Map<String, Value> =
        patterns(&kept).into_iter().map(|pattern| (format!("-:{pattern}"), json!({}))).collect();
    let mut others: Vec<(Scheme, Vec<&Linear>)> = Vec::new();
    for planned in plan {
        match planned.scheme {
            Some(scheme) if Some(scheme) != base => {
                match others.iter_mut().find(|(known, _)| *known == scheme) {
                    Some((_, linears)) => linears.push(&planned.linear),
                    None => others.push((scheme, vec![&planned.linear])),
                }
            }
            _ => {}
        }
    }
    for (scheme, linears) in others {
        let sym = scheme.symmetry == Symmetry::Symmetric;
        let group_size = group_size(scheme);
        let value =
            json!({"bits": scheme.bits.get(), "group_size": group_size, "sym": sym, "desc_act": false});
        rules.extend(patterns(&linears).into_iter().map(|pattern| (format!("+:{pattern}"), value.clone())));
    }
    rules
}

fn group_size(scheme: Scheme) -> i64 {
    match scheme.granularity {
        Granularity::PerGroup(size) => size.get() as i64,
        Granularity::PerChannel | Granularity::PerTensor => -1,
    }
}

/// Patterns that match the paths of these linears and no others: one for each kind of linear, with its layers as alternatives.
///
/// Runtimes look a fused linear up under its fused name, which the pattern therefore has to match as well.
fn patterns(linears: &[&Linear]) -> Vec<String> {
    use model::linear::Role;
    let mut kinds: Vec<((String, String), Vec<String>)> = Vec::new();
    for linear in linears {
        let layer = linear.id.layer.to_string();
        let (parent, own) = linear.name.rsplit_once('.').unwrap_or(("", &linear.name));
        let fused = match linear.id.role {
            Role::Query | Role::Key | Role::Value => "|qkv_proj",
            Role::Gate | Role::Up => "|gate_up_proj",
            Role::Output | Role::Down => "",
        };
        let module = format!("({}{fused})$", regex::escape(own));
        let parent = format!("{parent}.");
        let (before, after) = match parent.split_once(&format!(".{layer}.")) {
            Some((before, after)) => {
                (format!("{}\\.", regex::escape(before)), format!("\\.{}{module}", regex::escape(after)))
            }
            None => (regex::escape(&parent), module),
        };
        let layer = if after.starts_with("\\.") { layer } else { String::new() };
        match kinds.iter_mut().find(|(kind, _)| *kind == (before.clone(), after.clone())) {
            Some((_, layers)) => layers.push(layer),
            None => kinds.push(((before, after), vec![layer])),
        }
    }
    kinds
        .into_iter()
        .map(|((before, after), layers)| match &layers[..] {
            [layer] => format!("{before}{layer}{after}"),
            _ => format!("{before}({}){after}", layers.join("|")),
        })
        .collect()
}

/// Module paths within a layer of the kinds that are quantized.
fn quantized_modules(plan: &[PlannedLinear]) -> Vec<Vec<String>> {
    let layer_of = |linear: &Linear| {
        let marker = format!(".{}.", linear.id.layer);
        linear.name.split_once(&marker).map_or_else(|| linear.name.clone(), |(_, within)| within.to_owned())
    };
    let mut modules: Vec<(usize, Vec<String>)> = Vec::new();
    let first_layer = plan.first().map_or(0, |planned| planned.linear.id.layer);
    for planned in
        plan.iter().filter(|planned| planned.scheme.is_some() && planned.linear.id.layer == first_layer)
    {
        let module = layer_of(&planned.linear);
        match modules.last_mut() {
            Some((group, names)) if *group == planned.fused_group => names.push(module),
            _ => modules.push((planned.fused_group, vec![module])),
        }
    }
    modules.into_iter().map(|(_, names)| names).collect()
}

/// A checkpoint in this format, as its configuration describes it.
#[derive(Debug)]
struct Stored {
    base: Scheme,
    /// Taken from stored zero points: 1 in version 1.
    less: u8,
    rules: Vec<(Regex, Option<Scheme>)>,
}

impl Stored {
    fn read(config: &Value) -> Result<Self, FormatsError> {
        let bad = |problem: String| {
            FormatsError::malformed("config.json".as_ref(), format!("`quantization_config` {problem}"))
        };
        let version = config.get("checkpoint_format").or_else(|| config.get("format"));
        let less = match version.map(Value::as_str) {
            None | Some(Some("gptq")) => 1,
            Some(Some("gptq_v2")) => 0,
            Some(_) => {
                return Err(bad(format!("has the checkpoint format {}", version.unwrap_or(&Value::Null))));
            }
        };
        if let Some(word) = config.get("pack_dtype").filter(|word| *word != "int32" && !word.is_null()) {
            return Err(bad(format!("packs codes into {word}, only int32 is read")));
        }
        let base = scheme(config, None).map_err(&bad)?;
        let mut rules = Vec::new();
        for (key, value) in config.get("dynamic").and_then(Value::as_object).into_iter().flatten() {
            let (excluded, pattern) = match key.strip_prefix("-:") {
                Some(pattern) => (true, pattern),
                None => (false, key.strip_prefix("+:").unwrap_or(key)),
            };
            let regex = Regex::new(&format!("^(?:{pattern})"))
                .map_err(|e| bad(format!("has the rule `{key}`: {e}")))?;
            let scheme = if excluded { None } else { Some(scheme(value, Some(base)).map_err(&bad)?) };
            rules.push((regex, scheme));
        }
        // Readers take exclusions first.
        rules.sort_by_key(|(_, scheme)| scheme.is_some());
        Ok(Self { base, less, rules })
    }

    fn parts(&self, stored: &StoredLinear<'_>) -> Result<PackedParts, FormatsError> {
        let (columns, groups) = stored.groups()?;
        let scheme = stored.scheme;
        let (inputs, outputs) = (stored.linear.in_features, stored.linear.out_features);
        let words = stored.streams("qweight", outputs, inputs, true)?;
        let packed_zeros = stored.streams("qzeros", groups, outputs, false)?;
        let zero_points = unpack_rows(packed_zeros.view(), scheme.bits.get(), outputs)
            .mapv(|zero| zero.wrapping_add(self.less) & scheme.bits.max_code());
        if scheme.symmetry == Symmetry::Symmetric
            && let Some(zero) = zero_points.iter().find(|&&zero| zero != scheme.bits.symmetric_zero())
        {
            let problem =
                format!("holds zero point {zero}, a symmetric grid has {}", scheme.bits.symmetric_zero());
            return Err(stored.fail("qzeros", problem));
        }
        let scales = stored.checkpoint.read_matrix(&stored.name("scales"), (groups, outputs))?;
        if stored.checkpoint.contains(&stored.name("g_idx")) {
            let order = stored.checkpoint.read_as(&stored.name("g_idx"), Dtype::I32, &[inputs])?;
            let order = from_bytes(&order);
            if order.iter().enumerate().any(|(input, &group)| group as usize != input / columns) {
                let problem = "gives columns groups out of order (`desc_act`), which is not read";
                return Err(stored.fail("g_idx", problem));
            }
        }
        Ok(PackedParts { scheme, words, layout: CodeLayout::InputMajor, scales, zero_points })
    }
}

impl StoredFormat for Stored {
    fn id(&self) -> &'static str {
        ID
    }

    fn scheme(&self, linear: &Linear) -> Option<Scheme> {
        let rule = self.rules.iter().find(|(pattern, _)| pattern.is_match(&linear.name));
        rule.map_or(Some(self.base), |(_, scheme)| *scheme)
    }

    fn tensors(&self, linear: &Linear, scheme: Scheme) -> Vec<String> {
        Gptq.layout(linear, scheme).into_iter().map(|spec| spec.name).collect()
    }

    fn decode(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<QuantizedTensor, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        self.parts(&stored)?.decode(&stored)
    }

    fn packed(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<Option<PackedMatrix>, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        self.parts(&stored)?.packed(&stored).map(Some)
    }
}

/// The scheme that an object's keys describe; keys it lacks are those of `base`.
fn scheme(config: &Value, base: Option<Scheme>) -> Result<Scheme, String> {
    let get = |key: &str| config.get(key).filter(|value| !value.is_null());
    let bits = match (get("bits"), base) {
        (Some(value), _) => value
            .as_u64()
            .and_then(|bits| u8::try_from(bits).ok())
            .and_then(|bits| BitWidth::new(bits).ok())
            .ok_or_else(|| format!("has {value} bits"))?,
        (None, Some(base)) => base.bits,
        (None, None) => return Err("has no `bits`".to_owned()),
    };
    let granularity = match (get("group_size"), base) {
        (Some(value), _) if value == -1 => Granularity::PerChannel,
        (Some(value), _) => value
            .as_u64()
            .and_then(|columns| GroupSize::new(columns as usize).ok())
            .map(Granularity::PerGroup)
            .ok_or_else(|| format!("has the group size {value}"))?,
        (None, Some(base)) => base.granularity,
        (None, None) => return Err("has no `group_size`".to_owned()),
    };
    let symmetry = match (get("sym"), base) {
        (Some(value), _) => {
            let symmetric = value.as_bool().ok_or_else(|| format!("has `sym` {value}"))?;
            if symmetric { Symmetry::Symmetric } else { Symmetry::Asymmetric }
        }
        (None, Some(base)) => base.symmetry,
        (None, None) => Symmetry::Symmetric,
    };
    Ok(Scheme { bits, levels: Levels::Uniform, granularity, symmetry, scale_dtype: ScaleDtype::F32 })
}
