//! A graph and its weights on their way to disk.

use std::path::{Path, PathBuf};

use model::linear::Linear;
use prost::Message;
use quantizer::tensor::QuantizedTensor;
use serde_json::Value;

use super::{Onnx, config};
use crate::checkpoint::ONNX_GRAPH;
use crate::container::TensorData;
use crate::end_tokens::end_tokens;
use crate::error::FormatsError;
use crate::model_writer::{Contents, ModelWriter};
use crate::onnx::genai;
use crate::onnx::graph::{self, DATA_FILE};
use crate::onnx::proto::ModelProto;
use crate::placed::PlacedFiles;
use crate::side_files;
use crate::target::TargetFormat;

struct Output {
    source: PathBuf,
    directory: PathBuf,
    files: PlacedFiles,
    tensor_bytes: u64,
    graph: ModelProto,
    config: Value,
    generation: Value,
}

/// Begins an output in `directory`.
pub(super) fn begin(directory: &Path, contents: &Contents<'_>) -> Result<Box<dyn ModelWriter>, FormatsError> {
    let scheme = |linear: &Linear| {
        let planned = contents.linears.iter().find(|planned| planned.linear.id == linear.id);
        planned.and_then(|planned| planned.scheme)
    };
    let built = graph::build(contents.model, contents.carried, &scheme, env!("CARGO_PKG_VERSION"));
    let mut files = PlacedFiles::default();
    files.add(&directory.join(DATA_FILE), &[], built.data_bytes, built.data.iter().cloned())?;
    for (name, bytes) in &built.made {
        files.put(name, bytes)?;
    }
    let made = |name: &String| built.made.iter().any(|(known, _)| known == name);
    let tensor_bytes = built.data.iter().filter(|(name, ..)| !made(name)).map(|(_, _, bytes)| bytes).sum();
    let generation = contents.source.join("generation_config.json");
    let generation = match generation.exists() {
        true => Some(crate::json::read(contents.source, "generation_config.json")?),
        false => None,
    };
    let vocabulary = contents.model.hyperparameters.vocabulary;
    let ends = end_tokens(contents.source, contents.config, vocabulary)?;
    let dtype = contents.runtime.torch_name().unwrap_or("float16");
    let quantization = (&["quantization_config"][..], config(contents.linears));
    Ok(Box::new(Output {
        source: contents.source.to_owned(),
        directory: directory.to_owned(),
        files,
        tensor_bytes,
        graph: built.model,
        config: side_files::quantized_config(contents.config, dtype, contents.untied, quantization),
        generation: genai::config(contents.model, contents.config, generation.as_ref(), &ends),
    }))
}

impl ModelWriter for Output {
    fn carry(&mut self, tensor: &TensorData) -> Result<(), FormatsError> {
        self.files.put(&tensor.name, &tensor.bytes)
    }

    fn put(&mut self, linear: &Linear, tensor: &QuantizedTensor) -> Result<(), FormatsError> {
        Onnx.encode(linear, tensor).iter().try_for_each(|tensor| self.carry(tensor))
    }

    fn tensor_bytes(&self) -> u64 {
        self.tensor_bytes
    }

    fn finish(self: Box<Self>) -> Result<(), FormatsError> {
        self.files.finish()?;
        let path = self.directory.join(ONNX_GRAPH);
        std::fs::write(&path, self.graph.encode_to_vec()).map_err(FormatsError::io(&path))?;
        side_files::copy(&self.source, &self.directory)?;
        side_files::write_json(&self.directory.join("config.json"), &self.config)?;
        side_files::write_json(&self.directory.join("genai_config.json"), &self.generation)
    }
}
