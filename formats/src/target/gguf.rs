//! GGUF for llama.cpp and what is built on it: one file with everything a runtime needs, tokenizer and chat template included.
//!
//! Matrices keep 16 bit or take one layout of packed weights, vectors are in single precision. Names are llama.cpp's, rows of query and
//! key projections lie as it rotates heads, a tied head is not repeated.

mod mixtures;
mod output;
mod stored;

use std::collections::BTreeMap;
use std::path::Path;

use model::Model;
use model::linear::{Linear, LinearClass};
use quantizer::scheme::{ScaleDtype, Scheme};
use quantizer::tensor::QuantizedTensor;

use super::registry::{Family, by_files};
use super::{Experts, LoaderRule, PlannedLinear, TargetFormat};
use crate::checkpoint::Dtype;
use crate::container::{TensorData, TensorSpec};
use crate::error::FormatsError;
use crate::gguf::blocks::{self, BlockLayout};
use crate::gguf::names::{self, Named};
use crate::gguf::{Value, Values, hyperparameters, naming, tokenizer};
use crate::model_writer::{Contents, ModelWriter};

pub(crate) use stored::Stored;

/// A type of GGUF files.
pub(super) struct Gguf {
    id: &'static str,
    summary: &'static str,
    /// `general.file_type`.
    file_type: u32,
    matrices: Matrices,
}

/// What linears are stored as.
enum Matrices {
    /// A type that is not quantized; embedding and head have it too.
    Dense(Dtype),
    /// One layout of packed weights.
    Packed(&'static BlockLayout),
    /// A layout for each linear, given the number of layers.
    Mixed(fn(&Linear, usize) -> &'static BlockLayout),
}
use Matrices::{Dense, Mixed, Packed};

/// Ends of names of what older checkpoints store and nobody reads.
const OLDER: [&str; 5] =
    [".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias"];
const FILE_TYPE: &str = "general.file_type";
/// What a file is called whose type is not among those that are written.
const UNKNOWN_TYPE: &str = "gguf";

const WIDTHS: [u8; 6] = [2, 3, 4, 5, 6, 8];
/// Names and order are its own, whatever others make of linears.
const ALL_CLASSES: [LinearClass; 4] =
    [LinearClass::Plain, LinearClass::Own, LinearClass::Transposed, LinearClass::Stacked];
static LOADERS: [LoaderRule; 1] = [LoaderRule {
    runtime: "llama.cpp 0c1e570 (2026-10)",
    symmetric_bits: &WIDTHS,
    asymmetric_bits: &WIDTHS,
    experts: Experts::Stacked,
    linear_classes: &ALL_CLASSES,
    ..LoaderRule::ANY
}];

const fn of(id: &'static str, summary: &'static str, file_type: u32, matrices: Matrices) -> Gguf {
    Gguf { id, summary, file_type, matrices }
}

/// Every type that is written, with its `general.file_type`.
pub(super) static TYPES: &[Gguf] = &[
    of("gguf:f32", "llama.cpp, single precision, nothing quantized", 0, Dense(Dtype::F32)),
    of("gguf:f16", "llama.cpp, half precision, nothing quantized", 1, Dense(Dtype::F16)),
    of("gguf:bf16", "llama.cpp, bfloat16, nothing quantized", 32, Dense(Dtype::Bf16)),
    of("gguf:q8_0", "llama.cpp, 8 bit in groups of 32", 7, Packed(&blocks::Q8_0)),
    of("gguf:q6_k", "llama.cpp, 6 bit in groups of 16, scales of 8 bit", 18, Packed(&blocks::Q6_K)),
    of("gguf:q5_k_m", "llama.cpp's mixture of 5 and 6 bit", 17, Mixed(mixtures::q5_k_m)),
    of(
        "gguf:q5_k_s",
        "llama.cpp, 5 bit in groups of 32, scales and minimums of 6 bit",
        16,
        Packed(&blocks::Q5_K),
    ),
    of("gguf:q5_1", "llama.cpp, 5 bit in groups of 32 with minimums", 9, Packed(&blocks::Q5_1)),
    of("gguf:q5_0", "llama.cpp, 5 bit in groups of 32", 8, Packed(&blocks::Q5_0)),
    of("gguf:q4_k_m", "llama.cpp's mixture of 4 and 6 bit", 15, Mixed(mixtures::q4_k_m)),
    of("gguf:q4_k_s", "llama.cpp's mixture of 4 and a little 5 bit", 14, Mixed(mixtures::q4_k_s)),
    of("gguf:q4_1", "llama.cpp, 4 bit in groups of 32 with minimums", 3, Packed(&blocks::Q4_1)),
    of("gguf:q4_0", "llama.cpp, 4 bit in groups of 32", 2, Packed(&blocks::Q4_0)),
    of("gguf:iq4_nl", "llama.cpp, 4 bit on uneven levels in groups of 32", 25, Packed(&blocks::IQ4_NL)),
    of("gguf:iq4_xs", "llama.cpp, 4 bit on uneven levels, scales of 6 bit", 30, Packed(&blocks::IQ4_XS)),
    of(
        "gguf:mxfp4",
        "llama.cpp, 4-bit floats in groups of 32, scales powers of two",
        38,
        Packed(&blocks::MXFP4),
    ),
    of("gguf:q3_k_l", "llama.cpp's mixture of 3 and 5 bit", 13, Mixed(mixtures::q3_k_l)),
    of("gguf:q3_k_m", "llama.cpp's mixture of 3, 4 and 5 bit", 12, Mixed(mixtures::q3_k_m)),
    of("gguf:q3_k_s", "llama.cpp, 3 bit in groups of 16, scales of 6 bit", 11, Packed(&blocks::Q3_K)),
    of("gguf:q2_k", "llama.cpp's mixture of 2 and 3 bit", 10, Mixed(mixtures::q2_k)),
    of("gguf:q2_k_s", "llama.cpp's mixture of 2 and a little 4 bit", 21, Mixed(mixtures::q2_k_s)),
];

/// Every type; a file says itself that it is one, without config.json.
pub(super) static FAMILY: Family =
    Family { written: || TYPES.iter().map(|known| known as &dyn TargetFormat).collect(), open: by_files };

impl Gguf {
    /// The layout of a linear in a model of `layers` layers; none where it stays dense, or where its rows fit none.
    fn layout_of(&self, linear: &Linear, layers: usize) -> Option<&'static BlockLayout> {
        self.meant_for(linear, layers)?.for_rows(linear.in_features)
    }

    /// The same for rows of any width.
    fn meant_for(&self, linear: &Linear, layers: usize) -> Option<&'static BlockLayout> {
        match self.matrices {
            Dense(_) => None,
            Packed(layout) => Some(layout),
            Mixed(choose) => Some(choose(linear, layers)),
        }
    }

    /// Says which layouts others took the place of.
    fn replaced(&self, contents: &Contents<'_>) -> Vec<String> {
        let layers = contents.model.layers.len();
        let mut counts: BTreeMap<(&str, &str, usize), usize> = BTreeMap::new();
        let quantized = |planned: &&PlannedLinear| planned.scheme.is_some() && !planned.linear.is_outer();
        for PlannedLinear { linear, .. } in contents.linears.iter().filter(quantized) {
            let pair = self.meant_for(linear, layers).zip(self.layout_of(linear, layers));
            let names = pair.map(|(meant, found)| (meant.tensor_type.name, found.tensor_type.name));
            if let Some((meant, found)) = names.filter(|(meant, found)| meant != found) {
                *counts.entry((meant, found, linear.in_features)).or_default() += 1;
            }
        }
        let note = |((meant, found, features), count)| {
            format!(
                "{found} in place of {meant} for {count} linears, whose {features} input features are no multiple of 256"
            )
        };
        counts.into_iter().map(note).collect()
    }

    fn values(&self, contents: &Contents<'_>, notes: &mut Vec<String>) -> Result<Values, FormatsError> {
        let path = contents.source.join("config.json");
        let mut values = hyperparameters::values(contents.model, notes)
            .map_err(|problem| FormatsError::malformed(&path, problem))?;
        let vocabulary = contents.model.hyperparameters.vocabulary;
        values.extend(tokenizer::values(contents.source, contents.config, vocabulary, notes)?);
        let name = contents.source.canonicalize().ok();
        let name = name.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        let name = naming::name(name.as_deref().unwrap_or("model"), &values);
        let mut put = |key: &str, value: Value| values.insert(key.to_owned(), value);
        put("general.name", Value::Text(name));
        put(FILE_TYPE, Value::U32(self.file_type));
        put("general.quantization_version", Value::U32(2));
        Ok(values)
    }
}

impl TargetFormat for Gguf {
    fn id(&self) -> &'static str {
        self.id
    }

    fn summary(&self) -> &'static str {
        self.summary
    }

    fn scale_dtype(&self, _runtime: Dtype) -> ScaleDtype {
        // llama.cpp widens scales from half whatever the model's type is.
        ScaleDtype::F16
    }

    fn quantizes(&self) -> bool {
        !matches!(self.matrices, Dense(_))
    }

    fn fixes_grid(&self) -> bool {
        true
    }

    fn grid(&self, linear: &Linear, layers: usize, asked: Scheme) -> Scheme {
        self.layout_of(linear, layers).map_or(asked, BlockLayout::scheme)
    }

    fn outer_grid(&self, linear: &Linear, _tied: bool, asked: Scheme) -> Result<Scheme, &'static str> {
        if !self.quantizes() {
            return Err("nothing is quantized there");
        }
        let layout = match asked.bits.get() {
            8 => &blocks::Q8_0,
            6 => &blocks::Q6_K,
            5 => &blocks::Q5_K,
            4 => &blocks::Q4_K,
            _ => return Err("it has 4, 5, 6 and 8 bit for embedding and head"),
        };
        let found = layout.for_rows(linear.in_features);
        found.map(BlockLayout::scheme).ok_or("their rows are no multiple of 32")
    }

    fn settle(&self, plan: &mut [PlannedLinear]) -> Result<Vec<String>, FormatsError> {
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
            if self.quantizes() && packed_as(scheme).is_some() {
                continue;
            }
            if !linear.in_features.is_multiple_of(LEAST_WEIGHTS) {
                let problem =
                    format!("{LEAST_WEIGHTS} does not divide its {} input features", linear.in_features);
                return refuse(problem, "leave the linear in 16 bit with --exclude");
            }
            return refuse(
                "its grid is another than the type's".to_owned(),
                "`quantc list formats` shows what there is",
            );
        }
        Ok(Vec::new())
    }

    fn loaders(&self) -> &'static [LoaderRule] {
        &LOADERS
    }

    fn layout(&self, linear: &Linear, scheme: Scheme) -> Vec<TensorSpec> {
        let row = packed_as(scheme).map_or(0, |layout| layout.row_bytes(linear.in_features));
        vec![TensorSpec {
            name: linear.weight_name(),
            dtype: Dtype::U8,
            shape: vec![linear.out_features, row],
        }]
    }

    fn encode(&self, linear: &Linear, tensor: &QuantizedTensor) -> Vec<TensorData> {
        let bytes = packed_as(tensor.scheme()).map(|layout| layout.encode(tensor)).unwrap_or_default();
        vec![TensorData { name: linear.weight_name(), bytes }]
    }

    fn settle_carried(
        &self,
        model: &Model,
        carried: &mut Vec<TensorSpec>,
    ) -> Result<Vec<String>, FormatsError> {
        let named: BTreeMap<String, Named> =
            names::tensors(model).into_iter().map(|named| (named.original.clone(), named)).collect();
        let mut left_out = Vec::new();
        let mut kept = Vec::new();
        for mut spec in carried.drain(..) {
            match named.get(&spec.name) {
                Some(named) => {
                    spec.dtype = match (named.is_matrix, &self.matrices) {
                        (false, _) => Dtype::F32,
                        (true, Dense(dtype)) => *dtype,
                        (true, Packed(_) | Mixed(_)) => spec.dtype,
                    };
                    kept.push(spec);
                }
                // A tied head that is stored all the same, and what older checkpoints keep of rotation and mask.
                None if spec.name == model.untied_head()
                    || OLDER.iter().any(|end| spec.name.ends_with(end)) =>
                {
                    left_out.push(spec.name);
                }
                None if model.is_beside(&spec.name) => {
                    let part = part_of(&spec.name);
                    if !left_out.contains(&part) {
                        left_out.push(part);
                    }
                }
                None => {
                    return Err(FormatsError::Unsupported {
                        format: self.id,
                        linear: spec.name,
                        problem: "llama.cpp has no tensor like it".to_owned(),
                        remedy: "`--to compressed-tensors` carries tensors that it does not know",
                    });
                }
            }
        }
        *carried = kept;
        Ok(left_out)
    }

    fn check(&self, contents: &Contents<'_>) -> Result<Vec<String>, FormatsError> {
        let mut notes = self.replaced(contents);
        self.values(contents, &mut notes)?;
        Ok(notes)
    }

    fn begin(
        &'static self,
        directory: &Path,
        contents: &Contents<'_>,
    ) -> Result<Box<dyn ModelWriter>, FormatsError> {
        let values = self.values(contents, &mut Vec::new())?;
        let name = self.id.split_once(':').map_or(self.id, |(_, name)| name);
        output::begin(self, &directory.join(format!("model-{name}.gguf")), &values, contents)
    }

    fn weights_bytes(&self, tensors: &[TensorSpec], _max_shard_bytes: Option<u64>) -> u64 {
        tensors.iter().map(TensorSpec::bytes).sum()
    }
}

/// What is said of a tensor beside the decoder: its tower or its layer.
fn part_of(tensor: &str) -> String {
    let mut parts = tensor.split('.');
    let layer =
        parts.by_ref().position(|part| part.parse::<usize>().is_ok()).filter(|_| tensor.contains(".layers."));
    let kept = match layer {
        Some(place) if place < 4 => place + 1,
        _ if tensor.starts_with("model.") => 2,
        _ => 1,
    };
    format!("{}.*", tensor.split('.').take(kept).collect::<Vec<_>>().join("."))
}

/// Weights of the smallest piece.
const LEAST_WEIGHTS: usize = 32;

/// The layout that holds a grid.
fn packed_as(scheme: Scheme) -> Option<&'static BlockLayout> {
    blocks::ALL.into_iter().find(|layout| layout.scheme() == scheme)
}
