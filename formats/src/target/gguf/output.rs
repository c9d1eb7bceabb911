//! A file on its way to disk: the checkpoint's tensors under llama.cpp's names, rows in its order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model::linear::Linear;
use quantizer::tensor::QuantizedTensor;

use super::super::TargetFormat;
use super::{Gguf, packed_as};
use crate::checkpoint::Dtype;
use crate::container::TensorData;
use crate::error::FormatsError;
use crate::gguf::names::{self, Named};
use crate::gguf::{GgufSpec, GgufWriter, TensorType, Values, hyperparameters};
use crate::model_writer::{Contents, ModelWriter};
use crate::side_files;
use crate::stacks::Stacks;

struct Output {
    format: &'static Gguf,
    source: PathBuf,
    path: PathBuf,
    writer: GgufWriter,
    /// By the checkpoint's names, with their rows.
    tensors: BTreeMap<String, (Named, usize)>,
}

/// Begins a file at `path`.
pub(super) fn begin(
    format: &'static Gguf,
    path: &Path,
    values: &Values,
    contents: &Contents<'_>,
) -> Result<Box<dyn ModelWriter>, FormatsError> {
    let packed = contents.linears.iter().filter_map(|planned| {
        let (linear, layout) = (&planned.linear, packed_as(planned.scheme?)?);
        Some((linear.weight_name(), (layout.tensor_type, vec![linear.out_features, linear.in_features])))
    });
    let carried = contents
        .carried
        .iter()
        .filter_map(|spec| Some((spec.name.clone(), (dense_type(spec.dtype)?, spec.shape.clone()))));
    let mut shapes: BTreeMap<String, (TensorType, Vec<usize>)> = packed.chain(carried).collect();
    let factors = hyperparameters::rope_factors(&contents.model.hyperparameters.rope);
    let mut specs: Vec<GgufSpec> = Vec::new();
    if let Some(factors) = &factors {
        let (name, shape) = (names::ROPE_FACTORS.to_owned(), vec![factors.len()]);
        specs.push(GgufSpec { name, tensor_type: TensorType::F32, shape });
    }
    let mut tensors = BTreeMap::new();
    let mut stacks = Stacks::new();
    for named in names::tensors(contents.model) {
        let (tensor_type, mut shape) =
            shapes.remove(&named.original).ok_or_else(|| not_announced(path, &named.original))?;
        let rows = shape.first().copied().unwrap_or_default();
        if named.is_row {
            shape.remove(0);
        }
        let members = named.expert.map(|_| stacks.entry(named.name.clone()).or_default());
        if members.as_ref().is_none_or(|members| members.is_empty()) {
            specs.push(GgufSpec { name: named.name.clone(), tensor_type, shape });
        }
        if let Some(members) = members {
            members.push(named.original.clone());
        }
        tensors.insert(named.original.clone(), (named, rows));
    }
    for spec in &mut specs {
        if let Some(members) = stacks.get(&spec.name) {
            spec.shape.insert(0, members.len());
        }
    }
    let mut writer = GgufWriter::create_stacked(path, values, &specs, &stacks)?;
    if let Some(factors) = factors {
        let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
        writer.put(names::ROPE_FACTORS, &bytes)?;
    }
    let (source, path) = (contents.source.to_owned(), path.to_owned());
    Ok(Box::new(Output { format, source, path, writer, tensors }))
}

/// A type that is not quantized; none for what no model computes in.
fn dense_type(dtype: Dtype) -> Option<TensorType> {
    match dtype {
        Dtype::F32 => Some(TensorType::F32),
        Dtype::F16 => Some(TensorType::F16),
        Dtype::Bf16 => Some(TensorType::BF16),
        _ => None,
    }
}

fn not_announced(path: &Path, tensor: &str) -> FormatsError {
    let problem = "was not announced".to_owned();
    FormatsError::Writer { path: path.to_owned(), tensor: tensor.to_owned(), problem }
}

impl ModelWriter for Output {
    fn carry(&mut self, tensor: &TensorData) -> Result<(), FormatsError> {
        let found = self.tensors.get(&tensor.name);
        let (named, rows) = found.ok_or_else(|| not_announced(&self.path, &tensor.name))?;
        match named.heads {
            None if named.expert.is_some() => self.writer.put(&named.original, &tensor.bytes),
            None => self.writer.put(&named.name, &tensor.bytes),
            Some(heads) => self.writer.put(&named.name, &names::interleaved(&tensor.bytes, *rows, heads)),
        }
    }

    fn put(&mut self, linear: &Linear, tensor: &QuantizedTensor) -> Result<(), FormatsError> {
        self.format.encode(linear, tensor).iter().try_for_each(|tensor| self.carry(tensor))
    }

    fn tensor_bytes(&self) -> u64 {
        self.writer.tensor_bytes()
    }

    fn finish(self: Box<Self>) -> Result<(), FormatsError> {
        self.writer.finish()?;
        // Not needed to run it, but by people, and to tokenize text for measuring.
        let directory = self.path.parent().unwrap_or(Path::new("."));
        side_files::copy(&self.source, directory).map(|_| ())
    }
}
