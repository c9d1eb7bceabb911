//! Products with a quantized matrix, read straight from the words that a checkpoint stores.
//!
//! The weight of output `n` and input `k` is
//!
//! ```text
//! w[n, k] = scale[g, n] * (code[n, k] - zero_point[g, n])        g = k / group_size
//! ```
//!
//! and [`PackedMatrix::product`] computes `out[t, n] = sum over k of x[t, k] * w[n, k]` in single precision. The codes of
//! one output form a stream of bits, least significant bit first and without gaps, over 32-bit words: code `k` takes the
//! stream's bits `k * bits .. (k + 1) * bits`, and may straddle two words. How the streams of different outputs
//! interleave in memory is a parameter, [`CodeLayout`].
//!
//! This module knows no file format and no tensor name, and it never quantizes activations.

mod shape;

pub use shape::{CodeLayout, PackedShape, PackedShapeError};

use ndarray::{Array2, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis};
use rayon::prelude::*;

/// A quantized matrix `[out_features, in_features]` in the packing of a checkpoint.
///
/// The fields are private because the fast kernels rely on what [`PackedMatrix::new`] has checked.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedMatrix {
    shape: PackedShape,
    words: Vec<u32>,
    scales: Array2<f32>,
    zero_points: Array2<f32>,
}

impl PackedMatrix {
    /// `words` are the checkpoint's words in the order of `shape.layout`, [`PackedShape::word_count`] of them; `scales` and
    /// `zero_points` are `[groups, out_features]`. Bits after the last code of an output are ignored.
    ///
    /// # Errors
    /// Whatever [`PackedShape::word_count`] refuses, and arrays of another size than the shape demands.
    pub fn new(
        shape: PackedShape,
        words: Vec<u32>,
        scales: Array2<f32>,
        zero_points: Array2<f32>,
    ) -> Result<Self, PackedShapeError> {
        let expected = shape.word_count()?;
        if words.len() != expected {
            return Err(PackedShapeError::Words { expected, found: words.len() });
        }
        let expected = (shape.groups(), shape.out_features);
        for (what, grid) in [("scales", &scales), ("zero points", &zero_points)] {
            if grid.dim() != expected {
                return Err(PackedShapeError::Grid { what, expected, found: grid.dim() });
            }
        }
        let rows_contiguous = |grid: Array2<f32>| {
            if grid.is_standard_layout() { grid } else { grid.as_standard_layout().into_owned() }
        };
        Ok(Self { shape, words, scales: rows_contiguous(scales), zero_points: rows_contiguous(zero_points) })
    }

    /// Width, layout and sizes.
    #[must_use]
    pub fn shape(&self) -> PackedShape {
        self.shape
    }

    /// The words as stored.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// `[groups, out_features]`.
    #[must_use]
    pub fn scales(&self) -> ArrayView2<'_, f32> {
        self.scales.view()
    }

    /// `[groups, out_features]`, in units of a code.
    #[must_use]
    pub fn zero_points(&self) -> ArrayView2<'_, f32> {
        self.zero_points.view()
    }

    /// The codes, one to a byte, `[out_features, in_features]`.
    #[must_use]
    pub fn unpack_codes(&self) -> Array2<u8> {
        let mut codes = Array2::zeros((self.shape.out_features, self.shape.in_features));
        let rows: Vec<_> = codes.axis_iter_mut(Axis(0)).enumerate().collect();
        rows.into_par_iter().for_each(|(output, mut row)| {
            for (column, code) in row.iter_mut().enumerate() {
                *code = self.code(output, column);
            }
        });
        codes
    }

    /// The weights, `[out_features, in_features]`: `scale * (code - zero_point)`, each of the two operations rounded once.
    #[must_use]
    pub fn dequantize(&self) -> Array2<f32> {
        let mut weights = Array2::zeros((self.shape.out_features, self.shape.in_features));
        let rows: Vec<_> = weights.axis_iter_mut(Axis(0)).enumerate().collect();
        rows.into_par_iter().for_each(|(output, row)| self.dequantize_row(output, row));
        weights
    }

    /// `out = x wᵀ`, where `x` is `[tokens, in_features]` and `out` is `[tokens, out_features]`.
    ///
    /// Sums are kept in single precision in an order that does not depend on the number of threads.
    ///
    /// # Panics
    /// When the shapes of `x` and `out` are not those.
    pub fn product(&self, x: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) {
        assert_eq!(x.ncols(), self.shape.in_features, "columns of `x` must be the input features");
        assert_eq!(out.dim(), (x.nrows(), self.shape.out_features), "`out` must be [tokens, out_features]");
        let x = x.as_standard_layout();
        let tiles: Vec<_> = out.axis_chunks_iter_mut(Axis(1), OUTPUTS_PER_TILE).enumerate().collect();
        tiles.into_par_iter().for_each(|(tile, mut out)| {
            let mut weights = Array2::zeros((1, self.shape.in_features));
            for (lane, mut column) in out.axis_iter_mut(Axis(1)).enumerate() {
                self.dequantize_row(tile * OUTPUTS_PER_TILE + lane, weights.row_mut(0));
                let weights = weights.as_slice().expect("a new array is contiguous");
                for (y, x) in column.iter_mut().zip(x.rows()) {
                    *y = dot(x.to_slice().expect("rows of a standard layout are contiguous"), weights);
                }
            }
        });
    }

    fn dequantize_row(&self, output: usize, mut row: ArrayViewMut1<'_, f32>) {
        for (column, weight) in row.iter_mut().enumerate() {
            let at = [column / self.shape.group_size, output];
            *weight = (f32::from(self.code(output, column)) - self.zero_points[at]) * self.scales[at];
        }
    }

    /// The code of one weight: the definition that every faster way of reading codes is tested against.
    fn code(&self, output: usize, column: usize) -> u8 {
        let word = |index: usize| match self.shape.layout {
            CodeLayout::OutputMajor => self.words[output * self.shape.words_per_output() + index],
            CodeLayout::InputMajor => self.words[index * self.shape.out_features + output],
        };
        let bits = usize::from(self.shape.bits);
        let (index, offset) = (column * bits / 32, column * bits % 32);
        let mut code = word(index) >> offset;
        if offset + bits > 32 {
            code |= word(index + 1) << (32 - offset);
        }
        (code & ((1 << bits) - 1)) as u8
    }
}

const OUTPUTS_PER_TILE: usize = 64;

fn dot(x: &[f32], weights: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    let (x_parts, weight_parts) = (x.chunks_exact(16), weights.chunks_exact(16));
    let rest: f32 = x_parts.remainder().iter().zip(weight_parts.remainder()).map(|(a, b)| a * b).sum();
    for (x, weights) in x_parts.zip(weight_parts) {
        for lane in 0..16 {
            sums[lane] += x[lane] * weights[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// `x wᵀ` in double precision, `[tokens, out_features]`, for `x` `[tokens, in_features]` and dense `weights`
/// `[out_features, in_features]`: slow and obvious, in natural order, meant to check the fast products against.
///
/// # Panics
/// When `x` and `weights` have different numbers of columns.
#[must_use]
pub fn reference_product(x: ArrayView2<'_, f32>, weights: ArrayView2<'_, f32>) -> Array2<f64> {
    assert_eq!(x.ncols(), weights.ncols(), "`x` and `weights` must have the same number of columns");
    let mut out = Array2::zeros((x.nrows(), weights.nrows()));
    for ((token, output), y) in out.indexed_iter_mut() {
        *y = x.row(token).iter().zip(weights.row(output)).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
    }
    out
}

#[cfg(test)]
mod tests;
