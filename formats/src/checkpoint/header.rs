//! The header of a safetensors file, read as if an enemy had written it.
//!
//! `u64` little-endian length, JSON, data. Every rule of the standard is checked before a tensor is believed: the length against the file,
//! shapes against offsets, offsets against each other. Nothing is allocated that the file's own size does not bound.

use std::collections::BTreeMap;
use std::fs::File;
use std::marker::PhantomData;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::dtype::Dtype;
use crate::error::FormatsError;
use crate::files::read_at;
use crate::gguf::rows::RowOrder;

/// Longest header, bytes: the standard's own limit.
pub(crate) const MOST_HEADER: u64 = 100_000_000;

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Offset of its first byte in the file.
    pub(super) offset: u64,
    /// Its length in bytes.
    pub(super) bytes: u64,
    /// How its rows lie there.
    pub(super) order: Order,
}

/// How the rows of a tensor lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// One after another.
    Rows,
    /// In another order.
    Moved(RowOrder),
    /// One after another, with one more in each number (single precision).
    OneMore,
    /// As every `step`th column from the `first` on.
    Columns {
        /// Place of the first.
        first: usize,
        /// How far they are apart.
        step: usize,
    },
}

/// The tensors of a file, by name.
pub(super) fn read(path: &Path, file: &File) -> Result<BTreeMap<String, Entry>, FormatsError> {
    let length = file.metadata().map_err(FormatsError::io(path))?.len();
    let bad = |problem: String| FormatsError::malformed(path, problem);
    let truncated = |problem: String| FormatsError::Truncated { path: path.to_owned(), problem };
    if length < 8 {
        return Err(truncated(format!("{length} bytes are too few for a safetensors header")));
    }
    let mut prefix = [0; 8];
    read_at(file, &mut prefix, 0).map_err(FormatsError::io(path))?;
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MOST_HEADER {
        return Err(bad(format!(
            "the safetensors header is said to have {header_bytes} bytes, expected at most {MOST_HEADER} (not safetensors?)"
        )));
    }
    if header_bytes > length - 8 {
        return Err(truncated(format!(
            "the safetensors header has {header_bytes} bytes, the file has {length}"
        )));
    }
    let mut json = vec![0; header_bytes as usize];
    read_at(file, &mut json, 8).map_err(FormatsError::io(path))?;
    if json.first() != Some(&b'{') {
        return Err(bad("the safetensors header does not begin with `{`".to_owned()));
    }
    let raw: RawHeader = serde_json::from_slice(&json)
        .map_err(|e| bad(format!("the safetensors header is not valid: {e}")))?;
    let mut entries = BTreeMap::new();
    for (name, tensor) in raw.tensors {
        let entry =
            check(&tensor, 8 + header_bytes).map_err(|problem| FormatsError::tensor(path, &name, problem))?;
        entries.insert(name, entry);
    }
    let end = covered(path, &entries, 8 + header_bytes)?;
    if end != length {
        let problem = format!("tensors end at byte {end}, the file has {length}");
        return Err(if end > length { truncated(problem) } else { bad(problem) });
    }
    Ok(entries)
}

fn check(tensor: &RawTensor, data: u64) -> Result<Entry, String> {
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
    if data.checked_add(end).is_none() {
        return Err(format!("ends at byte {end}, which no file has"));
    }
    Ok(Entry { dtype, shape: tensor.shape.clone(), offset: data + begin, bytes: found, order: Order::Rows })
}

/// Tensors must follow each other without hole or overlap; returns where the last one ends.
fn covered(path: &Path, entries: &BTreeMap<String, Entry>, data: u64) -> Result<u64, FormatsError> {
    let mut order: Vec<(&String, &Entry)> = entries.iter().collect();
    order.sort_by_key(|(_, entry)| (entry.offset, entry.bytes));
    let mut next = data;
    for (name, entry) in order {
        if entry.offset != next {
            let what =
                if entry.offset < next { "overlaps the tensor before it" } else { "leaves a hole before it" };
            let problem = format!("{what}: begins at byte {}, expected {next}", entry.offset);
            return Err(FormatsError::tensor(path, name, problem));
        }
        next += entry.bytes;
    }
    Ok(next)
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// The tensors of a header, each name once.
struct RawHeader {
    tensors: BTreeMap<String, RawTensor>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderEntries;
        impl<'de> Visitor<'de> for HeaderEntries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut tensors = BTreeMap::new();
                let mut metadata = false;
                while let Some(name) = map.next_key::<String>()? {
                    let at = |e: A::Error| A::Error::custom(format!("at `{name}`: {e}"));
                    let twice = if name == "__metadata__" {
                        map.next_value::<UniqueMap<String>>().map_err(at)?;
                        std::mem::replace(&mut metadata, true)
                    } else {
                        let tensor = map.next_value::<RawTensor>().map_err(at)?;
                        tensors.insert(name.clone(), tensor).is_some()
                    };
                    if twice {
                        return Err(A::Error::custom(format!("`{name}` is there twice")));
                    }
                }
                Ok(RawHeader { tensors })
            }
        }
        deserializer.deserialize_map(HeaderEntries)
    }
}

/// A map in which a key that comes twice is an error.
pub(super) struct UniqueMap<T>(pub(super) BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for UniqueMap<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

struct Entries<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
    type Value = UniqueMap<T>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap<T>, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value().map_err(|e| A::Error::custom(format!("at `{name}`: {e}")))?;
            if entries.contains_key(&name) {
                return Err(A::Error::custom(format!("`{name}` is there twice")));
            }
            entries.insert(name, value);
        }
        Ok(UniqueMap(entries))
    }
}
