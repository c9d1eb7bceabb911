//! Which values a quantized matrix can hold: width, where scales live, symmetry, and the type that scales are stored in.

use serde::{Deserialize, Serialize};

use crate::levels::Levels;

/// Bits of one code, 2 to 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct BitWidth(u8);

impl BitWidth {
    /// # Errors
    /// Anything outside 2 to 8.
    pub fn new(bits: u8) -> Result<Self, SchemeError> {
        if (2..=8).contains(&bits) { Ok(Self(bits)) } else { Err(SchemeError::Bits { found: bits }) }
    }

    /// The width as a number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }

    /// The largest code, `2^bits - 1`.
    #[must_use]
    pub fn max_code(self) -> u8 {
        u8::MAX >> (8 - self.0)
    }

    /// The zero point of a symmetric grid, `2^(bits-1)`: one code more lies below zero than above.
    #[must_use]
    pub fn symmetric_zero(self) -> u8 {
        1 << (self.0 - 1)
    }
}

impl TryFrom<u8> for BitWidth {
    type Error = SchemeError;

    fn try_from(bits: u8) -> Result<Self, SchemeError> {
        Self::new(bits)
    }
}

impl From<BitWidth> for u8 {
    fn from(bits: BitWidth) -> u8 {
        bits.0
    }
}

/// Input columns that share one scale per row, 16 to 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "usize", into = "usize")]
pub struct GroupSize(usize);

impl GroupSize {
    /// # Errors
    /// Anything outside 16 to 1024.
    pub fn new(columns: usize) -> Result<Self, SchemeError> {
        if (16..=1024).contains(&columns) {
            Ok(Self(columns))
        } else {
            Err(SchemeError::GroupSize { found: columns })
        }
    }

    /// The number of columns.
    #[must_use]
    pub fn get(self) -> usize {
        self.0
    }
}

impl TryFrom<usize> for GroupSize {
    type Error = SchemeError;

    fn try_from(columns: usize) -> Result<Self, SchemeError> {
        Self::new(columns)
    }
}

impl From<GroupSize> for usize {
    fn from(size: GroupSize) -> usize {
        size.0
    }
}

/// Which weights share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// One scale for the whole matrix.
    PerTensor,
    /// One scale for each row (output feature).
    PerChannel,
    /// One scale for each row and each group of consecutive columns.
    PerGroup(GroupSize),
}

impl Granularity {
    /// Columns that share a scale within a row: the group size, or the whole row.
    #[must_use]
    pub fn columns_per_scale(self, in_features: usize) -> usize {
        match self {
            Self::PerTensor | Self::PerChannel => in_features,
            Self::PerGroup(size) => size.get(),
        }
    }

    /// Shape of the scales `[rows, groups]` of a matrix `[out_features, in_features]`.
    #[must_use]
    pub fn scale_shape(self, out_features: usize, in_features: usize) -> (usize, usize) {
        match self {
            Self::PerTensor => (1, 1),
            Self::PerChannel => (out_features, 1),
            Self::PerGroup(size) => (out_features, in_features.div_ceil(size.get())),
        }
    }
}

/// Where zero lies on the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Symmetry {
    /// The zero point is `2^(bits-1)` everywhere, 0 where levels are a table's; scales may be negative, which turns the lopsided range around.
    Symmetric,
    /// Each scale has a zero point of its own, an integer code.
    Asymmetric,
    /// Each scale has the value of its lowest code beside it, a number in the type of the scales: `value = scale * code + minimum`.
    Minimum,
}

/// The set of values that a stored scale can take. Scales are rounded into it when a grid is made, never after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleDtype {
    /// Stored and multiplied as IEEE half.
    F16,
    /// Stored and multiplied as bfloat16.
    Bf16,
    /// Exact in both: stored as half, multiplied by a bfloat16 runtime, or the other way round.
    F16AndBf16,
    /// Stored and multiplied in single precision.
    F32,
    /// Powers of two, `2^-127` to `2^127`: an exponent in eight bits.
    E8m0,
    /// A small integer other than 0 for each group, `least..=most`, times a half-precision number for each row's [`SUPER_COLUMNS`]
    /// columns. Minimums are `-(number * integer)`, with integers `0..=most` and a positive number of their own.
    Integers {
        /// The least integer; scales are positive where it is above 0.
        least: i16,
        /// The largest integer.
        most: i16,
    },
    /// A positive eight-bit float with four exponent bits.
    E4m3,
    /// The same times `2^exponent`, which a matrix shares with those that runtimes fuse with it ([`Scheme::sharing`]).
    SharedE4m3 {
        /// From -100 to 100.
        exponent: i8,
    },
    /// Eight bits that point into a table of bitsandbytes: its number times one in single precision for each [`NESTED_GROUPS`] groups, counted
    /// row after row, plus one for the matrix. Positive.
    Nested,
}

/// Columns that share the number by which integers are multiplied.
pub const SUPER_COLUMNS: usize = 256;
/// Groups that share the number by which nested scales are multiplied.
pub const NESTED_GROUPS: usize = 256;

impl ScaleDtype {
    /// The nearest value of the set that is finite and, in half precision, not subnormal (runtimes flush those).
    /// The sign is kept where the set has both; zero becomes the smallest positive value, so that a scale can always be divided by.
    /// Of a product of two numbers only the sign and the range are seen to: which products there are is for a whole row to say
    /// (`two_level.rs`).
    #[must_use]
    pub fn round(self, scale: f32) -> f32 {
        let (least, most) = match self {
            Self::F16 => (HALF_LEAST, HALF_MOST),
            Self::F16AndBf16 => (HALF_LEAST, HALF_AND_BF16_MOST),
            _ => (f32::MIN_POSITIVE, BF16_MOST),
        };
        let magnitude = if scale.is_nan() { least } else { scale.abs().clamp(least, most) };
        let rounded = match self {
            Self::F16 => half::f16::from_f32(magnitude).to_f32(),
            Self::Bf16 | Self::F16AndBf16 => half::bf16::from_f32(magnitude).to_f32(),
            Self::F32 | Self::Integers { .. } | Self::Nested => magnitude,
            Self::E4m3 => nearest_e4m3(magnitude),
            Self::SharedE4m3 { .. } => {
                let unit = self.unit();
                nearest_e4m3(magnitude / unit) * unit
            }
            Self::E8m0 => magnitude.log2().round().clamp(-126.0, 127.0).exp2(),
        };
        if scale.is_sign_negative() && self.has_signs() { -rounded } else { rounded }
    }

    /// `2^exponent` where scales share an exponent, 1 elsewhere.
    #[must_use]
    pub fn unit(self) -> f32 {
        match self {
            Self::SharedE4m3 { exponent } => {
                f32::from_bits(((127 + i32::from(exponent)).max(1) as u32) << 23)
            }
            _ => 1.0,
        }
    }

    /// Whether a scale may be negative.
    #[must_use]
    pub fn has_signs(self) -> bool {
        match self {
            Self::F16 | Self::Bf16 | Self::F16AndBf16 | Self::F32 => true,
            Self::E8m0 | Self::E4m3 | Self::SharedE4m3 { .. } | Self::Nested => false,
            Self::Integers { least, .. } => least < 0,
        }
    }

    /// Whether a scale is made of several stored numbers, products and sums.
    #[must_use]
    pub fn is_product(self) -> bool {
        matches!(self, Self::Integers { .. } | Self::Nested)
    }

    /// The value nearest to `minimum` that a minimum of such scales can have.
    #[must_use]
    pub fn round_minimum(self, minimum: f32) -> f32 {
        match self {
            Self::F16 => half::f16::from_f32(minimum.clamp(-HALF_MOST, HALF_MOST)).to_f32(),
            Self::Bf16 => half::bf16::from_f32(minimum.clamp(-BF16_MOST, BF16_MOST)).to_f32(),
            Self::F16AndBf16 => {
                let rounded = half::bf16::from_f32(minimum.clamp(-HALF_AND_BF16_MOST, HALF_AND_BF16_MOST));
                half::f16::from_f32(rounded.to_f32()).to_f32()
            }
            _ => minimum,
        }
    }

    /// Whether `scale` is a value that [`ScaleDtype::round`] can return.
    #[must_use]
    pub fn holds(self, scale: f32) -> bool {
        scale.is_finite() && self.round(scale).to_bits() == scale.to_bits()
    }
}

const HALF_LEAST: f32 = 6.103_515_6e-5;
const HALF_MOST: f32 = 65504.0;
/// The largest bfloat16 below the largest half.
const HALF_AND_BF16_MOST: f32 = 65280.0;
/// The largest finite bfloat16.
const BF16_MOST: f32 = 3.389_531_4e38;
/// The largest eight-bit float.
const MOST_E4M3: f32 = 448.0;
/// Of a shared power of two, so that no scale is subnormal.
const MOST_EXPONENT: i32 = 100;

/// The positive eight-bit float nearest to `x`, ties to even.
fn nearest_e4m3(x: f32) -> f32 {
    const LEAST_NORMAL: f32 = 0.015_625;
    const SUBNORMAL_STEP: f32 = 0.001_953_125;
    /// Bits of the mantissa that a float of single precision has more.
    const DROPPED: u32 = 20;
    if x < LEAST_NORMAL {
        return (x / SUBNORMAL_STEP).round_ties_even().max(1.0) * SUBNORMAL_STEP;
    }
    let bits = x.min(MOST_E4M3).to_bits();
    let half = (1 << (DROPPED - 1)) - 1 + (bits >> DROPPED & 1);
    f32::from_bits((bits + half) >> DROPPED << DROPPED).min(MOST_E4M3)
}

/// The grid that a matrix is quantized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scheme {
    /// Width of a code.
    pub bits: BitWidth,
    /// What codes stand for; a table goes with its own width.
    #[serde(default, skip_serializing_if = "is_uniform")]
    pub levels: Levels,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// Where zero lies.
    pub symmetry: Symmetry,
    /// The values that a scale can take.
    pub scale_dtype: ScaleDtype,
}

fn is_uniform(levels: &Levels) -> bool {
    *levels == Levels::Uniform
}

impl Scheme {
    /// The largest code.
    #[must_use]
    pub fn max_code(&self) -> u8 {
        self.kernel_levels().max_code()
    }

    /// The scheme of weights whose largest magnitude is `most`: an exponent that matrices share is settled, with room for scales that a solver
    /// makes up to twice as large; any other scheme stays as it is.
    #[must_use]
    pub fn sharing(self, most: f32) -> Self {
        let ScaleDtype::SharedE4m3 { .. } = self.scale_dtype else { return self };
        let (low, high) = self.kernel_levels().ends();
        let largest = most / high.max(-low) / (0.5 * MOST_E4M3);
        // The least power of two above it.
        let above = i32::from(largest.to_bits() << 9 != 0) + (largest.to_bits() >> 23) as i32 - 127;
        let exponent = above.clamp(-MOST_EXPONENT, MOST_EXPONENT) as i8;
        Self { scale_dtype: ScaleDtype::SharedE4m3 { exponent }, ..self }
    }

    /// The scheme before [`Scheme::sharing`]: grids that differ in their exponents alone are the same here.
    #[must_use]
    pub fn unsettled(self) -> Self {
        match self.scale_dtype {
            ScaleDtype::SharedE4m3 { .. } => {
                Self { scale_dtype: ScaleDtype::SharedE4m3 { exponent: 0 }, ..self }
            }
            _ => self,
        }
    }

    /// The zero point of a symmetric grid, in the levels' unit.
    #[must_use]
    pub fn middle(&self) -> f32 {
        self.levels.middle(self.bits)
    }

    pub(crate) fn kernel_levels(&self) -> kernels::panel::Levels<'static> {
        self.levels.kernel(self.bits)
    }
}

/// A scheme that cannot exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemeError {
    /// Width out of range.
    #[error("bits is {found}, expected 2 to 8")]
    Bits {
        /// What was asked for.
        found: u8,
    },
    /// Group size out of range.
    #[error("group size is {found}, expected 16 to 1024")]
    GroupSize {
        /// What was asked for.
        found: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounded_scales_are_exact_in_every_type_they_claim() {
        for i in 0..4000 {
            let scale = (f32::from(i as u16) * 1.37 - 2000.0) * 1e-4;
            for dtype in [ScaleDtype::F16, ScaleDtype::Bf16, ScaleDtype::F16AndBf16, ScaleDtype::F32] {
                let rounded = dtype.round(scale);
                assert!(dtype.holds(rounded), "{dtype:?} {scale}");
                assert!(rounded != 0.0);
            }
            let both = ScaleDtype::F16AndBf16.round(scale);
            assert_eq!(half::f16::from_f32(both).to_f32(), both);
            assert_eq!(half::bf16::from_f32(both).to_f32(), both);
        }
        assert!(ScaleDtype::F16.round(1e9).is_finite());
        assert_eq!(ScaleDtype::F16AndBf16.round(f32::INFINITY), 65280.0);
    }

    #[test]
    fn eight_bit_floats_are_the_nearest_there_are() {
        for (x, expected) in [(0.0, 0.001_953_125), (1.06, 1.0), (1.07, 1.125), (500.0, 448.0), (17.0, 16.0)]
        {
            assert_eq!(nearest_e4m3(x), expected, "{x}");
        }
        let table = Levels::E4m3.table().unwrap();
        for pair in table[table.len() / 2 + 1..].windows(2) {
            let middle = 0.5 * (pair[0] + pair[1]);
            for (x, expected) in [(pair[0], pair[0]), (middle * 0.999, pair[0]), (middle * 1.001, pair[1])] {
                assert_eq!(nearest_e4m3(x), expected, "{x}");
            }
        }
        assert_eq!(nearest_e4m3(f32::INFINITY), 448.0);
    }

    #[test]
    fn a_shared_exponent_leaves_room_above_and_little_unused() {
        let scheme = Scheme {
            bits: BitWidth(4),
            levels: Levels::E2m1,
            granularity: Granularity::PerGroup(GroupSize(16)),
            symmetry: Symmetry::Symmetric,
            scale_dtype: ScaleDtype::SharedE4m3 { exponent: 0 },
        };
        for most in [1e-4, 0.3, 1.0, 77.0] {
            let largest = most / 6.0 / scheme.sharing(most).scale_dtype.unit();
            assert!(largest <= 224.0 && largest > 112.0, "{most} {largest}");
        }
        assert_eq!(scheme.sharing(0.0).scale_dtype, ScaleDtype::SharedE4m3 { exponent: -100 });
        let plain = Scheme { scale_dtype: ScaleDtype::F16, ..scheme };
        assert_eq!(plain.sharing(1.0), plain);
    }

    #[test]
    fn widths_and_group_sizes_outside_the_range_are_refused() {
        assert!(BitWidth::new(1).is_err() && BitWidth::new(9).is_err());
        assert!(GroupSize::new(8).is_err() && GroupSize::new(2048).is_err());
        assert_eq!(BitWidth::new(3).unwrap().max_code(), 7);
        assert_eq!(BitWidth::new(8).unwrap().max_code(), 255);
    }
}
