//! The registry of formats, and what a format has to say.
//!
//! Writing and reading are two traits: a [`TargetFormat`] lays out and encodes solutions; what it wrote, or what another program wrote in
//! the same format, is opened from config.json as a [`StoredFormat`], which decodes.

mod awq;
mod bitsandbytes;
mod compressed_tensors;
mod floats;
mod fp8;
mod gguf;
mod gptq;
mod gptq_v2;
mod loaders;
mod mlx;
mod mxfp4;
mod onnx;
mod packed_parts;
mod parallel;
mod safetensors;
mod settings;
pub mod usage;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use kernels::PackedMatrix;
use model::Model;
use model::linear::Linear;
use ndarray::Array2;
use quantizer::levels::Levels;
use quantizer::scheme::{Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use serde_json::Value;

use crate::checkpoint::{Checkpoint, Dtype};
use crate::container::{TensorData, TensorSpec};
use crate::error::FormatsError;
use crate::model_writer::{Contents, ModelWriter};
use crate::stacks::Stacks;

pub(crate) use gguf::Stored as StoredGguf;
pub use loaders::{Experts, LoaderRule, LoaderVerdict};
pub use parallel::shard;

/// Why transformers 5 loads no packed experts but compressed-tensors', which it unpacks.
const ONE_TENSOR: &str = "holds all experts of a layer in one tensor, and looks for no packed ones";

/// Every format that is known.
pub static ALL: &[&dyn TargetFormat] = &[
    &gptq::GPTQ,
    &gptq_v2::GPTQ_V2,
    &awq::Awq,
    &compressed_tensors::PLAIN,
    &compressed_tensors::INT8,
    &compressed_tensors::W8A8_INT8,
    &compressed_tensors::W8A8_FP8,
    &compressed_tensors::FP8,
    &compressed_tensors::MXFP4,
    &compressed_tensors::NVFP4,
    &mlx::AFFINE,
    &mlx::MXFP4,
    &mlx::MXFP8,
    &mlx::NVFP4,
    &onnx::Onnx,
    &bitsandbytes::NF4,
    &bitsandbytes::NF4_DOUBLE,
    &bitsandbytes::FP4,
    &bitsandbytes::FP4_DOUBLE,
    &gguf::TYPES[0],
    &gguf::TYPES[1],
    &gguf::TYPES[2],
    &gguf::TYPES[3],
    &gguf::TYPES[4],
    &gguf::TYPES[5],
    &gguf::TYPES[6],
    &gguf::TYPES[7],
    &gguf::TYPES[8],
    &gguf::TYPES[9],
    &gguf::TYPES[10],
    &gguf::TYPES[11],
    &gguf::TYPES[12],
    &gguf::TYPES[13],
    &gguf::TYPES[14],
    &gguf::TYPES[15],
    &gguf::TYPES[16],
    &gguf::TYPES[17],
];

type Opened = Option<Result<Box<dyn StoredFormat>, FormatsError>>;

/// Formats of other programs that are read and not written, each by what [`TargetFormat::open`] would be.
static ONLY_READ: [fn(&Value) -> Opened; 3] = [fp8::open, bitsandbytes::open_int8, mxfp4::open];

/// One linear of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedLinear {
    /// The linear.
    pub linear: Linear,
    /// Linears with the same number share an input; runtimes fuse them.
    pub fused_group: usize,
    /// Its grid; none: it stays in 16 bit.
    pub scheme: Option<Scheme>,
}

/// A format that is written.
pub trait TargetFormat: Sync {
    /// Its name on the command line.
    fn id(&self) -> &'static str;

    /// What it is for, in one line.
    fn summary(&self) -> &'static str;

    /// The scales it can store for a model that runs in `runtime`.
    fn scale_dtype(&self, runtime: Dtype) -> ScaleDtype;

    /// The grid of a linear in a model of `layers` layers, where the recipe asks for `asked`: a format that leaves no choice has its own.
    fn grid(&self, _linear: &Linear, _layers: usize, asked: Scheme) -> Scheme {
        asked
    }

    /// Whether [`TargetFormat::grid`] leaves no choice.
    fn fixes_grid(&self) -> bool {
        false
    }

    /// Whether it stores codes; otherwise every linear is a tensor among others.
    fn quantizes(&self) -> bool {
        true
    }

    /// The grid of the embedding or of a head that is not tied to it, where the recipe would have `asked`; or why the format's runtimes take
    /// that matrix in 16 bit alone. A `tied` embedding is the head as well.
    ///
    /// # Errors
    /// The reason.
    fn outer_grid(&self, _linear: &Linear, _tied: bool, _asked: Scheme) -> Result<Scheme, &'static str> {
        Err("embedding and head are in 16 bit there")
    }

    /// Changes the schemes of a plan to what the format can hold, or says why it cannot; returns a note for each change.
    ///
    /// # Errors
    /// A scheme that the format cannot hold.
    fn settle(&self, plan: &mut [PlannedLinear]) -> Result<Vec<String>, FormatsError>;

    /// What the runtimes demand of a checkpoint in this format.
    fn loaders(&self) -> &'static [LoaderRule];

    /// Widths of a code that it can hold side by side in one checkpoint; none: all linears have one width.
    fn mixed_widths(&self) -> &'static [u8] {
        &[]
    }

    /// The tensors of one quantized linear.
    fn layout(&self, linear: &Linear, scheme: Scheme) -> Vec<TensorSpec>;

    /// The bytes of those tensors.
    fn encode(&self, linear: &Linear, tensor: &QuantizedTensor) -> Vec<TensorData>;

    /// Fails where [`TargetFormat::begin`] would, for a look before hours of work; returns what has to be said about the output.
    ///
    /// # Errors
    /// A model, tokenizer or tensor that the format has no place for.
    fn check(&self, _contents: &Contents<'_>) -> Result<Vec<String>, FormatsError> {
        Ok(Vec::new())
    }

    /// Changes the types of tensors that are not quantized to those in which they are written, and takes out those that have no place in the
    /// format and are not missed there; returns their names.
    ///
    /// # Errors
    /// A tensor that the format has no place for and that cannot be left out.
    fn settle_carried(
        &self,
        _model: &Model,
        _carried: &mut Vec<TensorSpec>,
    ) -> Result<Vec<String>, FormatsError> {
        Ok(Vec::new())
    }

    /// Begins an output in `directory`.
    ///
    /// # Errors
    /// The system's, and what [`TargetFormat::check`] finds.
    fn begin(
        &'static self,
        directory: &Path,
        contents: &Contents<'_>,
    ) -> Result<Box<dyn ModelWriter>, FormatsError>;

    /// Length of the files of weights with these tensors.
    fn weights_bytes(&self, tensors: &[TensorSpec], max_shard_bytes: Option<u64>) -> u64;

    /// Opens a checkpoint in this format; none where `quantization_config` is another format's.
    ///
    /// # Errors
    /// A configuration of this format that cannot be read.
    fn open(&self, config: &Value) -> Option<Result<Box<dyn StoredFormat>, FormatsError>>;
}

/// A format as a checkpoint stores it.
pub trait StoredFormat: Send + Sync + std::fmt::Debug {
    /// Id of the format.
    fn id(&self) -> &'static str;

    /// The grid that the configuration gives a linear; none: not quantized. Scales are what was read, so their type is f32.
    fn scheme(&self, linear: &Linear) -> Option<Scheme>;

    /// Whether runtimes round inputs too, which nobody does here.
    fn rounds_inputs(&self) -> bool {
        false
    }

    /// The tensors that a linear must have.
    fn tensors(&self, linear: &Linear, scheme: Scheme) -> Vec<String>;

    /// Tensors in which experts' lie stacked, see [`Checkpoint::split`].
    fn stacks(&self, _model: &Model) -> Stacks {
        Stacks::new()
    }

    /// Codes, scales and zero points.
    ///
    /// # Errors
    /// A tensor that is missing, of another type or shape, or holds what the scheme cannot.
    fn decode(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<QuantizedTensor, FormatsError>;

    /// The values, `[out_features, in_features]`: of grids too that no solution has, as groups of columns that lie apart.
    ///
    /// # Errors
    /// As [`StoredFormat::decode`].
    fn values(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<Array2<f32>, FormatsError> {
        Ok(self.decode(linear, scheme, checkpoint)?.dequantize())
    }

    /// The values of some rows, `[rows.len(), in_features]`; none where they cannot be read without the others.
    ///
    /// # Errors
    /// As [`StoredFormat::decode`].
    fn rows(
        &self,
        _linear: &Linear,
        _scheme: Scheme,
        _checkpoint: &Checkpoint,
        _rows: Range<usize>,
    ) -> Result<Option<Array2<f32>>, FormatsError> {
        Ok(None)
    }

    /// The words as they are, ready to multiply with; none where the kernels have no such grid.
    ///
    /// # Errors
    /// As [`StoredFormat::decode`].
    fn packed(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<Option<PackedMatrix>, FormatsError>;
}

/// Where config.json says how a model is quantized, the key that counts first.
pub const DESCRIPTIONS: [&str; 2] = ["quantization", "quantization_config"];

/// What config.json says about quantization, if anything; where two keys do, the one that counts.
#[must_use]
pub fn description(config: &Value) -> Option<&Value> {
    DESCRIPTIONS.into_iter().find_map(|key| config.get(key).filter(|value| !value.is_null()))
}

/// Opens the format that config.json describes by [`description`].
///
/// # Errors
/// A format that is not known, or a configuration that cannot be read.
pub fn open(config: &Value) -> Result<Box<dyn StoredFormat>, FormatsError> {
    let written = ALL.iter().find_map(|format| format.open(config));
    written.or_else(|| ONLY_READ.iter().find_map(|open| open(config))).unwrap_or_else(|| {
        let method = config.get("quant_method").map_or_else(|| "nothing".to_owned(), Value::to_string);
        let known: Vec<_> = ALL.iter().map(|format| format.id()).collect();
        let problem =
            format!("`quantization_config` names the method {method}, known are {}", known.join(", "));
        Err(FormatsError::malformed("config.json".as_ref(), problem))
    })
}

/// For formats of uniform codes, one number a scale and whole zero points.
fn demand_whole_codes(format: &'static str, plan: &[PlannedLinear]) -> Result<(), FormatsError> {
    let holds = |scheme: &Scheme| {
        scheme.levels == Levels::Uniform
            && scheme.symmetry != Symmetry::Minimum
            && !scheme.scale_dtype.is_product()
            && scheme.scale_dtype != ScaleDtype::E8m0
    };
    match plan.iter().find(|planned| planned.scheme.is_some_and(|scheme| !holds(&scheme))) {
        None => Ok(()),
        Some(planned) => Err(FormatsError::Unsupported {
            format,
            linear: planned.linear.name.clone(),
            problem: "its grid is not of equal steps with whole zero points".to_owned(),
            remedy: "choose a format that has such grids",
        }),
    }
}

/// For formats of one grid, whose groups have so many columns where not whole rows share a scale.
fn demand_own_grid(
    format: &'static str,
    plan: &[PlannedLinear],
    holds: impl Fn(Scheme) -> bool,
    columns: Option<usize>,
) -> Result<(), FormatsError> {
    for planned in plan {
        let (linear, Some(scheme)) = (&planned.linear, planned.scheme) else { continue };
        let refuse = |problem: String, remedy| {
            Err(FormatsError::Unsupported { format, linear: linear.name.clone(), problem, remedy })
        };
        if !holds(scheme) {
            return refuse("its grid is another than the format's".to_owned(), "choose another format");
        }
        if let Some(columns) = columns.filter(|&columns| !linear.in_features.is_multiple_of(columns)) {
            let problem = format!("{columns} does not divide its {} input features", linear.in_features);
            return refuse(problem, "leave it in 16 bit with --exclude, or choose another format");
        }
    }
    Ok(())
}

/// The scheme of most linears; of two that are as common the one that comes first.
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

/// A group size as most configurations spell it: -1 for whole rows.
fn group_size(scheme: Scheme) -> i64 {
    match scheme.granularity {
        Granularity::PerGroup(size) => size.get() as i64,
        Granularity::PerChannel | Granularity::PerTensor => -1,
    }
}

/// Linears that a runtime fuses must be quantized alike.
fn demand_fused_alike(format: &'static str, plan: &[PlannedLinear]) -> Result<(), FormatsError> {
    for pair in plan.windows(2) {
        let [first, second] = pair else { continue };
        if first.fused_group == second.fused_group && first.scheme != second.scheme {
            let problem = format!(
                "runtimes fuse it with `{}`, so both need the same scheme or none",
                first.linear.name
            );
            return Err(FormatsError::Unsupported {
                format,
                linear: second.linear.name.clone(),
                problem,
                remedy: "treat all linears of a fused group alike: q, k and v; gate and up",
            });
        }
    }
    Ok(())
}

/// The largest size that divides every width, of `columns`, `columns / 2`, `columns / 4`, ... and the powers of two below: the sizes that
/// runtimes have kernels for.
fn dividing_group(columns: usize, widths: impl Iterator<Item = usize> + Clone) -> Option<GroupSize> {
    let halves = std::iter::successors(Some(columns), |size| size.is_multiple_of(2).then_some(size / 2));
    let powers = (4..=10).map(|power| 1 << power).filter(|&size| size < columns);
    halves
        .chain(powers)
        .filter(|&size| widths.clone().all(|width| width.is_multiple_of(size)))
        .filter_map(|size| GroupSize::new(size).ok())
        .max()
}

/// [`lower_groups`] for each set of linears that share an input; returns a note for each kind of change.
fn lower_groups_by_stage(
    format: &'static str,
    plan: &mut [PlannedLinear],
) -> Result<Vec<String>, FormatsError> {
    let mut notes: BTreeMap<String, usize> = BTreeMap::new();
    for stage in plan.chunk_by_mut(|first, second| first.fused_group == second.fused_group) {
        if let Some(note) = lower_groups(format, stage.iter_mut())? {
            *notes.entry(note).or_default() += 1;
        }
    }
    let told = |(note, count)| if count > 1 { format!("{note} ({count} times)") } else { note };
    Ok(notes.into_iter().map(told).collect())
}

/// Lowers group sizes to one for each set of linears, so that it divides the width of all of them. Returns a note for each change.
fn lower_groups<'a>(
    format: &'static str,
    linears: impl Iterator<Item = &'a mut PlannedLinear>,
) -> Result<Option<String>, FormatsError> {
    let mut linears: Vec<&mut PlannedLinear> = linears.filter(|planned| planned.scheme.is_some()).collect();
    let asked = linears.iter().filter_map(|planned| match planned.scheme?.granularity {
        Granularity::PerGroup(size) => Some(size.get()),
        _ => None,
    });
    let sizes: Vec<usize> = asked.collect();
    let (Some(&least), Some(&most)) = (sizes.iter().min(), sizes.iter().max()) else { return Ok(None) };
    let first = linears[0].linear.clone();
    if sizes.len() < linears.len() {
        let problem = "groups and whole rows cannot be mixed here".to_owned();
        let remedy = "give all linears a group size, or none";
        return Err(FormatsError::Unsupported { format, linear: first.name, problem, remedy });
    }
    let widths: Vec<usize> = linears.iter().map(|planned| planned.linear.in_features).collect();
    let Some(size) = dividing_group(least, widths.iter().copied()) else {
        let misfit = linears
            .iter()
            .find(|planned| dividing_group(least, std::iter::once(planned.linear.in_features)).is_none());
        let linear = misfit.map_or(&first, |planned| &planned.linear);
        let problem = format!(
            "no group size from {least} down to 16 divides its {} input features; whole rows (`channel`) always fit",
            linear.in_features
        );
        let remedy = "use --group-size channel, or leave the linear in 16 bit with --exclude";
        return Err(FormatsError::Unsupported { format, linear: linear.name.clone(), problem, remedy });
    };
    for planned in &mut linears {
        if let Some(scheme) = &mut planned.scheme {
            scheme.granularity = Granularity::PerGroup(size);
        }
    }
    let size = size.get();
    Ok((size != most).then(|| {
        let misfit = widths.iter().find(|width| !width.is_multiple_of(most));
        let reason = misfit.map_or_else(
            || "all of them share one".to_owned(),
            |width| format!("{most} does not divide {width} input features"),
        );
        format!("group size lowered from {most} to {size} for {} linears: {reason}", linears.len())
    }))
}
