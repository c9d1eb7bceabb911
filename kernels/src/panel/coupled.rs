//! [`super::coupled_descent`]: coordinate descent where rows see each other.
//!
//! With `d = q - w` and slopes `M = A D H`, changing `d_ij` by `c` changes `tr(A D H Dᵀ)` by `c (2 M_ij + c A_ii H_jj)`, which is least at
//! `c = -M_ij / (A_ii H_jj)`. A change adds `c A_ki H_jl` to `M_kl`: to its own row at once, to the others of its panel when the row is
//! done, to all others when the panel is. Few codes change, so a row costs little more than looking at it; and what a row's changes add,
//! `c H_j` summed, is read off its own slopes, which have grown by `A_ii` of it.

use faer::linalg::matmul::matmul;
use faer::{Accum, Par};
use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};

use super::RowGrid;
use super::rule::{Codebook, Group, Levels, Rule, Uniform};
use crate::arch::lanes::{Lanes, Task, Unit};
use crate::dense::{mat, mat_mut};

/// Rows whose changes are gathered before the rows outside learn of them.
const PANEL: usize = 16;
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
        let curvature: Vec<f32> = self.inner.diag().to_vec();
        let mut line = Line::new(n);
        let mut total = 0;
        for _ in 0..sweeps {
            let mut changes = 0;
            for start in (0..rows).step_by(PANEL) {
                let panel = start..(start + PANEL).min(rows);
                let mut images = ndarray::Array2::<f32>::zeros((panel.len(), n));
                let mut any = false;
                for row in panel.clone() {
                    let weight = self.outer[[row, row]];
                    if weight <= 0.0 {
                        continue;
                    }
                    line.load(self.grid, row, slopes.row(row), codes.row(row), &curvature);
                    let (rows_line, inner) = (&mut line, self.inner);
                    let found = match self.grid.levels {
                        Levels::Uniform { max_code } => {
                            let rule = Uniform::new(max_code);
                            unit.run(Descent { line: rows_line, inner, weight, rule })
                        }
                        Levels::Codebook(levels) => {
                            let rule = Codebook { levels };
                            unit.run(Descent { line: rows_line, inner, weight, rule })
                        }
                    };
                    if found == 0 {
                        continue;
                    }
                    any = true;
                    changes += found;
                    let mut image = images.row_mut(row - start);
                    for (image, (after, before)) in
                        image.iter_mut().zip(line.slopes.iter().zip(slopes.row(row)))
                    {
                        *image = (after - before) / weight;
                    }
                    for (code, &found) in codes.row_mut(row).iter_mut().zip(&line.codes) {
                        *code = found as u8;
                    }
                    for other in panel.clone() {
                        slopes.row_mut(other).scaled_add(self.outer[[other, row]], &image);
                    }
                }
                if any {
                    self.tell(slopes.view_mut(), panel, images.view());
                }
            }
            total += changes;
            if changes == 0 {
                break;
            }
        }
        total
    }

    /// Adds what the rows of a panel changed to the slopes of the rows outside.
    fn tell(
        &self,
        mut slopes: ArrayViewMut2<'_, f32>,
        panel: std::ops::Range<usize>,
        images: ArrayView2<'_, f32>,
    ) {
        for outside in [0..panel.start, panel.end..slopes.nrows()] {
            if !outside.is_empty() {
                let weights = self.outer.slice(s![outside.clone(), panel.clone()]);
                let to = slopes.slice_axis_mut(Axis(0), outside.into());
                matmul(mat_mut(to), Accum::Add, mat(&weights), mat(&images), 1.0, Par::Seq);
            }
        }
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
    fn new(columns: usize) -> Self {
        let padded = columns.next_multiple_of(WIDEST);
        let filled = |value: f32| vec![value; padded];
        let [slopes, codes, zero_points] = [0.0, 0.0, 0.0].map(filled);
        Self { slopes, codes, scales: filled(1.0), zero_points, curvature: filled(1.0), columns }
    }

    fn load(
        &mut self,
        grid: &RowGrid<'_>,
        row: usize,
        slopes: ndarray::ArrayView1<'_, f32>,
        codes: ndarray::ArrayView1<'_, u8>,
        curvature: &[f32],
    ) {
        self.curvature[..self.columns].copy_from_slice(curvature);
        let (scales, zero_points) = (grid.scales.row(row), grid.zero_points.row(row));
        for (column, &group) in grid.group_of.iter().enumerate() {
            self.slopes[column] = slopes[column];
            self.codes[column] = f32::from(codes[column]);
            self.scales[column] = scales[group as usize];
            self.zero_points[column] = zero_points[group as usize];
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
