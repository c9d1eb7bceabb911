//! Sizes of a packed matrix, and what is refused before a single word is read.

/// How the streams of different outputs interleave; each stream is `words_per_output` words long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeLayout {
    /// The stream of an output is contiguous: word `i` of output `n` at `n * words_per_output + i`
    /// (compressed-tensors, MLX, ONNX). The last word of a stream is padded.
    OutputMajor,
    /// The outputs lie side by side: word `i` of output `n` at `i * out_features + n` (GPTQ). No padding: `in_features * bits`
    /// is a multiple of 32.
    InputMajor,
}

/// Width, layout and sizes of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PackedShape {
    /// Width of a code, 2 to 8.
    pub bits: u8,
    /// Order of the words.
    pub layout: CodeLayout,
    /// Rows of the matrix.
    pub out_features: usize,
    /// Columns of the matrix.
    pub in_features: usize,
    /// Consecutive columns that share a scale and a zero point; `in_features` for one scale per output.
    pub group_size: usize,
}

impl PackedShape {
    /// How many words the matrix takes.
    ///
    /// # Errors
    /// A width outside 2 to 8, a dimension of zero, a group size that does not divide the input features, input-major
    /// streams that do not end with a word, and sizes that overflow.
    pub fn word_count(&self) -> Result<usize, PackedShapeError> {
        let Self { bits, layout, out_features, in_features, group_size } = *self;
        if !(2..=8).contains(&bits) {
            return Err(PackedShapeError::Bits { found: bits });
        }
        if out_features == 0 || in_features == 0 {
            return Err(PackedShapeError::Empty { out_features, in_features });
        }
        if group_size == 0 || !in_features.is_multiple_of(group_size) {
            return Err(PackedShapeError::GroupSize { group_size, in_features });
        }
        // Dense f32 weights must be addressable too; this bounds every smaller product.
        in_features
            .checked_mul(32)
            .and_then(|stream_bits| stream_bits.checked_mul(out_features))
            .filter(|&all| all <= isize::MAX as usize)
            .ok_or(PackedShapeError::Overflow { out_features, in_features })?;
        if layout == CodeLayout::InputMajor && !(in_features * usize::from(bits)).is_multiple_of(32) {
            return Err(PackedShapeError::PartialWord { in_features, bits });
        }
        Ok(self.words_per_output() * out_features)
    }

    /// Words of one output's stream. Meaningful for shapes that [`PackedShape::word_count`] accepts.
    #[must_use]
    pub fn words_per_output(&self) -> usize {
        self.in_features.saturating_mul(usize::from(self.bits)).div_ceil(32)
    }

    /// Groups of one output, `in_features / group_size`. Meaningful for shapes that [`PackedShape::word_count`] accepts.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.in_features.checked_div(self.group_size).unwrap_or(0)
    }
}

/// A packed matrix that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackedShapeError {
    /// Width out of range.
    #[error("bits is {found}, expected 2 to 8")]
    Bits {
        /// The width given.
        found: u8,
    },
    /// A matrix without rows or without columns.
    #[error("a packed matrix of {out_features} by {in_features} is empty")]
    Empty {
        /// Rows.
        out_features: usize,
        /// Columns.
        in_features: usize,
    },
    /// Groups must tile the row exactly.
    #[error("group size {group_size} does not divide {in_features} input features")]
    GroupSize {
        /// Columns of a group.
        group_size: usize,
        /// Columns of the matrix.
        in_features: usize,
    },
    /// Input-major streams have no padding.
    #[error(
        "{in_features} codes of {bits} bits do not end with a 32-bit word, which the input-major layout demands"
    )]
    PartialWord {
        /// Columns of the matrix.
        in_features: usize,
        /// Width of a code.
        bits: u8,
    },
    /// A matrix that no memory can hold.
    #[error("a packed matrix of {out_features} by {in_features} overflows the address space")]
    Overflow {
        /// Rows.
        out_features: usize,
        /// Columns.
        in_features: usize,
    },
    /// Too many or too few words.
    #[error("the packed matrix has {found} words, expected {expected}")]
    Words {
        /// Words that the shape demands.
        expected: usize,
        /// Words given.
        found: usize,
    },
    /// Scales or zero points of another shape.
    #[error("shape of the {what} is {found:?}, expected {expected:?}")]
    Grid {
        /// Which array.
        what: &'static str,
        /// Groups and outputs of the shape.
        expected: (usize, usize),
        /// Rows and columns given.
        found: (usize, usize),
    },
}
