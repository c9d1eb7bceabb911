//! Importance matrices of llama.cpp: the mean square of each input feature of each linear, which is the diagonal of its Hessian.
//!
//! Two forms are read, as `llama-imatrix` writes and `llama-quantize --imatrix` reads them (tools/imatrix/imatrix.cpp, common/imatrix-loader.cpp),
//! and the newer one is written:
//!
//! | form | content |
//! |---|---|
//! | GGUF, since 2025 | `general.type` = `imatrix`, `imatrix.datasets`, `imatrix.chunk_count`, `imatrix.chunk_size`; for each linear `NAME.in_sum2`, F32 `[in_features, experts]`: sums of squares, and `NAME.counts`, F32 `[1, experts]`: tokens |
//! | `.dat`, before | i32 entries; of each the name, i32 calls, i32 values, f32 values: mean squares times calls; then, since 2024, i32 chunks and the dataset's name. Names are i32 length and bytes; all little-endian |
//!
//! Names are GGUF's, `blk.LAYER.attn_q.weight`. Experts' matrices are not read: no architecture here has them.

mod gguf;
mod legacy;

use std::collections::BTreeMap;
use std::path::Path;

use model::linear::Linear;

use crate::bytes::Reader;
use crate::error::FormatsError;
use crate::files;

/// Largest file that is read, bytes: hundreds of times what a dense model of 100 billion weights needs.
const MOST_BYTES: u64 = 4 << 30;

/// Mean squares of the inputs of a model's linears.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// By GGUF's name of the weight.
    pub entries: BTreeMap<String, Entry>,
    /// What it was gathered on.
    pub datasets: Vec<String>,
    /// Windows.
    pub chunks: u32,
    /// Tokens of a window; none in the older form.
    pub chunk_size: Option<u32>,
}

/// Of one linear.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Of each input feature.
    pub mean_squares: Vec<f32>,
    /// Tokens that they are means of; calls in the older form.
    pub count: f32,
}

impl Imatrix {
    /// Reads a file in either form.
    ///
    /// # Errors
    /// A file that cannot be read, is too large, ends too early, or holds what neither form has.
    pub fn read(path: &Path) -> Result<Self, FormatsError> {
        let bytes = files::read_regular(path, MOST_BYTES)?;
        Self::decode(&bytes).map_err(|problem| FormatsError::malformed(path, problem))
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let reader = Reader::new(bytes);
        let found = if bytes.starts_with(crate::gguf::MAGIC) {
            gguf::decode(reader)?
        } else {
            legacy::decode(reader)?
        };
        for (name, entry) in &found.entries {
            let bad = entry.mean_squares.iter().position(|&x| !(x.is_finite() && x >= 0.0));
            if let Some(place) = bad {
                let value = entry.mean_squares[place];
                return Err(format!("`{name}` has {value} for input {place}, expected a mean square"));
            }
        }
        Ok(found)
    }

    /// The bytes of a GGUF file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        gguf::encode(self)
    }

    /// The mean squares of the input that some linears share, `[in_features]`: of the first that has an entry.
    ///
    /// # Errors
    /// No entry, or one of another width. `path` is the file's, for messages.
    pub fn of_stage(&self, path: &Path, linears: &[&Linear]) -> Result<&[f32], FormatsError> {
        let names: Vec<String> = linears.iter().map(|linear| gguf_name(linear)).collect();
        let found = linears.iter().zip(&names).find_map(|(l, name)| Some((l, name, self.entries.get(name)?)));
        let Some((linear, name, entry)) = found else {
            let problem = format!(
                "has no entry for `{}`; its {} entries begin with `{}`",
                names.join("` or `"),
                self.entries.len(),
                self.entries.keys().next().map_or("", String::as_str)
            );
            return Err(FormatsError::malformed(path, problem));
        };
        if entry.mean_squares.len() != linear.in_features {
            let problem = format!(
                "has {} inputs, expected the {} of `{}`",
                entry.mean_squares.len(),
                linear.in_features,
                linear.name
            );
            return Err(FormatsError::tensor(path, name, problem));
        }
        Ok(&entry.mean_squares)
    }
}

/// What GGUF calls a linear's weight.
pub use crate::gguf::names::weight as gguf_name;

#[cfg(test)]
mod tests;
