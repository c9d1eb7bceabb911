//! A file as a model: its config.json, its tensors under a checkpoint's names, its linears' format.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use model::Model;
use serde_json::Value as Json;

use super::names::{LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS};
use super::parts::{self, Part};
use super::{Header, MAGIC, TensorEntry, TensorType, config};
use crate::checkpoint::Checkpoint;
use crate::error::FormatsError;
use crate::files::{inside, read_at};
use crate::target::{StoredFormat, StoredGguf};

/// Most factors of rotations: half the features of the largest head.
const MOST_FACTORS: u64 = 1 << 16;

/// An open file, or several of one model.
#[derive(Debug)]
pub struct GgufFile {
    files: Vec<(PathBuf, File)>,
    /// The values of the first, the tensors of all.
    header: Header,
    /// By a tensor's name the number of its file, where there are several.
    homes: BTreeMap<String, usize>,
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
        let first = names.first().and_then(|name| parts::named(name));
        let of_one = |(stem, _, count): (&str, usize, usize)| {
            let mut expected = (0..names.len()).map(|number| parts::name(stem, number, count));
            names.len() == count && names.iter().all(|name| expected.next().as_ref() == Some(name))
        };
        match &names[..] {
            [] => Ok(None),
            [name, ..] if names.len() == 1 || first.is_some_and(of_one) => inside(path, name).map(Some),
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

    /// Opens a file, and the others where it is the first of several.
    ///
    /// # Errors
    /// As [`Header::read`]; another than the first, and files that are missing or of another model.
    pub fn open(path: &Path) -> Result<Self, FormatsError> {
        let file = File::open(path).map_err(FormatsError::io(path))?;
        let header = Header::read(path, &file)?;
        let part = Part::read(&header.values);
        let mut whole = Self { files: vec![(path.to_owned(), file)], header, homes: BTreeMap::new() };
        if let Some(first) = part {
            whole.add_others(path, first)?;
        }
        Ok(whole)
    }

    fn add_others(&mut self, path: &Path, first: Part) -> Result<(), FormatsError> {
        let bad = |path: &Path, problem: String| Err(FormatsError::malformed(path, problem));
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (stem, said) = match parts::named(&name) {
            Some((stem, number, count)) if count == first.count => (stem, number),
            _ => {
                let problem = format!(
                    "is part {} of {}, and is not called like it (`{}`)",
                    first.number + 1,
                    first.count,
                    parts::name("NAME", first.number, first.count)
                );
                return bad(path, problem);
            }
        };
        if first.number != 0 || said != 0 {
            let problem = format!(
                "is part {} of {}; give the first, `{}`",
                first.number + 1,
                first.count,
                parts::name(stem, 0, first.count)
            );
            return bad(path, problem);
        }
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        for number in 1..first.count {
            let path = inside(directory, &parts::name(stem, number, first.count))?;
            let file = File::open(&path).map_err(FormatsError::io(&path))?;
            let header = Header::read(&path, &file)?;
            let found = Part::read(&header.values);
            if found != Some(Part { number, ..first }) {
                return bad(&path, format!("says that it is {found:?}, and `{name}` that it is {first:?}"));
            }
            for (tensor, entry) in header.tensors {
                self.homes.insert(tensor.clone(), number);
                if self.header.tensors.insert(tensor.clone(), entry).is_some() {
                    return bad(&path, format!("has tensor `{tensor}`, which another part has too"));
                }
            }
            self.files.push((path, file));
        }
        if self.header.tensors.len() != first.tensors {
            let found = self.header.tensors.len();
            return bad(
                path,
                format!("says that all parts have {} tensors, and they have {found}", first.tensors),
            );
        }
        Ok(())
    }

    fn path(&self) -> &Path {
        &self.files[0].0
    }

    /// The config.json that its model would have.
    ///
    /// # Errors
    /// An architecture that is not known, or a value that is missing.
    pub fn config(&self) -> Result<Json, FormatsError> {
        let bad = |problem: String| FormatsError::malformed(self.path(), problem);
        let mut divisors = BTreeMap::new();
        for name in [ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS] {
            if let Some(entry) = self.header.tensors.get(name) {
                divisors.insert(name, self.divisors(name, entry)?);
            }
        }
        config::config(&self.header, &divisors).map_err(bad)
    }

    fn divisors(&self, name: &str, entry: &TensorEntry) -> Result<Vec<f32>, FormatsError> {
        if *entry.tensor_type != TensorType::F32 || entry.bytes > 4 * MOST_FACTORS {
            let problem = format!("has type {} and shape {:?}", entry.tensor_type.name, entry.shape);
            return Err(FormatsError::tensor(self.path(), name, problem));
        }
        let mut bytes = vec![0; entry.bytes as usize];
        let (path, file) = &self.files[self.homes.get(name).copied().unwrap_or(0)];
        read_at(file, &mut bytes, entry.offset).map_err(FormatsError::io(path))?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// How linears of `model` are stored, and its tensors.
    ///
    /// # Errors
    /// A matrix of a type that is not read.
    pub fn into_parts(self, model: &Model) -> Result<(Box<dyn StoredFormat>, Checkpoint), FormatsError> {
        let format = StoredGguf::of(&self.header, model)
            .map_err(|problem| FormatsError::malformed(self.path(), problem))?;
        let checkpoint = Checkpoint::of_gguf(self.files, &self.header, &self.homes, model);
        Ok((Box::new(format), checkpoint))
    }
}
