//! What is on disk: checkpoints in, quantized models out. No algorithm.
//!
//! [`checkpoint`] reads one tensor at a time; [`target`] has one file for each format, [`model_writer`] is how one writes an output;
//! [`container`] streams tensors into safetensors files, [`gguf`] into llama.cpp's;
//! [`output`] makes a directory appear at once or not at all; [`side_files`] copies what loaders need beside weights; [`adapter`] is
//! what PEFT loads on top of a checkpoint; [`imatrix`] is what llama.cpp weighs inputs by. [`segment`] and [`solution`] are what a run leaves
//! for the next to go on from; [`files`] has the operations that make files durable.

#![warn(clippy::unwrap_used)]

pub mod adapter;
mod bytes;
pub mod checkpoint;
pub mod container;
mod end_tokens;
mod error;
pub mod files;
pub mod gguf;
pub mod imatrix;
pub mod json;
pub mod model_writer;
mod onnx;
pub mod output;
pub mod packing;
mod placed;
pub mod segment;
pub mod side_files;
pub mod solution;
pub mod stacks;
pub mod target;

pub use checkpoint::{Checkpoint, Dtype};
pub use error::FormatsError;
