//! Floats of four and eight bits as formats store them, scales of either kind beside them, and scales of tiles: what readers share.

use ndarray::{Array2, ArrayView2};
use quantizer::levels::Levels;
use quantizer::scheme::{Granularity, GroupSize, Scheme};
use quantizer::tensor::QuantizedTensor;

use super::packed_parts::StoredLinear;
use crate::checkpoint::Dtype;
use crate::error::FormatsError;

/// Eight-bit floats with four exponent bits.
pub(super) const F8: Dtype = Dtype::Other("F8_E4M3", 8);
/// Exponents of powers of two, as newer files declare them.
const E8M0: Dtype = Dtype::Other("F8_E8M0", 8);

/// The bit of the sign, the highest.
fn sign(levels: Levels) -> u8 {
    if levels == Levels::E2m1 { 8 } else { 0x80 }
}

/// The code of zero among floats, which are as many below it as above.
fn zero(levels: Levels) -> u8 {
    levels.table().map_or(0, |table| (table.len() / 2) as u8)
}

/// The bits of a code's number: two's complement, or a sign before a magnitude.
pub(super) fn pattern(levels: Levels, code: u8) -> u8 {
    let zero = zero(levels);
    match levels {
        Levels::Uniform => code ^ 0x80,
        _ if code >= zero => code - zero,
        _ => sign(levels) | (zero - code),
    }
}

/// The code of a number; none where the bits are no number's. Floats have a minus zero, which is our zero.
pub(super) fn code(levels: Levels, pattern: u8) -> Option<u8> {
    let (zero, magnitude) = (zero(levels), pattern & !sign(levels));
    match levels {
        Levels::Uniform => Some(pattern ^ 0x80),
        _ if magnitude > zero => None,
        _ if magnitude == pattern => Some(zero + magnitude),
        _ => Some(zero - magnitude),
    }
}

/// Two patterns of four bits a byte, the first in the low half.
pub(super) fn nibbles(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect()
}

/// The same bytes of patterns of four bits.
pub(super) fn pairs(patterns: &[u8]) -> Vec<u8> {
    patterns.chunks(2).map(|pair| pair[0] | pair.get(1).unwrap_or(&0) << 4).collect()
}

/// The byte of a power of two: its exponent is its bits.
pub(super) fn exponent(scale: f32) -> u8 {
    (scale.to_bits() >> 23) as u8
}

/// The bits of a positive number that is an eight-bit float; of any other, of the next below.
pub(super) fn e4m3_pattern(number: f32) -> u8 {
    let table = Levels::E4m3.table().unwrap_or_default();
    let code = table.partition_point(|&level| level <= number).saturating_sub(1);
    pattern(Levels::E4m3, code as u8)
}

/// `2^(exponent - 127)`; the least is taken for zero, as it is no normal number.
pub(super) fn power_of_two(exponent: u8) -> f32 {
    f32::from_bits(u32::from(exponent) << 23)
}

/// The number of an eight-bit float.
pub(super) fn e4m3(pattern: u8) -> Option<f32> {
    Levels::E4m3.table()?.get(usize::from(code(Levels::E4m3, pattern)?)).copied()
}

impl StoredLinear<'_> {
    /// Codes of a tensor of patterns, one or two a byte.
    pub(super) fn float_codes(
        &self,
        suffix: &str,
        dtype: Dtype,
        levels: Levels,
    ) -> Result<Array2<u8>, FormatsError> {
        let (outputs, inputs) = (self.linear.out_features, self.linear.in_features);
        let paired = levels == Levels::E2m1;
        if paired && !inputs.is_multiple_of(2) {
            return Err(self.fail(suffix, format!("holds pairs, and rows are of {inputs} input features")));
        }
        let row = if paired { inputs / 2 } else { inputs };
        let bytes = self.checkpoint.read_as(&self.name(suffix), dtype, &[outputs, row])?;
        let patterns = if paired { nibbles(&bytes) } else { bytes };
        self.coded(suffix, &patterns, levels)
    }

    /// Codes of patterns, one a byte, row after row.
    pub(super) fn coded(
        &self,
        suffix: &str,
        patterns: &[u8],
        levels: Levels,
    ) -> Result<Array2<u8>, FormatsError> {
        let codes: Option<Vec<u8>> = patterns.iter().map(|&pattern| code(levels, pattern)).collect();
        let codes = codes.ok_or_else(|| self.fail(suffix, "holds what is no number"))?;
        let shape = (self.linear.out_features, self.linear.in_features);
        Array2::from_shape_vec(shape, codes).map_err(|e| self.fail(suffix, e.to_string()))
    }

    /// Numbers of a tensor of any shape, which may be floats of eight bits (bytes that `read` understands), with that shape.
    pub(super) fn any_scales(
        &self,
        suffix: &str,
        read: fn(u8) -> Option<f32>,
    ) -> Result<(Vec<usize>, Vec<f32>), FormatsError> {
        let name = self.name(suffix);
        let info = self.checkpoint.info(&name)?;
        let (dtype, shape) = (info.dtype, info.shape.to_vec());
        let bytes = self.checkpoint.read(&name)?;
        let values = match dtype {
            Dtype::U8 | F8 => bytes.iter().map(|&byte| read(byte)).collect(),
            E8M0 => Some(bytes.into_iter().map(power_of_two).collect()),
            _ => dtype.decode(&bytes),
        };
        let values = values.ok_or_else(|| {
            self.fail(suffix, format!("is {} or holds what is no number, expected scales", dtype.name()))
        })?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok((shape, values)),
            Some(place) => Err(self.fail(suffix, format!("holds {} at {place}", values[place]))),
        }
    }

    /// A single number.
    pub(super) fn single(&self, suffix: &str) -> Result<f32, FormatsError> {
        let (shape, values) = self.any_scales(suffix, e4m3)?;
        match values[..] {
            [value] => Ok(value),
            _ => Err(self.fail(suffix, format!("has shape {shape:?}, expected one number"))),
        }
    }

    /// Which weights share the scales of a tensor of this shape, and the scales: one, one for each row, one for each of a row's groups, or,
    /// where a tile is given, one for each tile of so many rows and columns.
    pub(super) fn arranged(
        &self,
        suffix: &str,
        (shape, values): (Vec<usize>, Vec<f32>),
        tile: Option<[usize; 2]>,
    ) -> Result<(Granularity, Array2<f32>), FormatsError> {
        let (outputs, inputs) = (self.linear.out_features, self.linear.in_features);
        let misfit = || {
            self.fail(suffix, format!("has shape {shape:?}, which fits no scales of [{outputs}, {inputs}]"))
        };
        let matrix = |rows: usize, columns: usize, values| {
            Array2::from_shape_vec((rows, columns), values).map_err(|e| self.fail(suffix, e.to_string()))
        };
        let (rows, columns) = match shape[..] {
            _ if values.len() == 1 => return Ok((Granularity::PerTensor, matrix(1, 1, values)?)),
            [rows] => (rows, 1),
            [rows, columns] => (rows, columns),
            _ => return Err(misfit()),
        };
        if let Some([tall, wide]) = tile {
            if rows != outputs.div_ceil(tall) || columns != inputs.div_ceil(wide) {
                return Err(misfit());
            }
            let tiles = matrix(rows, columns, values)?;
            return spread(tiles.view(), [tall, wide], [outputs, inputs]).map_err(|e| self.fail(suffix, e));
        }
        if rows != outputs || columns == 0 || !inputs.is_multiple_of(columns) {
            return Err(misfit());
        }
        let granularity = match columns {
            1 => Granularity::PerChannel,
            _ => Granularity::PerGroup(GroupSize::new(inputs / columns).map_err(|_| misfit())?),
        };
        Ok((granularity, matrix(rows, columns, values)?))
    }

    /// The solution of codes with such scales.
    pub(super) fn with_scales(
        &self,
        suffix: &str,
        codes: Array2<u8>,
        (granularity, scales): (Granularity, Array2<f32>),
    ) -> Result<QuantizedTensor, FormatsError> {
        let scheme = Scheme { granularity, ..self.scheme };
        QuantizedTensor::new(scheme, codes, scales, None)
            .map_err(|e| self.fail(suffix, format!("is no solution's: {e}")))
    }
}

/// Scales of tiles as scales of rows' groups: the widest groups that lie in one tile each.
fn spread(
    tiles: ArrayView2<'_, f32>,
    [tall, wide]: [usize; 2],
    [rows, columns]: [usize; 2],
) -> Result<(Granularity, Array2<f32>), String> {
    let (granularity, size) = if wide >= columns {
        (Granularity::PerChannel, columns.max(1))
    } else {
        let size = greatest_common_divisor(wide, columns);
        let group = GroupSize::new(size)
            .map_err(|e| format!("is of tiles of {wide} columns, cut for {columns}: {e}"))?;
        (Granularity::PerGroup(group), size)
    };
    let scale = |(row, group): (usize, usize)| tiles[[row / tall, group * size / wide]];
    Ok((granularity, Array2::from_shape_fn((rows, columns / size), scale)))
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_is_a_code_and_back_but_for_minus_zero_and_what_is_no_number() {
        for (levels, patterns, none) in
            [(Levels::E4m3, 0..=255_u8, 2), (Levels::E2m1, 0..=15, 0), (Levels::Uniform, 0..=255, 0)]
        {
            let minus_zero = (levels != Levels::Uniform).then(|| sign(levels));
            let mut missing = 0;
            for bits in patterns {
                match code(levels, bits) {
                    None => missing += 1,
                    Some(code) if Some(bits) == minus_zero => assert_eq!(pattern(levels, code), 0),
                    Some(code) => assert_eq!(pattern(levels, code), bits),
                }
            }
            assert_eq!(missing, none, "{levels:?}");
        }
        assert_eq!((e4m3(0x38), e4m3(0xC8), e4m3(0x7F)), (Some(1.0), Some(-4.0), None));
        assert_eq!((power_of_two(126), exponent(0.5)), (0.5, 126));
        assert!((1..0x7F).all(|bits| e4m3(bits).map(e4m3_pattern) == Some(bits)));
        assert_eq!(pairs(&nibbles(&[0x1F, 0x80])), [0x1F, 0x80]);
    }

    #[test]
    fn tiles_are_cut_where_rows_and_groups_are() {
        let tiles = ndarray::array![[1.0, 2.0], [3.0, 4.0]];
        let (granularity, scales) = spread(tiles.view(), [2, 128], [3, 192]).unwrap();
        assert_eq!(granularity, Granularity::PerGroup(GroupSize::new(64).unwrap()));
        assert_eq!(scales, ndarray::array![[1.0, 1.0, 2.0], [1.0, 1.0, 2.0], [3.0, 3.0, 4.0]]);
        let (granularity, scales) = spread(ndarray::array![[5.0]].view(), [128, 128], [2, 64]).unwrap();
        assert_eq!((granularity, scales), (Granularity::PerChannel, ndarray::array![[5.0], [5.0]]));
        assert!(spread(tiles.view(), [2, 128], [3, 130]).is_err());
    }
}
