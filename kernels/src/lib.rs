//! What the machine does: products on packed and dense matrices, factorizations, and the solver's inner loops. No model,
//! no file, no algorithm.

mod arch;
pub mod bf16;
pub mod candidates;
mod dense;
pub mod eigen;
pub mod elementwise;
pub mod factor;
pub mod packed;
pub mod panel;
pub mod parts;
pub mod product;
pub mod random;
pub mod rotation;
#[cfg(test)]
mod sample;

pub use packed::{CodeLayout, PackedMatrix, PackedShape, PackedShapeError, reference_product};
