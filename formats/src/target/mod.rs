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
mod grids;
mod loaders;
mod mlx;
mod mxfp4;
mod onnx;
mod packed_parts;
mod parallel;
mod registry;
mod safetensors;
mod settings;
pub mod usage;

use std::ops::Range;
use std::path::Path;

use kernels::PackedMatrix;
use model::Model;
use model::linear::Linear;
use ndarray::Array2;
use quantizer::inputs::InputRounding;
use quantizer::scheme::{ScaleDtype, Scheme};
use quantizer::tensor::QuantizedTensor;

use crate::checkpoint::{Checkpoint, Dtype};
use crate::container::{TensorData, TensorSpec};
use crate::error::FormatsError;
use crate::model_writer::{Contents, ModelWriter};
use crate::stacks::Stacks;

pub(crate) use gguf::Stored as StoredGguf;
pub use loaders::{Experts, LoaderRule, LoaderVerdict};
pub use parallel::shard;
pub use registry::{DESCRIPTIONS, alike, all, description, find, open};

/// Why transformers 5 loads no packed experts but compressed-tensors', which it unpacks.
const ONE_TENSOR: &str = "holds all experts of a layer in one tensor, and looks for no packed ones";

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
}

/// A format as a checkpoint stores it.
pub trait StoredFormat: Send + Sync + std::fmt::Debug {
    /// Id of the format.
    fn id(&self) -> &'static str;

    /// The grid that the configuration gives a linear; none: not quantized. Scales are what was read, so their type is f32.
    fn scheme(&self, linear: &Linear) -> Option<Scheme>;

    /// Whether runtimes round inputs too.
    fn rounds_inputs(&self) -> bool {
        false
    }

    /// How they round those of a linear, as far as anybody follows it here.
    ///
    /// # Errors
    /// A scale that is missing, or is none.
    fn input_rounding(
        &self,
        _linear: &Linear,
        _scheme: Scheme,
        _checkpoint: &Checkpoint,
    ) -> Result<Option<InputRounding>, FormatsError> {
        Ok(None)
    }

    /// What they do with inputs that nobody follows here, in words; none where there is nothing of the kind.
    fn unrounded_inputs(&self) -> Option<String> {
        None
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
