//! Initializers of an ONNX graph under their names: those in the file beside it.

use std::path::Path;

use prost::Message;

use super::header::{Entry, Order};
use super::{Checkpoint, Dtype};
use crate::error::FormatsError;
use crate::files;
use crate::onnx::graph::DATA_FILE;
use crate::onnx::proto::{EXTERNAL, ModelProto, TensorProto, data_type};

/// The graph's file.
pub(crate) const ONNX_GRAPH: &str = "model.onnx";
/// Largest graph, bytes: weights lie outside, and a decoder's nodes are a few hundred kilobytes.
const MOST_GRAPH: u64 = 16 << 20;
/// Tables that a graph has beside the model's tensors.
const MADE: [&str; 2] = ["cos_cache", "sin_cache"];

impl Checkpoint {
    /// Opens the graph of a directory and the file of weights beside it.
    pub(super) fn open_onnx(directory: &Path) -> Result<Self, FormatsError> {
        let path = directory.join(ONNX_GRAPH);
        let bytes = files::read_small(directory, ONNX_GRAPH, MOST_GRAPH)?;
        let model = ModelProto::decode(bytes.as_slice())
            .map_err(|e| FormatsError::malformed(&path, format!("is no ONNX graph: {e}")))?;
        let graph = model.graph.ok_or_else(|| FormatsError::malformed(&path, "has no graph".to_owned()))?;
        let (data, file) = files::open(directory, DATA_FILE)?;
        let length = file.metadata().map_err(FormatsError::io(&data))?.len();
        let mut checkpoint = Self::empty(directory);
        for tensor in &graph.initializer {
            if tensor.data_location != EXTERNAL || MADE.contains(&tensor.name.as_str()) {
                continue;
            }
            let entry = entry(tensor, length)
                .map_err(|problem| FormatsError::tensor(&path, &tensor.name, problem))?;
            if checkpoint.tensors.insert(tensor.name.clone(), (0, entry)).is_some() {
                return Err(FormatsError::tensor(&path, &tensor.name, "is there twice"));
            }
        }
        checkpoint.files.push((data, file));
        Ok(checkpoint)
    }
}

/// Where an initializer lies in a file of `length` bytes.
fn entry(tensor: &TensorProto, length: u64) -> Result<Entry, String> {
    let find = |key: &str| {
        let found = tensor.external_data.iter().find(|entry| entry.key == key);
        found.map(|entry| entry.value.as_str())
    };
    let location = find("location").unwrap_or_default();
    if location != DATA_FILE {
        return Err(format!("lies in `{location}`, expected `{DATA_FILE}`"));
    }
    let number = |key: &str| find(key).map_or(Some(0), |text| text.parse::<u64>().ok());
    let (offset, bytes) = number("offset").zip(number("length")).ok_or("has no usable place")?;
    let dtype = match tensor.data_type {
        data_type::FLOAT => Dtype::F32,
        data_type::FLOAT16 => Dtype::F16,
        data_type::BFLOAT16 => Dtype::Bf16,
        data_type::UINT8 => Dtype::U8,
        other => return Err(format!("is of type {other}, which is not read")),
    };
    let shape: Option<Vec<usize>> = tensor.dims.iter().map(|&extent| usize::try_from(extent).ok()).collect();
    let shape = shape.ok_or("has a negative extent")?;
    let elements = shape.iter().try_fold(1_usize, |all, &extent| all.checked_mul(extent));
    let expected = elements.and_then(|elements| elements.checked_mul(dtype.bytes()));
    if expected.map(|expected| expected as u64) != Some(bytes) {
        return Err(format!("of shape {shape:?} has {bytes} bytes"));
    }
    if offset.checked_add(bytes).is_none_or(|end| end > length) {
        return Err(format!("ends behind the {length} bytes of `{DATA_FILE}`"));
    }
    Ok(Entry { dtype, shape, offset, bytes, order: Order::Rows })
}
