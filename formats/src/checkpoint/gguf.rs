//! Tensors of a GGUF file under a checkpoint's names. Packed ones are matrices of bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use model::Model;

use super::header::{Entry, Order};
use super::{Checkpoint, Dtype};
use crate::gguf::names::{self, ROPE_FACTORS};
use crate::gguf::{Header, TensorEntry, TensorType};

impl Checkpoint {
    /// The tensors of a file, whose names are those of `model`; what the model does not know keeps its own.
    pub(crate) fn of_gguf(path: PathBuf, file: File, header: &Header, model: &Model) -> Self {
        let mut named: BTreeMap<String, Vec<names::Named>> = BTreeMap::new();
        for known in names::tensors(model) {
            named.entry(known.name.clone()).or_default().push(known);
        }
        let tensors = header.tensors.iter().filter(|(name, _)| *name != ROPE_FACTORS);
        let tensors = tensors.flat_map(|(name, found)| {
            let known = named.get(name).map_or(&[][..], Vec::as_slice);
            let whole = || vec![(name.clone(), (0, entry(found, None)))];
            match known {
                [] => whole(),
                [one] if one.expert.is_none() => {
                    let mut entry = entry(found, one.heads);
                    if one.is_row {
                        entry.shape.insert(0, 1);
                    }
                    vec![(one.original.clone(), (0, entry))]
                }
                members => {
                    let parts = members.iter().enumerate().map(|(number, known)| {
                        let part = member(found, number, members.len())?;
                        Some((known.original.clone(), (0, entry(&part, None))))
                    });
                    // A stack of another number of experts keeps its name, and is said to be missing.
                    parts.collect::<Option<Vec<_>>>().unwrap_or_else(whole)
                }
            }
        });
        Self { tensors: tensors.collect(), directory: path.clone(), files: vec![(path, file)] }
    }
}

/// One of so many equal parts of a stack.
fn member(found: &TensorEntry, number: usize, count: usize) -> Option<TensorEntry> {
    let [extent, shape @ ..] = &found.shape[..] else { return None };
    let cut = *extent == count && found.bytes.is_multiple_of(count as u64);
    let bytes = found.bytes / count as u64;
    let offset = found.offset + number as u64 * bytes;
    cut.then(|| TensorEntry { shape: shape.to_vec(), offset, bytes, ..found.clone() })
}

fn entry(found: &TensorEntry, heads: Option<usize>) -> Entry {
    let dense =
        [(TensorType::F32, Dtype::F32), (TensorType::F16, Dtype::F16), (TensorType::BF16, Dtype::Bf16)];
    let dtype = dense.into_iter().find(|(known, _)| known == found.tensor_type).map(|(_, dtype)| dtype);
    let mut shape = found.shape.clone();
    if dtype.is_none()
        && let Some((columns, rows)) = shape.split_last_mut()
    {
        // There may be none, and a huge extent all the same.
        let rows = rows.iter().fold(1_usize, |rows, &extent| rows.saturating_mul(extent));
        *columns = (found.bytes as usize).checked_div(rows).unwrap_or(0);
    }
    // Rows of whole heads can be put back in order; others are refused with their shape.
    let heads =
        heads.filter(|heads| shape.first().is_some_and(|rows| *rows > 0 && rows.is_multiple_of(2 * heads)));
    Entry {
        dtype: dtype.unwrap_or(Dtype::U8),
        shape,
        offset: found.offset,
        bytes: found.bytes,
        order: heads.map_or(Order::Rows, Order::Heads),
    }
}
