//! Value <-> code: `value = scale * (level(code) - zero_point)`, or `scale * level(code) + minimum`.
//!
//! A grid is made of scales that are already rounded to their stored type, so what a solver sees is what a runtime multiplies with.
//! On a symmetric grid the zero point is `2^(bits-1)` and a scale may be negative: the range has one code more on one side, and the
//! sign chooses which side of a group gets it.

use kernels::panel::RowGrid;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis, Zip};

use crate::levels::Levels;
use crate::nested::Nested;
use crate::scheme::{Granularity, ScaleDtype, Scheme, Symmetry};
use crate::storage::{Coarse, Parts, Storage, StoredRow, coarse_numbers};
use crate::tensor::{Offsets, QuantizedTensor, ScaleParts, TensorError};

/// Scales and zero points of every row and group of one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    scheme: Scheme,
    in_features: usize,
    planes: Planes,
}

/// What is stored, and what follows from it: each `[out_features, groups]`, but for coarse parts.
#[derive(Clone, Debug, PartialEq)]
struct Planes {
    /// Each a value of the scheme's scale type.
    scales: Array2<f32>,
    /// In the levels' unit: whole codes, or `-minimum / scale` where minimums are stored.
    zero_points: Array2<f32>,
    minimums: Option<Array2<f32>>,
    /// The parts of scales that are products, ...
    scale_parts: Option<PartPlanes>,
    /// ... and of minimums.
    minimum_parts: Option<PartPlanes>,
}

/// `coarse` is `[out_features, number for each row]`.
#[derive(Clone, Debug, PartialEq)]
struct PartPlanes {
    coarse: Array2<f32>,
    fine: Array2<f32>,
}

impl Planes {
    fn all(&self) -> impl Iterator<Item = &Array2<f32>> {
        let parts = self.scale_parts.iter().chain(&self.minimum_parts);
        let parts = parts.flat_map(|parts| [&parts.coarse, &parts.fine]);
        [&self.scales, &self.zero_points].into_iter().chain(&self.minimums).chain(parts)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Array2<f32>> {
        let parts = self.scale_parts.iter_mut().chain(&mut self.minimum_parts);
        let parts = parts.flat_map(|parts| [&mut parts.coarse, &mut parts.fine]);
        [&mut self.scales, &mut self.zero_points].into_iter().chain(&mut self.minimums).chain(parts)
    }

    fn map(&self, of: impl Fn(&Array2<f32>) -> Array2<f32>) -> Self {
        let mut planes = self.clone();
        for (to, from) in planes.all_mut().zip(self.all()) {
            *to = of(from);
        }
        planes
    }
}

impl Grid {
    /// `scales` and `zero_points` are `[out_features, groups]` whatever the granularity. Here they are rounded to what the scheme stores;
    /// where not all can be had at once, an error in a scale costs by `weights`, one for each group.
    pub(crate) fn new(
        scheme: Scheme,
        in_features: usize,
        scales: Array2<f32>,
        zero_points: Array2<f32>,
        weights: &[f64],
    ) -> Self {
        let plane = || Array2::zeros(scales.dim());
        let has_minimums = scheme.symmetry == Symmetry::Minimum;
        let parts = || {
            let coarse = Array2::zeros((scales.nrows(), coarse_numbers(scheme, in_features)));
            scheme.scale_dtype.is_product().then(|| PartPlanes { coarse, fine: plane() })
        };
        let planes = Planes {
            scales: plane(),
            zero_points: zero_points.clone(),
            minimums: has_minimums.then(plane),
            scale_parts: parts(),
            minimum_parts: parts().filter(|_| has_minimums),
        };
        let mut grid = Self { scheme, in_features, planes };
        let nested = (scheme.scale_dtype == ScaleDtype::Nested).then(|| Nested::of(scales.view()));
        let storage = grid.storage();
        for (row, scales) in scales.rows().into_iter().enumerate() {
            let scales = scales.to_vec();
            let minimums: Vec<f32> =
                scales.iter().zip(zero_points.row(row)).map(|(scale, zero)| -scale * zero).collect();
            let given = nested.as_ref().map_or_else(Vec::new, |nested| nested.of_row(row, scales.len()));
            let stored = storage.row(&scales, &minimums, weights, Coarse::Free(&given));
            grid.set_row(row, &stored);
        }
        grid
    }

    /// How rows are stored.
    pub(crate) fn storage(&self) -> Storage {
        Storage::new(self.scheme, self.in_features)
    }

    /// What it is a grid of.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// `[out_features, groups]`.
    #[must_use]
    pub fn scales(&self) -> ArrayView2<'_, f32> {
        self.planes.scales.view()
    }

    /// `[out_features, groups]`, in the levels' unit.
    #[must_use]
    pub fn zero_points(&self) -> ArrayView2<'_, f32> {
        self.planes.zero_points.view()
    }

    /// `[out_features, groups]`, where they are stored.
    pub(crate) fn minimums(&self) -> Option<ArrayView2<'_, f32>> {
        self.planes.minimums.as_ref().map(|minimums| minimums.view())
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
        let planes = self.planes.map(|plane| plane.slice_axis(Axis(0), rows.clone().into()).to_owned());
        Self { planes, ..*self }
    }

    /// The grid of some rows, in the order in which they are named.
    pub(crate) fn select(&self, rows: &[usize]) -> Self {
        Self { planes: self.planes.map(|plane| plane.select(Axis(0), rows)), ..*self }
    }

    /// Replaces the rows from `first` on by another grid's.
    pub(crate) fn set_rows(&mut self, first: usize, rows: &Self) {
        for (to, from) in self.planes.all_mut().zip(rows.planes.all()) {
            to.slice_axis_mut(Axis(0), (first..first + from.nrows()).into()).assign(from);
        }
    }

    /// Replaces a row by one of another grid's.
    pub(crate) fn take_row(&mut self, row: usize, from: &Self, its: usize) {
        for (to, from) in self.planes.all_mut().zip(from.planes.all()) {
            to.row_mut(row).assign(&from.row(its));
        }
    }

    /// Replaces what is stored of a row.
    pub(crate) fn set_row(&mut self, row: usize, stored: &StoredRow) {
        let assign = |plane: &mut Array2<f32>, values: &[f32]| {
            plane.row_mut(row).assign(&ArrayView1::from(values));
        };
        let planes = &mut self.planes;
        assign(&mut planes.scales, &stored.scales);
        if let (Some(plane), Some(minimums)) = (&mut planes.minimums, &stored.minimums) {
            assign(plane, minimums);
            let zeros: Vec<f32> = minimums.iter().zip(&stored.scales).map(|(m, s)| -m / s).collect();
            assign(&mut planes.zero_points, &zeros);
        }
        let parts = [
            (&mut planes.scale_parts, &stored.scale_parts),
            (&mut planes.minimum_parts, &stored.minimum_parts),
        ];
        for (planes, parts) in parts {
            if let (Some(planes), Some(parts)) = (planes, parts) {
                assign(&mut planes.coarse, &parts.coarse);
                assign(&mut planes.fine, &parts.fine);
            }
        }
    }

    /// What is stored of a row.
    pub(crate) fn row(&self, row: usize) -> StoredRow {
        let of = |plane: &Array2<f32>| plane.row(row).to_vec();
        let parts = |parts: &PartPlanes| Parts { coarse: of(&parts.coarse), fine: of(&parts.fine) };
        StoredRow {
            scales: of(&self.planes.scales),
            minimums: self.planes.minimums.as_ref().map(of),
            scale_parts: self.planes.scale_parts.as_ref().map(parts),
            minimum_parts: self.planes.minimum_parts.as_ref().map(parts),
        }
    }

    /// As the kernels take it, for columns in the order of `group_of`.
    pub(crate) fn kernel<'a>(&'a self, group_of: &'a [u32]) -> RowGrid<'a> {
        RowGrid {
            scales: self.scales(),
            zero_points: self.zero_points(),
            group_of,
            levels: self.scheme.kernel_levels(),
        }
    }

    /// Rounds every weight to its nearest code; `weights` and `codes` are `[out_features, in_features]`.
    pub fn round(&self, weights: ArrayView2<'_, f32>, mut codes: ArrayViewMut2<'_, u8>) {
        let (size, levels) = (self.group_size(), self.scheme.kernel_levels());
        let (scales, zero_points) = (self.scales(), self.zero_points());
        codes.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(row, mut codes)| {
            for (column, (code, &weight)) in codes.iter_mut().zip(weights.row(row)).enumerate() {
                let at = [row, column / size];
                *code = nearest(weight, scales[at], zero_points[at], levels);
            }
        });
    }

    /// The values of one group's codes, by code.
    pub(crate) fn values(&self, row: usize, group: usize) -> Vec<f32> {
        let levels = self.scheme.kernel_levels();
        let minimum = self.planes.minimums.as_ref().map(|minimums| minimums[[row, group]]);
        let (scale, zero_point) = (self.planes.scales[[row, group]], self.planes.zero_points[[row, group]]);
        let value = |code: u8| match minimum {
            None => scale * (levels.level(code) - zero_point),
            Some(minimum) => scale * levels.level(code) + minimum,
        };
        (0..=levels.max_code()).map(value).collect()
    }

    /// `target - value(codes)`, all `[out_features, in_features]`.
    pub(crate) fn errors(&self, target: ArrayView2<'_, f32>, codes: ArrayView2<'_, u8>) -> Array2<f32> {
        let size = self.group_size();
        let uniform = self.scheme.levels == Levels::Uniform && self.planes.minimums.is_none();
        let (scales, zero_points) = (self.scales(), self.zero_points());
        let mut errors = Array2::<f32>::zeros(target.dim());
        errors.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(row, mut errors)| {
            let (target, codes) = (target.row(row), codes.row(row));
            let groups = errors.axis_chunks_iter_mut(Axis(0), size);
            let inputs = target.axis_chunks_iter(Axis(0), size).zip(codes.axis_chunks_iter(Axis(0), size));
            for (group, (errors, (target, codes))) in groups.zip(inputs).enumerate() {
                let each = Zip::from(errors).and(target).and(codes);
                if uniform {
                    let (scale, zero_point) = (scales[[row, group]], zero_points[[row, group]]);
                    each.for_each(|error, &target, &code| {
                        *error = target - scale * (f32::from(code) - zero_point);
                    });
                } else {
                    let values = self.values(row, group);
                    each.for_each(|error, &target, &code| *error = target - values[usize::from(code)]);
                }
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
            Granularity::PerChannel | Granularity::PerGroup(_) => 0..self.planes.scales.nrows(),
        };
        let Planes { scales, zero_points, minimums, scale_parts, minimum_parts } = self.rows(rows).planes;
        let offsets = match (self.scheme.symmetry, minimums) {
            (Symmetry::Asymmetric, _) => Offsets::ZeroPoints(zero_points.mapv(|zero| zero as u8)),
            (Symmetry::Minimum, Some(minimums)) => Offsets::Minimums(minimums),
            _ => Offsets::None,
        };
        let parts = |parts: PartPlanes| ScaleParts { coarse: parts.coarse, fine: parts.fine };
        let tensor = QuantizedTensor::with_offsets(self.scheme, codes, scales, offsets)?;
        match scale_parts {
            None => Ok(tensor),
            Some(scales) => tensor.in_parts(parts(scales), minimum_parts.map(parts)),
        }
    }
}

/// Adding and subtracting 1.5 * 2^23 rounds a number of small magnitude to the nearest integer, ties to even.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// The code nearest to `weight`, ties to the even code, or to the lower level of a table: bit for bit what the kernels' solver does.
pub(crate) fn nearest(weight: f32, scale: f32, zero_point: f32, levels: kernels::panel::Levels<'_>) -> u8 {
    let steps = weight / scale + zero_point;
    match levels {
        kernels::panel::Levels::Uniform { max_code } => {
            ((steps.clamp(0.0, f32::from(max_code)) + ROUND) - ROUND) as u8
        }
        kernels::panel::Levels::Codebook(table) => {
            let beyond = |pair: &&[f32]| 0.5 * (pair[0] + pair[1]) - steps < 0.0;
            table.windows(2).take_while(beyond).count() as u8
        }
    }
}
