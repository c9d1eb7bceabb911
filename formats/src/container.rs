//! Safetensors out: every tensor's size is known before the first byte, so headers come first and tensors are written at their places, in
//! any order, as soon as they are ready.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::checkpoint::{Dtype, INDEX, MOST_HEADER};
use crate::error::FormatsError;
use crate::placed::PlacedFiles;
use crate::stacks::{Stacks, places};

/// Name, type and shape of a tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// A tensor's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorData {
    /// Its name.
    pub name: String,
    /// Little-endian elements in row order.
    pub bytes: Vec<u8>,
}

/// Writes a checkpoint of one or several safetensors files.
#[derive(Debug)]
pub struct SafetensorsWriter {
    files: PlacedFiles,
    /// `format` in the metadata.
    framework: &'static str,
    index: Option<(PathBuf, Value)>,
    tensor_bytes: u64,
}

impl TensorSpec {
    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.bytes() as u64
    }
}

impl SafetensorsWriter {
    /// Creates the files in `directory` for `specs`, in that order, each file of at most `max_shard_bytes` of tensors (a larger tensor
    /// has a file of its own). `framework` is what the metadata says the tensors are for.
    ///
    /// # Errors
    /// The system's, and a name that comes twice.
    pub fn create(
        directory: &Path,
        specs: &[TensorSpec],
        max_shard_bytes: u64,
        framework: &'static str,
    ) -> Result<Self, FormatsError> {
        Self::create_stacked(directory, specs, &Stacks::new(), max_shard_bytes, framework)
    }

    /// The same where some of the tensors are stacks, of which each member is put by its own name.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::create`].
    pub fn create_stacked(
        directory: &Path,
        specs: &[TensorSpec],
        stacks: &Stacks,
        max_shard_bytes: u64,
        framework: &'static str,
    ) -> Result<Self, FormatsError> {
        let shards = shards(specs, max_shard_bytes);
        let count = shards.len();
        let mut writer = Self::empty(specs, framework);
        let mut weight_map = BTreeMap::new();
        for (number, shard) in shards.into_iter().enumerate() {
            let name = if count == 1 {
                "model.safetensors".to_owned()
            } else {
                format!("model-{:05}-of-{count:05}.safetensors", number + 1)
            };
            writer.create_file(&directory.join(&name), &shard, stacks)?;
            weight_map.extend(shard.iter().map(|spec| (spec.name.clone(), name.clone())));
        }
        if count > 1 {
            let index = json!({"metadata": {"total_size": writer.tensor_bytes}, "weight_map": weight_map});
            writer.index = Some((directory.join(INDEX), index));
        }
        Ok(writer)
    }

    /// Creates one file at `path` for `specs`.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::create`].
    pub fn create_one(path: &Path, specs: &[TensorSpec]) -> Result<Self, FormatsError> {
        let mut writer = Self::empty(specs, "pt");
        for shard in shards(specs, u64::MAX) {
            writer.create_file(path, &shard, &Stacks::new())?;
        }
        Ok(writer)
    }

    fn empty(specs: &[TensorSpec], framework: &'static str) -> Self {
        let tensor_bytes = specs.iter().map(TensorSpec::bytes).sum();
        Self { files: PlacedFiles::default(), framework, index: None, tensor_bytes }
    }

    fn create_file(
        &mut self,
        path: &Path,
        shard: &[&TensorSpec],
        stacks: &Stacks,
    ) -> Result<(), FormatsError> {
        let text = header(shard, self.framework);
        if text.len() as u64 > MOST_HEADER {
            let problem = format!("{} tensors need a header of {} bytes", shard.len(), text.len());
            return Err(FormatsError::malformed(
                path,
                format!("{problem}, expected at most {MOST_HEADER}; use smaller shards"),
            ));
        }
        let mut start = (text.len() as u64).to_le_bytes().to_vec();
        start.extend(text);
        let mut end = start.len() as u64;
        let tensors = shard.iter().flat_map(|spec| {
            let offset = end;
            end += spec.bytes();
            places(stacks, &spec.name, offset, spec.bytes())
        });
        let length = start.len() as u64 + shard.iter().map(|spec| spec.bytes()).sum::<u64>();
        self.files.add(path, &start, length, tensors)
    }

    /// Length of all tensors, bytes.
    #[must_use]
    pub fn tensor_bytes(&self) -> u64 {
        self.tensor_bytes
    }

    /// Writes one tensor at its place.
    ///
    /// # Errors
    /// The system's; a tensor that was not laid out, has another length, or comes twice.
    pub fn put(&mut self, tensor: &TensorData) -> Result<(), FormatsError> {
        self.files.put(&tensor.name, &tensor.bytes)
    }

    /// Writes the index and makes everything durable.
    ///
    /// # Errors
    /// The system's, and a tensor that never came.
    pub fn finish(self) -> Result<(), FormatsError> {
        self.files.finish()?;
        if let Some((path, index)) = &self.index {
            let text = format!("{index:#}\n");
            std::fs::write(path, text).map_err(FormatsError::io(path))?;
        }
        Ok(())
    }
}

/// Length of all files of weights, headers included, that [`SafetensorsWriter::create`] makes for `specs`.
#[must_use]
pub fn file_bytes(specs: &[TensorSpec], max_shard_bytes: u64, framework: &str) -> u64 {
    let file = |shard: &Vec<&TensorSpec>| {
        8 + header(shard, framework).len() as u64 + shard.iter().map(|spec| spec.bytes()).sum::<u64>()
    };
    shards(specs, max_shard_bytes).iter().map(file).sum()
}

/// The tensors of each file, in the file's order.
fn shards(specs: &[TensorSpec], max_shard_bytes: u64) -> Vec<Vec<&TensorSpec>> {
    let mut shards: Vec<Vec<&TensorSpec>> = vec![Vec::new()];
    let mut filled = 0;
    for spec in specs {
        if filled + spec.bytes() > max_shard_bytes && filled > 0 {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += spec.bytes();
        shards.last_mut().expect("there is a shard").push(spec);
    }
    for shard in &mut shards {
        // The reference writer's order, in which everything is aligned: wide types first, then by name.
        shard.sort_by(|a, b| b.dtype.rank().cmp(&a.dtype.rank()).then_with(|| a.name.cmp(&b.name)));
    }
    shards
}

/// The header of a file of these tensors, padded so that the data begins at a multiple of eight.
fn header(shard: &[&TensorSpec], framework: &str) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": framework}));
    let mut offset = 0;
    for spec in shard {
        let end = offset + spec.bytes();
        let entry = json!({"dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [offset, end]});
        header.insert(spec.name.clone(), entry);
        offset = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;

    fn specs() -> Vec<TensorSpec> {
        let spec = |name: &str, dtype, shape: &[usize]| TensorSpec {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
        };
        vec![
            spec("b", Dtype::F16, &[2, 3]),
            spec("a", Dtype::I32, &[5]),
            spec("empty", Dtype::F32, &[0, 4]),
            spec("scalar", Dtype::I64, &[]),
        ]
    }

    fn data(name: &str, bytes: usize) -> TensorData {
        TensorData { name: name.to_owned(), bytes: (0..bytes).map(|i| (i * 7 + name.len()) as u8).collect() }
    }

    #[test]
    fn what_is_written_is_read_by_the_reference_reader_and_by_ours() {
        for max_shard in [1, 20, 1 << 30] {
            let folder = tempfile::tempdir().unwrap();
            let mut writer = SafetensorsWriter::create(folder.path(), &specs(), max_shard, "pt").unwrap();
            let tensors = [data("scalar", 8), data("a", 20), data("empty", 0), data("b", 12)];
            for tensor in &tensors {
                writer.put(tensor).unwrap();
            }
            writer.finish().unwrap();
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            for tensor in &tensors {
                assert_eq!(checkpoint.read(&tensor.name).unwrap(), tensor.bytes, "{max_shard}");
            }
            assert_eq!(checkpoint.files().count() > 1, max_shard < 100);
            assert_eq!(checkpoint.file_bytes().unwrap(), file_bytes(&specs(), max_shard, "pt"));
            for file in checkpoint.files() {
                let bytes = std::fs::read(file).unwrap();
                let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
                for (name, view) in reference.tensors() {
                    assert_eq!(view.data(), tensors.iter().find(|t| t.name == name).unwrap().bytes);
                }
            }
        }
    }

    #[test]
    fn files_are_those_of_the_reference_writer_to_the_byte() {
        use safetensors::tensor::TensorView;
        let folder = tempfile::tempdir().unwrap();
        let mut specs = specs();
        for (name, dtype) in [("f", Dtype::F32), ("bf", Dtype::Bf16), ("byte", Dtype::U8), ("i", Dtype::I32)]
        {
            specs.push(TensorSpec { name: name.to_owned(), dtype, shape: vec![3] });
        }
        let tensors: Vec<_> = specs.iter().map(|spec| data(&spec.name, spec.bytes() as usize)).collect();
        let mut writer = SafetensorsWriter::create(folder.path(), &specs, 1 << 30, "pt").unwrap();
        for tensor in &tensors {
            writer.put(tensor).unwrap();
        }
        writer.finish().unwrap();
        let views = specs.iter().zip(&tensors).map(|(spec, tensor)| {
            let dtype = serde_json::from_value(spec.dtype.name().into()).unwrap();
            (spec.name.clone(), TensorView::new(dtype, spec.shape.clone(), &tensor.bytes).unwrap())
        });
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        let reference = safetensors::serialize(views, Some(metadata)).unwrap();
        assert_eq!(std::fs::read(folder.path().join("model.safetensors")).unwrap(), reference);
    }

    #[test]
    fn a_tensor_that_is_missing_doubled_unknown_or_of_another_length_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = SafetensorsWriter::create(folder.path(), &specs(), 1 << 30, "pt").unwrap();
        writer.put(&data("a", 20)).unwrap();
        assert!(writer.put(&data("a", 20)).unwrap_err().to_string().contains("twice"));
        assert!(writer.put(&data("b", 11)).unwrap_err().to_string().contains("11"));
        assert!(writer.put(&data("c", 1)).unwrap_err().to_string().contains("`c`"));
        assert!(writer.finish().unwrap_err().to_string().contains("never"));
    }
}
