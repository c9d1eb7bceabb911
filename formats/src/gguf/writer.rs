//! Writing: the header first, since every tensor's size is known, then tensors at their places in any order.

use std::path::Path;

use super::value::put_text;
use super::{ALIGNMENT, MAGIC, TensorType, VERSION, Values, parts};
use crate::error::FormatsError;
use crate::placed::PlacedFiles;
use crate::stacks::{self, Stacks};

/// Name, type and shape of a tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufSpec {
    /// Its name.
    pub name: String,
    /// Its type.
    pub tensor_type: TensorType,
    /// Its shape, rows first.
    pub shape: Vec<usize>,
}

/// Writes one file.
#[derive(Debug)]
pub struct GgufWriter {
    files: PlacedFiles,
    tensor_bytes: u64,
}

impl GgufSpec {
    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().map(|&extent| extent as u64).product();
        elements / self.tensor_type.weights * self.tensor_type.bytes
    }
}

impl GgufWriter {
    /// Creates a file of `values` and of tensors in this order.
    ///
    /// # Errors
    /// The system's, and a name that comes twice.
    pub fn create(path: &Path, values: &Values, specs: &[GgufSpec]) -> Result<Self, FormatsError> {
        Self::create_stacked(path, values, specs, &Stacks::new(), None)
    }

    /// The same where some of the tensors are stacks, of which each member is put by its own name; in several files, where one would have more than
    /// `most` bytes of tensors (a larger tensor has a file of its own).
    ///
    /// # Errors
    /// As [`GgufWriter::create`].
    pub fn create_stacked(
        path: &Path,
        values: &Values,
        specs: &[GgufSpec],
        stacks: &Stacks,
        most: Option<u64>,
    ) -> Result<Self, FormatsError> {
        let mut files = PlacedFiles::default();
        let shards = shards(specs, most.unwrap_or(u64::MAX));
        for (number, shard) in shards.iter().enumerate() {
            let (path, values) = parts::of(path, values, number, shards.len(), specs.len());
            let header = header(&values, shard);
            let mut end = header.len() as u64;
            let mut places = Vec::new();
            for spec in *shard {
                places.extend(stacks::places(stacks, &spec.name, end, spec.bytes()));
                end += spec.bytes().next_multiple_of(ALIGNMENT);
            }
            files.add(&path, &header, end, places.into_iter())?;
        }
        Ok(Self { files, tensor_bytes: specs.iter().map(GgufSpec::bytes).sum() })
    }

    /// Length of all tensors, bytes.
    #[must_use]
    pub fn tensor_bytes(&self) -> u64 {
        self.tensor_bytes
    }

    /// Writes one tensor at its place.
    ///
    /// # Errors
    /// The system's; a tensor that was not laid out, has another length, or comes twice.
    pub fn put(&mut self, name: &str, bytes: &[u8]) -> Result<(), FormatsError> {
        self.files.put(name, bytes)
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// The system's, and a tensor that never came.
    pub fn finish(self) -> Result<(), FormatsError> {
        self.files.finish()
    }
}

/// The tensors of each file.
fn shards(specs: &[GgufSpec], most: u64) -> Vec<&[GgufSpec]> {
    let mut shards = Vec::new();
    let (mut first, mut filled) = (0, 0);
    for (place, spec) in specs.iter().enumerate() {
        if filled > 0 && spec.bytes() > most.saturating_sub(filled) {
            shards.push(&specs[first..place]);
            (first, filled) = (place, 0);
        }
        filled += spec.bytes();
    }
    shards.push(&specs[first..]);
    shards
}

/// Everything before the tensors' bytes, up to the alignment.
pub(crate) fn header(values: &Values, specs: &[GgufSpec]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((specs.len() as u64).to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    for (key, value) in values {
        put_text(&mut out, key);
        value.write(&mut out);
    }
    let mut offset = 0_u64;
    for spec in specs {
        put_text(&mut out, &spec.name);
        out.extend((spec.shape.len() as u32).to_le_bytes());
        out.extend(spec.shape.iter().rev().flat_map(|&extent| (extent as u64).to_le_bytes()));
        out.extend(spec.tensor_type.id.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += spec.bytes().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    out
}
