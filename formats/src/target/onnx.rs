//! ONNX for onnxruntime and onnxruntime-genai: a graph that runs, `com.microsoft` products with packed weights, and what the generator
//! wants to have beside.
//!
//! For a linear `P` with `K` input features, `N` output features, blocks of `S` columns:
//!
//! | initializer | type | shape | content |
//! |---|---|---|---|
//! | `P.weight_codes` | U8 | `[N, K/S, S*bits/8]` | codes; each block's stream is contiguous, and so is each row's |
//! | `P.weight_scales` | F32 | `[N, K/S]` | `w = scale * (code - zero_point)` |
//! | `P.weight_zero_points` | U8 | `[N, ceil(K/S*bits/8)]` | zero points; each row's stream is contiguous; asymmetric only |
//!
//! config.json says what is quantized how, for readers that do not look into the graph; onnxruntime does not read it.

mod output;
mod stored;

use std::path::Path;

use model::Model;
use model::linear::Linear;
use model::rope::RopeScaling;
use quantizer::scheme::{Granularity, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use serde_json::{Map, Value, json};

use super::grids::{demand_whole_codes, group_size, lower_groups_by_stage};
use super::registry::{Family, Opened};
use super::{Experts, LoaderRule, PlannedLinear, StoredFormat, TargetFormat};
use crate::checkpoint::Dtype;
use crate::container::{TensorData, TensorSpec};
use crate::error::FormatsError;
use crate::model_writer::{Contents, ModelWriter};
use crate::onnx::graph::{CODES, SCALES, ZERO_POINTS, packed_specs};
use crate::packing::{pack_rows, to_bytes};

const ID: &str = "onnx";
/// Widths that the CPU kernels multiply with.
const WIDTHS: [u8; 3] = [2, 4, 8];

/// Columns of a block at most.
const MOST_BLOCK: usize = 256;

/// The format.
#[derive(Debug)]
pub(super) struct Onnx;

static LOADERS: [LoaderRule; 2] = [
    LoaderRule {
        runtime: "onnxruntime 1.32 (CPU)",
        symmetric_bits: &WIDTHS,
        asymmetric_bits: &WIDTHS,
        experts: Experts::Refused("has no graph of experts here"),
        ..LoaderRule::ANY
    },
    LoaderRule {
        runtime: "onnxruntime-genai 0.18 (CPU)",
        symmetric_bits: &WIDTHS,
        asymmetric_bits: &WIDTHS,
        experts: Experts::Refused("has no graph of experts here"),
        ..LoaderRule::ANY
    },
];

/// The format as quantc writes it.
pub(super) static FAMILY: Family = Family { written: || vec![&Onnx], open };

fn open(config: &Value) -> Opened {
    (config.get("quant_method")? == ID)
        .then(|| Ok(Box::new(stored::Stored::read(config)?) as Box<dyn StoredFormat>))
}

impl TargetFormat for Onnx {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "2, 4 and 8 bit graph (MatMulNBits) for onnxruntime and onnxruntime-genai"
    }

    fn scale_dtype(&self, runtime: Dtype) -> ScaleDtype {
        // Stored in single precision; one solution serves formats that store half.
        if runtime == Dtype::Bf16 { ScaleDtype::F16AndBf16 } else { ScaleDtype::F16 }
    }

    fn settle(&self, plan: &mut [PlannedLinear]) -> Result<Vec<String>, FormatsError> {
        demand_whole_codes(ID, plan)?;
        let notes = lower_groups_by_stage(ID, plan)?;
        for planned in plan.iter() {
            let (linear, Some(scheme)) = (&planned.linear, planned.scheme) else { continue };
            let refuse = |problem: String, remedy| {
                Err(FormatsError::Unsupported { format: ID, linear: linear.name.clone(), problem, remedy })
            };
            let bits = scheme.bits.get();
            if !WIDTHS.contains(&bits) {
                let remedy = "use --bits 2, 4 or 8, or `--to compressed-tensors`, which holds 2 to 8 bits";
                return refuse(format!("it has {bits} bits, expected one of {WIDTHS:?}"), remedy);
            }
            let Granularity::PerGroup(size) = scheme.granularity else {
                let remedy = "use --group-size 16 to 1024, a power of two";
                return refuse("a scale for whole rows has no place in blocks".to_owned(), remedy);
            };
            // The CPU kernels leave larger blocks undecoded, without a word.
            if !size.get().is_power_of_two() || size.get() > MOST_BLOCK {
                let problem = format!("blocks of {} columns have no kernel", size.get());
                return refuse(problem, "use --group-size 16, 32, 64, 128 or 256");
            }
        }
        Ok(notes)
    }

    fn loaders(&self) -> &'static [LoaderRule] {
        &LOADERS
    }

    fn mixed_widths(&self) -> &'static [u8] {
        &WIDTHS
    }

    fn layout(&self, linear: &Linear, scheme: Scheme) -> Vec<TensorSpec> {
        packed_specs(linear, scheme)
    }

    fn encode(&self, linear: &Linear, tensor: &QuantizedTensor) -> Vec<TensorData> {
        let scheme = tensor.scheme();
        let bits = usize::from(scheme.bits.get());
        let data = |suffix: &str, bytes| TensorData { name: format!("{}.{suffix}", linear.name), bytes };
        let scales: Vec<u8> = tensor.scales_by_row().iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let rows = |codes: ndarray::ArrayView2<'_, u8>| {
            // Streams of whole words, of which each row's last may be longer than its codes.
            let length = (codes.ncols() * bits).div_ceil(8);
            let words = to_bytes(pack_rows(codes, scheme.bits.get()).view());
            let stride = words.len().checked_div(codes.nrows()).unwrap_or(0);
            words.chunks(stride.max(1)).flat_map(|row| row[..length].to_vec()).collect::<Vec<u8>>()
        };
        let mut tensors = vec![data(CODES, rows(tensor.codes())), data(SCALES, scales)];
        if scheme.symmetry == Symmetry::Asymmetric {
            tensors.push(data(ZERO_POINTS, rows(tensor.zero_points_by_row().view())));
        }
        tensors
    }

    fn settle_carried(
        &self,
        model: &Model,
        carried: &mut Vec<TensorSpec>,
    ) -> Result<Vec<String>, FormatsError> {
        let known: Vec<String> = model.expected_tensors().map(|tensor| tensor.name).collect();
        let mut left_out = Vec::new();
        let mut kept = Vec::new();
        for mut spec in carried.drain(..) {
            if known.contains(&spec.name) {
                // Norms and biases meet activations in single precision.
                if spec.shape.len() == 1 {
                    spec.dtype = Dtype::F32;
                }
                kept.push(spec);
            } else if spec.name == model.untied_head() || spec.name.ends_with(".rotary_emb.inv_freq") {
                left_out.push(spec.name);
            } else {
                return Err(FormatsError::Unsupported {
                    format: ID,
                    linear: spec.name,
                    problem: "the graph has no place for it".to_owned(),
                    remedy: "`--to compressed-tensors` carries tensors that it does not know",
                });
            }
        }
        *carried = kept;
        Ok(left_out)
    }

    fn check(&self, contents: &Contents<'_>) -> Result<Vec<String>, FormatsError> {
        let numbers = &contents.model.hyperparameters;
        let of_lengths = match &numbers.rope.scaling {
            RopeScaling::Dynamic { .. } | RopeScaling::LongRope { .. } => Some(
                "its rotary frequencies depend on the length of the text, which the graph's do not"
                    .to_owned(),
            ),
            _ if numbers.rope.dim != numbers.head_dim => Some(format!(
                "it rotates {} of {} features of a head, the graph all",
                numbers.rope.dim, numbers.head_dim
            )),
            _ => None,
        };
        let problem = crate::onnx::expressible::check(contents.model).err().or(of_lengths);
        match problem {
            None => Ok(Vec::new()),
            Some(problem) => Err(FormatsError::malformed(
                &contents.source.join("config.json"),
                format!("{problem} ({ID})"),
            )),
        }
    }

    fn begin(
        &'static self,
        directory: &Path,
        contents: &Contents<'_>,
    ) -> Result<Box<dyn ModelWriter>, FormatsError> {
        self.check(contents)?;
        output::begin(directory, contents)
    }

    fn weights_bytes(&self, tensors: &[TensorSpec], _max_shard_bytes: Option<u64>) -> u64 {
        tensors.iter().map(TensorSpec::bytes).sum()
    }
}

/// What config.json says: the grid of each linear that is packed.
fn config(plan: &[PlannedLinear]) -> Value {
    let linears: Map<String, Value> = plan
        .iter()
        .filter_map(|planned| {
            let scheme = planned.scheme?;
            let symmetric = scheme.symmetry == Symmetry::Symmetric;
            let grid =
                json!({"bits": scheme.bits.get(), "group_size": group_size(scheme), "symmetric": symmetric});
            Some((planned.linear.name.clone(), grid))
        })
        .collect();
    json!({"quant_method": ID, "operator": "MatMulNBits", "linears": linears})
}
