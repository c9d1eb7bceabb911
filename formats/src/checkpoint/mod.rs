//! Checkpoints in: one or several safetensors files, read one tensor at a time.
//!
//! Files are read at positions, never mapped: a mapped file that somebody truncates kills the process.

mod dtype;
mod header;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use ndarray::{Array1, Array2};
use serde::Deserialize;

pub use dtype::Dtype;

use crate::error::FormatsError;

const SINGLE: &str = "model.safetensors";
/// The index of a checkpoint of several files.
pub const INDEX: &str = "model.safetensors.index.json";
/// Largest index, bytes.
const MOST_INDEX: u64 = 256 << 20;

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    directory: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, (usize, header::Entry)>,
}

/// What is known about a tensor without reading it.
#[derive(Clone, Copy, Debug)]
pub struct TensorInfo<'a> {
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its length, bytes.
    pub bytes: u64,
    /// The file it lies in.
    pub file: &'a Path,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens `directory`: model.safetensors, or the files that model.safetensors.index.json lists.
    ///
    /// # Errors
    /// No weights; an index that names a file outside the directory or a tensor that its file does not have; a file that breaks a rule of
    /// the safetensors standard.
    pub fn open(directory: &Path) -> Result<Self, FormatsError> {
        let index_path = directory.join(INDEX);
        let single = directory.join(SINGLE);
        if exists(&index_path)? {
            Self::open_indexed(directory, &index_path)
        } else if exists(&single)? {
            let (file, entries) = open_file(&single)?;
            let tensors = entries.into_iter().map(|(name, entry)| (name, (0, entry))).collect();
            Ok(Self { directory: directory.to_owned(), files: vec![(single, file)], tensors })
        } else {
            let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
            let problem = match pickled.iter().find(|name| directory.join(name).exists()) {
                Some(name) => format!(
                    "there is only `{name}`, whose pickled format can run code; convert it to safetensors first"
                ),
                None => format!("there is neither `{SINGLE}` nor `{INDEX}` (safetensors weights are needed)"),
            };
            Err(FormatsError::NoWeights { path: directory.to_owned(), problem })
        }
    }

    fn open_indexed(directory: &Path, index_path: &Path) -> Result<Self, FormatsError> {
        let length = std::fs::metadata(index_path).map_err(FormatsError::io(index_path))?.len();
        if length > MOST_INDEX {
            let problem = format!("{length} bytes, expected at most {MOST_INDEX}");
            return Err(FormatsError::malformed(index_path, problem));
        }
        let text = std::fs::read(index_path).map_err(FormatsError::io(index_path))?;
        let index: Index =
            serde_json::from_slice(&text).map_err(|e| FormatsError::malformed(index_path, e.to_string()))?;
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        let mut files = Vec::new();
        let mut tensors: BTreeMap<String, (usize, header::Entry)> = BTreeMap::new();
        for name in names {
            let path =
                inside(directory, name).map_err(|problem| FormatsError::malformed(index_path, problem))?;
            let (file, entries) = open_file(&path)?;
            let place = files.len();
            for (tensor, entry) in entries {
                // A file may hold a tensor that the index places elsewhere: readers go by the index.
                match index.weight_map.get(&tensor) {
                    Some(home) if home == name => {
                        tensors.insert(tensor, (place, entry));
                    }
                    Some(_) => {}
                    None => {
                        let problem = format!("does not list tensor `{tensor}` of `{name}`");
                        return Err(FormatsError::malformed(index_path, problem));
                    }
                }
            }
            files.push((path, file));
        }
        if let Some((tensor, file)) =
            index.weight_map.iter().find(|(tensor, _)| !tensors.contains_key(*tensor))
        {
            let problem = format!("places tensor `{tensor}` in `{file}`, which does not have it");
            return Err(FormatsError::malformed(index_path, problem));
        }
        Ok(Self { directory: directory.to_owned(), files, tensors })
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The files of weights.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// Length of all files of weights, bytes.
    ///
    /// # Errors
    /// The system's.
    pub fn file_bytes(&self) -> Result<u64, FormatsError> {
        self.files.iter().map(|(path, file)| Ok(file.metadata().map_err(FormatsError::io(path))?.len())).sum()
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// What is known about a tensor without reading it.
    ///
    /// # Errors
    /// No such tensor.
    pub fn info(&self, name: &str) -> Result<TensorInfo<'_>, FormatsError> {
        let (file, entry) = self.entry(name)?;
        Ok(TensorInfo {
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: entry.bytes,
            file: &self.files[*file].0,
        })
    }

    /// The bytes of a tensor.
    ///
    /// # Errors
    /// No such tensor, or a file that became shorter.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, FormatsError> {
        let bytes = self.entry(name)?.1.bytes;
        self.read_bytes(name, 0..bytes)
    }

    /// A tensor of the given type and shape, as bytes.
    ///
    /// # Errors
    /// Another type or shape, no such tensor, or a file that became shorter.
    pub fn read_as(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<Vec<u8>, FormatsError> {
        let found = self.info(name)?;
        if found.dtype != dtype {
            let problem = format!("is {}, expected {}", found.dtype.name(), dtype.name());
            return Err(FormatsError::tensor(found.file, name, problem));
        }
        self.expect_shape(name, shape)?;
        self.read(name)
    }

    /// A vector of numbers.
    ///
    /// # Errors
    /// Another shape, a type that is not floating point, a value that is not finite.
    pub fn read_vector(&self, name: &str, length: usize) -> Result<Array1<f32>, FormatsError> {
        self.expect_shape(name, &[length])?;
        Ok(Array1::from(self.numbers(name, self.read(name)?)?))
    }

    /// A matrix of numbers, `[rows, columns]`.
    ///
    /// # Errors
    /// Another shape, a type that is not floating point, a value that is not finite.
    pub fn read_matrix(&self, name: &str, shape: (usize, usize)) -> Result<Array2<f32>, FormatsError> {
        self.expect_shape(name, &[shape.0, shape.1])?;
        let values = self.numbers(name, self.read(name)?)?;
        Array2::from_shape_vec(shape, values)
            .map_err(|e| FormatsError::tensor(&self.directory, name, e.to_string()))
    }

    /// Consecutive rows of a matrix of numbers, `[rows.len(), columns]`.
    ///
    /// # Errors
    /// Rows that are not there, a type that is not floating point, a value that is not finite.
    pub fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Array2<f32>, FormatsError> {
        let found = self.info(name)?;
        let &[all, columns] = found.shape else {
            let problem = format!("has shape {:?}, expected a matrix", found.shape);
            return Err(FormatsError::tensor(found.file, name, problem));
        };
        if rows.start > rows.end || rows.end > all {
            let problem = format!("has {all} rows, expected at least {}", rows.end);
            return Err(FormatsError::tensor(found.file, name, problem));
        }
        let row_bytes = (columns * found.dtype.bytes()) as u64;
        let bytes = self.read_bytes(name, rows.start as u64 * row_bytes..rows.end as u64 * row_bytes)?;
        let values = self.numbers(name, bytes)?;
        Array2::from_shape_vec((rows.len(), columns), values)
            .map_err(|e| FormatsError::tensor(&self.directory, name, e.to_string()))
    }

    /// Fails unless the tensor has this shape.
    ///
    /// # Errors
    /// Another shape, or no such tensor.
    pub fn expect_shape(&self, name: &str, shape: &[usize]) -> Result<(), FormatsError> {
        let found = self.info(name)?;
        if found.shape == shape {
            return Ok(());
        }
        let problem = format!("has shape {:?}, expected {shape:?}", found.shape);
        Err(FormatsError::tensor(found.file, name, problem))
    }

    fn entry(&self, name: &str) -> Result<&(usize, header::Entry), FormatsError> {
        self.tensors.get(name).ok_or_else(|| FormatsError::MissingTensor {
            path: self.directory.clone(),
            tensor: name.to_owned(),
        })
    }

    fn read_bytes(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, FormatsError> {
        let (place, entry) = self.entry(name)?;
        let (path, file) = &self.files[*place];
        let mut bytes = vec![0; (range.end - range.start) as usize];
        read_at(file, &mut bytes, entry.offset + range.start).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => FormatsError::tensor(
                path,
                name,
                "ends before its last byte: the file changed while it was read",
            ),
            _ => FormatsError::Io { path: path.clone(), source },
        })?;
        Ok(bytes)
    }

    fn numbers(&self, name: &str, bytes: Vec<u8>) -> Result<Vec<f32>, FormatsError> {
        let found = self.info(name)?;
        let values = found.dtype.decode(&bytes).ok_or_else(|| {
            let problem = format!("is {}, expected F32, F16 or BF16", found.dtype.name());
            FormatsError::tensor(found.file, name, problem)
        })?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(place) => {
                let problem = format!("holds {} at element {place}", values[place]);
                Err(FormatsError::tensor(found.file, name, problem))
            }
        }
    }
}

fn open_file(path: &Path) -> Result<(File, BTreeMap<String, header::Entry>), FormatsError> {
    let file = File::open(path).map_err(FormatsError::io(path))?;
    let entries = header::read(path, &file)?;
    Ok((file, entries))
}

fn exists(path: &Path) -> Result<bool, FormatsError> {
    path.try_exists().map_err(FormatsError::io(path))
}

/// The path of a file that an index names, which must lie in the directory itself, links followed.
fn inside(directory: &Path, name: &str) -> Result<PathBuf, String> {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !plain {
        return Err(format!("names the file `{name}`, which does not lie in the directory"));
    }
    Ok(directory.join(name))
}

/// Fills `buffer` from `offset` on, without moving a shared position.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
    }
    #[cfg(not(unix))]
    {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = file.try_clone()?;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }
}
