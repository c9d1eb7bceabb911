//! A quantized model with an adapter on top, as PEFT runs it, and the adapter on its way to disk.

use std::ops::Range;
use std::path::Path;

use calibration::weights::{LayerWeights, LinearOperator, Linears, OuterWeights, SourceError, WeightSource};
use formats::adapter::{self, StoredAdapter};
use formats::container::SafetensorsWriter;
use formats::{Dtype, side_files};
use model::Layer;
use model::linear::Linear;
use ndarray::Array2;
use quantizer::adapter::Adapter;

use crate::error::Error;
use crate::plan::Plan;
use crate::report::AdapterSummary;
use crate::stored::StoredModel;

/// What `y = x (W + B A)ᵀ` is computed with.
pub(crate) struct AdaptedModel<'m> {
    pub(crate) model: &'m StoredModel,
    pub(crate) adapter: StoredAdapter,
}

impl<'m> AdaptedModel<'m> {
    /// Opens the adapter in `directory` for `model`.
    pub(crate) fn open(model: &'m StoredModel, directory: &Path) -> Result<Self, Error> {
        Ok(Self { model, adapter: StoredAdapter::open(directory, model.model.linears())? })
    }
}

impl AdaptedModel<'_> {
    /// Adds the adapters of some linears of a layer.
    fn adapt(&self, layer: &Layer, linears: &mut Linears) -> Result<(), SourceError> {
        for linear in layer.linears() {
            let Some(operator) = linears.get_mut(&linear.id.slot()) else { continue };
            let Some(adapter) = self.adapter.read(linear)? else { continue };
            let values = operator.weights.values();
            let values = values.ok_or_else(|| format!("`{}` was rounded before", linear.name))?;
            operator.weights = (values.into_owned() + &adapter.product()).into();
        }
        Ok(())
    }
}

impl WeightSource for AdaptedModel<'_> {
    fn embed(&self, tokens: &[u32]) -> Result<Array2<f32>, SourceError> {
        WeightSource::embed(self.model, tokens)
    }

    fn layer(&self, layer: &Layer) -> Result<LayerWeights, SourceError> {
        let mut weights = self.model.layer_weights(layer)?;
        self.adapt(layer, &mut weights.linears)?;
        Ok(weights)
    }

    fn expert(&self, layer: &Layer, expert: usize) -> Result<Linears, SourceError> {
        let mut linears = self.model.expert(layer, expert)?;
        self.adapt(layer, &mut linears)?;
        Ok(linears)
    }

    fn positions(&self, rows: Range<usize>) -> Result<Array2<f32>, SourceError> {
        self.model.positions(rows)
    }

    fn outer(&self) -> Result<OuterWeights, SourceError> {
        self.model.outer()
    }

    fn head_rows(&self, rows: Range<usize>) -> Result<LinearOperator, SourceError> {
        self.model.head_rows(rows)
    }
}

/// Writes the adapters of a run's linears as they are found.
pub(crate) struct AdapterWriter {
    writer: SafetensorsWriter,
    summary: AdapterSummary,
    dtype: Dtype,
}

impl AdapterWriter {
    /// Begins OUT/adapter for all linears that `plan` quantizes.
    pub(crate) fn create(output: &Path, plan: &Plan, rank: usize) -> Result<Self, Error> {
        let directory = output.join(adapter::DIRECTORY);
        std::fs::create_dir(&directory).map_err(Error::io(&directory))?;
        let linears: Vec<&Linear> =
            plan.quantized().map(|(linear, _)| linear).filter(|linear| !linear.is_outer()).collect();
        let layouts = linears.iter().flat_map(|linear| adapter::layout(linear, rank, plan.runtime));
        let specs: Vec<_> = layouts.collect();
        let names: Vec<&str> = linears.iter().map(|linear| linear.name.as_str()).collect();
        side_files::write_json(&directory.join(adapter::CONFIG), &adapter::config(rank, &names))?;
        let writer = SafetensorsWriter::create_one(&directory.join(adapter::WEIGHTS), &specs)?;
        let summary = AdapterSummary { rank, linears: linears.len(), bytes: writer.tensor_bytes() };
        Ok(Self { writer, summary, dtype: plan.runtime })
    }

    pub(crate) fn rank(&self) -> usize {
        self.summary.rank
    }

    /// Writes one linear's adapter; returns it as it is stored. What was stored once is stored the same again.
    pub(crate) fn put(&mut self, linear: &Linear, found: &Adapter) -> Result<Adapter, Error> {
        let no_float = || Error::Internal(format!("adapters cannot be stored as {}", self.dtype.name()));
        let tensors = adapter::encode(linear, found, self.dtype).ok_or_else(no_float)?;
        let stored = |index: usize, shape| {
            let values = self.dtype.decode(&tensors[index].bytes)?;
            Array2::from_shape_vec(shape, values).ok()
        };
        let adapter = stored(0, found.down.dim())
            .zip(stored(1, found.up.dim()))
            .map(|(down, up)| Adapter { down, up })
            .ok_or_else(no_float)?;
        for tensor in &tensors {
            self.writer.put(tensor)?;
        }
        Ok(adapter)
    }

    pub(crate) fn finish(self) -> Result<AdapterSummary, Error> {
        self.writer.finish()?;
        Ok(self.summary)
    }
}
