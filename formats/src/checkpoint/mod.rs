//! Checkpoints in: one or several safetensors files, read one tensor at a time.
//!
//! Files are read at positions, never mapped: a mapped file that somebody truncates kills the process.

mod dtype;
mod gguf;
mod header;
mod onnx;
mod side_by_side;
mod stamp;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2};
use serde::Deserialize;

pub use dtype::Dtype;
pub(crate) use header::MOST_HEADER;
pub(crate) use onnx::ONNX_GRAPH;
pub use stamp::Stamp;

use crate::error::FormatsError;
use crate::files::{self, read_at};
use crate::gguf::rows::{self, RowOrder};
use crate::stacks::Stacks;
use header::{Order, UniqueMap};

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
    weight_map: UniqueMap<String>,
}

impl Checkpoint {
    /// Opens `directory`: model.safetensors, the files that model.safetensors.index.json lists, or the initializers of model.onnx.
    ///
    /// # Errors
    /// No weights; both of them, naming other files; an index that names a file outside the directory or that disagrees with its files;
    /// one name in two files; a file that breaks a rule of the safetensors standard.
    pub fn open(directory: &Path) -> Result<Self, FormatsError> {
        // A directory that is not there has a better error than one without weights.
        directory.read_dir().map_err(FormatsError::io(directory))?;
        if exists(&directory.join(INDEX)) {
            return Self::open_indexed(directory);
        }
        if exists(&directory.join(SINGLE)) {
            let mut checkpoint = Self::empty(directory);
            checkpoint.add_file(SINGLE)?;
            return Ok(checkpoint);
        }
        if exists(&directory.join(ONNX_GRAPH)) {
            return Self::open_onnx(directory);
        }
        let path = directory.to_owned();
        for file in ["pytorch_model.bin", "pytorch_model.bin.index.json"] {
            if exists(&directory.join(file)) {
                return Err(FormatsError::Pickled { path, file: file.to_owned() });
            }
        }
        let problem = format!("there is neither `{SINGLE}` nor `{INDEX}` (safetensors weights are needed)");
        Err(FormatsError::NoWeights { path, problem })
    }

    /// Opens one file of a directory.
    ///
    /// # Errors
    /// No such file, or one that leads out of the directory or breaks a rule of the safetensors standard.
    pub fn open_file(directory: &Path, name: &str) -> Result<Self, FormatsError> {
        let mut checkpoint = Self::empty(directory);
        checkpoint.add_file(name)?;
        Ok(checkpoint)
    }

    fn open_indexed(directory: &Path) -> Result<Self, FormatsError> {
        let path = directory.join(INDEX);
        let bad = |problem: String| FormatsError::malformed(&path, problem);
        let text = files::read_small(directory, INDEX, MOST_INDEX)?;
        let index: Index = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        let homes = index.weight_map.0;
        let names: BTreeSet<&String> = homes.values().collect();
        if exists(&directory.join(SINGLE)) && !names.contains(&SINGLE.to_owned()) {
            // Some runtimes read the one, some the other.
            return Err(bad(format!(
                "names other files than `{SINGLE}`, which is there too; remove one of both"
            )));
        }
        let mut checkpoint = Self::empty(directory);
        for name in names {
            checkpoint.add_file(name).map_err(|error| match error {
                FormatsError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                    let tensor =
                        homes.iter().find(|(_, home)| *home == name).map_or("", |(tensor, _)| tensor);
                    bad(format!("places tensor `{tensor}` in `{name}`, which is missing"))
                }
                error => error,
            })?;
        }
        // Both ways: a difference means that files of two downloads are mixed.
        for (tensor, home) in &homes {
            let found = checkpoint.tensors.get(tensor).map(|(file, _)| checkpoint.file_name(*file));
            if found.as_ref() != Some(home) {
                return Err(bad(format!("places tensor `{tensor}` in `{home}`, which does not have it")));
            }
        }
        if let Some((tensor, (file, _))) =
            checkpoint.tensors.iter().find(|(tensor, _)| !homes.contains_key(*tensor))
        {
            return Err(bad(format!("does not list tensor `{tensor}` of `{}`", checkpoint.file_name(*file))));
        }
        Ok(checkpoint)
    }

    fn empty(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), files: Vec::new(), tensors: BTreeMap::new() }
    }

    fn add_file(&mut self, name: &str) -> Result<(), FormatsError> {
        let (path, file) = files::open(&self.directory, name)?;
        let place = self.files.len();
        for (tensor, entry) in header::read(&path, &file)? {
            if let Some((first, _)) = self.tensors.get(&tensor) {
                let problem = format!("is in `{}` already", self.file_name(*first));
                return Err(FormatsError::tensor(&path, &tensor, problem));
            }
            self.tensors.insert(tensor, (place, entry));
        }
        self.files.push((path, file));
        Ok(())
    }

    fn file_name(&self, file: usize) -> String {
        let name = self.files[file].0.file_name();
        name.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// Puts the members of stacks in the place of those that are there, under their own names: equal parts of a tensor of three dimensions,
    /// matrices each, or of one with a vector for each. A tensor that cannot be cut so stays as it is.
    pub fn split(&mut self, stacks: &Stacks) {
        for (stack, members) in stacks {
            let Some((file, whole)) = self.tensors.get(stack).cloned() else { continue };
            let count = members.len();
            let (rows, columns) = match whole.shape[..] {
                [extent, rows, columns] => (extent.saturating_mul(rows), Some(columns)),
                // A vector each.
                [extent, rows] if extent == count => (extent.saturating_mul(rows), None),
                _ => continue,
            };
            let present = members.iter().any(|member| self.tensors.contains_key(member));
            if present
                || count == 0
                || !rows.is_multiple_of(count)
                || !whole.bytes.is_multiple_of(count as u64)
            {
                continue;
            }
            self.tensors.remove(stack);
            let bytes = whole.bytes / count as u64;
            for (number, member) in members.iter().enumerate() {
                let offset = whole.offset + number as u64 * bytes;
                let shape = std::iter::once(rows / count).chain(columns).collect();
                self.tensors
                    .insert(member.clone(), (file, header::Entry { shape, offset, bytes, ..whole.clone() }));
            }
        }
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

    /// Length of all tensors, bytes: the files without their headers.
    #[must_use]
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.values().map(|(_, entry)| entry.bytes).sum()
    }

    /// What the files are like now.
    ///
    /// # Errors
    /// The system's.
    pub fn stamp(&self) -> Result<Stamp, FormatsError> {
        Stamp::of(&self.files)
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
        let mut bytes = allocate(self, name, self.entry(name)?.1.bytes as usize)?;
        self.read_bytes_at(name, 0, &mut bytes)?;
        Ok(bytes)
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

    /// Consecutive rows of a matrix of the given type and shape, as bytes.
    ///
    /// # Errors
    /// As [`Checkpoint::read_as`], and rows that are not there.
    pub(crate) fn read_rows_as(
        &self,
        name: &str,
        dtype: Dtype,
        shape: &[usize; 2],
        rows: Range<usize>,
    ) -> Result<Vec<u8>, FormatsError> {
        let found = self.info(name)?;
        if found.dtype != dtype {
            let problem = format!("is {}, expected {}", found.dtype.name(), dtype.name());
            return Err(FormatsError::tensor(found.file, name, problem));
        }
        self.expect_shape(name, shape)?;
        if rows.start > rows.end || rows.end > shape[0] {
            let problem = format!("has {} rows, expected at least {}", shape[0], rows.end);
            return Err(FormatsError::tensor(found.file, name, problem));
        }
        let row = shape[1] * dtype.bytes();
        let mut bytes = allocate(self, name, rows.len() * row)?;
        self.read_bytes_at(name, (rows.start * row) as u64, &mut bytes)?;
        Ok(bytes)
    }

    /// A vector of numbers.
    ///
    /// # Errors
    /// Another shape, a type that is not floating point, a value that is not finite.
    pub fn read_vector(&self, name: &str, length: usize) -> Result<Array1<f32>, FormatsError> {
        self.expect_shape(name, &[length])?;
        Ok(Array1::from(self.numbers(name, 0, length)?))
    }

    /// A matrix of numbers, `[rows, columns]`.
    ///
    /// # Errors
    /// Another shape, a type that is not floating point, a value that is not finite.
    pub fn read_matrix(&self, name: &str, shape: (usize, usize)) -> Result<Array2<f32>, FormatsError> {
        self.expect_shape(name, &[shape.0, shape.1])?;
        let values = self.numbers(name, 0, shape.0 * shape.1)?;
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
        let values = self.numbers(name, rows.start * columns, rows.len() * columns)?;
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

    /// Fills `buffer` with the bytes of a tensor from `offset` within it, so that a large one can be copied in pieces.
    ///
    /// # Errors
    /// No such tensor, bytes beyond its end, or a file that became shorter.
    pub fn read_bytes_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<(), FormatsError> {
        let (place, entry) = self.entry(name)?;
        let (path, file) = &self.files[*place];
        let end = offset.saturating_add(buffer.len() as u64);
        if end > entry.bytes {
            return Err(FormatsError::tensor(
                path,
                name,
                format!("has {} bytes, expected at least {end}", entry.bytes),
            ));
        }
        let read = match entry.order {
            Order::Rows => read_at(file, buffer, entry.offset + offset),
            Order::Moved(order) => read_moved(file, entry, order, offset, buffer),
            Order::OneMore => read_one_less(file, entry, offset, buffer),
            Order::Columns { first, step } => {
                side_by_side::read_columns(file, entry, (first, step), offset, buffer)
            }
        };
        read.map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => FormatsError::tensor(
                path,
                name,
                "ends before its last byte: the file changed while it was read",
            ),
            _ => FormatsError::Io { path: path.clone(), source },
        })
    }

    /// `count` finite numbers from element `first` on, in pieces: bytes and numbers are never both held as a whole.
    fn numbers(&self, name: &str, first: usize, count: usize) -> Result<Vec<f32>, FormatsError> {
        let found = self.info(name)?;
        if !found.dtype.is_float() {
            let problem = format!("is {}, expected F32, F16 or BF16", found.dtype.name());
            return Err(FormatsError::tensor(found.file, name, problem));
        }
        let width = found.dtype.bytes();
        let mut values = allocate(self, name, count)?;
        let mut piece = vec![0; PIECE.min(count) * width];
        for (number, values) in values.chunks_mut(PIECE).enumerate() {
            let piece = &mut piece[..values.len() * width];
            let place = first + number * PIECE;
            self.read_bytes_at(name, (place * width) as u64, piece)?;
            found.dtype.decode_into(piece, values);
            check_finite(values).map_err(|(offset, value)| {
                let at = unravel(place + offset, found.shape);
                FormatsError::tensor(
                    found.file,
                    name,
                    format!("holds {value} at {at:?}, expected finite numbers"),
                )
            })?;
        }
        Ok(values)
    }
}

/// Bytes of a tensor whose rows lie in another order in the file, in their own order, row by row.
fn read_moved(
    file: &File,
    entry: &header::Entry,
    order: RowOrder,
    offset: u64,
    mut buffer: &mut [u8],
) -> io::Result<()> {
    let rows = entry.shape[0];
    let row_bytes = entry.bytes / rows as u64;
    let mut place = offset;
    while !buffer.is_empty() {
        let (row, within) = ((place / row_bytes) as usize, place % row_bytes);
        let taken = buffer.len().min((row_bytes - within) as usize);
        let (part, rest) = buffer.split_at_mut(taken);
        let stored = order.stored(row, rows) as u64;
        read_at(file, part, entry.offset + stored * row_bytes + within)?;
        place += taken as u64;
        buffer = rest;
    }
    Ok(())
}

/// Bytes of numbers in single precision of which the file has one more.
fn read_one_less(file: &File, entry: &header::Entry, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let first = offset / 4 * 4;
    let end = (offset + buffer.len() as u64).next_multiple_of(4).min(entry.bytes);
    let mut whole = vec![0; (end - first) as usize];
    read_at(file, &mut whole, entry.offset + first)?;
    let within = (offset - first) as usize;
    buffer.copy_from_slice(&rows::one_less(&whole)[within..within + buffer.len()]);
    Ok(())
}

/// Elements decoded at a time.
const PIECE: usize = 1 << 18;

/// The first value that is not finite, and where it is.
fn check_finite(values: &[f32]) -> Result<(), (usize, f32)> {
    // The largest magnitude, as bits: this runs at memory speed where a search would not.
    let finite = values.iter().map(|value| value.abs().to_bits()).max() < Some(f32::INFINITY.to_bits());
    let found = if finite { None } else { values.iter().position(|value| !value.is_finite()) };
    found.map_or(Ok(()), |place| Err((place, values[place])))
}

/// Row-major place of an element as one index for each dimension.
fn unravel(mut place: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (index, &extent) in index.iter_mut().zip(shape).rev() {
        *index = place % extent.max(1);
        place /= extent.max(1);
    }
    index
}

/// Room for a tensor, or an error where the system has none.
fn allocate<T: Clone + Default>(
    checkpoint: &Checkpoint,
    name: &str,
    count: usize,
) -> Result<Vec<T>, FormatsError> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|_| {
        let problem = format!("needs {} bytes of memory", count.saturating_mul(size_of::<T>()));
        FormatsError::tensor(&checkpoint.directory, name, problem)
    })?;
    values.resize(count, T::default());
    Ok(values)
}

/// Whether something has this name; a link that leads nowhere counts, so that the error names it.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
