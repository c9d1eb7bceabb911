//! The best scales for given codes, in closed form (decoupleQ, arXiv 2404.12759; two-stage grids, arXiv 2602.02126).
//!
//! A row is `Σ_g s_g z_g`, where `z_g` holds `code - zero_point` in the columns of group `g` and 0 elsewhere. Its loss is quadratic in the
//! scales; moving them by `Δ` from where they are, with the row's errors `d`,
//!
//! ```text
//! loss(s + Δ) = loss(s) - 2 bᵀΔ + ΔᵀA Δ      A_gh = z_g H z_hᵀ      b_g = z_g H dᵀ
//! ```
//!
//! `z_g H` for all groups is one product with `H` in all; the `groups x groups` system is solved by conjugate gradients in double
//! precision, from 0, so that stopping early still lowers the loss. Solving for the change, not for the scales, keeps the
//! single-precision error of `A` and `b` relative to the change.
//!
//! Zero points stay. With one scale for the whole tensor there is nothing to do row by row, and the scale stays too.

use kernels::parts::{PART_LANES, part_products};
use kernels::product::product_nn;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, Array3, ArrayView1, ArrayView2, Axis, s};

use super::{Candidate, Solved};
use crate::grid::Grid;
use crate::prepared::PreparedHessian;
use crate::scheme::{Granularity, Symmetry};

/// Replaces the scales of each row where that lowers its loss, and lowers the candidate's loss by as much.
pub(super) fn refit(target: ArrayView2<'_, f32>, candidate: &mut Candidate, hessian: &PreparedHessian) {
    if candidate.solved.grid.scheme().granularity == Granularity::PerTensor {
        return;
    }
    let (rows, groups) = candidate.solved.grid.scales().dim();
    let height = (MOST_PRODUCTS / (groups * groups)).clamp(PART_LANES, 64) / PART_LANES * PART_LANES;
    let tiles: Vec<std::ops::Range<usize>> =
        (0..rows).step_by(height).map(|first| first..(first + height).min(rows)).collect();
    let Candidate { solved: Solved { grid, codes }, losses } = candidate;
    let changes: Vec<Vec<Change>> = tiles
        .par_iter()
        .map(|tile| {
            let grid = grid.rows(tile.clone());
            let target = target.slice_axis(Axis(0), tile.clone().into());
            let codes = codes.slice_axis(Axis(0), tile.clone().into());
            let equations = NormalEquations::new(target, &grid, codes, hessian);
            (0..tile.len()).map(|row| equations.solve(row, &grid)).collect()
        })
        .collect();
    for (row, change) in changes.into_iter().flatten().enumerate() {
        if change.gain > 0.0 {
            grid.set_row(row, &change.scales);
            losses[row] -= change.gain;
        }
    }
}

/// Entries of all `A` that a tile of rows may hold.
const MOST_PRODUCTS: usize = 1 << 22;

/// Columns of `z_g H` at a time.
const PANEL: usize = 512;

/// The normal equations of some rows, one in each lane. Lanes without a row hold zeros.
struct NormalEquations {
    /// `A` of each row, `[groups, groups, lanes]`.
    a: Array3<f32>,
    /// `b` of each row, `[groups, lanes]`.
    b: Array2<f64>,
}

/// What `A` and `b` are made of, one row in each lane.
struct RowsInLanes {
    /// All `z_g`, `[columns, lanes]`.
    multiples: Array2<f32>,
    /// `d`, `[columns, lanes]`.
    errors: Array2<f32>,
}

/// New scales of a row, and by how much they lower its loss.
struct Change {
    scales: Vec<f32>,
    gain: f64,
}

impl RowsInLanes {
    fn gather(target: ArrayView2<'_, f32>, grid: &Grid, codes: ArrayView2<'_, u8>, lanes: usize) -> Self {
        let (rows, columns) = target.dim();
        let size = grid.group_size();
        let (mut multiples, mut errors) = (vec![0.0; columns * lanes], vec![0.0; columns * lanes]);
        // A few columns of all rows, then the next: few enough for both matrices to stay in the first-level cache.
        let chunks = (0..columns).step_by(size).flat_map(|first| {
            let chunk = move |start: usize| (first / size, start..(start + COLUMNS).min(first + size));
            (first..first + size).step_by(COLUMNS).map(chunk)
        });
        for (group, chunk) in chunks {
            for row in 0..rows {
                let (scale, zero_point) = (grid.scales()[[row, group]], grid.zero_points()[[row, group]]);
                let (target, codes) =
                    (target.slice(s![row, chunk.clone()]), codes.slice(s![row, chunk.clone()]));
                for (column, (&target, &code)) in chunk.clone().zip(target.into_iter().zip(codes)) {
                    let multiple = f32::from(code) - zero_point;
                    multiples[column * lanes + row] = multiple;
                    errors[column * lanes + row] = target - scale * multiple;
                }
            }
        }
        let matrix = |numbers| Array2::from_shape_vec((columns, lanes), numbers).expect("made to measure");
        Self { multiples: matrix(multiples), errors: matrix(errors) }
    }
}

/// Columns that are transposed at a time.
const COLUMNS: usize = 32;

impl NormalEquations {
    fn new(
        target: ArrayView2<'_, f32>,
        grid: &Grid,
        codes: ArrayView2<'_, u8>,
        hessian: &PreparedHessian,
    ) -> Self {
        let (columns, size, groups) = (target.ncols(), grid.group_size(), grid.scales().ncols());
        let lanes = target.nrows().next_multiple_of(PART_LANES);
        let RowsInLanes { multiples, errors } = RowsInLanes::gather(target, grid, codes, lanes);
        let mut a = Array3::<f32>::zeros((groups, groups, lanes));
        let mut b = Array2::<f64>::zeros((groups, lanes));
        // (z_g H)ᵀ of some columns of whole groups: what a product writes is still in cache when it is read.
        let panel = (PANEL / size).max(1) * size;
        let mut image = Array2::<f32>::zeros((panel.min(columns), lanes));
        for first in (0..columns).step_by(panel) {
            let others = first..(first + panel).min(columns);
            let mut image = image.slice_axis_mut(Axis(0), (..others.len()).into());
            let flat = others.start * lanes..others.end * lanes;
            let z = &multiples.as_slice().expect("made here")[flat.clone()];
            let d = &errors.as_slice().expect("made here")[flat];
            for group in 0..groups {
                let members = group * size..(group + 1) * size;
                let h = hessian.damped();
                let h = h.slice(s![others.clone(), members.clone()]);
                product_nn(h, multiples.slice_axis(Axis(0), members.into()), image.view_mut());
                let mut a = a.slice_mut(s![group, first / size..others.end / size, ..]);
                let mut b = b.row_mut(group);
                part_products(
                    size,
                    image.as_slice().expect("whole rows of a matrix made here"),
                    z,
                    d,
                    a.as_slice_mut().expect("whole rows of a matrix made here"),
                    b.as_slice_mut().expect("a row of a matrix made here"),
                );
            }
        }
        Self { a, b }
    }

    fn solve(&self, row: usize, grid: &Grid) -> Change {
        let a = self.a.index_axis(Axis(2), row);
        let a = Array2::from_shape_fn(a.dim(), |(g, h)| 0.5 * (f64::from(a[[g, h]]) + f64::from(a[[h, g]])));
        let b = self.b.column(row);
        let before = grid.scales().row(row).to_vec();
        let scales: Vec<f32> = before
            .iter()
            .zip(conjugate_gradients(&a, b))
            .map(|(&scale, change)| {
                let moved = grid.scheme().scale_dtype.round((f64::from(scale) + change) as f32);
                let turned = grid.scheme().symmetry == Symmetry::Asymmetric && moved < 0.0;
                if turned { scale } else { moved }
            })
            .collect();
        let moved: Vec<f64> = scales
            .iter()
            .zip(&before)
            .map(|(&after, &before)| f64::from(after) - f64::from(before))
            .collect();
        let linear: f64 = moved.iter().zip(b).map(|(m, b)| m * b).sum();
        let quadratic: f64 = moved.iter().zip(a.rows()).map(|(m, row)| m * inner(row, &moved)).sum();
        Change { scales, gain: 2.0 * linear - quadratic }
    }
}

/// Approximately the `x` with `A x = b`, `A` positive semidefinite, preconditioned with its diagonal. Coordinates with a zero diagonal
/// stay 0.
fn conjugate_gradients(a: &Array2<f64>, b: ArrayView1<'_, f64>) -> Vec<f64> {
    let scale: Vec<f64> = a.diag().iter().map(|&x| if x > 0.0 { 1.0 / x } else { 0.0 }).collect();
    let mut x = vec![0.0; b.len()];
    let mut image = vec![0.0; b.len()];
    let mut residual = b.to_vec();
    let mut direction: Vec<f64> = residual.iter().zip(&scale).map(|(r, s)| r * s).collect();
    let mut energy: f64 = residual.iter().zip(&direction).map(|(r, d)| r * d).sum();
    let enough = energy * RELATIVE_ENERGY;
    for _ in 0..b.len().min(MOST_ITERATIONS) {
        if energy <= enough {
            break;
        }
        multiply(a, &direction, &mut image);
        let curvature: f64 = image.iter().zip(&direction).map(|(i, d)| i * d).sum();
        if curvature <= 0.0 {
            break;
        }
        let step = energy / curvature;
        for k in 0..x.len() {
            x[k] += step * direction[k];
            residual[k] -= step * image[k];
        }
        let next: f64 = residual.iter().zip(&scale).map(|(r, s)| r * r * s).sum();
        for k in 0..x.len() {
            direction[k] = residual[k] * scale[k] + next / energy * direction[k];
        }
        energy = next;
    }
    x
}

const MOST_ITERATIONS: usize = 64;
const RELATIVE_ENERGY: f64 = 1e-12;

fn inner(row: ArrayView1<'_, f64>, x: &[f64]) -> f64 {
    row.iter().zip(x).map(|(a, x)| a * x).sum()
}

/// `A x` for a symmetric `A`: along its rows, so that no sum waits for the one before.
fn multiply(a: &Array2<f64>, x: &[f64], image: &mut [f64]) {
    image.fill(0.0);
    for (row, x) in a.rows().into_iter().zip(x) {
        for (image, a) in image.iter_mut().zip(row) {
            *image += a * x;
        }
    }
}
