//! MLX safetensors with affine codes, as mlx-lm reads them.
//!
//! For a linear `P` with `K` input features, `N` output features and `G` groups:
//!
//! | tensor | type | shape | content |
//! |---|---|---|---|
//! | `P.weight` | U32 | `[N, K*bits/32]` | codes; each output's stream is contiguous |
//! | `P.scales` | the model's | `[N, G]` | `w = scale * code + bias` |
//! | `P.biases` | the model's | `[N, G]` | the value of code 0: a minimum, or of a symmetric grid `-scale * 2^(bits-1)`, which is exact |
//!
//! Experts of a mixture lie stacked, `[experts, ...]` each and with their biases, in `P.switch_mlp.gate_proj` and so on.
//!
//! Zero points that are no powers of two would have to be rounded as they are multiplied into the bias, so that what is read would not be
//! what was solved: an asymmetric grid is one of minimums here. Nothing in a file says which of both it is; it is read as one of minimums,
//! which holds symmetric solutions too. `quantization` of config.json is what mlx-lm reads; `quantization_config` repeats it for other tools.
//! Codes that are floats have modes of their own (`mlx/modes.rs`).

mod modes;
mod stored;

use std::path::Path;

use model::linear::{Linear, LinearClass, Role};
use model::rope::RopeScaling;
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use serde_json::{Value, json};

use super::floats;
use super::grids::{demand_fused_alike, demand_own_grid, lower_groups_by_stage, most_common};
use super::registry::{Family, Opened};
use super::safetensors::{self, Described};
use super::{Experts, LoaderRule, PlannedLinear, StoredFormat, TargetFormat};
use crate::checkpoint::Dtype;
use crate::container::{TensorData, TensorSpec};
use crate::error::FormatsError;
use crate::model_writer::{Contents, ModelWriter};
use crate::packing::{pack_rows, to_bytes, words_for};
use modes::Mode;

const ID: &str = "mlx";
const WIDTHS: [u8; 6] = [2, 3, 4, 5, 6, 8];
const GROUP_SIZES: [usize; 3] = [32, 64, 128];

/// The format, of whole numbers or of floats.
#[derive(Debug)]
pub(super) struct Mlx {
    id: &'static str,
    summary: &'static str,
    /// None: affine.
    mode: Option<&'static Mode>,
    loaders: &'static [LoaderRule],
}

pub(super) static AFFINE: Mlx = Mlx {
    id: ID,
    summary: "2, 3, 4, 5, 6, 8 bit (affine) for mlx-lm",
    mode: None,
    loaders: &[LoaderRule { asymmetric_bits: &WIDTHS, group_sizes: &GROUP_SIZES, ..Mlx::loader(&WIDTHS) }],
};
pub(super) static MXFP4: Mlx = Mlx {
    id: "mlx:mxfp4",
    summary: "4-bit floats in groups of 32 for mlx-lm, scales powers of two",
    mode: Some(&modes::MXFP4),
    loaders: &[Mlx::loader(&[4])],
};
pub(super) static MXFP8: Mlx = Mlx {
    id: "mlx:mxfp8",
    summary: "8-bit floats in groups of 32 for mlx-lm, scales powers of two",
    mode: Some(&modes::MXFP8),
    loaders: &[Mlx::loader(&[8])],
};
pub(super) static NVFP4: Mlx = Mlx {
    id: "mlx:nvfp4",
    summary: "4-bit floats in groups of 16 for mlx-lm, scales 8-bit floats",
    mode: Some(&modes::NVFP4),
    loaders: &[Mlx::loader(&[4])],
};

/// Those that are known.
static ALL: [&Mlx; 4] = [&AFFINE, &MXFP4, &MXFP8, &NVFP4];

impl Mlx {
    const fn loader(bits: &'static [u8]) -> LoaderRule {
        LoaderRule {
            runtime: "mlx-lm 0.32",
            symmetric_bits: bits,
            experts: Experts::Stacked,
            linear_classes: &[LinearClass::Plain, LinearClass::Own, LinearClass::Stacked],
            ..LoaderRule::ANY
        }
    }

    /// The one whose linears are on this grid.
    fn of(scheme: Scheme) -> &'static Self {
        let mode = Mode::of(scheme).map(|mode| mode.name);
        ALL.into_iter().find(|known| known.mode.map(|mode| mode.name) == mode).unwrap_or(&AFFINE)
    }
}

/// All of mlx-lm's modes.
pub(super) static FAMILY: Family = Family { written: || vec![&AFFINE, &MXFP4, &MXFP8, &NVFP4], open };

fn open(config: &Value) -> Opened {
    // It has no name: these two keys and no method are how mlx-lm tells it.
    let ours = config.get("quant_method").is_none() && config.get("group_size").is_some();
    ours.then(|| Ok(Box::new(stored::Stored::read(config)?) as Box<dyn StoredFormat>))
}

impl TargetFormat for Mlx {
    fn id(&self) -> &'static str {
        self.id
    }

    fn summary(&self) -> &'static str {
        self.summary
    }

    fn scale_dtype(&self, runtime: Dtype) -> ScaleDtype {
        match self.mode {
            Some(mode) => mode.scales,
            // Exact in half as well, so that one solution serves formats that store half.
            None if runtime == Dtype::Bf16 => ScaleDtype::F16AndBf16,
            None => ScaleDtype::F16,
        }
    }

    fn fixes_grid(&self) -> bool {
        self.mode.is_some()
    }

    fn grid(&self, _linear: &Linear, _layers: usize, asked: Scheme) -> Scheme {
        if let Some(mode) = self.mode {
            return mode.scheme(mode.scales).unwrap_or(asked);
        }
        // The value of code 0 is what it has for a zero point.
        let symmetry =
            if asked.symmetry == Symmetry::Asymmetric { Symmetry::Minimum } else { asked.symmetry };
        Scheme { symmetry, ..asked }
    }

    fn outer_grid(&self, linear: &Linear, _tied: bool, asked: Scheme) -> Result<Scheme, &'static str> {
        match self.mode {
            Some(_) => Err("its runtime has one mode for all of a model"),
            None => Ok(self.grid(linear, 0, asked)),
        }
    }

    fn settle(&self, plan: &mut [PlannedLinear]) -> Result<Vec<String>, FormatsError> {
        demand_fused_alike(self.id, plan)?;
        let mut notes: Vec<String> = keep_split(plan).into_iter().collect();
        if let Some(mode) = self.mode {
            demand_own_grid(self.id, plan, |scheme| mode.holds(scheme), Some(mode.columns))?;
            return Ok(notes);
        }
        notes.extend(lower_groups_by_stage(ID, plan)?);
        for planned in plan.iter() {
            let (linear, Some(scheme)) = (&planned.linear, planned.scheme) else { continue };
            let refuse = |problem: String, remedy| {
                Err(FormatsError::Unsupported { format: ID, linear: linear.name.clone(), problem, remedy })
            };
            let bits = scheme.bits.get();
            if !WIDTHS.contains(&bits) {
                let problem = format!("it has {bits} bits, expected one of {WIDTHS:?}");
                return refuse(problem, "`--to compressed-tensors` holds 2 to 8 bits");
            }
            let uniform = scheme.levels == Levels::Uniform && !scheme.scale_dtype.is_product();
            if !uniform || scheme.symmetry == Symmetry::Asymmetric {
                let problem =
                    "it stores a scale and the value of code 0 for each group, and nothing else".to_owned();
                return refuse(
                    problem,
                    "choose a format that has such grids, as `--to awq` or `--to compressed-tensors`",
                );
            }
            match scheme.granularity {
                Granularity::PerGroup(size) if GROUP_SIZES.contains(&size.get()) => {}
                Granularity::PerGroup(size) => {
                    let problem = format!(
                        "groups of {} columns, the size that divides its {} input features, are none of {GROUP_SIZES:?}",
                        size.get(),
                        linear.in_features
                    );
                    return refuse(
                        problem,
                        "give another --group-size, or leave the linear in 16 bit with --exclude",
                    );
                }
                Granularity::PerChannel | Granularity::PerTensor => {
                    let problem = format!(
                        "a scale for each row or tensor was asked for, expected one for each group of {GROUP_SIZES:?} columns"
                    );
                    return refuse(problem, "use --group-size 64");
                }
            }
        }
        Ok(notes)
    }

    fn loaders(&self) -> &'static [LoaderRule] {
        self.loaders
    }

    fn mixed_widths(&self) -> &'static [u8] {
        if self.mode.is_some() { &[] } else { &WIDTHS }
    }

    fn layout(&self, linear: &Linear, scheme: Scheme) -> Vec<TensorSpec> {
        let (inputs, outputs) = (linear.in_features, linear.out_features);
        let groups = inputs / scheme.granularity.columns_per_scale(inputs);
        let spec = |suffix: &str, dtype, shape| TensorSpec {
            name: format!("{}.{suffix}", linear.name),
            dtype,
            shape,
        };
        let codes = spec("weight", Dtype::U32, vec![outputs, words_for(inputs, scheme.bits.get())]);
        if Mode::of(scheme).is_some() {
            return vec![codes, spec("scales", Dtype::U8, vec![outputs, groups])];
        }
        let scales = stored_scale(scheme.scale_dtype);
        vec![
            codes,
            spec("scales", scales, vec![outputs, groups]),
            spec("biases", scales, vec![outputs, groups]),
        ]
    }

    fn encode(&self, linear: &Linear, tensor: &QuantizedTensor) -> Vec<TensorData> {
        let scheme = tensor.scheme();
        let data = |suffix: &str, bytes| TensorData { name: format!("{}.{suffix}", linear.name), bytes };
        let scales: Vec<f32> = tensor.scales_by_row().iter().copied().collect();
        if let Some(mode) = Mode::of(scheme) {
            let patterns: Vec<u8> =
                tensor.codes().iter().map(|&code| floats::pattern(scheme.levels, code)).collect();
            let codes = if mode.bits == 4 { floats::pairs(&patterns) } else { patterns };
            let byte = if mode.scales == ScaleDtype::E8m0 { floats::exponent } else { floats::e4m3_pattern };
            return vec![data("weight", codes), data("scales", scales.into_iter().map(byte).collect())];
        }
        let biases: Vec<f32> = match tensor.minimums() {
            Some(minimums) => minimums.iter().copied().collect(),
            None => scales.iter().map(|scale| bias(*scale, scheme.bits)).collect(),
        };
        let dtype = stored_scale(scheme.scale_dtype);
        vec![
            data("weight", to_bytes(pack_rows(tensor.codes(), scheme.bits.get()).view())),
            data("scales", dtype.encode(&scales).expect("scales are floating-point")),
            data("biases", dtype.encode(&biases).expect("scales are floating-point")),
        ]
    }

    fn check(&self, contents: &Contents<'_>) -> Result<Vec<String>, FormatsError> {
        // Where it knows sinks, it knows the windows beside them.
        let numbers = &contents.model.hyperparameters;
        let sinks = contents.model.architecture.layer.attention.sinks.is_some();
        let window = numbers.windows.iter().flatten().min().filter(|_| !sinks);
        let untruncated = matches!(numbers.rope.scaling, RopeScaling::Yarn { truncate: false, .. });
        let ramp = untruncated.then(|| {
            "mlx-lm rounds the ends of YaRN's ramp to whole dimensions, which this model does not (`truncate`)"
                .to_owned()
        });
        let note = window.map(|window| {
            format!(
                "mlx-lm runs this model without its sliding window, which makes a difference beyond {window} tokens"
            )
        });
        Ok(note.into_iter().chain(ramp).collect())
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

impl Described for Mlx {
    fn adapt_config(&self, config: &mut Value) {
        // Most of mlx-lm's models look for the rotation where transformers 4 had it, and take a default where it is not there.
        let rope = config["rope_parameters"].clone();
        if config["rope_theta"].is_null() && !rope["rope_theta"].is_null() {
            config["rope_theta"] = rope["rope_theta"].clone();
        }
        let stretched = rope["rope_type"].as_str().is_some_and(|kind| kind != "default");
        if stretched && config["rope_scaling"].is_null() {
            config["rope_scaling"] = rope;
        }
        // transformers 5 writes the number of experts under another name, which mlx-lm does not know for every family.
        if config["num_experts"].is_null() && !config["num_local_experts"].is_null() {
            config["num_experts"] = config["num_local_experts"].clone();
        }
    }

    fn config(&self, plan: &[PlannedLinear], routers: &[String]) -> Value {
        let schemes: Vec<Scheme> = plan.iter().filter_map(|planned| planned.scheme).collect();
        let base = most_common(&schemes);
        let arguments = |scheme: Scheme| {
            let columns = match scheme.granularity {
                Granularity::PerGroup(size) => size.get(),
                Granularity::PerChannel | Granularity::PerTensor => 0,
            };
            let mode = Mode::of(scheme).map_or("affine", |mode| mode.name);
            json!({"group_size": columns, "bits": scheme.bits.get(), "mode": mode})
        };
        let mut config = base.map_or_else(|| json!({}), arguments);
        for router in routers {
            config[router] = json!(false);
        }
        for planned in plan {
            let module = module(&planned.linear);
            match planned.scheme {
                None => config[module] = json!(false),
                Some(scheme) if Some(scheme) != base => config[module] = arguments(scheme),
                Some(_) => {}
            }
        }
        config
    }

    fn config_keys(&self) -> &'static [&'static str] {
        &["quantization", "quantization_config"]
    }

    fn stack(&self, linear: &Linear) -> Option<String> {
        stack(linear)
    }

    fn framework(&self) -> &'static str {
        "mlx"
    }
}

/// Leaves alone what mlx-lm takes apart while it loads, one half transposed, and would round again; a note where there was any.
fn keep_split(plan: &mut [PlannedLinear]) -> Option<String> {
    let split = plan.iter_mut().filter(|planned| planned.linear.id.role == Role::KeyValue);
    let kept = split.filter_map(|planned| planned.scheme.take()).count();
    (kept > 0).then(|| {
        format!(
            "the projections from latent features to keys and values ({kept} linears) stay in 16 bit: mlx-lm would round them again"
        )
    })
}

/// Where mlx-lm has all experts' linears of one kind: `P.switch_mlp.KIND` for `P.experts.NUMBER.*`; `P.experts.KIND` where the original has them
/// in one tensor as well.
fn stack(linear: &Linear) -> Option<String> {
    linear.id.part.expert()?;
    let kind = match linear.id.role {
        Role::Gate => "gate_proj",
        Role::Up => "up_proj",
        Role::Down => "down_proj",
        _ => return None,
    };
    let mut parts = linear.name.rsplitn(3, '.').skip(2);
    let experts = parts.next()?;
    if linear.class == LinearClass::Stacked {
        return Some(format!("{experts}.{kind}"));
    }
    Some(format!("{}switch_mlp.{kind}", experts.strip_suffix("experts")?))
}

/// What configurations call a linear.
fn module(linear: &Linear) -> String {
    stack(linear).unwrap_or_else(|| linear.name.clone())
}

fn stored_scale(scale_dtype: ScaleDtype) -> Dtype {
    match scale_dtype {
        ScaleDtype::F16 => Dtype::F16,
        ScaleDtype::Bf16 | ScaleDtype::F16AndBf16 => Dtype::Bf16,
        // What is no single number is refused before it gets here.
        _ => Dtype::F32,
    }
}

/// The value of code 0.
fn bias(scale: f32, bits: BitWidth) -> f32 {
    -scale * f32::from(bits.symmetric_zero())
}
