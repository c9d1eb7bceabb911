//! Value <-> code on a uniform grid: `value = scale * (code - zero_point)`, `0 <= code <= max_code`.
//!
//! A grid is made of scales that are already rounded to their stored type, so what a solver sees is what a runtime multiplies with.
//! On a symmetric grid the zero point is `2^(bits-1)` and a scale may be negative: the range has one code more on one side, and the
//! sign chooses which side of a group gets it.

use kernels::panel::RowGrid;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis, Zip};

use crate::scheme::{Granularity, Scheme, Symmetry};
use crate::tensor::{QuantizedTensor, TensorError};

/// Scales and zero points of every row and group of one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    scheme: Scheme,
    in_features: usize,
    /// `[out_features, groups]`, each exact in the scheme's scale type.
    scales: Array2<f32>,
    /// `[out_features, groups]`, integers.
    zero_points: Array2<f32>,
}

impl Grid {
    /// `scales` and `zero_points` are `[out_features, groups]` whatever the granularity; scales are rounded to the scheme's type here.
    pub(crate) fn new(
        scheme: Scheme,
        in_features: usize,
        scales: Array2<f32>,
        zero_points: Array2<f32>,
    ) -> Self {
        let scales = scales.mapv_into(|scale| scheme.scale_dtype.round(scale));
        Self { scheme, in_features, scales, zero_points }
    }

    /// What it is a grid of.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// `[out_features, groups]`.
    #[must_use]
    pub fn scales(&self) -> ArrayView2<'_, f32> {
        self.scales.view()
    }

    /// `[out_features, groups]`.
    #[must_use]
    pub fn zero_points(&self) -> ArrayView2<'_, f32> {
        self.zero_points.view()
    }

    /// Columns that share a scale.
    #[must_use]
    pub fn group_size(&self) -> usize {
        self.scheme.granularity.columns_per_scale(self.in_features)
    }

    /// The group of each column, natural order.
    #[must_use]
    pub fn groups(&self) -> Vec<u32> {
        let size = self.group_size();
        (0..self.in_features).map(|column| (column / size) as u32).collect()
    }

    /// The grid of a range of rows.
    pub(crate) fn rows(&self, rows: std::ops::Range<usize>) -> Self {
        Self {
            scheme: self.scheme,
            in_features: self.in_features,
            scales: self.scales.slice_axis(Axis(0), rows.clone().into()).to_owned(),
            zero_points: self.zero_points.slice_axis(Axis(0), rows.into()).to_owned(),
        }
    }

    /// The grid of some rows, in the order in which they are named.
    pub(crate) fn select(&self, rows: &[usize]) -> Self {
        Self {
            scheme: self.scheme,
            in_features: self.in_features,
            scales: self.scales.select(Axis(0), rows),
            zero_points: self.zero_points.select(Axis(0), rows),
        }
    }

    /// Replaces the scales from row `first` on.
    pub(crate) fn set_rows(&mut self, first: usize, rows: &Self) {
        let range = first..first + rows.scales.nrows();
        self.scales.slice_axis_mut(Axis(0), range.into()).assign(&rows.scales);
    }

    /// Replaces one row's scales by another grid's.
    pub(crate) fn take_row(&mut self, row: usize, from: &Self) {
        self.scales.row_mut(row).assign(&from.scales.row(row));
    }

    /// Replaces one row's scales, `[groups]`, which are of the stored type.
    pub(crate) fn set_row(&mut self, row: usize, scales: &[f32]) {
        self.scales.row_mut(row).assign(&ArrayView1::from(scales));
    }

    /// As the kernels take it, for columns in the order of `group_of`.
    pub(crate) fn kernel<'a>(&'a self, group_of: &'a [u32]) -> RowGrid<'a> {
        RowGrid {
            scales: self.scales.view(),
            zero_points: self.zero_points.view(),
            group_of,
            max_code: self.scheme.bits.max_code(),
        }
    }

    /// Rounds every weight to its nearest code; `weights` and `codes` are `[out_features, in_features]`.
    pub fn round(&self, weights: ArrayView2<'_, f32>, mut codes: ArrayViewMut2<'_, u8>) {
        let (size, max_code) = (self.group_size(), f32::from(self.scheme.bits.max_code()));
        codes.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(row, mut codes)| {
            for (column, (code, &weight)) in codes.iter_mut().zip(weights.row(row)).enumerate() {
                let at = [row, column / size];
                *code = nearest(weight, self.scales[at], self.zero_points[at], max_code);
            }
        });
    }

    /// Writes `target - value(codes)`, all `[out_features, in_features]`.
    pub(crate) fn errors(&self, target: ArrayView2<'_, f32>, codes: ArrayView2<'_, u8>) -> Array2<f32> {
        let size = self.group_size();
        let mut errors = Array2::<f32>::zeros(target.dim());
        errors.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(row, mut errors)| {
            let (target, codes) = (target.row(row), codes.row(row));
            let groups = errors.axis_chunks_iter_mut(Axis(0), size);
            let inputs = target.axis_chunks_iter(Axis(0), size).zip(codes.axis_chunks_iter(Axis(0), size));
            for (group, (errors, (target, codes))) in groups.zip(inputs).enumerate() {
                let (scale, zero_point) = (self.scales[[row, group]], self.zero_points[[row, group]]);
                Zip::from(errors).and(target).and(codes).for_each(|error, &target, &code| {
                    *error = target - scale * (f32::from(code) - zero_point);
                });
            }
        });
        errors
    }

    /// The tensor that these codes are on this grid.
    ///
    /// # Errors
    /// As [`QuantizedTensor::new`].
    pub(crate) fn into_tensor(self, codes: Array2<u8>) -> Result<QuantizedTensor, TensorError> {
        let rows = match self.scheme.granularity {
            Granularity::PerTensor => 0..1,
            Granularity::PerChannel | Granularity::PerGroup(_) => 0..self.scales.nrows(),
        };
        let grid = self.rows(rows);
        let zero_points = match self.scheme.symmetry {
            Symmetry::Symmetric => None,
            Symmetry::Asymmetric => Some(grid.zero_points.mapv(|zero| zero as u8)),
        };
        QuantizedTensor::new(self.scheme, codes, grid.scales, zero_points)
    }
}

/// Adding and subtracting 1.5 * 2^23 rounds a number of small magnitude to the nearest integer, ties to even.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// The code nearest to `weight`, ties to the even code: bit for bit what the kernels' solver does.
pub(crate) fn nearest(weight: f32, scale: f32, zero_point: f32, max_code: f32) -> u8 {
    let steps = (weight / scale + zero_point).clamp(0.0, max_code);
    ((steps + ROUND) - ROUND) as u8
}
