//! What the machine does: products on packed and dense matrices, factorizations. No model, no file, no algorithm.

pub mod packed;

pub use packed::{CodeLayout, PackedMatrix, PackedShape, PackedShapeError, reference_product};
