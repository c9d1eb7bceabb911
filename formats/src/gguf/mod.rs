//! GGUF, the container of llama.cpp: typed values, a list of tensors, their bytes. Version 3, little-endian.
//!
//! ```text
//! "GGUF" | u32 version | u64 tensors | u64 values
//! values:  key, u32 type, value                       text is u64 length and UTF-8
//! tensors: name, u32 dimensions, u64 extents (the fastest first), u32 type, u64 offset from the data's start
//! zeros up to the alignment | tensors, each at a multiple of it, in the order of the list, without other gaps
//! ```
//!
//! [`Header`] reads, [`GgufWriter`] writes; [`blocks`] has one file for each layout of packed weights.

pub mod blocks;
mod config;
mod file;
mod header;
pub(crate) mod hyperparameters;
pub(crate) mod names;
pub(crate) mod naming;
mod parts;
mod pretokenizers;
mod refused;
pub(crate) mod rows;
mod stored_rope;
pub(crate) mod tokenizer;
mod types;
mod value;
mod vocabulary;
mod writer;

pub use file::GgufFile;
pub use header::{Header, TensorEntry};
pub use types::TensorType;
pub use value::{Array, Value, Values};
pub(crate) use vocabulary::ids as token_ids;
pub(crate) use writer::header as header_bytes;
pub use writer::{GgufSpec, GgufWriter};

/// The first bytes of a file.
pub const MAGIC: &[u8] = b"GGUF";
const VERSION: u32 = 3;
/// Of every tensor, where `general.alignment` says nothing.
pub(crate) const ALIGNMENT: u64 = 32;
