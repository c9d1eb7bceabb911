//! Outputs that are safetensors under the checkpoint's names beside config.json: what those formats share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model::linear::Linear;
use quantizer::tensor::QuantizedTensor;
use serde_json::Value;

use super::{PlannedLinear, TargetFormat};
use crate::container::{SafetensorsWriter, TensorData, TensorSpec, file_bytes};
use crate::error::FormatsError;
use crate::model_writer::{Contents, ModelWriter};
use crate::side_files;
use crate::stacks::stacked;

/// What such a format says in JSON.
pub(super) trait Described: TargetFormat {
    /// What the checkpoint's configuration says about quantization; `routers` are modules that look like linears and never are quantized.
    fn config(&self, plan: &[PlannedLinear], routers: &[String]) -> Value;

    /// Where config.json has it.
    fn config_keys(&self) -> &'static [&'static str] {
        &["quantization_config"]
    }

    /// Spells other parts of config.json as the format's runtimes read them.
    fn adapt_config(&self, _config: &mut Value) {}

    /// The module in which the experts' tensors of a linear's kind lie stacked; none: each expert has its own.
    fn stack(&self, _linear: &Linear) -> Option<String> {
        None
    }

    /// The list in it of modules that runtimes leave alone, where they would otherwise take every linear for quantized.
    fn excluded_key(&self) -> Option<&'static str> {
        None
    }

    /// `format` in the metadata of the files.
    fn framework(&self) -> &'static str {
        "pt"
    }

    /// Further files beside config.json: name and content.
    fn side_files(&self, _plan: &[PlannedLinear], _routers: &[String]) -> Vec<(&'static str, Value)> {
        Vec::new()
    }
}

/// Begins an output.
pub(super) fn begin<F: Described>(
    format: &'static F,
    directory: &Path,
    contents: &Contents<'_>,
) -> Result<Box<dyn ModelWriter>, FormatsError> {
    let quantized = contents.linears.iter().filter_map(|planned| Some((&planned.linear, planned.scheme?)));
    let packed = quantized.flat_map(|(linear, scheme)| format.layout(linear, scheme));
    let specs: Vec<TensorSpec> = contents.carried.iter().cloned().chain(packed).collect();
    let stacks = contents.linears.iter().filter_map(|planned| {
        let expert = planned.linear.id.part.expert()?;
        Some((planned.linear.name.as_str(), (format.stack(&planned.linear)?, expert)))
    });
    let stacks: BTreeMap<&str, (String, usize)> = stacks.collect();
    let (specs, stacks) = stacked(specs, |name| {
        let (module, suffix) = name.rsplit_once('.')?;
        stacks.get(module).map(|(stack, expert)| (format!("{stack}.{suffix}"), *expert))
    });
    let (most, framework) = (contents.max_shard_bytes.unwrap_or(MOST_SHARD), format.framework());
    let writer = SafetensorsWriter::create_stacked(directory, &specs, &stacks, most, framework)?;
    let dtype = contents.runtime.torch_name().unwrap_or("float16");
    let routers = contents.model.routers();
    let mut said = format.config(contents.linears, &routers);
    if let Some(Value::Array(excluded)) = format.excluded_key().and_then(|key| said.get_mut(key)) {
        excluded.extend(untouched(contents).into_iter().map(Value::String));
    }
    let quantization = (format.config_keys(), said);
    let mut config = side_files::quantized_config(contents.config, dtype, contents.untied, quantization);
    format.adapt_config(&mut config);
    let mut files = vec![("config.json", config)];
    files.extend(format.side_files(contents.linears, &routers));
    let (source, directory) = (contents.source.to_owned(), directory.to_owned());
    Ok(Box::new(Output { format, source, directory, writer, files }))
}

/// Linears outside of the decoder layers, beside the head that formats know by its usual name.
fn untouched(contents: &Contents<'_>) -> Vec<String> {
    let model = contents.model;
    let known: Vec<String> = model.expected_tensors().map(|tensor| tensor.name).collect();
    let others = contents.carried.iter().filter(|spec| spec.shape.len() == 2 && !known.contains(&spec.name));
    let names = std::iter::once(model.untied_head()).chain(model.projections().into_iter().flatten());
    let modules = names.chain(others.map(|spec| spec.name.clone()));
    let mut modules: Vec<String> =
        modules.filter_map(|name| name.strip_suffix(".weight").map(str::to_owned)).collect();
    modules.retain(|module| module != "lm_head");
    modules.dedup();
    modules
}

/// Largest file, bytes, unless another size is asked for: what transformers writes.
const MOST_SHARD: u64 = 5_000_000_000;

/// Length of the files of weights with these tensors.
pub(super) fn weights_bytes<F: Described>(
    format: &F,
    specs: &[TensorSpec],
    max_shard_bytes: Option<u64>,
) -> u64 {
    file_bytes(specs, max_shard_bytes.unwrap_or(MOST_SHARD), format.framework())
}

struct Output {
    format: &'static dyn TargetFormat,
    source: PathBuf,
    directory: PathBuf,
    writer: SafetensorsWriter,
    /// Names and contents of JSON files.
    files: Vec<(&'static str, Value)>,
}

impl ModelWriter for Output {
    fn carry(&mut self, tensor: &TensorData) -> Result<(), FormatsError> {
        self.writer.put(tensor)
    }

    fn put(&mut self, linear: &Linear, tensor: &QuantizedTensor) -> Result<(), FormatsError> {
        self.format.encode(linear, tensor).iter().try_for_each(|tensor| self.writer.put(tensor))
    }

    fn tensor_bytes(&self) -> u64 {
        self.writer.tensor_bytes()
    }

    fn finish(self: Box<Self>) -> Result<(), FormatsError> {
        self.writer.finish()?;
        side_files::copy(&self.source, &self.directory)?;
        self.files
            .iter()
            .try_for_each(|(name, content)| side_files::write_json(&self.directory.join(name), content))
    }
}
