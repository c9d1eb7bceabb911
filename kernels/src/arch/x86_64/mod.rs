//! AVX2, AVX-512 and AVX512-BF16.

pub(crate) mod bf16;
pub(crate) mod lanes;
pub(crate) mod packed_avx2;
pub(crate) mod packed_avx512;
