//! A file as a model: its config.json, its tensors under a checkpoint's names, its linears' format.

use std::fs::File;
use std::path::{Path, PathBuf};

use model::Model;
use serde_json::Value as Json;

use super::names::ROPE_FACTORS;
use super::{Header, MAGIC, TensorType, config};
use crate::checkpoint::Checkpoint;
use crate::error::FormatsError;
use crate::files::{inside, read_at};
use crate::target::{StoredFormat, StoredGguf};

/// Most factors of rotations: half the features of the largest head.
const MOST_FACTORS: u64 = 1 << 16;

/// An open file.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    file: File,
    header: Header,
}

impl GgufFile {
    /// The file that `path` is or, where it is a directory without safetensors, has; none where there is none.
    ///
    /// # Errors
    /// Several such files in a directory, a link that leads out of it, and the system's.
    pub fn find(path: &Path) -> Result<Option<PathBuf>, FormatsError> {
        if path.is_file() {
            let mut magic = [0; 4];
            let file = File::open(path).map_err(FormatsError::io(path))?;
            let found = read_at(&file, &mut magic, 0).is_ok() && magic == MAGIC;
            return Ok(found.then(|| path.to_owned()));
        }
        let mut names = Vec::new();
        for entry in path.read_dir().map_err(FormatsError::io(path))? {
            let name = entry.map_err(FormatsError::io(path))?.file_name().to_string_lossy().into_owned();
            if name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") {
                return Ok(None);
            }
            if name.ends_with(".gguf") {
                names.push(name);
            }
        }
        names.sort();
        match &names[..] {
            [] => Ok(None),
            [name] => inside(path, name).map(Some),
            several => {
                let problem = format!(
                    "has {} GGUF files, name the one that is meant: {}",
                    several.len(),
                    several.join(", ")
                );
                Err(FormatsError::malformed(path, problem))
            }
        }
    }

    /// Opens a file.
    ///
    /// # Errors
    /// As [`Header::read`].
    pub fn open(path: &Path) -> Result<Self, FormatsError> {
        let file = File::open(path).map_err(FormatsError::io(path))?;
        let header = Header::read(path, &file)?;
        Ok(Self { path: path.to_owned(), file, header })
    }

    /// The config.json that its model would have.
    ///
    /// # Errors
    /// An architecture that is not known, or a value that is missing.
    pub fn config(&self) -> Result<Json, FormatsError> {
        let bad = |problem: String| FormatsError::malformed(&self.path, problem);
        let factors = match self.header.tensors.get(ROPE_FACTORS) {
            None => None,
            Some(entry) if *entry.tensor_type == TensorType::F32 && entry.bytes <= 4 * MOST_FACTORS => {
                let mut bytes = vec![0; entry.bytes as usize];
                read_at(&self.file, &mut bytes, entry.offset).map_err(FormatsError::io(&self.path))?;
                let numbers = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                Some(numbers.collect::<Vec<_>>())
            }
            Some(entry) => {
                return Err(FormatsError::tensor(
                    &self.path,
                    ROPE_FACTORS,
                    format!("has type {} and shape {:?}", entry.tensor_type.name, entry.shape),
                ));
            }
        };
        config::config(&self.header, factors.as_deref()).map_err(bad)
    }

    /// How linears of `model` are stored, and its tensors.
    ///
    /// # Errors
    /// A matrix of a type that is not read.
    pub fn into_parts(self, model: &Model) -> Result<(Box<dyn StoredFormat>, Checkpoint), FormatsError> {
        let format = StoredGguf::of(&self.header, model)
            .map_err(|problem| FormatsError::malformed(&self.path, problem))?;
        let checkpoint = Checkpoint::of_gguf(self.path, self.file, &self.header, model);
        Ok((Box::new(format), checkpoint))
    }
}
