//! A quantized matrix: what every solver returns and every format writes.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, Axis, concatenate};

use crate::nested;
use crate::scheme::{Granularity, SUPER_COLUMNS, ScaleDtype, Scheme, Symmetry};

/// Codes and the grid they lie on, unpacked and in natural column order.
///
/// The value of the weight at `[row, column]` is `scale * (level(code) - zero_point)`, or `scale * level(code) + minimum` where minimums are
/// stored; the group is `column / columns_per_scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedTensor {
    scheme: Scheme,
    codes: Array2<u8>,
    scales: Array2<f32>,
    offsets: Offsets,
    /// The parts of scales and minimums that are products.
    parts: Option<(ScaleParts, Option<ScaleParts>)>,
}

/// Where the codes of a group lie, besides the scale. Arrays have the scheme's [`Granularity::scale_shape`].
#[derive(Clone, Debug, PartialEq)]
pub enum Offsets {
    /// Symmetric: where the scheme says.
    None,
    /// The code of zero.
    ZeroPoints(Array2<u8>),
    /// The value of level 0.
    Minimums(Array2<f32>),
}

/// Numbers whose products scales are, or minimums before their sign; of nested scales there is something to be added.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaleParts {
    /// `[out_features, numbers for each row]`; of nested scales one for each group and the matrix's offset.
    pub coarse: Array2<f32>,
    /// `[out_features, groups]`.
    pub fine: Array2<f32>,
}

impl ScaleParts {
    /// The products, `[out_features, groups]`.
    fn products(&self, dtype: ScaleDtype, groups_together: usize) -> Array2<f32> {
        Array2::from_shape_fn(self.fine.dim(), |(row, group)| {
            if dtype == ScaleDtype::Nested {
                let offset = self.coarse[[row, self.fine.ncols()]];
                return nested::scale(self.fine[[row, group]], self.coarse[[row, group]], offset);
            }
            let last = self.coarse.ncols() - 1;
            self.coarse[[row, (group / groups_together).min(last)]] * self.fine[[row, group]]
        })
    }
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
        Self::with_offsets(scheme, codes, scales, zero_points.map_or(Offsets::None, Offsets::ZeroPoints))
    }

    /// As [`QuantizedTensor::new`], with offsets of any kind. Scales that are products get their parts by
    /// [`QuantizedTensor::in_parts`].
    ///
    /// # Errors
    /// As [`QuantizedTensor::new`], and minimums that the scale type cannot hold.
    pub fn with_offsets(
        scheme: Scheme,
        codes: Array2<u8>,
        scales: Array2<f32>,
        offsets: Offsets,
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
        let max_code = scheme.max_code();
        if let Some(&code) = codes.iter().find(|&&code| code > max_code) {
            return Err(TensorError::CodeOutOfRange { what: "code", found: code, max_code });
        }
        // Solvers give none, but other programs store 0 for groups that are 0.
        if let Some(&scale) = scales.iter().find(|&&s| s != 0.0 && !scheme.scale_dtype.holds(s)) {
            return Err(TensorError::ScaleNotRepresentable { found: scale });
        }
        let of_shape = |what, found| {
            if found == expected { Ok(()) } else { Err(TensorError::Shape { what, expected, found }) }
        };
        match (scheme.symmetry, &offsets) {
            (Symmetry::Symmetric, Offsets::None) => {}
            (Symmetry::Asymmetric, Offsets::ZeroPoints(zeros)) => {
                of_shape("zero points", zeros.dim())?;
                if let Some(&zero) = zeros.iter().find(|&&zero| zero > max_code) {
                    return Err(TensorError::CodeOutOfRange { what: "zero point", found: zero, max_code });
                }
            }
            (Symmetry::Minimum, Offsets::Minimums(minimums)) => {
                of_shape("minimums", minimums.dim())?;
                let held = |minimum: f32| {
                    minimum.is_finite() && scheme.scale_dtype.round_minimum(minimum) == minimum
                };
                if let Some(&minimum) = minimums.iter().find(|&&minimum| !held(minimum)) {
                    return Err(TensorError::ScaleNotRepresentable { found: minimum });
                }
            }
            (symmetry, offsets) => {
                return Err(TensorError::ZeroPoints { symmetry, present: *offsets != Offsets::None });
            }
        }
        Ok(Self { scheme, codes, scales, offsets, parts: None })
    }

    /// One matrix of the rows of several on the same grid, in order: what is too large to be solved at once.
    ///
    /// # Errors
    /// None given, or matrices of different grids or widths.
    pub fn stacked(parts: &[Self]) -> Result<Self, TensorError> {
        let mismatch = |found| TensorError::Shape { what: "matrices to be stacked", expected: (1, 0), found };
        let first = parts.first().ok_or_else(|| mismatch((0, 0)))?;
        let alike = |part: &Self| part.scheme == first.scheme && part.in_features() == first.in_features();
        // Nor does what the whole of each shares fit the whole of all.
        if first.scheme.granularity == Granularity::PerTensor
            || first.scheme.scale_dtype == ScaleDtype::Nested
        {
            return Err(mismatch(first.codes.dim()));
        }
        if let Some(other) = parts.iter().find(|part| !alike(part)) {
            return Err(mismatch(other.codes.dim()));
        }
        fn joined<T: Clone>(views: &[ArrayView2<'_, T>]) -> Result<Array2<T>, TensorError> {
            concatenate(Axis(0), views).map_err(|_| TensorError::Shape {
                what: "matrices to be stacked",
                expected: (1, 0),
                found: (views.len(), 0),
            })
        }
        let all =
            |pick: fn(&Self) -> Option<ArrayView2<'_, f32>>| -> Result<Option<Array2<f32>>, TensorError> {
                let views: Option<Vec<_>> = parts.iter().map(pick).collect();
                views.map(|views| joined(&views)).transpose()
            };
        let codes = joined(&parts.iter().map(Self::codes).collect::<Vec<_>>())?;
        let scales = joined(&parts.iter().map(Self::scales).collect::<Vec<_>>())?;
        let zeros: Option<Vec<_>> = parts.iter().map(Self::zero_points).collect();
        let offsets = match (zeros, all(Self::minimums)?) {
            (Some(zeros), _) => Offsets::ZeroPoints(joined(&zeros)?),
            (None, Some(minimums)) => Offsets::Minimums(minimums),
            (None, None) => Offsets::None,
        };
        let mut stacked = Self::with_offsets(first.scheme, codes, scales, offsets)?;
        let coarse = all(|part| Some(part.scale_parts()?.coarse.view()))?;
        let fine = all(|part| Some(part.scale_parts()?.fine.view()))?;
        if let Some((coarse, fine)) = coarse.zip(fine) {
            let deeper = all(|part| Some(part.minimum_parts()?.coarse.view()))?;
            let deep = all(|part| Some(part.minimum_parts()?.fine.view()))?;
            let minimums = deeper.zip(deep).map(|(coarse, fine)| ScaleParts { coarse, fine });
            stacked = stacked.in_parts(ScaleParts { coarse, fine }, minimums)?;
        }
        Ok(stacked)
    }

    /// Says what the scales are products of, and the minimums.
    ///
    /// # Errors
    /// A scheme whose scales are no products, or parts whose products are not the scales and minimums.
    pub fn in_parts(mut self, scales: ScaleParts, minimums: Option<ScaleParts>) -> Result<Self, TensorError> {
        if !self.scheme.scale_dtype.is_product() {
            return Err(TensorError::NoProducts);
        }
        let columns = self.scheme.granularity.columns_per_scale(self.in_features());
        let (together, numbers) = match self.scheme.scale_dtype {
            ScaleDtype::Integers { .. } => {
                ((SUPER_COLUMNS / columns.max(1)).max(1), self.in_features().div_ceil(SUPER_COLUMNS))
            }
            _ => (1, self.scales.ncols() + 1),
        };
        let check = |what, parts: &ScaleParts, products: &Array2<f32>, sign: f32| {
            let coarse = (products.nrows(), numbers);
            for (expected, found) in [(products.dim(), parts.fine.dim()), (coarse, parts.coarse.dim())] {
                if expected != found {
                    return Err(TensorError::Shape { what, expected, found });
                }
            }
            let found = parts.products(self.scheme.scale_dtype, together);
            match found.iter().zip(products).find(|(found, expected)| sign * **found != **expected) {
                None => Ok(()),
                Some((_, &found)) => Err(TensorError::ScaleNotRepresentable { found }),
            }
        };
        check("parts of the scales", &scales, &self.scales, 1.0)?;
        match (&self.offsets, &minimums) {
            (Offsets::Minimums(products), Some(parts)) => {
                check("parts of the minimums", parts, products, -1.0)?;
            }
            (Offsets::Minimums(_), None) | (_, Some(_)) => return Err(TensorError::NoProducts),
            (_, None) => {}
        }
        self.parts = Some((scales, minimums));
        Ok(self)
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
        match &self.offsets {
            Offsets::ZeroPoints(zeros) => Some(zeros.view()),
            Offsets::None | Offsets::Minimums(_) => None,
        }
    }

    /// The values of level 0, in the shape of the scales, where they are stored.
    #[must_use]
    pub fn minimums(&self) -> Option<ArrayView2<'_, f32>> {
        match &self.offsets {
            Offsets::Minimums(minimums) => Some(minimums.view()),
            Offsets::None | Offsets::ZeroPoints(_) => None,
        }
    }

    /// What the scales are products of.
    #[must_use]
    pub fn scale_parts(&self) -> Option<&ScaleParts> {
        self.parts.as_ref().map(|(scales, _)| scales)
    }

    /// What the minimums are products of, before their sign.
    #[must_use]
    pub fn minimum_parts(&self) -> Option<&ScaleParts> {
        self.parts.as_ref().and_then(|(_, minimums)| minimums.as_ref())
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

    /// Zero points spread like [`QuantizedTensor::scales_by_row`]; elsewhere the middle of the grid, 0 where levels are a table's or minimums
    /// are stored.
    #[must_use]
    pub fn zero_points_by_row(&self) -> Array2<u8> {
        let rows = self.out_features();
        match &self.offsets {
            Offsets::ZeroPoints(zeros) => spread(zeros.view(), rows),
            Offsets::None => Array2::from_elem((rows, self.scales.ncols()), self.scheme.middle() as u8),
            Offsets::Minimums(_) => Array2::zeros((rows, self.scales.ncols())),
        }
    }

    /// The values, `[out_features, in_features]`.
    #[must_use]
    pub fn dequantize(&self) -> Array2<f32> {
        self.dequantize_rows(0..self.out_features())
    }

    /// The values of some rows, `[rows.len(), in_features]`; rows beyond the last are left out.
    #[must_use]
    pub fn dequantize_rows(&self, rows: Range<usize>) -> Array2<f32> {
        let last = rows.end.min(self.out_features());
        let first = rows.start.min(last);
        let columns = self.scheme.granularity.columns_per_scale(self.in_features());
        let levels = self.scheme.kernel_levels();
        let (scales, middle) = (&self.scales, f32::from(self.scheme.middle() as u8));
        let mut values = Array2::zeros((last - first, self.in_features()));
        for (row, mut values) in (first..last).zip(values.rows_mut()) {
            let stored = if scales.nrows() == 1 { 0 } else { row };
            let codes = self.codes.row(row);
            let groups = values.axis_chunks_iter_mut(Axis(0), columns.max(1));
            for (group, (mut values, codes)) in
                groups.zip(codes.axis_chunks_iter(Axis(0), columns.max(1))).enumerate()
            {
                let (at, scale) = ([stored, group], scales[[stored, group]]);
                for (value, &code) in values.iter_mut().zip(codes) {
                    let level = levels.level(code);
                    *value = match &self.offsets {
                        Offsets::None => scale * (level - middle),
                        Offsets::ZeroPoints(zeros) => scale * (level - f32::from(zeros[at])),
                        Offsets::Minimums(minimums) => scale * level + minimums[at],
                    };
                }
            }
        }
        values
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
    /// Parts of scales that are no products, or none of minimums that are.
    #[error("scales and minimums are both products, or neither is")]
    NoProducts,
    /// Offsets where there must be none, or none where there must be some.
    #[error("a grid that is {symmetry:?} has offsets: {present}")]
    ZeroPoints {
        /// The scheme's symmetry.
        symmetry: Symmetry,
        /// Whether any were given.
        present: bool,
    },
}
