//! A quantized matrix: what every solver returns and every format writes.

use ndarray::{Array2, ArrayView2};

use crate::scheme::{Granularity, Scheme, Symmetry};

/// Codes and the grid they lie on, unpacked and in natural column order.
///
/// The value of the weight at `[row, column]` is `scale * (code - zero_point)`, where the group is `column / columns_per_scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedTensor {
    scheme: Scheme,
    codes: Array2<u8>,
    scales: Array2<f32>,
    zero_points: Option<Array2<u8>>,
}

impl QuantizedTensor {
    /// `codes` is `[out_features, in_features]`; `scales`, and `zero_points` of an asymmetric scheme, have the scheme's
    /// [`Granularity::scale_shape`].
    ///
    /// # Errors
    /// A shape that does not fit, a code or zero point above the largest code, a scale that the scale type cannot hold,
    /// zero points on a symmetric grid or none on an asymmetric one.
    pub fn new(
        scheme: Scheme,
        codes: Array2<u8>,
        scales: Array2<f32>,
        zero_points: Option<Array2<u8>>,
    ) -> Result<Self, TensorError> {
        let (out_features, in_features) = codes.dim();
        let expected = scheme.granularity.scale_shape(out_features, in_features);
        let columns = scheme.granularity.columns_per_scale(in_features);
        if matches!(scheme.granularity, Granularity::PerGroup(_)) && !in_features.is_multiple_of(columns) {
            return Err(TensorError::GroupDoesNotDivide { group_size: columns, in_features });
        }
        if scales.dim() != expected {
            return Err(TensorError::Shape { what: "scales", expected, found: scales.dim() });
        }
        let max_code = scheme.bits.max_code();
        if let Some(&code) = codes.iter().find(|&&code| code > max_code) {
            return Err(TensorError::CodeOutOfRange { what: "code", found: code, max_code });
        }
        if let Some(&scale) = scales.iter().find(|&&scale| !scheme.scale_dtype.holds(scale)) {
            return Err(TensorError::ScaleNotRepresentable { found: scale });
        }
        match (scheme.symmetry, &zero_points) {
            (Symmetry::Symmetric, None) => {}
            (Symmetry::Asymmetric, Some(zeros)) => {
                if zeros.dim() != expected {
                    return Err(TensorError::Shape { what: "zero points", expected, found: zeros.dim() });
                }
                if let Some(&zero) = zeros.iter().find(|&&zero| zero > max_code) {
                    return Err(TensorError::CodeOutOfRange { what: "zero point", found: zero, max_code });
                }
            }
            (symmetry, zeros) => {
                return Err(TensorError::ZeroPoints { symmetry, present: zeros.is_some() });
            }
        }
        Ok(Self { scheme, codes, scales, zero_points })
    }

    /// The grid's description.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// `[out_features, in_features]`, each at most the scheme's largest code.
    #[must_use]
    pub fn codes(&self) -> ArrayView2<'_, u8> {
        self.codes.view()
    }

    /// Scales in the scheme's [`Granularity::scale_shape`], each exact in the scheme's scale type.
    #[must_use]
    pub fn scales(&self) -> ArrayView2<'_, f32> {
        self.scales.view()
    }

    /// Zero points of an asymmetric grid, in the shape of the scales.
    #[must_use]
    pub fn zero_points(&self) -> Option<ArrayView2<'_, u8>> {
        self.zero_points.as_ref().map(|zeros| zeros.view())
    }

    /// Rows.
    #[must_use]
    pub fn out_features(&self) -> usize {
        self.codes.nrows()
    }

    /// Columns.
    #[must_use]
    pub fn in_features(&self) -> usize {
        self.codes.ncols()
    }

    /// Scales spread over all rows and groups, `[out_features, groups]`: what a runtime with per-row scales stores.
    #[must_use]
    pub fn scales_by_row(&self) -> Array2<f32> {
        spread(self.scales.view(), self.out_features())
    }

    /// Zero points spread like [`QuantizedTensor::scales_by_row`]; on a symmetric grid `2^(bits-1)` everywhere.
    #[must_use]
    pub fn zero_points_by_row(&self) -> Array2<u8> {
        match &self.zero_points {
            Some(zeros) => spread(zeros.view(), self.out_features()),
            None => Array2::from_elem(
                (self.out_features(), self.scales.ncols()),
                self.scheme.bits.symmetric_zero(),
            ),
        }
    }

    /// The values, `[out_features, in_features]`.
    #[must_use]
    pub fn dequantize(&self) -> Array2<f32> {
        let columns = self.scheme.granularity.columns_per_scale(self.in_features());
        let scales = self.scales_by_row();
        let zeros = self.zero_points_by_row();
        Array2::from_shape_fn(self.codes.dim(), |(row, column)| {
            let group = column / columns;
            scales[[row, group]] * (f32::from(self.codes[[row, column]]) - f32::from(zeros[[row, group]]))
        })
    }
}

fn spread<T: Clone>(values: ArrayView2<'_, T>, rows: usize) -> Array2<T> {
    if values.nrows() == rows {
        values.to_owned()
    } else {
        Array2::from_shape_fn((rows, values.ncols()), |(_, group)| values[[0, group]].clone())
    }
}

/// Codes and grid that do not belong together.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TensorError {
    /// Groups must tile the row exactly.
    #[error("group size {group_size} does not divide {in_features} input features")]
    GroupDoesNotDivide {
        /// Columns of a group.
        group_size: usize,
        /// Columns of the matrix.
        in_features: usize,
    },
    /// An array of another shape.
    #[error("shape of the {what} is {found:?}, expected {expected:?}")]
    Shape {
        /// Which array.
        what: &'static str,
        /// Rows and groups of the scheme.
        expected: (usize, usize),
        /// Rows and groups given.
        found: (usize, usize),
    },
    /// A code or zero point that the width cannot hold.
    #[error("{what} {found} is above the largest code {max_code}")]
    CodeOutOfRange {
        /// Code or zero point.
        what: &'static str,
        /// The value.
        found: u8,
        /// The largest allowed.
        max_code: u8,
    },
    /// A scale that would change when it is stored.
    #[error("scale {found} is not a value of the scale type")]
    ScaleNotRepresentable {
        /// The value.
        found: f32,
    },
    /// Zero points where there must be none, or none where there must be some.
    #[error("a grid that is {symmetry:?} has zero points: {present}")]
    ZeroPoints {
        /// The scheme's symmetry.
        symmetry: Symmetry,
        /// Whether they were given.
        present: bool,
    },
}
