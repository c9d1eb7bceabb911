//! Tensors written at places that were laid out before: in any order, each once, none forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::FormatsError;
use crate::files::write_at;

/// Files of known length, and where in them each tensor goes.
#[derive(Debug, Default)]
pub(crate) struct PlacedFiles {
    files: Vec<(PathBuf, File)>,
    places: BTreeMap<String, Place>,
    missing: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    file: usize,
    offset: u64,
    bytes: u64,
}

impl PlacedFiles {
    /// Creates a file that begins with `header` and has `length` bytes; `tensors` are names, offsets in the file and lengths.
    pub(crate) fn add(
        &mut self,
        path: &Path,
        header: &[u8],
        length: u64,
        tensors: impl Iterator<Item = (String, u64, u64)>,
    ) -> Result<(), FormatsError> {
        for (name, offset, bytes) in tensors {
            let place = Place { file: self.files.len(), offset, bytes };
            if self.places.insert(name.clone(), place).is_some() {
                return Err(misuse(path, &name, "is laid out twice"));
            }
            self.missing.insert(name);
        }
        let file = File::create_new(path).map_err(FormatsError::io(path))?;
        file.set_len(length).map_err(FormatsError::io(path))?;
        write_at(&file, header, 0).map_err(FormatsError::io(path))?;
        self.files.push((path.to_owned(), file));
        Ok(())
    }

    /// Writes one tensor at its place.
    ///
    /// # Errors
    /// The system's; a tensor that was not laid out, has another length, or comes twice.
    pub(crate) fn put(&mut self, name: &str, bytes: &[u8]) -> Result<(), FormatsError> {
        let Some(&place) = self.places.get(name) else {
            return Err(misuse(Path::new("output"), name, "was not laid out"));
        };
        let (path, file) = &self.files[place.file];
        if bytes.len() as u64 != place.bytes {
            let problem = format!("has {} bytes, {} were laid out", bytes.len(), place.bytes);
            return Err(misuse(path, name, &problem));
        }
        if !self.missing.remove(name) {
            return Err(misuse(path, name, "comes twice"));
        }
        write_at(file, bytes, place.offset).map_err(FormatsError::io(path))
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// The system's, and a tensor that never came.
    pub(crate) fn finish(self) -> Result<(), FormatsError> {
        if let Some(tensor) = self.missing.first() {
            return Err(misuse(Path::new("output"), tensor, "was never written"));
        }
        self.files.iter().try_for_each(|(path, file)| file.sync_all().map_err(FormatsError::io(path)))
    }
}

fn misuse(path: &Path, tensor: &str, problem: &str) -> FormatsError {
    FormatsError::Writer { path: path.to_owned(), tensor: tensor.to_owned(), problem: problem.to_owned() }
}
