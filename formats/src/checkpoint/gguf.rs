//! Tensors of a GGUF file under a checkpoint's names. Packed ones are matrices of bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use model::Model;

use super::header::{Entry, Order};
use super::{Checkpoint, Dtype};
use crate::gguf::names::{self, Named};
use crate::gguf::rows::RowOrder;
use crate::gguf::{Header, TensorEntry, TensorType};

impl Checkpoint {
    /// The tensors of files, whose names are those of `model`; what the model does not know keeps its own. `homes` has the numbers of the files of those
    /// that are not in the first.
    pub(crate) fn of_gguf(
        files: Vec<(PathBuf, File)>,
        header: &Header,
        homes: &BTreeMap<String, usize>,
        model: &Model,
    ) -> Self {
        let mut named: BTreeMap<String, Vec<names::Named>> = BTreeMap::new();
        for known in names::tensors(model) {
            named.entry(known.name.clone()).or_default().push(known);
        }
        let divisors = names::divisors(model);
        let tensors = header.tensors.iter().filter(|(name, _)| !divisors.contains(&name.as_str()));
        let tensors = tensors.flat_map(|(name, found)| {
            let known = named.get(name).map_or(&[][..], Vec::as_slice);
            let home = homes.get(name).copied().unwrap_or(0);
            let whole = || vec![(name.clone(), (home, entry(found, None)))];
            match known {
                [] => whole(),
                [one] if one.expert.is_none() => {
                    let mut entry = entry(found, Some(one));
                    if one.is_row {
                        entry.shape.insert(0, 1);
                    }
                    vec![(one.original.clone(), (home, entry))]
                }
                members => {
                    let parts = members.iter().enumerate().map(|(number, known)| {
                        let part = member(found, number, members.len())?;
                        Some((known.original.clone(), (home, entry(&part, None))))
                    });
                    // A stack of another number of experts keeps its name, and is said to be missing.
                    parts.collect::<Option<Vec<_>>>().unwrap_or_else(whole)
                }
            }
        });
        let directory = files.first().map(|(path, _)| path.clone()).unwrap_or_default();
        Self { tensors: tensors.collect(), directory, files }
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

/// Where a tensor lies; `known` says how, where it is not one of a stack.
fn entry(found: &TensorEntry, known: Option<&Named>) -> Entry {
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
    // Rows that cannot lie so are refused with their shape.
    let moved = known.map_or(RowOrder::Same, |known| known.order);
    let moves = moved != RowOrder::Same && shape.first().is_some_and(|rows| moved.fits(*rows));
    let order = match known {
        Some(known) if known.adds_one && dtype == Some(Dtype::F32) => Order::OneMore,
        Some(known) if known.is_transposed && dtype.is_some() && shape.len() == 2 => {
            shape.reverse();
            Order::Columns { first: 0, step: 1 }
        }
        _ if moves => Order::Moved(moved),
        _ => Order::Rows,
    };
    Entry { dtype: dtype.unwrap_or(Dtype::U8), shape, offset: found.offset, bytes: found.bytes, order }
}
