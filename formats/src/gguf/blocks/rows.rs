//! Matrices to bytes and back, piece by piece.

use ndarray::Array2;
use quantizer::scheme::{Scheme, Symmetry};
use quantizer::tensor::{Offsets, QuantizedTensor, ScaleParts, TensorError};

use super::{BlockLayout, Piece};

/// Codes and numbers of a matrix, as they were stored.
#[derive(Clone, Debug)]
pub struct DecodedRows {
    /// `[rows, columns]`.
    pub codes: Array2<u8>,
    /// `[rows, groups]`.
    pub scales: Array2<f32>,
    /// `[rows, groups]`, where the layout has them.
    pub minimums: Option<Array2<f32>>,
    /// What scales are products of, where they are, and minimums.
    pub parts: Option<(ScaleParts, Option<ScaleParts>)>,
}

impl BlockLayout {
    /// The bytes of a matrix on this layout's grid, row after row.
    #[must_use]
    pub fn encode(&self, tensor: &QuantizedTensor) -> Vec<u8> {
        let (weights, groups) = (self.weights(), self.weights() / self.group);
        let codes = tensor.codes();
        let scales = tensor.scales_by_row();
        let mut bytes = vec![0; codes.nrows() * self.row_bytes(codes.ncols())];
        let pieces_of_row = codes.ncols() / weights;
        for (number, out) in bytes.chunks_exact_mut(self.tensor_type.bytes as usize).enumerate() {
            let (row, place) = (number / pieces_of_row, number % pieces_of_row);
            let mut piece = Piece::default();
            for (to, from) in
                piece.codes.iter_mut().zip(codes.row(row).iter().skip(place * weights)).take(weights)
            {
                *to = *from;
            }
            match tensor.scale_parts() {
                None => {
                    piece.scale = scales[[row, place]];
                    piece.minimum = tensor.minimums().map_or(0.0, |minimums| minimums[[row, place]]);
                }
                Some(parts) => {
                    piece.scale = parts.coarse[[row, place]];
                    for (group, to) in piece.scales.iter_mut().enumerate().take(groups) {
                        *to = parts.fine[[row, place * groups + group]] as i16;
                    }
                    if let Some(parts) = tensor.minimum_parts() {
                        piece.minimum = parts.coarse[[row, place]];
                        for (group, to) in piece.minimums.iter_mut().enumerate().take(groups) {
                            *to = parts.fine[[row, place * groups + group]] as u8;
                        }
                    }
                }
            }
            (self.pack)(&piece, out);
        }
        bytes
    }

    /// The inverse, for bytes of whole rows of `columns` weights.
    #[must_use]
    pub fn decode(&self, bytes: &[u8], rows: usize, columns: usize) -> DecodedRows {
        let (weights, groups) = (self.weights(), self.weights() / self.group);
        let pieces_of_row = columns / weights;
        let is_product = self.scale_dtype.is_product();
        let has_minimums = self.symmetry == Symmetry::Minimum;
        let mut codes = Array2::zeros((rows, columns));
        let all_groups = (rows, columns / self.group);
        let mut scales = Array2::zeros(all_groups);
        let mut minimums = Array2::zeros(all_groups);
        let empty =
            || ScaleParts { coarse: Array2::zeros((rows, pieces_of_row)), fine: Array2::zeros(all_groups) };
        let (mut scale_parts, mut minimum_parts) = (empty(), empty());
        let mut piece = Piece::default();
        for (number, bytes) in bytes.chunks_exact(self.tensor_type.bytes as usize).enumerate() {
            let (row, place) = (number / pieces_of_row, number % pieces_of_row);
            (self.unpack)(bytes, &mut piece);
            for (to, from) in codes.row_mut(row).iter_mut().skip(place * weights).zip(&piece.codes[..weights])
            {
                *to = *from;
            }
            for group in 0..groups {
                let at = [row, place * groups + group];
                let (fine, least) = (f32::from(piece.scales[group]), f32::from(piece.minimums[group]));
                if is_product {
                    scale_parts.coarse[[row, place]] = piece.scale;
                    scale_parts.fine[at] = fine;
                    minimum_parts.coarse[[row, place]] = piece.minimum;
                    minimum_parts.fine[at] = least;
                    scales[at] = piece.scale * fine;
                    minimums[at] = -(piece.minimum * least);
                } else {
                    (scales[at], minimums[at]) = (piece.scale, piece.minimum);
                }
            }
        }
        DecodedRows {
            codes,
            scales,
            minimums: has_minimums.then_some(minimums),
            parts: is_product.then(|| (scale_parts, has_minimums.then_some(minimum_parts))),
        }
    }
}

impl DecodedRows {
    /// The solution on `scheme`, the layout's grid.
    ///
    /// # Errors
    /// Numbers that no solution has.
    pub fn into_tensor(self, scheme: Scheme) -> Result<QuantizedTensor, TensorError> {
        let offsets = self.minimums.map_or(Offsets::None, Offsets::Minimums);
        let tensor = QuantizedTensor::with_offsets(scheme, self.codes, self.scales, offsets)?;
        match self.parts {
            Some((scales, minimums)) if scheme.scale_dtype.is_product() => tensor.in_parts(scales, minimums),
            _ => Ok(tensor),
        }
    }
}
