//! An output on its way to disk: a format begins it, the driver hands over tensors as they are ready, the format ends it.
//!
//! ```text
//! begin(directory, contents) -> carry(tensor) for each of contents.carried, put(linear, solution) for each quantized linear, in any
//! order -> finish()
//! ```
//!
//! Whatever a format changes on the way, names, types, the order of rows, whole containers, is its own business; the driver speaks the
//! checkpoint's language. Sizes are known before the first byte, so that nothing is held: tensors are written at their places.

use std::path::Path;

use model::Model;
use model::linear::Linear;
use quantizer::tensor::QuantizedTensor;
use serde_json::Value;

use crate::checkpoint::Dtype;
use crate::container::{TensorData, TensorSpec};
use crate::error::FormatsError;
use crate::target::PlannedLinear;

/// What an output will hold.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// The original's directory, for what lies beside its weights.
    pub source: &'a Path,
    /// The original's config.json.
    pub config: &'a Value,
    /// The model as it is written.
    pub model: &'a Model,
    /// Every linear, in forward order.
    pub linears: &'a [PlannedLinear],
    /// Tensors that are not quantized, by the checkpoint's names, in the types in which they are written.
    pub carried: &'a [TensorSpec],
    /// The type that runtimes multiply in.
    pub runtime: Dtype,
    /// Whether a head that was tied gets a tensor of its own.
    pub untied: bool,
    /// Largest file of weights, bytes; none: what the format's readers are used to.
    pub max_shard_bytes: Option<u64>,
}

/// An output that was begun.
pub trait ModelWriter {
    /// What is read again of a tensor that is carried: as it is, unless the output holds numbers of which some lose their last bits.
    fn held(&self, tensor: TensorData) -> TensorData {
        tensor
    }

    /// Writes a tensor of [`Contents::carried`], as the checkpoint has it but for its type.
    ///
    /// # Errors
    /// The system's; a tensor that was not announced, has another length, or comes twice.
    fn carry(&mut self, tensor: &TensorData) -> Result<(), FormatsError>;

    /// Writes a quantized linear.
    ///
    /// # Errors
    /// As [`ModelWriter::carry`].
    fn put(&mut self, linear: &Linear, tensor: &QuantizedTensor) -> Result<(), FormatsError>;

    /// Length of all tensors, bytes.
    fn tensor_bytes(&self) -> u64;

    /// Writes what lies beside the weights, and makes everything durable.
    ///
    /// # Errors
    /// The system's, and a tensor that never came.
    fn finish(self: Box<Self>) -> Result<(), FormatsError>;
}
