//! What the machine does: products on packed and dense matrices, factorizations. No model, no file, no algorithm.

mod arch;
pub mod packed;
pub mod product;

pub use packed::{CodeLayout, PackedMatrix, PackedShape, PackedShapeError, reference_product};
