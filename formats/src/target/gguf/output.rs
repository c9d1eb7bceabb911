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
use crate::gguf::rows::{self, RowOrder};
use crate::gguf::{GgufSpec, GgufWriter, TensorType, Values, hyperparameters};
use crate::model_writer::{Contents, ModelWriter};
use crate::side_files;
use crate::stacks::Stacks;

struct Output {
    format: &'static Gguf,
    source: PathBuf,
    path: PathBuf,
    writer: GgufWriter,
    /// By the checkpoint's names.
    tensors: BTreeMap<String, Placed>,
}

/// A tensor and what is needed to arrange it.
#[derive(Clone)]
struct Placed {
    named: Named,
    /// Rows in the checkpoint, of what is packed those of the linear.
    rows: usize,
    /// Bytes of a number; 0 where it is packed.
    width: usize,
}

impl Placed {
    /// What it is put by.
    fn name(&self) -> &str {
        if self.named.expert.is_some() { &self.named.original } else { &self.named.name }
    }
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
    let divisors = hyperparameters::divisors(contents.model);
    let mut specs: Vec<GgufSpec> = Vec::new();
    for (name, numbers) in &divisors {
        let (name, shape) = ((*name).to_owned(), vec![numbers.len()]);
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
        let width = if tensor_type.weights == 1 { tensor_type.bytes as usize } else { 0 };
        if named.is_transposed && width > 0 {
            shape.reverse();
        }
        let members = named.expert.map(|_| stacks.entry(named.name.clone()).or_default());
        if members.as_ref().is_none_or(|members| members.is_empty()) {
            specs.push(GgufSpec { name: named.name.clone(), tensor_type, shape });
        }
        if let Some(members) = members {
            members.push(named.original.clone());
        }
        tensors.insert(named.original.clone(), Placed { named, rows, width });
    }
    for spec in &mut specs {
        if let Some(members) = stacks.get(&spec.name) {
            spec.shape.insert(0, members.len());
        }
    }
    let mut writer = GgufWriter::create_stacked(path, values, &specs, &stacks, contents.max_shard_bytes)?;
    for (name, numbers) in divisors {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        writer.put(name, &bytes)?;
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

impl Output {
    fn placed(&self, tensor: &str) -> Result<Placed, FormatsError> {
        self.tensors.get(tensor).cloned().ok_or_else(|| not_announced(&self.path, tensor))
    }

    fn write(&mut self, placed: &Placed, bytes: &[u8]) -> Result<(), FormatsError> {
        match placed.named.order {
            RowOrder::Same => self.writer.put(placed.name(), bytes),
            order => self.writer.put(placed.name(), &order.arrange(bytes, placed.rows)),
        }
    }
}

impl ModelWriter for Output {
    fn held(&self, tensor: TensorData) -> TensorData {
        match self.tensors.get(&tensor.name) {
            Some(placed) if placed.named.adds_one => {
                TensorData { bytes: rows::one_less(&rows::one_more(&tensor.bytes)), ..tensor }
            }
            _ => tensor,
        }
    }

    fn carry(&mut self, tensor: &TensorData) -> Result<(), FormatsError> {
        let placed = self.placed(&tensor.name)?;
        if placed.named.adds_one {
            return self.write(&placed, &rows::one_more(&tensor.bytes));
        }
        if placed.named.is_transposed {
            return self.write(&placed, &rows::transposed(&tensor.bytes, placed.rows, placed.width));
        }
        self.write(&placed, &tensor.bytes)
    }

    fn put(&mut self, linear: &Linear, tensor: &QuantizedTensor) -> Result<(), FormatsError> {
        for tensor in self.format.encode(linear, tensor) {
            let placed = self.placed(&tensor.name)?;
            self.write(&placed, &tensor.bytes)?;
        }
        Ok(())
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
