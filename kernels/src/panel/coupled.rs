//! [`super::coupled_descent`]: coordinate descent where rows see each other.
//!
//! With `d = q - w` and slopes `M = A D H`, changing `d_ij` by `c` changes `tr(A D H Dᵀ)` by `c (2 M_ij + c A_ii H_jj)`, which is least at
//! `c = -M_ij / (A_ii H_jj)`. A change adds `c A_ki H_jl` to `M_kl`: to its own row at once, to a later one of its panel when that begins, to
//! all others when the panel is done. Few codes change, so a row costs little more than looking at it; and what a row's changes add,
//! `c H_j` summed, is read off its own slopes, which have grown by `A_ii` of it.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Par};
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis, s};

use super::RowGrid;
use super::rule::{Codebook, Group, Levels, Rule, Uniform};
use crate::arch::lanes::{Lanes, Task, Unit};
use crate::dense::{mat, mat_mut};
use crate::single::combination;

/// Rows whose changes are gathered before the rows outside learn of them.
const PANEL: usize = 64;
/// Rows outside that one thread tells.
const TOLD: usize = 128;
/// Most lanes of a vector; rows are padded to multiples of it.
const WIDEST: usize = 16;
/// Passes over a row before the next one.
const PASSES: usize = 2;
/// See `descent.rs`: a change that only rounding errors recommend is left out.
const RELUCTANCE: f32 = 1.0 + 1e-5;

/// Rows that see each other, and the columns that they share.
pub(super) struct Coupled<'a, 'g> {
    /// `A`, `[rows, rows]`.
    pub(super) outer: ArrayView2<'a, f32>,
    /// `H`, `[n, n]`.
    pub(super) inner: ArrayView2<'a, f32>,
    pub(super) grid: &'a RowGrid<'g>,
}

impl Coupled<'_, '_> {
    /// Improves `codes`, whose slopes these are; gives how many changes there were.
    pub(super) fn descend_on(
        &self,
        unit: Unit,
        mut codes: ArrayViewMut2<'_, u8>,
        mut slopes: ArrayViewMut2<'_, f32>,
        sweeps: usize,
    ) -> u64 {
        let (rows, n) = slopes.dim();
        let mut line = Line::new(self.inner);
        let mut total = 0;
        for _ in 0..sweeps {
            let mut changes = 0;
            for start in (0..rows).step_by(PANEL) {
                let panel = start..(start + PANEL).min(rows);
                let mut images = vec![0.0; panel.len() * n];
                let found = self.descend_panel(
                    unit,
                    &panel,
                    &mut line,
                    codes.view_mut(),
                    slopes.view_mut(),
                    &mut images,
                );
                if found > 0 {
                    self.tell(slopes.view_mut(), &panel, &images);
                }
                changes += found;
            }
            total += changes;
            if changes == 0 {
                break;
            }
        }
        total
    }

    /// Improves the rows of a panel. `images`, of as many rows, become what the slopes of each have grown by for its own changes, over its weight; only
    /// the panel's slopes know of them.
    fn descend_panel(
        &self,
        unit: Unit,
        panel: &Range<usize>,
        line: &mut Line,
        mut codes: ArrayViewMut2<'_, u8>,
        mut slopes: ArrayViewMut2<'_, f32>,
        images: &mut [f32],
    ) -> u64 {
        let n = slopes.ncols();
        let mut changes = 0;
        for (place, row) in panel.clone().enumerate() {
            let (earlier, rest) = images.split_at_mut(place * n);
            if changes > 0 {
                self.hear(slopes.row_mut(row), row, panel.start..row, earlier);
            }
            let weight = self.outer[[row, row]];
            if weight <= 0.0 {
                continue;
            }
            line.load(self.grid, row, slopes.row(row), codes.row(row));
            let found = match self.grid.levels {
                Levels::Uniform { max_code } => {
                    let rule = Uniform::new(max_code);
                    unit.run(Descent { line, inner: self.inner, weight, rule })
                }
                Levels::Codebook(levels) => {
                    let rule = Codebook { levels };
                    unit.run(Descent { line, inner: self.inner, weight, rule })
                }
            };
            if found > 0 {
                line.store(&mut rest[..n], slopes.row_mut(row), codes.row_mut(row), weight);
            }
            changes += found;
        }
        if changes > 0 {
            for (place, row) in panel.clone().enumerate() {
                self.hear(slopes.row_mut(row), row, row + 1..panel.end, &images[(place + 1) * n..]);
            }
        }
        changes
    }

    /// Adds to a row's slopes what `others` of its panel changed, whose `images` are these.
    fn hear(&self, mut slopes: ArrayViewMut1<'_, f32>, row: usize, others: Range<usize>, images: &[f32]) {
        if others.is_empty() {
            return;
        }
        let weights = self.outer.slice(s![row, others]).to_vec();
        let mut heard = vec![0.0; slopes.len()];
        combination(&weights, images, slopes.len(), &mut heard);
        slopes.iter_mut().zip(heard).for_each(|(slope, heard)| *slope += heard);
    }

    /// Adds what the rows of a panel changed to the slopes of the rows outside.
    fn tell(&self, mut slopes: ArrayViewMut2<'_, f32>, panel: &Range<usize>, images: &[f32]) {
        let images = ArrayView2::from_shape((panel.len(), slopes.ncols()), images).expect("made to measure");
        let parts = slopes.axis_chunks_iter_mut(Axis(0), TOLD).into_par_iter().enumerate();
        parts.for_each(|(number, mut part)| {
            let rows = number * TOLD..number * TOLD + part.nrows();
            for outside in [rows.start..panel.start.min(rows.end), panel.end.max(rows.start)..rows.end] {
                if !outside.is_empty() {
                    let weights = self.outer.slice(s![outside.clone(), panel.clone()]);
                    let own = outside.start - rows.start..outside.end - rows.start;
                    let to = part.slice_axis_mut(Axis(0), own.into());
                    matmul(mat_mut(to), Accum::Add, mat(&weights), mat(&images), 1.0, Par::Seq);
                }
            }
        });
    }
}

/// One row, padded with columns that never change.
struct Line {
    slopes: Vec<f32>,
    codes: Vec<f32>,
    scales: Vec<f32>,
    zero_points: Vec<f32>,
    curvature: Vec<f32>,
    /// Columns before the padding.
    columns: usize,
}

impl Line {
    fn new(inner: ArrayView2<'_, f32>) -> Self {
        let columns = inner.ncols();
        let padded = columns.next_multiple_of(WIDEST);
        let filled = |value: f32| vec![value; padded];
        let [slopes, codes, zero_points] = [0.0, 0.0, 0.0].map(filled);
        let mut curvature = filled(1.0);
        curvature.iter_mut().zip(inner.diag()).for_each(|(to, &entry)| *to = entry);
        Self { slopes, codes, scales: filled(1.0), zero_points, curvature, columns }
    }

    fn load(
        &mut self,
        grid: &RowGrid<'_>,
        row: usize,
        slopes: ArrayView1<'_, f32>,
        codes: ArrayView1<'_, u8>,
    ) {
        let (scales, zero_points) = (grid.scales.row(row), grid.zero_points.row(row));
        let (slopes, codes) = (slopes.to_slice(), codes.to_slice());
        let (slopes, codes) = slopes.zip(codes).expect("rows without gaps");
        self.slopes[..self.columns].copy_from_slice(slopes);
        Unit::widest().run(Widen { to: &mut self.codes, codes });
        let mut first = 0;
        for run in grid.group_of.chunk_by(|a, b| a == b) {
            let columns = first..first + run.len();
            self.scales[columns.clone()].fill(scales[run[0] as usize]);
            self.zero_points[columns.clone()].fill(zero_points[run[0] as usize]);
            first = columns.end;
        }
    }

    /// Writes back what became of a row; of its slopes `image` becomes what they have grown by, over `weight`.
    fn store(
        &self,
        image: &mut [f32],
        slopes: ArrayViewMut1<'_, f32>,
        codes: ArrayViewMut1<'_, u8>,
        weight: f32,
    ) {
        let (slopes, codes) = (slopes.into_slice(), codes.into_slice());
        let (slopes, codes) = slopes.zip(codes).expect("rows without gaps");
        Unit::widest().run(Store { line: self, image, slopes, codes, weight });
    }
}

/// Codes as numbers.
struct Widen<'a> {
    to: &'a mut [f32],
    codes: &'a [u8],
}

impl Task for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        self.to.iter_mut().zip(self.codes).for_each(|(to, &code)| *to = f32::from(code));
    }
}

/// See [`Line::store`].
struct Store<'a> {
    line: &'a Line,
    image: &'a mut [f32],
    slopes: &'a mut [f32],
    codes: &'a mut [u8],
    weight: f32,
}

impl Task for Store<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let Self { line, image, slopes, codes, weight } = self;
        for ((image, slope), &after) in image.iter_mut().zip(slopes).zip(&line.slopes) {
            *image = (after - *slope) / weight;
            *slope = after;
        }
        for (code, &found) in codes.iter_mut().zip(&line.codes) {
            *code = found as u8;
        }
    }
}

/// Improves a row's codes while its slopes are kept up to date.
struct Descent<'a, R> {
    line: &'a mut Line,
    inner: ArrayView2<'a, f32>,
    /// `A_ii`.
    weight: f32,
    rule: R,
}

impl<R: Rule> Task for Descent<'_, R> {
    type Output = u64;

    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) -> u64 {
        let mut changes = 0;
        for _ in 0..PASSES {
            let before = changes;
            for start in (0..self.line.slopes.len()).step_by(L::COUNT) {
                changes += self.improve_columns(lanes, start);
            }
            if changes == before {
                break;
            }
        }
        changes
    }
}

impl<R: Rule> Descent<'_, R> {
    /// Improves the columns of one vector, one after the other.
    #[inline(always)]
    fn improve_columns<L: Lanes>(&mut self, lanes: L, start: usize) -> u64 {
        let (mut rises, mut moves, mut codes) = ([0.0_f32; WIDEST], [0.0_f32; WIDEST], [0.0_f32; WIDEST]);
        let mut first = 0;
        let mut changes = 0;
        while first < L::COUNT {
            let line = &*self.line;
            let weight = lanes.splat(self.weight);
            let curvature = lanes.multiply(lanes.load(&line.curvature[start..]), weight);
            let slope = lanes.load(&line.slopes[start..]);
            let grid = Group {
                scale: lanes.load(&line.scales[start..]),
                zero_point: lanes.load(&line.zero_points[start..]),
            };
            let value = self.rule.value(lanes, lanes.load(&line.codes[start..]), grid);
            let target = lanes.subtract(value, lanes.divide(slope, curvature));
            let rounded = self.rule.round(lanes, target, grid);
            let change = lanes.subtract(rounded.value, value);
            let reluctant = lanes.multiply(curvature, lanes.splat(RELUCTANCE));
            let rise = lanes.multiply(change, lanes.multiply_add(change, reluctant, lanes.add(slope, slope)));
            lanes.store(rise, &mut rises);
            let Some(found) = rises[first..L::COUNT].iter().position(|&rise| rise < 0.0) else { break };
            let found = first + found;
            lanes.store(change, &mut moves);
            lanes.store(rounded.code, &mut codes);
            let column = start + found;
            if column >= self.line.columns {
                break;
            }
            self.line.codes[column] = codes[found];
            self.add_row(lanes, column, moves[found] * self.weight);
            changes += 1;
            first = found + 1;
        }
        changes
    }

    /// Adds `factor` times row `column` of `H` to the slopes.
    #[inline(always)]
    fn add_row<L: Lanes>(&mut self, lanes: L, column: usize, factor: f32) {
        let row = self.inner.row(column);
        let row = row.to_slice().expect("the rows of the inner matrix are contiguous");
        let factor_vector = lanes.splat(factor);
        let whole = row.len() / L::COUNT * L::COUNT;
        let slopes = &mut self.line.slopes;
        for start in (0..whole).step_by(L::COUNT) {
            let sum =
                lanes.multiply_add(factor_vector, lanes.load(&row[start..]), lanes.load(&slopes[start..]));
            lanes.store(sum, &mut slopes[start..]);
        }
        for (slope, &entry) in slopes[whole..].iter_mut().zip(&row[whole..]) {
            *slope = factor.mul_add(entry, *slope);
        }
    }
}
