//! The header of a safetensors file, read as if an enemy had written it.
//!
//! `u64` little-endian length, JSON, data. Every rule of the standard is checked before a tensor is believed: the length against the file,
//! shapes against offsets, offsets against each other. Nothing is allocated that the file's own size does not bound.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::dtype::Dtype;
use super::read_at;
use crate::error::FormatsError;

/// Longest header, bytes: the standard's own limit.
const MOST_HEADER: u64 = 100_000_000;

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Offset of its first byte in the file.
    pub(super) offset: u64,
    /// Its length in bytes.
    pub(super) bytes: u64,
}

/// The tensors of a file, by name.
pub(super) fn read(path: &Path, file: &File) -> Result<BTreeMap<String, Entry>, FormatsError> {
    let length = file.metadata().map_err(FormatsError::io(path))?.len();
    let bad = |problem: String| FormatsError::malformed(path, problem);
    if length < 8 {
        return Err(bad(format!("{length} bytes are too few for a safetensors header")));
    }
    let mut prefix = [0; 8];
    read_at(file, &mut prefix, 0).map_err(FormatsError::io(path))?;
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MOST_HEADER || header_bytes > length - 8 {
        return Err(bad(format!(
            "the safetensors header is said to have {header_bytes} bytes, the file has {length} (truncated, or not safetensors)"
        )));
    }
    let mut json = vec![0; header_bytes as usize];
    read_at(file, &mut json, 8).map_err(FormatsError::io(path))?;
    let raw: RawHeader = serde_json::from_slice(&json)
        .map_err(|e| bad(format!("the safetensors header is not valid: {e}")))?;
    let mut entries = BTreeMap::new();
    for (name, tensor) in raw.tensors {
        let entry = check(&tensor, 8 + header_bytes, length)
            .map_err(|problem| FormatsError::tensor(path, &name, problem))?;
        entries.insert(name, entry);
    }
    covered(&entries, 8 + header_bytes, length).map_err(bad)?;
    Ok(entries)
}

fn check(tensor: &RawTensor, data: u64, length: u64) -> Result<Entry, String> {
    let dtype =
        Dtype::named(&tensor.dtype).ok_or_else(|| format!("has the unknown type `{}`", tensor.dtype))?;
    let elements = tensor.shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent));
    let expected = elements.and_then(|count| count.checked_mul(dtype.bytes())).map(|bytes| bytes as u64);
    let expected = expected.ok_or_else(|| format!("has the impossible shape {:?}", tensor.shape))?;
    let (begin, end) = tensor.data_offsets;
    let found =
        end.checked_sub(begin).ok_or_else(|| format!("ends at {end}, before it begins at {begin}"))?;
    if found != expected {
        return Err(format!(
            "has {found} bytes, its shape {:?} of {} needs {expected}",
            tensor.shape, tensor.dtype
        ));
    }
    let stop = data.checked_add(end).filter(|&stop| stop <= length);
    if stop.is_none() {
        return Err(format!("ends at byte {end} of the data, which has {} (truncated)", length - data));
    }
    Ok(Entry { dtype, shape: tensor.shape.clone(), offset: data + begin, bytes: found })
}

/// Tensors must follow each other without hole or overlap, to the end of the file.
fn covered(entries: &BTreeMap<String, Entry>, data: u64, length: u64) -> Result<(), String> {
    let mut order: Vec<(&String, &Entry)> = entries.iter().collect();
    order.sort_by_key(|(_, entry)| (entry.offset, entry.bytes));
    let mut next = data;
    for (name, entry) in order {
        if entry.offset != next {
            let what =
                if entry.offset < next { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(format!("tensor `{name}` {what}: begins at byte {}, expected {next}", entry.offset));
        }
        next += entry.bytes;
    }
    if next != length {
        return Err(format!("{} bytes follow the last tensor", length - next));
    }
    Ok(())
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// Like a map, but a name that comes twice is an error.
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut seen = std::collections::BTreeSet::new();
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("`{name}` is there twice")));
                    }
                    if name == "__metadata__" {
                        map.next_value::<BTreeMap<String, String>>()?;
                    } else {
                        let tensor = map.next_value()?;
                        tensors.push((name, tensor));
                    }
                }
                Ok(RawHeader { tensors })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
