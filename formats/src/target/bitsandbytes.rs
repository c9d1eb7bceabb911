//! bitsandbytes 4-bit safetensors, as transformers and PEFT (QLoRA) read them.
//!
//! For a linear `P` with `N x K` weights, taken row after row in blocks of `S`:
//!
//! | tensor | type | shape | content |
//! |---|---|---|---|
//! | `P.weight` | U8 | `[N*K/2, 1]` | codes; the first of a pair in the high nibble |
//! | `P.weight.absmax` | F32 | `[N*K/S]` | `w = scale * table[code]` |
//! | `P.weight.quant_map` | F32 | `[16]` | the table |
//! | `P.weight.quant_state.bitsandbytes__nf4` (`fp4`) | U8 | `[bytes]` | JSON: type of the table, `S`, type of the values, `[N, K]` |
//!
//! Blocks divide rows here, so that they are our groups. Scales may be negative, which turns a table around. Where scales are quantized again
//! (`bnb_4bit_use_double_quant`), `absmax` is U8 and points into the table `P.weight.nested_quant_map` F32 `[256]`, whose numbers are
//! multiplied by `P.weight.nested_absmax` F32 `[ceil(N*K/S/256)]` and added to the state's `nested_offset` (`quantizer/src/nested.rs`).

mod int8;
mod stored;

use std::path::Path;

use model::linear::{Linear, LinearClass};
use quantizer::levels::Levels;
use quantizer::nested;
use quantizer::scheme::{BitWidth, Granularity, NESTED_GROUPS, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::{QuantizedTensor, ScaleParts};
use serde_json::{Value, json};

pub(super) use int8::FAMILY as INT8;

use super::grids::lower_groups_by_stage;
use super::registry::{Family, Opened};
use super::safetensors::{self, Described};
use super::{Experts, LoaderRule, ONE_TENSOR, PlannedLinear, StoredFormat, TargetFormat};
use crate::checkpoint::Dtype;
use crate::container::{TensorData, TensorSpec};
use crate::error::FormatsError;
use crate::model_writer::{Contents, ModelWriter};

/// A table of the library.
#[derive(Debug)]
pub(super) struct BitsAndBytes {
    id: &'static str,
    /// What the library calls the table.
    kind: &'static str,
    summary: &'static str,
    levels: Levels,
    /// Whether scales are quantized again.
    double: bool,
}

pub(super) static NF4: BitsAndBytes = BitsAndBytes {
    id: "nf4",
    kind: "nf4",
    summary: "4 bit on quantiles of a normal distribution, for bitsandbytes (transformers, PEFT)",
    levels: Levels::Nf4,
    double: false,
};
pub(super) static NF4_DOUBLE: BitsAndBytes = BitsAndBytes {
    id: "nf4:double",
    summary: "NF4 with scales of 8 bit (double quantization), for bitsandbytes (transformers, PEFT)",
    double: true,
    ..NF4
};
pub(super) static FP4: BitsAndBytes = BitsAndBytes {
    id: "fp4",
    kind: "fp4",
    summary: "4-bit floats for bitsandbytes (transformers, PEFT)",
    levels: Levels::Fp4,
    double: false,
};
pub(super) static FP4_DOUBLE: BitsAndBytes = BitsAndBytes {
    id: "fp4:double",
    summary: "4-bit floats with scales of 8 bit (double quantization), for bitsandbytes (transformers, PEFT)",
    double: true,
    ..FP4
};

/// Those that are known.
static ALL: [&BitsAndBytes; 4] = [&NF4, &NF4_DOUBLE, &FP4, &FP4_DOUBLE];

/// The type of the values in the state of a tensor: what they are multiplied in is the runtime's choice.
const VALUES: &str = "float32";
/// `quant_method` of all of the library's forms.
const METHOD: &str = "bitsandbytes";

static LOADERS: [LoaderRule; 1] = [LoaderRule {
    runtime: "transformers 5.23 (with bitsandbytes 0.50)",
    linear_classes: &[LinearClass::Plain],
    symmetric_bits: &[4],
    experts: Experts::Refused(ONE_TENSOR),
    ..LoaderRule::ANY
}];

impl BitsAndBytes {
    /// The library's table, by its codes.
    fn table(&self) -> [f32; 16] {
        let levels = self.levels.table().unwrap_or_default();
        let mut table = [0.0; 16];
        for code in 0..16 {
            table[code] = levels[usize::from(self.ours(code as u8))];
        }
        table
    }

    /// The library's code of each of our levels, which ascend.
    fn theirs(&self, code: u8) -> u8 {
        match self.levels {
            // Zero, then what a sign bit, an exponent and a mantissa of one bit make; the sign is the highest bit.
            Levels::Fp4 => FP4_CODES[usize::from(code)],
            _ => code,
        }
    }

    fn ours(&self, code: u8) -> u8 {
        match self.levels {
            // Minus zero is zero.
            Levels::Fp4 if code == 8 => 7,
            Levels::Fp4 => FP4_CODES.iter().position(|&known| known == code).unwrap_or(7) as u8,
            _ => code,
        }
    }

    /// JSON as Python writes it. An offset, which is known late, takes the same place whatever it is.
    fn state(&self, linear: &Linear, block: usize, offset: f32) -> Vec<u8> {
        let nested = if self.double {
            let offset = format!("{:e}", f64::from(offset));
            format!(
                ", \"nested_blocksize\": {NESTED_GROUPS}, \"nested_dtype\": \"float32\", \"nested_offset\": {offset:<26}"
            )
        } else {
            String::new()
        };
        format!(
            "{{\"quant_type\": \"{}\", \"blocksize\": {block}, \"dtype\": \"{VALUES}\", \"shape\": [{}, {}]{nested}}}",
            self.kind, linear.out_features, linear.in_features
        )
        .into_bytes()
    }

    fn state_name(&self) -> String {
        format!("weight.quant_state.{METHOD}__{}", self.kind)
    }
}

/// By ascending value: -1, -2/3, -1/2, -1/3, -1/4, -1/6, -1/192, 0 and up again.
const FP4_CODES: [u8; 15] = [11, 10, 13, 12, 15, 14, 9, 0, 1, 6, 7, 4, 5, 2, 3];

/// The library's four-bit forms.
pub(super) static FAMILY: Family = Family { written: || vec![&NF4, &NF4_DOUBLE, &FP4, &FP4_DOUBLE], open };

fn open(config: &Value) -> Opened {
    let eight = config.get("load_in_8bit") == Some(&Value::Bool(true));
    if config.get("quant_method")? != METHOD || eight {
        return None;
    }
    let kind = config.get("bnb_4bit_quant_type").and_then(Value::as_str).unwrap_or("fp4");
    let double = config.get("bnb_4bit_use_double_quant") == Some(&Value::Bool(true));
    let format = ALL.into_iter().find(|known| known.kind == kind && known.double == double)?;
    Some(stored::Stored::read(format, config).map(|stored| Box::new(stored) as Box<dyn StoredFormat>))
}

impl TargetFormat for BitsAndBytes {
    fn id(&self) -> &'static str {
        self.id
    }

    fn summary(&self) -> &'static str {
        self.summary
    }

    fn scale_dtype(&self, _runtime: Dtype) -> ScaleDtype {
        if self.double { ScaleDtype::Nested } else { ScaleDtype::F32 }
    }

    fn grid(&self, _linear: &Linear, _layers: usize, asked: Scheme) -> Scheme {
        let bits = BitWidth::new(4).unwrap_or(asked.bits);
        Scheme { bits, levels: self.levels, symmetry: Symmetry::Symmetric, ..asked }
    }

    fn settle(&self, plan: &mut [PlannedLinear]) -> Result<Vec<String>, FormatsError> {
        let notes = lower_groups_by_stage(self.id, plan)?;
        for planned in plan.iter() {
            let (linear, Some(scheme)) = (&planned.linear, planned.scheme) else { continue };
            let refuse = |problem: String, remedy| {
                Err(FormatsError::Unsupported {
                    format: self.id,
                    linear: linear.name.clone(),
                    problem,
                    remedy,
                })
            };
            if scheme.levels != self.levels || scheme.scale_dtype != self.scale_dtype(Dtype::F32) {
                return refuse("its grid is another than the format's".to_owned(), "choose another format");
            }
            let Granularity::PerGroup(size) = scheme.granularity else {
                let remedy = "use --group-size 32 to 1024, a power of two";
                return refuse("a scale for whole rows has no place in blocks".to_owned(), remedy);
            };
            if size.get() < 32 || !size.get().is_power_of_two() {
                let problem = format!("blocks of {} weights are none of the library's", size.get());
                return refuse(problem, "use --group-size 32, 64, 128, 256, 512 or 1024");
            }
        }
        Ok(notes)
    }

    fn loaders(&self) -> &'static [LoaderRule] {
        &LOADERS
    }

    fn layout(&self, linear: &Linear, scheme: Scheme) -> Vec<TensorSpec> {
        let block = scheme.granularity.columns_per_scale(linear.in_features);
        let weights = linear.out_features * linear.in_features;
        let spec = |suffix: &str, dtype, shape| TensorSpec {
            name: format!("{}.{suffix}", linear.name),
            dtype,
            shape,
        };
        let blocks = weights / block;
        let mut specs = vec![
            spec("weight", Dtype::U8, vec![weights / 2, 1]),
            spec("weight.absmax", if self.double { Dtype::U8 } else { Dtype::F32 }, vec![blocks]),
            spec("weight.quant_map", Dtype::F32, vec![16]),
            spec(&self.state_name(), Dtype::U8, vec![self.state(linear, block, 1.0).len()]),
        ];
        if self.double {
            specs.push(spec("weight.nested_absmax", Dtype::F32, vec![blocks.div_ceil(NESTED_GROUPS)]));
            specs.push(spec("weight.nested_quant_map", Dtype::F32, vec![nested::TABLE.len()]));
        }
        specs
    }

    fn encode(&self, linear: &Linear, tensor: &QuantizedTensor) -> Vec<TensorData> {
        let data = |suffix: &str, bytes| TensorData { name: format!("{}.{suffix}", linear.name), bytes };
        let floats =
            |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let codes: Vec<u8> = tensor.codes().iter().map(|&code| self.theirs(code)).collect();
        let scales: Vec<f32> = tensor.scales_by_row().iter().copied().collect();
        let block = tensor.scheme().granularity.columns_per_scale(linear.in_features);
        let nested = tensor.scale_parts().filter(|_| self.double).map(NestedScales::of);
        let offset = nested.as_ref().map_or(0.0, |nested| nested.offset);
        let mut tensors = vec![
            data("weight", codes.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).unwrap_or(&0)).collect()),
            data("weight.absmax", floats(&scales)),
            data("weight.quant_map", floats(&self.table())),
            data(&self.state_name(), self.state(linear, block, offset)),
        ];
        if let Some(nested) = nested {
            tensors[1].bytes = nested.codes;
            tensors.push(data("weight.nested_absmax", floats(&nested.coarse)));
            tensors.push(data("weight.nested_quant_map", floats(&nested::TABLE)));
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

impl Described for BitsAndBytes {
    fn excluded_key(&self) -> Option<&'static str> {
        Some("llm_int8_skip_modules")
    }

    fn config(&self, plan: &[PlannedLinear], routers: &[String]) -> Value {
        let kept = plan.iter().filter(|planned| planned.scheme.is_none());
        let kept = std::iter::once("lm_head").chain(kept.map(|planned| planned.linear.name.as_str()));
        let kept: Vec<&str> = kept.chain(routers.iter().map(String::as_str)).collect();
        json!({
            "quant_method": METHOD, "load_in_4bit": true, "load_in_8bit": false,
            "bnb_4bit_quant_type": self.kind, "bnb_4bit_use_double_quant": self.double,
            "bnb_4bit_compute_dtype": VALUES, "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": kept, "llm_int8_threshold": 6.0, "llm_int8_has_fp16_weight": false,
            "llm_int8_enable_fp32_cpu_offload": false
        })
    }
}

/// What is stored of scales that are quantized again.
struct NestedScales {
    /// The table's index of each scale.
    codes: Vec<u8>,
    /// One number for each [`NESTED_GROUPS`] of them.
    coarse: Vec<f32>,
    offset: f32,
}

impl NestedScales {
    fn of(parts: &ScaleParts) -> Self {
        let (rows, groups) = parts.fine.dim();
        let place = |fine: &f32| nested::TABLE.partition_point(|number| number < fine) as u8;
        let firsts = (0..rows * groups).step_by(NESTED_GROUPS);
        Self {
            codes: parts.fine.iter().map(place).collect(),
            coarse: firsts.map(|flat| parts.coarse[[flat / groups, flat % groups]]).collect(),
            offset: parts.coarse[[0, groups]],
        }
    }
}
