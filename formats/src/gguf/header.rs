//! The header of a file, read as if an enemy had written it.
//!
//! Nothing is allocated that the bytes read do not bound, and every tensor is checked against the file's length and against the others
//! before anybody reads it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use super::value::text;
use super::{ALIGNMENT, MAGIC, TensorType, Value, Values};
use crate::bytes::Reader;
use crate::error::FormatsError;
use crate::files::read_at;

/// Longest header, bytes: ten times what the largest vocabulary takes.
const MOST_HEADER: u64 = 128 << 20;
/// What is read of a file at first; then four times as much, until the header is whole.
const FIRST_READ: u64 = 1 << 20;
/// Longest name of a tensor: longer ones llama.cpp refuses.
const MOST_NAME: usize = 63;

/// What a file says before its tensors' bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// Values by key.
    pub values: Values,
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorEntry>,
}

/// A tensor and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its shape, rows first: the reverse of a file's order.
    pub shape: Vec<usize>,
    /// Its type.
    pub tensor_type: &'static TensorType,
    /// Offset of its first byte in the file.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
}

impl Header {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// A file that is not GGUF of version 2 or 3, is longer or shorter than its tensors need, or breaks a rule of the format.
    pub fn read(path: &Path, file: &File) -> Result<Self, FormatsError> {
        let length = file.metadata().map_err(FormatsError::io(path))?.len();
        let mut asked = FIRST_READ;
        loop {
            let taken = asked.min(length).min(MOST_HEADER);
            let mut bytes = vec![0; taken as usize];
            read_at(file, &mut bytes, 0).map_err(FormatsError::io(path))?;
            match Self::parse(Reader::new(&bytes), length) {
                Ok(header) => return Ok(header),
                // What ends within the part that was read may go on after it.
                Err(_) if taken < length.min(MOST_HEADER) && bytes.starts_with(MAGIC) => asked *= 4,
                Err(problem) => return Err(FormatsError::malformed(path, problem)),
            }
        }
    }

    /// Reads a header from the beginning of a file of `length` bytes.
    pub(crate) fn parse(mut reader: Reader<'_>, length: u64) -> Result<Self, String> {
        if reader.bytes(4, "the magic number")? != MAGIC {
            return Err("does not begin with `GGUF`".to_owned());
        }
        let version = reader.u32("the version")?;
        if !(2..=3).contains(&version) {
            return Err(format!("is GGUF of version {version}, expected 2 or 3 (little-endian)"));
        }
        let (tensors, count) = (reader.u64("the number of tensors")?, reader.u64("the number of values")?);
        let mut values = Values::new();
        for _ in 0..count {
            let key = text(&mut reader, "a key")?;
            let value = Value::read(&mut reader, &key)?;
            if values.insert(key.clone(), value).is_some() {
                return Err(format!("has `{key}` twice"));
            }
        }
        let alignment = match values.get("general.alignment") {
            None => ALIGNMENT,
            Some(value) => value
                .as_u64()
                .filter(|alignment| alignment.is_power_of_two() && *alignment <= 1 << 30)
                .ok_or_else(|| format!("has the alignment {value:?}, expected a power of two"))?,
        };
        let mut found = BTreeMap::new();
        for _ in 0..tensors {
            let (name, entry) = tensor(&mut reader)?;
            if found.insert(name.clone(), entry).is_some() {
                return Err(format!("has tensor `{name}` twice"));
            }
        }
        let start = (reader.place() as u64).next_multiple_of(alignment);
        place(&mut found, start, alignment, length)?;
        Ok(Self { values, tensors: found })
    }

    /// A value that must be there.
    pub(crate) fn text(&self, key: &str) -> Result<&str, String> {
        self.values.get(key).and_then(Value::as_text).ok_or_else(|| format!("has no text `{key}`"))
    }
}

/// A tensor whose offset is still what the file says.
fn tensor(reader: &mut Reader<'_>) -> Result<(String, TensorEntry), String> {
    let name = text(reader, "a tensor's name")?;
    if name.is_empty() || name.len() > MOST_NAME {
        return Err(format!("has a tensor with a name of {} bytes, expected 1 to {MOST_NAME}", name.len()));
    }
    let dimensions = reader.u32("a tensor's dimensions")?;
    if !(1..=4).contains(&dimensions) {
        return Err(format!("tensor `{name}` has {dimensions} dimensions, expected 1 to 4"));
    }
    let mut extents = Vec::new();
    for _ in 0..dimensions {
        extents.push(reader.u64("a tensor's shape")?);
    }
    let id = reader.u32("a tensor's type")?;
    let tensor_type =
        TensorType::find(id).ok_or_else(|| format!("tensor `{name}` has type {id}, which is not known"))?;
    let offset = reader.u64("a tensor's offset")?;
    let pieces = tensor_type.weights;
    if !extents[0].is_multiple_of(pieces) {
        let problem =
            format!("rows of {}, expected a multiple of {pieces} for {}", extents[0], tensor_type.name);
        return Err(format!("tensor `{name}` has {problem}"));
    }
    let row = tensor_type.row_bytes(extents[0]);
    let bytes = extents[1..].iter().fold(row, |bytes, &extent| bytes?.checked_mul(extent));
    let shape: Option<Vec<usize>> =
        extents.iter().rev().map(|&extent| usize::try_from(extent).ok()).collect();
    match (bytes, shape) {
        (Some(bytes), Some(shape)) => Ok((name, TensorEntry { shape, tensor_type, offset, bytes })),
        _ => Err(format!("tensor `{name}` has the impossible shape {extents:?}")),
    }
}

/// Turns offsets from the data's start into offsets in the file, which holds every tensor whole and none twice.
fn place(
    tensors: &mut BTreeMap<String, TensorEntry>,
    start: u64,
    alignment: u64,
    length: u64,
) -> Result<(), String> {
    for (name, tensor) in tensors.iter_mut() {
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(format!(
                "tensor `{name}` begins at {}, expected a multiple of {alignment}",
                tensor.offset
            ));
        }
        let begin = start.checked_add(tensor.offset);
        match begin.and_then(|begin| begin.checked_add(tensor.bytes)) {
            Some(end) if end <= length => tensor.offset += start,
            _ => {
                return Err(format!(
                    "tensor `{name}` of {} bytes begins at {} of the data, which ends with the file at {length}",
                    tensor.bytes, tensor.offset
                ));
            }
        }
    }
    let mut order: Vec<(&String, &TensorEntry)> =
        tensors.iter().filter(|(_, tensor)| tensor.bytes > 0).collect();
    order.sort_by_key(|(_, tensor)| tensor.offset);
    for pair in order.windows(2) {
        let [(first, before), (second, after)] = pair else { continue };
        if before.offset + before.bytes > after.offset {
            return Err(format!("tensor `{second}` overlaps `{first}`"));
        }
    }
    Ok(())
}
