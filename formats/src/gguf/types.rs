//! Types of tensors: what the ids mean and how long tensors of them are.

/// A type of tensors: rows of equal pieces, each of some weights in some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorType {
    /// Its number in a file.
    pub id: u32,
    /// What llama.cpp calls it.
    pub name: &'static str,
    /// Weights of a piece; a row is a multiple of it.
    pub weights: u64,
    /// Bytes of a piece.
    pub bytes: u64,
}

const fn of(id: u32, name: &'static str, weights: u64, bytes: u64) -> TensorType {
    TensorType { id, name, weights, bytes }
}

impl TensorType {
    /// Single precision.
    pub const F32: Self = of(0, "F32", 1, 4);
    /// Half precision.
    pub const F16: Self = of(1, "F16", 1, 2);
    /// bfloat16.
    pub const BF16: Self = of(30, "BF16", 1, 2);

    /// The type with this number.
    #[must_use]
    pub fn find(id: u32) -> Option<&'static Self> {
        ALL.iter().find(|known| known.id == id)
    }

    /// Bytes of a row of so many weights; none where pieces do not fill it.
    #[must_use]
    pub fn row_bytes(&self, weights: u64) -> Option<u64> {
        weights
            .is_multiple_of(self.weights)
            .then(|| (weights / self.weights).checked_mul(self.bytes))
            .flatten()
    }
}

/// Every type that a file of 2026 may have (ggml.h, ggml-common.h).
static ALL: [TensorType; 35] = [
    TensorType::F32,
    TensorType::F16,
    of(2, "Q4_0", 32, 18),
    of(3, "Q4_1", 32, 20),
    of(6, "Q5_0", 32, 22),
    of(7, "Q5_1", 32, 24),
    of(8, "Q8_0", 32, 34),
    of(9, "Q8_1", 32, 36),
    of(10, "Q2_K", 256, 84),
    of(11, "Q3_K", 256, 110),
    of(12, "Q4_K", 256, 144),
    of(13, "Q5_K", 256, 176),
    of(14, "Q6_K", 256, 210),
    of(15, "Q8_K", 256, 292),
    of(16, "IQ2_XXS", 256, 66),
    of(17, "IQ2_XS", 256, 74),
    of(18, "IQ3_XXS", 256, 98),
    of(19, "IQ1_S", 256, 50),
    of(20, "IQ4_NL", 32, 18),
    of(21, "IQ3_S", 256, 110),
    of(22, "IQ2_S", 256, 82),
    of(23, "IQ4_XS", 256, 136),
    of(24, "I8", 1, 1),
    of(25, "I16", 1, 2),
    of(26, "I32", 1, 4),
    of(27, "I64", 1, 8),
    of(28, "F64", 1, 8),
    of(29, "IQ1_M", 256, 56),
    TensorType::BF16,
    of(34, "TQ1_0", 256, 54),
    of(35, "TQ2_0", 256, 66),
    of(39, "MXFP4", 32, 17),
    of(40, "NVFP4", 64, 36),
    of(41, "Q1_0", 128, 18),
    of(42, "Q2_0", 64, 18),
];
