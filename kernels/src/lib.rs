//! What the machine does: products on packed and dense matrices, factorizations, and the solver's inner loops. No model,
//! no file, no algorithm.

pub mod account;
pub mod allocation;
mod arch;
pub mod bf16;
pub mod candidates;
mod dense;
pub mod eigen;
pub mod elementwise;
pub mod factor;
pub mod narrow;
pub mod packed;
pub mod panel;
pub mod parts;
pub mod peak;
pub mod product;
pub mod random;
pub mod ranks;
pub mod rotation;
#[cfg(test)]
mod sample;
pub mod signs;
pub mod single;
pub mod stripes;

/// The vector unit whose paths are taken here. Single rows come out the same on all of them; products of other back ends need not.
#[must_use]
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        use arch::x86_64::lanes::{Avx2, Avx512};
        match (Avx512::detect(), Avx2::detect()) {
            (Some(_), _) => "x86_64 with AVX-512",
            (None, Some(_)) => "x86_64 with AVX2",
            (None, None) => "x86_64",
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        std::env::consts::ARCH
    }
}

pub use packed::{
    ArrangedMatrix, CodeLayout, PackedMatrix, PackedShape, PackedShapeError, reference_product,
};
