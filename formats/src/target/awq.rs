//! AWQ safetensors (`gemm`), as vLLM, SGLang, transformers, GPTQModel and mlx-lm read it. Four bits, any zero point.
//!
//! For a linear `P` with `K` input features, `N` output features and `G` groups:
//!
//! | tensor | type | shape | content |
//! |---|---|---|---|
//! | `P.qweight` | I32 | `[K, N/8]` | codes; eight outputs a word |
//! | `P.qzeros` | I32 | `[G, N/8]` | zero points, as they are; eight outputs a word |
//! | `P.scales` | F16 | `[G, N]` | `w = scale * (code - zero_point)` |
//!
//! Nibble `i` of a word, from the lowest bits on, is of output [`ORDER`]`[i]` of the word's eight.
//!
//! A symmetric grid is written with its zero point, 8, everywhere: kernels expect zero points whatever `zero_point` says. Read again
//! it is an asymmetric grid, which holds the same solution.

use std::path::Path;

use kernels::{CodeLayout, PackedMatrix};
use model::linear::{Linear, LinearClass};
use ndarray::{Array2, ArrayView2};
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use serde_json::{Value, json};

use super::gptq::GPTQMODEL_EXPERTS;
use super::gptq::rules::dynamic;
use super::grids::{demand_fused_alike, demand_whole_codes, group_size, lower_groups, most_common};
use super::packed_parts::{PackedParts, StoredLinear};
use super::registry::{Family, Opened};
use super::safetensors::{self, Described};
use super::settings::{bad, given, names};
use super::{Experts, LoaderRule, ONE_TENSOR, PlannedLinear, StoredFormat, TargetFormat};
use crate::checkpoint::{Checkpoint, Dtype};
use crate::container::{TensorData, TensorSpec};
use crate::error::FormatsError;
use crate::model_writer::{Contents, ModelWriter};
use crate::packing::{pack_rows, to_bytes};

const ID: &str = "awq";
const BITS: u8 = 4;
/// Codes of a word.
const NIBBLES: usize = 8;
/// The output, of a word's eight, that each nibble is of.
const ORDER: [usize; NIBBLES] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The format.
#[derive(Debug)]
pub(super) struct Awq;

static LOADERS: [LoaderRule; 7] = [
    LoaderRule {
        runtime: "vLLM 0.33",
        run_by_us: false,
        symmetric_bits: &[BITS],
        asymmetric_bits: &[BITS],
        group_sizes: &[32, 64, 128],
        in_multiple: 32,
        out_multiple: 32,
        experts: Experts::Alike,
        ..LoaderRule::ANY
    },
    LoaderRule { group_sizes: &[32, 64, 128], ..LoaderRule::VLLM_CPU },
    LoaderRule {
        runtime: "SGLang 0.5.10 (marlin kernel)",
        run_by_us: false,
        symmetric_bits: &[BITS],
        asymmetric_bits: &[BITS],
        group_sizes: &[32, 64, 128],
        in_multiple: 128,
        out_multiple: 64,
        experts: Experts::Alike,
        ..LoaderRule::ANY
    },
    LoaderRule {
        runtime: "SGLang 0.5.10 (awq kernel)",
        run_by_us: false,
        symmetric_bits: &[BITS],
        asymmetric_bits: &[BITS],
        remark: "with --quantization awq --dtype float16",
        experts: Experts::Refused("has no such kernel for experts"),
        ..LoaderRule::ANY
    },
    LoaderRule {
        runtime: "transformers 5.23 (with gptqmodel)",
        linear_classes: &[LinearClass::Plain],
        symmetric_bits: &[BITS],
        asymmetric_bits: &[BITS],
        experts: Experts::Refused(ONE_TENSOR),
        ..LoaderRule::ANY
    },
    LoaderRule {
        runtime: "GPTQModel 7.7",
        symmetric_bits: &[BITS],
        asymmetric_bits: &[BITS],
        experts: GPTQMODEL_EXPERTS,
        ..LoaderRule::ANY
    },
    LoaderRule {
        runtime: "mlx-lm 0.32",
        symmetric_bits: &[BITS],
        asymmetric_bits: &[BITS],
        group_sizes: &[32, 64, 128],
        remark: "takes rope_theta from the top of config.json only, where transformers 4 wrote it",
        asymmetric_remark: "rounds scale times zero point to 16 bit",
        experts: Experts::Refused("stacks experts' weights, and not their scales; use `--to mlx`"),
        ..LoaderRule::ANY
    },
];

/// The format, ours or another program's.
pub(super) static FAMILY: Family = Family { written: || vec![&Awq], open };

fn open(config: &Value) -> Opened {
    (config.get("quant_method")? == ID).then(|| Ok(Box::new(Stored::read(config)?) as Box<dyn StoredFormat>))
}

impl TargetFormat for Awq {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "4 bit (gemm), asymmetric too, for vLLM, SGLang, transformers, GPTQModel, mlx-lm"
    }

    fn scale_dtype(&self, runtime: Dtype) -> ScaleDtype {
        if runtime == Dtype::Bf16 { ScaleDtype::F16AndBf16 } else { ScaleDtype::F16 }
    }

    fn settle(&self, plan: &mut [PlannedLinear]) -> Result<Vec<String>, FormatsError> {
        demand_whole_codes(ID, plan)?;
        demand_fused_alike(ID, plan)?;
        let notes = lower_groups(ID, plan.iter_mut())?;
        for planned in plan.iter() {
            let (linear, Some(scheme)) = (&planned.linear, planned.scheme) else { continue };
            let refuse = |problem: String, remedy| {
                Err(FormatsError::Unsupported { format: ID, linear: linear.name.clone(), problem, remedy })
            };
            let bits = scheme.bits.get();
            if bits != BITS {
                let problem = format!("it has {bits} bits, expected {BITS}");
                return refuse(problem, "`--to compressed-tensors` holds 2 to 8 bits");
            }
            if !linear.out_features.is_multiple_of(NIBBLES) {
                let problem =
                    format!("its {} output features are not a multiple of {NIBBLES}", linear.out_features);
                return refuse(
                    problem,
                    "leave the linear in 16 bit with --exclude, or use `--to compressed-tensors`",
                );
            }
        }
        Ok(notes.into_iter().collect())
    }

    fn loaders(&self) -> &'static [LoaderRule] {
        &LOADERS
    }

    fn layout(&self, linear: &Linear, scheme: Scheme) -> Vec<TensorSpec> {
        let (inputs, outputs) = (linear.in_features, linear.out_features);
        let groups = inputs / scheme.granularity.columns_per_scale(inputs);
        let spec = |suffix: &str, dtype, shape| TensorSpec {
            name: format!("{}.{suffix}", linear.name),
            dtype,
            shape,
        };
        vec![
            spec("qweight", Dtype::I32, vec![inputs, outputs / NIBBLES]),
            spec("qzeros", Dtype::I32, vec![groups, outputs / NIBBLES]),
            spec("scales", Dtype::F16, vec![groups, outputs]),
        ]
    }

    fn encode(&self, linear: &Linear, tensor: &QuantizedTensor) -> Vec<TensorData> {
        let data = |suffix: &str, bytes| TensorData { name: format!("{}.{suffix}", linear.name), bytes };
        let scales: Vec<f32> = tensor.scales_by_row().t().iter().copied().collect();
        vec![
            data("qweight", to_bytes(interleaved(tensor.codes()).view())),
            data("qzeros", to_bytes(interleaved(tensor.zero_points_by_row().view()).view())),
            data("scales", Dtype::F16.encode(&scales).expect("half is a floating-point type")),
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

impl Described for Awq {
    fn excluded_key(&self) -> Option<&'static str> {
        Some("modules_to_not_convert")
    }

    fn config(&self, plan: &[PlannedLinear], routers: &[String]) -> Value {
        let schemes: Vec<Scheme> = plan.iter().filter_map(|planned| planned.scheme).collect();
        let kept = plan.iter().filter(|planned| planned.scheme.is_none());
        let kept = std::iter::once("lm_head").chain(kept.map(|planned| planned.linear.name.as_str()));
        let kept: Vec<&str> = kept.chain(routers.iter().map(String::as_str)).collect();
        let base = most_common(&schemes);
        let mut config = json!({
            "quant_method": ID, "bits": BITS, "group_size": base.map_or(-1, group_size), "zero_point": true, "version": "gemm",
            "modules_to_not_convert": kept
        });
        // GPTQModel looks nowhere else for linears that are left out.
        let dynamic = dynamic(plan, base, routers);
        if !dynamic.is_empty() {
            config["dynamic"] = Value::Object(dynamic);
        }
        config
    }
}

/// Values `[N, G]` as words `[G, N/8]`.
fn interleaved(values: ArrayView2<'_, u8>) -> Array2<u32> {
    let (outputs, columns) = values.dim();
    Array2::from_shape_fn((columns, outputs / NIBBLES), |(column, word)| {
        let nibbles = ORDER.iter().enumerate();
        nibbles.fold(0, |bits, (place, output)| {
            bits | u32::from(values[[NIBBLES * word + output, column]]) << (4 * place)
        })
    })
}

/// The inverse of [`interleaved`].
fn separated(words: ArrayView2<'_, u32>) -> Array2<u8> {
    let mut values = Array2::zeros((words.ncols() * NIBBLES, words.nrows()));
    for ((column, word), bits) in words.indexed_iter() {
        for (place, output) in ORDER.iter().enumerate() {
            values[[NIBBLES * word + output, column]] = (bits >> (4 * place) & 15) as u8;
        }
    }
    values
}

/// A checkpoint in this format, as its configuration describes it.
#[derive(Debug)]
struct Stored {
    scheme: Scheme,
    /// Parts of names of linears that are not quantized.
    kept: Vec<String>,
}

impl Stored {
    fn read(config: &Value) -> Result<Self, FormatsError> {
        let get = |keys: [&str; 2]| keys.into_iter().find_map(|key| given(config, key));
        let required = |keys: [&str; 2]| get(keys).ok_or_else(|| bad(format!("has no `{}`", keys[0])));
        if let Some(version) = get(["version", "format"])
            && !version.as_str().is_some_and(|text| text.eq_ignore_ascii_case("gemm"))
        {
            return Err(bad(format!("has the version {version}, only `gemm` is read")));
        }
        let bits = required(["bits", "w_bit"])?;
        let width =
            bits.as_u64().filter(|&bits| bits == u64::from(BITS)).and_then(|_| BitWidth::new(BITS).ok());
        let width = width.ok_or_else(|| bad(format!("has {bits} bits, expected {BITS}")))?;
        let columns = required(["group_size", "q_group_size"])?;
        let granularity = if *columns == -1 {
            Granularity::PerChannel
        } else {
            let size = columns.as_u64().and_then(|columns| GroupSize::new(columns as usize).ok());
            Granularity::PerGroup(size.ok_or_else(|| bad(format!("has the group size {columns}")))?)
        };
        let zero_point = required(["zero_point", "zero_point"])?;
        if *zero_point != true {
            return Err(bad(format!("has `zero_point` {zero_point}, expected true")));
        }
        let kept = names(config, "modules_to_not_convert").map_err(bad)?;
        let kept = kept.into_iter().map(str::to_owned).collect();
        let symmetry = Symmetry::Asymmetric;
        Ok(Self {
            scheme: Scheme {
                bits: width,
                levels: Levels::Uniform,
                granularity,
                symmetry,
                scale_dtype: ScaleDtype::F32,
            },
            kept,
        })
    }

    fn parts(stored: &StoredLinear<'_>) -> Result<PackedParts, FormatsError> {
        let (_, groups) = stored.groups()?;
        let scheme = stored.scheme;
        let (inputs, outputs) = (stored.linear.in_features, stored.linear.out_features);
        if !outputs.is_multiple_of(NIBBLES) {
            let problem = format!("is of {outputs} output features, expected a multiple of {NIBBLES}");
            return Err(stored.fail("qweight", problem));
        }
        let codes = separated(stored.words("qweight", [inputs, outputs / NIBBLES])?.view());
        let zero_points = separated(stored.words("qzeros", [groups, outputs / NIBBLES])?.view());
        if scheme.symmetry == Symmetry::Symmetric {
            stored.demand_symmetric("qzeros", zero_points.view())?;
        }
        let scales = stored.checkpoint.read_matrix(&stored.name("scales"), (groups, outputs))?;
        let words = pack_rows(codes.view(), BITS);
        let zero_points = zero_points.reversed_axes();
        Ok(PackedParts { scheme, words, layout: CodeLayout::OutputMajor, scales, zero_points })
    }
}

impl StoredFormat for Stored {
    fn id(&self) -> &'static str {
        ID
    }

    fn scheme(&self, linear: &Linear) -> Option<Scheme> {
        (!self.kept.iter().any(|part| linear.name.contains(part))).then_some(self.scheme)
    }

    fn tensors(&self, linear: &Linear, scheme: Scheme) -> Vec<String> {
        Awq.layout(linear, scheme).into_iter().map(|spec| spec.name).collect()
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
