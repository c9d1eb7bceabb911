//! What codes stand for before scale and offset: whole numbers, or the numbers of a table.
//!
//! Codes of a table count its levels in ascending order, whatever bit pattern a format stores for them, so that neighbours in value are
//! neighbours in code. A table has its zero where its numbers do: the zero point of a symmetric grid is 0.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::scheme::BitWidth;

/// Levels of a grid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Levels {
    /// `0, 1, .., 2^bits - 1`.
    #[default]
    Uniform,
    /// Quantiles of a normal distribution (QLoRA, arXiv 2305.14314, appendix E), 4 bit.
    Nf4,
    /// The 4-bit float of bitsandbytes, largest level 1.
    Fp4,
    /// The non-linear 4-bit levels of llama.cpp, -127 to 113.
    Iq4,
    /// Four-bit floats with two exponent bits, -6 to 6 (OCP Microscaling formats, section 5.3.3).
    E2m1,
    /// Eight-bit floats with four exponent bits, -448 to 448 (OCP 8-bit floating point, section 3.1).
    E4m3,
}

impl Levels {
    /// The only width that a table has; none: any.
    #[must_use]
    pub fn bits(self) -> Option<u8> {
        match self {
            Self::Uniform => None,
            Self::Nf4 | Self::Fp4 | Self::Iq4 | Self::E2m1 => Some(4),
            Self::E4m3 => Some(8),
        }
    }

    /// As lists and reports spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Nf4 => "NF4",
            Self::Fp4 => "FP4",
            Self::Iq4 => "IQ4",
            Self::E2m1 => "E2M1",
            Self::E4m3 => "E4M3",
        }
    }

    /// The table, ascending; none where levels are uniform.
    #[must_use]
    pub fn table(self) -> Option<&'static [f32]> {
        match self {
            Self::Uniform => None,
            Self::Nf4 => Some(&NF4),
            Self::Fp4 => Some(&FP4),
            Self::Iq4 => Some(&IQ4),
            Self::E2m1 => Some(&E2M1),
            Self::E4m3 => Some(&E4M3[..]),
        }
    }

    /// As the kernels take them.
    #[must_use]
    pub fn kernel(self, bits: BitWidth) -> kernels::panel::Levels<'static> {
        match self.table() {
            None => kernels::panel::Levels::Uniform { max_code: bits.max_code() },
            Some(table) => kernels::panel::Levels::Codebook(table),
        }
    }

    /// Where a symmetric grid has its zero: `2^(bits-1)` on uniform levels, 0 in a table.
    #[must_use]
    pub fn middle(self, bits: BitWidth) -> f32 {
        match self {
            Self::Uniform => f32::from(bits.symmetric_zero()),
            _ => 0.0,
        }
    }
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

const FP4: [f32; 15] = [
    -1.0,
    -0.666_666_7,
    -0.5,
    -0.333_333_34,
    -0.25,
    -0.166_666_67,
    -0.005_208_333_5,
    0.0,
    0.005_208_333_5,
    0.166_666_67,
    0.25,
    0.333_333_34,
    0.5,
    0.666_666_7,
    1.0,
];

const IQ4: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

const E2M1: [f32; 15] = [-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Magnitudes of patterns 0 to 0x7e, mirrored; zero once.
static E4M3: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let magnitudes: Vec<f32> = (0..0x7f).map(e4m3_magnitude).collect();
    magnitudes[1..].iter().rev().map(|x| -x).chain(magnitudes.iter().copied()).collect()
});

/// The number that the bit pattern of a non-negative E4M3 stands for.
pub(crate) fn e4m3_magnitude(pattern: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(pattern >> 3), f32::from(pattern & 7));
    if exponent == 0 { mantissa * 2.0_f32.powi(-9) } else { (8.0 + mantissa) * 2.0_f32.powi(exponent - 10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_ascend_fill_their_width_and_hold_zero() {
        for levels in [Levels::Nf4, Levels::Fp4, Levels::Iq4, Levels::E2m1, Levels::E4m3] {
            let table = levels.table().unwrap();
            assert!(table.windows(2).all(|pair| pair[0] < pair[1]), "{levels:?}");
            let most = 1 << levels.bits().unwrap();
            assert!(table.len() <= most && table.len() + 3 >= most, "{levels:?}: {}", table.len());
            assert_eq!(table.contains(&0.0), levels != Levels::Iq4, "{levels:?}");
        }
    }

    #[test]
    fn eight_bit_floats_are_those_of_the_standard() {
        // Largest, smallest normal, largest and smallest subnormal.
        for (pattern, value) in
            [(0x7e, 448.0), (0x08, 0.015_625), (0x07, 0.875 / 64.0), (0x01, 0.001_953_125)]
        {
            assert_eq!(e4m3_magnitude(pattern), value);
        }
        assert_eq!(Levels::E4m3.table().unwrap().len(), 253);
    }
}
