//! What is known: one line for each file of formats, written or only read.

use serde_json::Value;

use super::{StoredFormat, TargetFormat};
use super::{awq, bitsandbytes, compressed_tensors, fp8, gguf, gptq, mlx, mxfp4, onnx};
use crate::error::FormatsError;

/// A checkpoint in a family's form; none where its configuration is another family's.
pub(super) type Opened = Option<Result<Box<dyn StoredFormat>, FormatsError>>;

/// Formats of one file.
pub(super) struct Family {
    /// What is written, in the order in which it is listed; nothing where checkpoints of other programs are read alone.
    pub(super) written: fn() -> Vec<&'static dyn TargetFormat>,
    /// Opens a checkpoint by what config.json says about quantization, whoever wrote it.
    pub(super) open: fn(&Value) -> Opened,
}

impl Family {
    fn writes(&self, id: &str) -> bool {
        (self.written)().iter().any(|format| format.id() == id)
    }
}

/// For forms of other programs that are read alone.
pub(super) fn nothing() -> Vec<&'static dyn TargetFormat> {
    Vec::new()
}

/// For families whose checkpoints are told by their files.
pub(super) fn by_files(_config: &Value) -> Opened {
    None
}

/// Every family.
static FAMILIES: &[&Family] = &[
    &gptq::FAMILY,
    &awq::FAMILY,
    &compressed_tensors::FAMILY,
    &mlx::FAMILY,
    &onnx::FAMILY,
    &bitsandbytes::FAMILY,
    &bitsandbytes::INT8,
    &gguf::FAMILY,
    &fp8::FAMILY,
    &mxfp4::FAMILY,
];

/// Every format that is written, in the order in which they are listed.
pub fn all() -> impl Iterator<Item = &'static dyn TargetFormat> {
    FAMILIES.iter().flat_map(|family| (family.written)())
}

/// The format that has this name on the command line.
#[must_use]
pub fn find(id: &str) -> Option<&'static dyn TargetFormat> {
    all().find(|format| format.id() == id)
}

/// Whether formats of these names are of one family: some of those write the same bytes for some grids, and reading names one.
#[must_use]
pub fn alike(first: &str, second: &str) -> bool {
    let family = |id: &str| FAMILIES.iter().position(|family| family.writes(id));
    family(first).is_some_and(|found| family(second) == Some(found))
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
    FAMILIES.iter().find_map(|family| (family.open)(config)).unwrap_or_else(|| {
        let method = config.get("quant_method").map_or_else(|| "nothing".to_owned(), Value::to_string);
        let known: Vec<_> = all().map(TargetFormat::id).collect();
        let problem =
            format!("`quantization_config` names the method {method}, known are {}", known.join(", "));
        Err(FormatsError::malformed("config.json".as_ref(), problem))
    })
}
