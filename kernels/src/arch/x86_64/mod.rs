//! AVX2, AVX-512, AVX512-BF16 and AVX512-VNNI.

pub(crate) mod bf16;
pub(crate) mod int8;
pub(crate) mod int8_avx2;
pub(crate) mod int8_vnni;
pub(crate) mod lanes;
pub(crate) mod packed_avx2;
pub(crate) mod packed_avx512;
