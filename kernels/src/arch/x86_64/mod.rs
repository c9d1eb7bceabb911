//! AVX2 and AVX-512.

pub(crate) mod lanes;
pub(crate) mod packed_avx2;
pub(crate) mod packed_avx512;
