//! The library's `quantization_config`, written and read.

use model::linear::{Linear, Role};
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};
use regex::Regex;
use serde_json::{Map, Value, json};

use super::super::PlannedLinear;
use super::super::settings::names;

/// What config.json says of linears stored as `format`, whose inputs are rounded as `activations` says, or not. `routers` stay as they are.
pub(super) fn describe(
    plan: &[PlannedLinear],
    routers: &[String],
    format: &str,
    activations: &Value,
) -> Value {
    let mut schemes: Vec<(Scheme, Vec<&str>)> = Vec::new();
    for planned in plan {
        let Some(scheme) = planned.scheme else { continue };
        // Each matrix says its own exponent.
        let scheme = scheme.unsettled();
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
            // What vLLM calls a head is no `Linear` there.
            let heads = plan.iter().filter(|planned| planned.linear.id.role == Role::Head && planned.scheme.map(Scheme::unsettled) == Some(*scheme));
            let heads = heads.map(|planned| planned.linear.name.as_str());
            let alone: Vec<&str> = std::iter::once("Linear").chain(heads).collect();
            let targets = if several { json!(names) } else { json!(alone) };
            let group = json!({
                "targets": targets, "input_activations": activations, "output_activations": null, "weights": weights(*scheme)
            });
            (format!("group_{number}"), group)
        })
        .collect();
    let kept =
        plan.iter().filter(|planned| planned.scheme.is_none()).map(|planned| planned.linear.name.as_str());
    let kept = kept.chain(routers.iter().map(String::as_str));
    let packed_head =
        plan.iter().any(|planned| planned.linear.id.role == Role::Head && planned.scheme.is_some());
    let ignore: Vec<&str> = (!packed_head).then_some("lm_head").into_iter().chain(kept).collect();
    json!({
        "quant_method": super::ID, "format": format, "quantization_status": "compressed",
        "global_compression_ratio": null, "config_groups": groups, "ignore": ignore, "kv_cache_scheme": null
    })
}

/// `QuantizationArgs` of the library, which refuses keys that it does not know.
fn weights(scheme: Scheme) -> Value {
    let shared = matches!(scheme.scale_dtype, ScaleDtype::SharedE4m3 { .. });
    let (strategy, group_size) = match scheme.granularity {
        Granularity::PerGroup(size) if shared => ("tensor_group", json!(size.get())),
        Granularity::PerGroup(size) => ("group", json!(size.get())),
        Granularity::PerChannel | Granularity::PerTensor => ("channel", Value::Null),
    };
    let mut weights = json!({
        "num_bits": scheme.bits.get(), "type": kind(scheme.levels), "symmetric": scheme.symmetry == Symmetry::Symmetric,
        "strategy": strategy, "group_size": group_size, "dynamic": false, "actorder": null, "block_structure": null,
        "observer": "minmax", "observer_kwargs": {}
    });
    let scales = match scheme.scale_dtype {
        ScaleDtype::E8m0 => Some("torch.uint8"),
        ScaleDtype::SharedE4m3 { .. } => Some("torch.float8_e4m3fn"),
        _ => None,
    };
    if let Some(scales) = scales {
        weights["scale_dtype"] = json!(scales);
        weights["zp_dtype"] = json!(scales);
    }
    weights
}

fn kind(levels: Levels) -> &'static str {
    if levels == Levels::Uniform { "int" } else { "float" }
}

/// What a group or an exclusion names.
#[derive(Debug)]
pub(super) enum Target {
    /// Every linear.
    Linear,
    /// One module.
    Module(String),
    /// Modules whose path matches from its start.
    Pattern(Regex),
}

impl Target {
    fn read(text: &str) -> Result<Self, String> {
        Ok(match text.strip_prefix("re:") {
            Some(pattern) => {
                let anchored = Regex::new(&format!("^(?:{pattern})"));
                Self::Pattern(anchored.map_err(|e| format!("names the target `{text}`: {e}"))?)
            }
            None if text == "Linear" => Self::Linear,
            None => Self::Module(text.to_owned()),
        })
    }

    pub(super) fn read_all(config: &Value, key: &str) -> Result<Vec<Self>, String> {
        names(config, key)?.into_iter().map(Self::read).collect()
    }

    pub(super) fn matches(&self, linear: &Linear) -> bool {
        match self {
            Self::Linear => true,
            Self::Module(name) => *name == linear.name,
            Self::Pattern(pattern) => pattern.is_match(&linear.name),
        }
    }
}

/// The grid of weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    /// Scales are what was read; of tiles the granularity is along rows.
    pub(super) scheme: Scheme,
    /// Rows and columns that share a scale, where tiles do.
    pub(super) tile: Option<[usize; 2]>,
    /// Whether columns of a group may lie apart.
    pub(super) columns_apart: bool,
}

/// What `QuantizationArgs` of weights describe.
pub(super) fn grid(weights: &Value) -> Result<Grid, String> {
    let get = |key: &str| weights.get(key).filter(|value| !value.is_null());
    let columns_apart = match get("actorder") {
        None => false,
        Some(order) if ["static", "weight"].iter().any(|fixed| order == fixed) => false,
        Some(order) if order == "group" => true,
        Some(order) => return Err(format!("orders columns by {order}, which is not read")),
    };
    if get("dynamic").is_some_and(|dynamic| *dynamic != false) {
        return Err("has dynamic weights, which is not read".to_owned());
    }
    let bits = get("num_bits").and_then(Value::as_u64).and_then(|bits| u8::try_from(bits).ok());
    let bits = bits.and_then(|bits| BitWidth::new(bits).ok()).ok_or("has no usable `num_bits`")?;
    let levels = match (get("type").and_then(Value::as_str).unwrap_or("int"), bits.get()) {
        ("int", _) => Levels::Uniform,
        ("float", 8) => Levels::E4m3,
        ("float", 4) => Levels::E2m1,
        (kind, bits) => return Err(format!("has codes of type {kind} with {bits} bits, which are not read")),
    };
    let group = |columns: usize| {
        let size = GroupSize::new(columns).map(Granularity::PerGroup);
        size.map_err(|e| format!("has no usable `group_size`: {e}"))
    };
    let mut tile = None;
    let granularity = match get("strategy").and_then(Value::as_str) {
        Some("tensor") => Granularity::PerTensor,
        Some("channel") => Granularity::PerChannel,
        Some("group" | "tensor_group") => {
            let columns = get("group_size").and_then(Value::as_u64);
            group(columns.ok_or("has no usable `group_size`")? as usize)?
        }
        Some("block") => {
            let sides = get("block_structure").and_then(Value::as_array);
            let sides = sides.map(|sides| sides.iter().filter_map(Value::as_u64).collect::<Vec<_>>());
            let (tall, wide) = match sides.as_deref() {
                Some(&[tall, wide]) if tall > 0 && wide > 0 => (tall as usize, wide as usize),
                _ => return Err("has no usable `block_structure`".to_owned()),
            };
            tile = Some([tall, wide]);
            group(wide)?
        }
        other => return Err(format!("has the strategy {other:?}, expected tensor, channel, group or block")),
    };
    let symmetric = get("symmetric").and_then(Value::as_bool).unwrap_or(true);
    if !symmetric && levels != Levels::Uniform {
        return Err("has floats that are not symmetric, which is not read".to_owned());
    }
    let symmetry = if symmetric { Symmetry::Symmetric } else { Symmetry::Asymmetric };
    let scheme = Scheme { bits, levels, granularity, symmetry, scale_dtype: ScaleDtype::F32 };
    Ok(Grid { scheme, tile, columns_apart })
}
