//! Solutions and plain arrays as parts of a segment: exactly what was solved comes back.

use ndarray::{Array2, ArrayView2};
use quantizer::scheme::Scheme;
use quantizer::tensor::{Offsets, QuantizedTensor, ScaleParts};
use serde::{Deserialize, Serialize};

use crate::error::FormatsError;
use crate::packing;
use crate::segment::{Segment, SegmentWriter};

/// Where an array is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrayPart {
    part: usize,
    rows: usize,
    columns: usize,
}

/// Where a solution is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SolutionParts {
    scheme: Scheme,
    /// In 32-bit words, row by row, as [`packing`] packs them.
    codes: ArrayPart,
    scales: ArrayPart,
    zero_points: Option<ArrayPart>,
    minimums: Option<ArrayPart>,
    /// What scales are products of, coarse and fine.
    scale_parts: Option<(ArrayPart, ArrayPart)>,
    minimum_parts: Option<(ArrayPart, ArrayPart)>,
}

impl SegmentWriter {
    /// Adds an array in single precision.
    ///
    /// # Errors
    /// The system's.
    pub fn put_array(&mut self, array: ArrayView2<'_, f32>) -> Result<ArrayPart, FormatsError> {
        let bytes: Vec<u8> = array.iter().flat_map(|number| number.to_le_bytes()).collect();
        Ok(ArrayPart { part: self.put(&bytes)?, rows: array.nrows(), columns: array.ncols() })
    }

    /// Adds a solution.
    ///
    /// # Errors
    /// The system's.
    pub fn put_solution(&mut self, tensor: &QuantizedTensor) -> Result<SolutionParts, FormatsError> {
        let words = packing::pack_rows(tensor.codes(), tensor.scheme().bits.get());
        let (rows, columns) = tensor.codes().dim();
        let codes = ArrayPart { part: self.put(&packing::to_bytes(words.view()))?, rows, columns };
        let mut both = |parts: Option<&ScaleParts>| {
            let put = |parts: &ScaleParts| {
                Ok::<_, FormatsError>((
                    self.put_array(parts.coarse.view())?,
                    self.put_array(parts.fine.view())?,
                ))
            };
            parts.map(put).transpose()
        };
        let (scale_parts, minimum_parts) = (both(tensor.scale_parts())?, both(tensor.minimum_parts())?);
        let zero_points = match tensor.zero_points() {
            None => None,
            Some(zeros) => {
                let bytes: Vec<u8> = zeros.iter().copied().collect();
                let (rows, columns) = zeros.dim();
                Some(ArrayPart { part: self.put(&bytes)?, rows, columns })
            }
        };
        Ok(SolutionParts {
            scheme: tensor.scheme(),
            codes,
            scales: self.put_array(tensor.scales())?,
            zero_points,
            minimums: tensor.minimums().map(|minimums| self.put_array(minimums)).transpose()?,
            scale_parts,
            minimum_parts,
        })
    }
}

impl Segment {
    /// An array in single precision.
    ///
    /// # Errors
    /// The system's, and a part of another length.
    pub fn array(&self, place: ArrayPart) -> Result<Array2<f32>, FormatsError> {
        let bytes = self.part(place.part)?;
        let (numbers, rest) = bytes.as_chunks();
        let numbers = numbers.iter().map(|number| f32::from_le_bytes(*number)).collect();
        match Array2::from_shape_vec((place.rows, place.columns), numbers) {
            Ok(array) if rest.is_empty() => Ok(array),
            _ => Err(self.of_length(place, bytes.len())),
        }
    }

    /// A solution.
    ///
    /// # Errors
    /// The system's, and parts that are none of such a scheme.
    pub fn solution(&self, parts: &SolutionParts) -> Result<QuantizedTensor, FormatsError> {
        let bits = parts.scheme.bits.get();
        let ArrayPart { part, rows, columns } = parts.codes;
        let bytes = self.part(part)?;
        // Lengths are compared before anything is made of them.
        let words = columns.checked_mul(usize::from(bits)).map(|bits| bits.div_ceil(32));
        let expected = words.and_then(|words| words.checked_mul(rows)?.checked_mul(4));
        if expected != Some(bytes.len()) {
            return Err(self.of_length(parts.codes, bytes.len()));
        }
        let words = Array2::from_shape_vec((rows, words.unwrap_or(0)), packing::from_bytes(&bytes))
            .map_err(|_| self.of_length(parts.codes, bytes.len()))?;
        let codes = packing::unpack_rows(words.view(), bits, columns);
        let offsets = match (parts.zero_points, parts.minimums) {
            (Some(zeros), _) => {
                let bytes = self.part(zeros.part)?;
                let length = bytes.len();
                let zeros = Array2::from_shape_vec((zeros.rows, zeros.columns), bytes)
                    .map_err(|_| self.of_length(zeros, length))?;
                Offsets::ZeroPoints(zeros)
            }
            (None, Some(minimums)) => Offsets::Minimums(self.array(minimums)?),
            (None, None) => Offsets::None,
        };
        let wrong = |problem: quantizer::tensor::TensorError| self.malformed(problem.to_string());
        let tensor = QuantizedTensor::with_offsets(parts.scheme, codes, self.array(parts.scales)?, offsets)
            .map_err(wrong)?;
        let both = |place: (ArrayPart, ArrayPart)| {
            Ok::<_, FormatsError>(ScaleParts { coarse: self.array(place.0)?, fine: self.array(place.1)? })
        };
        match parts.scale_parts {
            None => Ok(tensor),
            Some(scales) => {
                let minimums = parts.minimum_parts.map(both).transpose()?;
                tensor.in_parts(both(scales)?, minimums).map_err(wrong)
            }
        }
    }

    fn of_length(&self, place: ArrayPart, found: usize) -> FormatsError {
        let ArrayPart { part, rows, columns } = place;
        self.malformed(format!("part {part} has {found} bytes, which is no array of {rows} by {columns}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use quantizer::levels::Levels;
    use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Symmetry};

    fn tensor(bits: u8, symmetry: Symmetry) -> QuantizedTensor {
        let scheme = Scheme {
            bits: BitWidth::new(bits).unwrap(),
            levels: Levels::Uniform,
            granularity: Granularity::PerGroup(GroupSize::new(16).unwrap()),
            symmetry,
            scale_dtype: ScaleDtype::F32,
        };
        let most = usize::from(scheme.max_code());
        let codes =
            Array2::from_shape_fn((3, 48), |(row, column)| ((row * 5 + column * 7) % (most + 1)) as u8);
        let scales = Array2::from_shape_fn((3, 3), |(row, group)| 0.1 - 0.3 * (row * group) as f32);
        let offsets = match symmetry {
            Symmetry::Symmetric => Offsets::None,
            Symmetry::Asymmetric => Offsets::ZeroPoints(Array2::from_elem((3, 3), 2)),
            Symmetry::Minimum => Offsets::Minimums(Array2::from_elem((3, 3), -0.7)),
        };
        QuantizedTensor::with_offsets(scheme, codes, scales, offsets).unwrap()
    }

    #[test]
    fn what_was_solved_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("segment");
        let mut writer = SegmentWriter::create(&path).unwrap();
        let mut tensors = Vec::new();
        for bits in 2..=8 {
            for symmetry in [Symmetry::Symmetric, Symmetry::Asymmetric, Symmetry::Minimum] {
                let tensor = tensor(bits, symmetry);
                tensors.push((writer.put_solution(&tensor).unwrap(), tensor));
            }
        }
        let numbers = array![[1.5_f32, -0.0], [f32::MIN_POSITIVE, f32::NAN]];
        let place = writer.put_array(numbers.view()).unwrap();
        let heads: Vec<_> = tensors.iter().map(|(head, _)| head).collect();
        writer.finish(&heads).unwrap();
        let segment = Segment::open(&path).unwrap().unwrap();
        let heads: Vec<SolutionParts> = segment.head().unwrap();
        for (head, (_, tensor)) in heads.iter().zip(&tensors) {
            assert_eq!(segment.solution(head).unwrap(), *tensor);
        }
        let found = segment.array(place).unwrap();
        assert!(found.iter().zip(&numbers).all(|(a, b)| a.to_bits() == b.to_bits()));
        let mut wrong = heads[0];
        wrong.codes.columns = usize::MAX;
        assert!(segment.solution(&wrong).unwrap_err().to_string().contains("part"));
        assert!(segment.array(ArrayPart { rows: usize::MAX, ..place }).is_err());
    }
}
