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

use ndarray::parallel::prelude::*;
use ndarray::{Array2, Array3, ArrayView1, ArrayView2, Axis};

use super::Candidate;
use crate::grid::Grid;
use crate::prepared::PreparedHessian;
use crate::scheme::{Granularity, Symmetry};

/// Replaces the scales of each row where that lowers its loss, and lowers the candidate's loss by as much.
pub(super) fn refit(target: ArrayView2<'_, f32>, candidate: &mut Candidate, hessian: &PreparedHessian) {
    if candidate.grid.scheme().granularity == Granularity::PerTensor {
        return;
    }
    let (rows, groups) = candidate.grid.scales().dim();
    let height = (MOST_PRODUCTS / (groups * groups)).clamp(8, 64);
    let tiles: Vec<std::ops::Range<usize>> =
        (0..rows).step_by(height).map(|first| first..(first + height).min(rows)).collect();
    let Candidate { grid, codes, losses } = candidate;
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

/// The normal equations of some rows.
struct NormalEquations {
    /// `A` of each row, `[rows, groups, groups]`.
    a: Array3<f32>,
    /// `b` of each row, `[rows, groups]`.
    b: Array2<f64>,
}

/// New scales of a row, and by how much they lower its loss.
struct Change {
    scales: Vec<f32>,
    gain: f64,
}

impl NormalEquations {
    fn new(
        target: ArrayView2<'_, f32>,
        grid: &Grid,
        codes: ArrayView2<'_, u8>,
        hessian: &PreparedHessian,
    ) -> Self {
        let (rows, columns) = target.dim();
        let (size, groups) = (grid.group_size(), grid.scales().ncols());
        let errors = grid.errors(target, codes);
        let zero_points = grid.zero_points();
        let multiples = Array2::from_shape_fn((rows, columns), |(row, column)| {
            f32::from(codes[[row, column]]) - zero_points[[row, column / size]]
        });
        let mut a = Array3::<f32>::zeros((rows, groups, groups));
        let mut b = Array2::<f64>::zeros((rows, groups));
        // z_g H of every row, `[rows, columns]`
        let mut product = Array2::<f32>::zeros((rows, columns));
        for group in 0..groups {
            let members = group * size..(group + 1) * size;
            let z = multiples.slice_axis(Axis(1), members.clone().into());
            kernels::product::product_nn(
                z,
                hessian.damped().slice_axis(Axis(0), members.into()),
                product.view_mut(),
            );
            for row in 0..rows {
                let (product, z, d) = (product.row(row), multiples.row(row), errors.row(row));
                let (product, z, d) = (parts(product, size), parts(z, size), parts(d, size));
                for (other, ((product, z), d)) in product.zip(z).zip(d).enumerate() {
                    a[[row, group, other]] = dot(product, z);
                    b[[row, group]] += f64::from(dot(product, d));
                }
            }
        }
        Self { a, b }
    }

    fn solve(&self, row: usize, grid: &Grid) -> Change {
        let a = self.a.index_axis(Axis(0), row);
        let a = Array2::from_shape_fn(a.dim(), |(g, h)| 0.5 * (f64::from(a[[g, h]]) + f64::from(a[[h, g]])));
        let b = self.b.row(row);
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
    let mut residual = b.to_vec();
    let mut direction: Vec<f64> = residual.iter().zip(&scale).map(|(r, s)| r * s).collect();
    let mut energy: f64 = residual.iter().zip(&direction).map(|(r, d)| r * d).sum();
    let enough = energy * RELATIVE_ENERGY;
    for _ in 0..b.len().min(MOST_ITERATIONS) {
        if energy <= enough {
            break;
        }
        let image: Vec<f64> = a.rows().into_iter().map(|row| inner(row, &direction)).collect();
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

const LANES: usize = 16;

/// The groups of a row that lies in one piece.
fn parts(row: ArrayView1<'_, f32>, size: usize) -> impl Iterator<Item = &[f32]> {
    row.to_slice().expect("rows of arrays made here are contiguous").chunks_exact(size)
}

/// A dot product in a fixed order that becomes vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_lanes.remainder().iter().zip(b_lanes.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_lanes.zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}
