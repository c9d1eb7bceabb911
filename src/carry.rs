//! Tensors that are not quantized: copied as they are, or written as transforms leave them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use calibration::transforms::Transformed;
use formats::Dtype;
use formats::container::{TensorData, TensorSpec};
use formats::model_writer::ModelWriter;
use model::linear::Linear;

use crate::error::Error;
use crate::record::bytes_digest;
use crate::stored::StoredModel;

/// Rows of the embedding or the head that are in memory at a time in double precision.
const ROWS: usize = 4096;
/// Numbers that are decoded at a time.
const PIECE: usize = 1 << 20;

/// Puts every tensor of `carried` into the writer; returns the digest of each as written.
pub(crate) fn carry_over(
    source: &StoredModel,
    transformed: Option<&Transformed<'_>>,
    carried: &[TensorSpec],
    writer: &mut dyn ModelWriter,
) -> Result<BTreeMap<String, String>, Error> {
    let mut carrier = Carrier { source, writer, digests: BTreeMap::new() };
    let model = transformed.map_or(&source.model, Transformed::model);
    let expected: BTreeSet<String> = model.expected_tensors().map(|tensor| tensor.name).collect();
    let computed = |name: &String| {
        // No transform touches these.
        let outer_norm = [model.embedding_norm(), model.final_norm()].into_iter().flatten();
        let mut kept: Vec<String> = outer_norm.filter_map(|norm| norm.bias).collect();
        kept.extend(model.embedding_norm().map(|norm| norm.weight));
        kept.extend(model.positions().map(|(name, _)| name));
        kept.extend(model.projections().into_iter().flatten());
        kept.extend(model.head_bias());
        transformed.is_some() && expected.contains(name) && !kept.contains(name)
    };
    for spec in carried {
        if !computed(&spec.name) {
            carrier.copy(spec, expected.contains(&spec.name))?;
        }
    }
    if let Some(transformed) = transformed {
        carrier.outer(transformed, carried)?;
        for layer in &model.layers {
            let tensors = transformed.dense_layer(layer).map_err(Error::from_source)?.tensors(layer);
            for spec in carried {
                if let Some(values) = tensors.get(&spec.name) {
                    carrier.put(spec, encode(source, spec, values)?)?;
                }
            }
        }
    }
    Ok(carrier.digests)
}

struct Carrier<'w> {
    source: &'w StoredModel,
    writer: &'w mut dyn ModelWriter,
    digests: BTreeMap<String, String>,
}

impl Carrier<'_> {
    fn put(&mut self, spec: &TensorSpec, bytes: Vec<u8>) -> Result<(), Error> {
        let tensor = self.writer.held(TensorData { name: spec.name.clone(), bytes });
        self.digests.insert(spec.name.clone(), bytes_digest(&tensor.bytes));
        Ok(self.writer.carry(&tensor)?)
    }

    /// Bytes as they are, or narrowed where the output has a narrower type; numbers that the model computes with must be finite.
    fn copy(&mut self, spec: &TensorSpec, known: bool) -> Result<(), Error> {
        if let Some(linear) = self.source.packed_matrix(&spec.name) {
            return self.unpack(spec, &linear);
        }
        let dtype = self.source.checkpoint.info(&spec.name)?.dtype;
        let bytes = self.source.checkpoint.read(&spec.name)?;
        if !dtype.is_float() {
            return self.put(spec, bytes);
        }
        // In pieces: an embedding as numbers would be twice what it is as bytes.
        let mut written = Vec::new();
        for (number, piece) in bytes.chunks(PIECE * dtype.bytes()).enumerate() {
            let Some(values) = dtype.decode(piece) else { break };
            if known && let Some(place) = values.iter().position(|value| !value.is_finite()) {
                let problem = format!("holds {} at element {}", values[place], number * PIECE + place);
                return Err(tensor_error(self.source, spec, problem));
            }
            if spec.dtype != dtype {
                let Some(narrowed) = spec.dtype.encode(&values) else { break };
                let first = number * PIECE;
                demand_held(self.source, spec, &narrowed, first, |place| f64::from(values[place]))?;
                written.extend(narrowed);
            }
        }
        self.put(spec, if spec.dtype == dtype { bytes } else { written })
    }

    /// The values of a matrix that the source packs, some rows at a time.
    fn unpack(&mut self, spec: &TensorSpec, linear: &Linear) -> Result<(), Error> {
        let mut bytes = Vec::with_capacity(spec.bytes() as usize);
        for first in (0..linear.out_features).step_by(ROWS) {
            let rows = first..(first + ROWS).min(linear.out_features);
            let values = self.source.row_values(linear, rows)?.into_raw_vec_and_offset().0;
            let part = spec.dtype.encode(&values).ok_or_else(|| {
                Error::Internal(format!("`{}` is to be written as {}", spec.name, spec.dtype.name()))
            })?;
            let place = first * linear.in_features;
            demand_held(self.source, spec, &part, place, |place| f64::from(values[place]))?;
            bytes.extend(part);
        }
        self.put(spec, bytes)
    }

    /// The embedding, the norm before the head and the head.
    fn outer(&mut self, transformed: &Transformed<'_>, carried: &[TensorSpec]) -> Result<(), Error> {
        let model = transformed.model();
        let rows = model.hyperparameters.vocabulary;
        let find = |name: &str| carried.iter().find(|spec| spec.name == name);
        let slices = || (0..rows).step_by(ROWS).map(move |first| first..(first + ROWS).min(rows));
        let norm = transformed.dense_final_norm().map_err(Error::from_source)?;
        if let (Some(tensor), Some(norm)) = (model.final_norm(), norm)
            && let Some(spec) = find(&tensor.weight)
        {
            self.put(spec, encode(self.source, spec, &norm.to_vec())?)?;
        }
        if let Some(spec) = find(&model.embedding()) {
            let mut bytes = Vec::new();
            for slice in slices() {
                let tokens: Vec<u32> = slice.map(|row| row as u32).collect();
                let rows = transformed.dense_embedding(&tokens).map_err(Error::from_source)?;
                bytes.extend(encode(self.source, spec, &rows.into_raw_vec_and_offset().0)?);
            }
            self.put(spec, bytes)?;
        }
        if !model.hyperparameters.tied_head
            && let Some(spec) = find(&model.head())
        {
            let mut bytes = Vec::new();
            for slice in slices() {
                let rows = transformed.dense_head(slice).map_err(Error::from_source)?;
                bytes.extend(encode(self.source, spec, &rows.into_raw_vec_and_offset().0)?);
            }
            self.put(spec, bytes)?;
        }
        Ok(())
    }
}

/// Numbers in a tensor's type, each rounded once.
fn encode(source: &StoredModel, spec: &TensorSpec, values: &[f64]) -> Result<Vec<u8>, Error> {
    let bytes = spec.dtype.encode_doubles(values).ok_or_else(|| {
        Error::Internal(format!("`{}` is computed, and {} holds no numbers", spec.name, spec.dtype.name()))
    })?;
    demand_held(source, spec, &bytes, 0, |place| values[place])?;
    Ok(bytes)
}

/// Fails where a number left the range of the type that it is written in; `bytes` are those of the elements from `first` on.
fn demand_held(
    source: &StoredModel,
    spec: &TensorSpec,
    bytes: &[u8],
    first: usize,
    value: impl Fn(usize) -> f64,
) -> Result<(), Error> {
    let written = spec.dtype.decode(bytes).unwrap_or_default();
    match written.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(place) => {
            let dtype: Dtype = spec.dtype;
            let problem = format!(
                "holds {} at element {}, which {} cannot hold",
                value(place),
                first + place,
                dtype.name()
            );
            Err(tensor_error(source, spec, problem))
        }
    }
}

fn tensor_error(source: &StoredModel, spec: &TensorSpec, problem: String) -> Error {
    // A head that was tied has no file of its own.
    let path = source.checkpoint.info(&spec.name).map_or(PathBuf::from(&source.path), |i| i.file.to_owned());
    formats::FormatsError::Tensor { path, tensor: spec.name.clone(), problem }.into()
}
