//! Inputs of linears as runtimes round them before they multiply, where a checkpoint asks for it.
//!
//! ```text
//! x  ->  scale * (clamp(round(x / scale + zero_point)) - zero_point)
//! ```
//!
//! in single precision, ties to even, with the steps of compressed-tensors 0.19 (`quantization/lifecycle/forward_helpers.py` and
//! `quantization/utils/helpers.py`), which transformers runs: a symmetric scale is the largest magnitude over half the range, 127.5 at eight bits.

use ndarray::{Array2, ArrayView2};

use crate::scheme::BitWidth;

/// How inputs are rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InputRounding {
    /// To what.
    pub numbers: InputNumbers,
    /// Times what.
    pub scale: InputScale,
}

/// The numbers that inputs become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputNumbers {
    /// `-2^(bits-1)` to `2^(bits-1) - 1`.
    Integers(BitWidth),
    /// Eight-bit floats with four exponent bits, -448 to 448.
    E4m3,
}

/// Where the scale of inputs comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum InputScale {
    /// From the inputs of a token themselves.
    OfToken {
        /// Columns that share one; none: all.
        columns: Option<usize>,
        /// Whether zero is in the middle; otherwise the range is that of the inputs, zero among them.
        symmetric: bool,
    },
    /// The checkpoint's.
    Fixed {
        /// Above zero.
        scale: f32,
        /// 0 of symmetric ones.
        zero_point: f32,
    },
}

impl InputRounding {
    /// What a runtime multiplies with in the place of `x`, `[tokens, in_features]`.
    #[must_use]
    pub fn rounded(&self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut out = x.as_standard_layout().into_owned();
        let tokens = out.ncols().max(1);
        let columns = match self.scale {
            InputScale::OfToken { columns, .. } => columns.unwrap_or(tokens).clamp(1, tokens),
            InputScale::Fixed { .. } => tokens,
        };
        let values = out.as_slice_mut().into_iter().flat_map(|all| all.chunks_mut(tokens));
        values.flat_map(|token| token.chunks_mut(columns)).for_each(|values| self.round(values));
        out
    }

    /// Rounds inputs that share a scale.
    fn round(&self, values: &mut [f32]) {
        let (least, most) = self.numbers.range();
        let (scale, zero_point) = match self.scale {
            InputScale::Fixed { scale, zero_point } => (scale, zero_point),
            InputScale::OfToken { symmetric: true, .. } => {
                let largest = values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                (largest / ((most - least) / 2.0), 0.0)
            }
            InputScale::OfToken { symmetric: false, .. } => {
                let low = values.iter().fold(0.0_f32, |low, &x| low.min(x));
                let high = values.iter().fold(0.0_f32, |high, &x| high.max(x));
                let scale = (high - low) / (most - least);
                (scale, (least - low / scale).clamp(least, most).round_ties_even())
            }
        };
        if scale == 0.0 {
            return values.fill(0.0);
        }
        for value in values {
            let number = self.numbers.nearest((*value / scale + zero_point).clamp(least, most));
            *value = (number - zero_point) * scale;
        }
    }
}

impl InputNumbers {
    fn range(self) -> (f32, f32) {
        match self {
            Self::Integers(bits) => {
                let half = f32::from(bits.symmetric_zero());
                (-half, half - 1.0)
            }
            Self::E4m3 => (-448.0, 448.0),
        }
    }

    /// The nearest to a number in the range, ties to even: what is added and taken away again leaves no place for more digits.
    fn nearest(self, number: f32) -> f32 {
        /// `1.5 * 2^23`, of which the next number is 1 away.
        const WHOLE: f32 = 12_582_912.0;
        /// Digits of the mantissa behind the point.
        const DIGITS: f32 = 8.0;
        const LEAST_NORMAL: f32 = 0.015_625;
        const EXPONENT: u32 = 0x7F80_0000;
        let shift = match self {
            Self::Integers(_) => WHOLE,
            Self::E4m3 => {
                let power = f32::from_bits((number.to_bits() & EXPONENT).max(LEAST_NORMAL.to_bits()));
                power * (WHOLE / DIGITS)
            }
        };
        (number + shift) - shift
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::levels::Levels;
    use ndarray::array;

    const INT8: InputScale = InputScale::OfToken { columns: None, symmetric: true };

    fn integers() -> InputNumbers {
        InputNumbers::Integers(BitWidth::new(8).unwrap())
    }

    #[test]
    fn every_number_is_its_own_nearest_and_the_middle_of_two_goes_to_the_even_one() {
        let table = Levels::E4m3.table().unwrap();
        for (place, pair) in table.windows(2).enumerate() {
            assert_eq!(InputNumbers::E4m3.nearest(pair[0]), pair[0]);
            // Patterns count from zero, which is at place 126, on both sides.
            let even = if place.is_multiple_of(2) { pair[0] } else { pair[1] };
            assert_eq!(InputNumbers::E4m3.nearest(0.5 * (pair[0] + pair[1])), even, "{pair:?}");
        }
        for (number, expected) in [(-128.0, -128.0), (-2.5, -2.0), (-0.5, 0.0), (1.5, 2.0), (126.5, 126.0)] {
            assert_eq!(integers().nearest(number), expected);
        }
        assert!(InputNumbers::E4m3.nearest(f32::NAN).is_nan() && integers().nearest(f32::NAN).is_nan());
    }

    #[test]
    fn tokens_and_groups_of_columns_have_scales_of_their_own() {
        let x = array![[1.0_f32, -0.3, 0.0, 200.0], [0.0, 0.0, 0.0, 0.0]];
        let rounding = InputRounding { numbers: integers(), scale: INT8 };
        let scale = 200.0_f32 / 127.5;
        let expected = array![[scale, 0.0, 0.0, 127.0 * scale], [0.0; 4]];
        assert_eq!(rounding.rounded(x.view()), expected);
        // However it lies in memory.
        assert_eq!(rounding.rounded(x.t().as_standard_layout().t()), expected);
        let of_two = InputScale::OfToken { columns: Some(2), symmetric: true };
        let found = InputRounding { scale: of_two, ..rounding }.rounded(x.view());
        assert_eq!(found[[0, 0]], 127.0 * (1.0_f32 / 127.5));
        assert!((found[[0, 1]] + 0.3).abs() < 0.5 / 127.5 && found[[0, 3]] == 127.0 * scale);
    }
}
