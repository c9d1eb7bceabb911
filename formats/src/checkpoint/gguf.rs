//! Tensors of a GGUF file under a checkpoint's names. Packed ones are matrices of bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use model::Model;

use super::header::Entry;
use super::{Checkpoint, Dtype};
use crate::gguf::names::{self, ROPE_FACTORS};
use crate::gguf::{Header, TensorEntry, TensorType};

impl Checkpoint {
    /// The tensors of a file, whose names are those of `model`; what the model does not know keeps its own.
    pub(crate) fn of_gguf(path: PathBuf, file: File, header: &Header, model: &Model) -> Self {
        let named = names::tensors(model).into_iter().map(|named| (named.name.clone(), named));
        let named: BTreeMap<String, names::Named> = named.collect();
        let tensors = header.tensors.iter().filter(|(name, _)| *name != ROPE_FACTORS).map(|(name, found)| {
            let known = named.get(name);
            let original = known.map_or(name, |known| &known.original);
            (original.clone(), (0, entry(found, known.and_then(|known| known.heads))))
        });
        Self { tensors: tensors.collect(), directory: path.clone(), files: vec![(path, file)] }
    }
}

fn entry(found: &TensorEntry, heads: Option<usize>) -> Entry {
    let dense =
        [(TensorType::F32, Dtype::F32), (TensorType::F16, Dtype::F16), (TensorType::BF16, Dtype::Bf16)];
    let dtype = dense.into_iter().find(|(known, _)| known == found.tensor_type).map(|(_, dtype)| dtype);
    let mut shape = found.shape.clone();
    if dtype.is_none()
        && let Some((columns, rows)) = shape.split_last_mut()
    {
        let rows: usize = rows.iter().product();
        *columns = (found.bytes as usize).checked_div(rows).unwrap_or(0);
    }
    // Rows of whole heads can be put back in order; others are refused with their shape.
    let heads =
        heads.filter(|heads| shape.first().is_some_and(|rows| *rows > 0 && rows.is_multiple_of(2 * heads)));
    Entry { dtype: dtype.unwrap_or(Dtype::U8), shape, offset: found.offset, bytes: found.bytes, heads }
}
