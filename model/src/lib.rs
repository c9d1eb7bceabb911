//! What a transformer is: structure and names. No numbers, no files, no arrays.
//!
//! An [`architecture::Architecture`] is a const; [`graph::Model::resolve`] combines it with config.json into layers, stages and linears in
//! forward order. Names, shapes, who shares a Hessian and what is never quantized are derived, not declared twice.

#![warn(clippy::unwrap_used)]

pub mod architecture;
pub mod architectures;
pub mod described;
mod error;
pub mod experts;
pub mod graph;
pub mod hyperparameters;
pub mod linear;
pub mod registry;
pub mod rope;

pub use error::ModelError;
pub use graph::{Layer, Model, Stage};
