//! What a checkpoint directory holds beside weights: everything that a loader or a reader of the model needs is copied byte for byte;
//! config.json gets the quantization's description and the type that the runtime multiplies in.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::FormatsError;
use crate::files;
use crate::files::inside;

/// The card that a hub shows, in an output one of ours.
pub const CARD: &str = "README.md";
/// What the original's card is called in an output.
pub const KEPT_CARD: &str = "README.original.md";
/// The report, which is of one run.
pub const REPORT: &str = "report.html";
/// What says that a directory is an output of ours.
const RECORD: &str = "quantc.json";

/// Weights and descriptions of weights, which the output has of its own.
fn is_of_the_original(name: &str) -> bool {
    let weights =
        [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".onnx.data"];
    name.starts_with('.')
        || name == "config.json"
        || name.ends_with(".index.json")
        || name.ends_with("quantize_config.json")
        || name == "quant_config.json"
        || name == RECORD
        || name == "genai_config.json"
        || weights.iter().any(|ending| name.ends_with(ending))
}

/// Whether a loader may take weights or their description from this file of a checkpoint's directory.
#[must_use]
pub fn is_read_by_loaders(path: &str) -> bool {
    !path.starts_with('.') && !path.contains('/') && is_of_the_original(path)
}

/// What a side file is called in the output; none where it does not belong there. The card is the original's unless `ours` says that the
/// directory is an output, which has kept the original's beside its own.
fn name_in_output(name: &str, ours: bool) -> Option<&str> {
    match name {
        CARD if ours => None,
        CARD => Some(KEPT_CARD),
        KEPT_CARD if !ours => None,
        REPORT => None,
        other => Some(other),
    }
}

/// Copies side files from `source` to `target`, the card as [`KEPT_CARD`]; returns their names there, sorted.
///
/// # Errors
/// The system's, and a link that leads out of `source`: what it names would be published with the output.
pub fn copy(source: &Path, target: &Path) -> Result<Vec<String>, FormatsError> {
    let mut copied = copy_files(source, target)?;
    let templates = source.join(TEMPLATES);
    if templates.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        let folder = target.join(TEMPLATES);
        fs::create_dir(&folder).map_err(FormatsError::io(&folder))?;
        copied.extend(copy_files(&templates, &folder)?.into_iter().map(|file| format!("{TEMPLATES}/{file}")));
    }
    copied.sort();
    Ok(copied)
}

/// Fails where [`copy`] would: for a look before hours of work.
///
/// # Errors
/// As [`copy`].
pub fn check(source: &Path) -> Result<(), FormatsError> {
    side_files(source)?;
    let templates = source.join(TEMPLATES);
    if templates.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        side_files(&templates)?;
    }
    Ok(())
}

/// The one directory that tokenizers look into.
const TEMPLATES: &str = "additional_chat_templates";

fn copy_files(source: &Path, target: &Path) -> Result<Vec<String>, FormatsError> {
    let ours = source.join(RECORD).exists();
    let mut copied = Vec::new();
    for (name, path) in side_files(source)? {
        if let Some(name) = name_in_output(&name, ours) {
            files::copy(&path, &target.join(name)).map_err(FormatsError::io(&path))?;
            copied.push(name.to_owned());
        }
    }
    Ok(copied)
}

/// Names and paths of a directory's own side files.
fn side_files(source: &Path) -> Result<Vec<(String, PathBuf)>, FormatsError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(source).map_err(FormatsError::io(source))? {
        let entry = entry.map_err(FormatsError::io(source))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Follows links, since hub caches are made of them.
        let kind = fs::metadata(entry.path()).map_err(FormatsError::io(&entry.path()))?;
        if kind.is_file() && !is_of_the_original(&name) {
            let path = inside(source, &name)?;
            files.push((name, path));
        }
    }
    Ok(files)
}

/// config.json of the output: the original's keys in their order, `dtype` (and `torch_dtype` where the original has it) set to `dtype`,
/// `tie_word_embeddings` to false where the head was given a tensor of its own (`untied`), and what `quantization` is, under its keys.
#[must_use]
pub fn quantized_config(
    original: &Value,
    dtype: &str,
    untied: bool,
    (keys, quantization): (&[&str], Value),
) -> Value {
    let mut config = original.clone();
    if let Some(object) = config.as_object_mut() {
        let old = object.contains_key("torch_dtype");
        if old {
            object.insert("torch_dtype".to_owned(), dtype.into());
        }
        if !old || object.contains_key("dtype") {
            object.insert("dtype".to_owned(), dtype.into());
        }
        if untied {
            object.insert("tie_word_embeddings".to_owned(), false.into());
        }
        object.extend(keys.iter().map(|key| ((*key).to_owned(), quantization.clone())));
    }
    config
}

/// Writes JSON as people read it.
///
/// # Errors
/// The system's.
pub fn write_json(path: &Path, value: &Value) -> Result<(), FormatsError> {
    fs::write(path, format!("{value:#}\n")).map_err(FormatsError::io(path))
}
