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
//! Zero points stay. Minimums that are stored are fitted together with the scales: a group then has a second `z_g`, of ones, and the first
//! is taken from the middle code on, which keeps the two nearly orthogonal. What comes out is rounded to what can be stored
//! (`refit/stored.rs`). With one scale for the whole tensor there is nothing to do row by row, and the scale stays too.

mod stored;

use kernels::parts::{PART_LANES, part_products};
use kernels::product::product_nn;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, Array3, ArrayView1, ArrayView2, Axis, s};

use super::{Candidate, Solved};
use crate::grid::Grid;
use crate::prepared::PreparedHessian;
use crate::scheme::{Granularity, Scheme, Symmetry};
use crate::storage::StoredRow;

/// Replaces the scales of each row where that lowers its loss, and lowers the candidate's loss by as much.
pub(super) fn refit(target: ArrayView2<'_, f32>, candidate: &mut Candidate, hessian: &PreparedHessian) {
    if candidate.solved.grid.scheme().granularity == Granularity::PerTensor {
        return;
    }
    let (rows, groups) = candidate.solved.grid.scales().dim();
    let unknowns = groups * directions(candidate.solved.grid.scheme()).len();
    let height = (MOST_PRODUCTS / (unknowns * unknowns)).clamp(PART_LANES, 64) / PART_LANES * PART_LANES;
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
            grid.set_row(row, &change.stored);
            losses[row] -= change.gain;
        }
    }
}

/// What a unit of each of a group's unknowns adds to the value of a code.
#[derive(Clone, Copy, Debug)]
enum Direction {
    /// `level(code) - zero_point`.
    Scale,
    /// `level(code) - middle`: the scale, where the value of the middle code stays.
    ScaleAbout(f32),
    /// 1.
    Minimum,
}

fn directions(scheme: Scheme) -> Vec<Direction> {
    match scheme.symmetry {
        Symmetry::Symmetric | Symmetry::Asymmetric => vec![Direction::Scale],
        Symmetry::Minimum => vec![Direction::ScaleAbout(middle_level(scheme)), Direction::Minimum],
    }
}

fn middle_level(scheme: Scheme) -> f32 {
    let (low, high) = scheme.kernel_levels().ends();
    0.5 * (low + high)
}

/// Entries of all `A` that a tile of rows may hold.
const MOST_PRODUCTS: usize = 1 << 22;

/// Columns of `z_g H` at a time.
const PANEL: usize = 512;

/// The normal equations of some rows, one in each lane. Lanes without a row hold zeros. Unknowns are the groups, once for each direction.
struct NormalEquations {
    /// `A` of each row, `[unknowns, unknowns, lanes]`.
    a: Array3<f32>,
    /// `b` of each row, `[unknowns, lanes]`.
    b: Array2<f64>,
}

/// What `A` and `b` are made of, one row in each lane.
struct RowsInLanes {
    /// All `z_g` of each direction, `[columns, lanes]`.
    multiples: Vec<Array2<f32>>,
    /// `d`, `[columns, lanes]`.
    errors: Array2<f32>,
}

/// What is to be stored of a row, and by how much it lowers its loss.
struct Change {
    stored: StoredRow,
    gain: f64,
}

impl RowsInLanes {
    fn gather(target: ArrayView2<'_, f32>, grid: &Grid, codes: ArrayView2<'_, u8>, lanes: usize) -> Self {
        let (rows, columns) = target.dim();
        let size = grid.group_size();
        let directions = directions(grid.scheme());
        let levels = grid.scheme().kernel_levels();
        let mut multiples = vec![vec![0.0; columns * lanes]; directions.len()];
        let mut errors = vec![0.0; columns * lanes];
        // A few columns of all rows, then the next: few enough for both matrices to stay in the first-level cache.
        let chunks = (0..columns).step_by(size).flat_map(|first| {
            let chunk = move |start: usize| (first / size, start..(start + COLUMNS).min(first + size));
            (first..first + size).step_by(COLUMNS).map(chunk)
        });
        for (group, chunk) in chunks {
            for row in 0..rows {
                let (scale, zero_point) = (grid.scales()[[row, group]], grid.zero_points()[[row, group]]);
                let minimum = grid.minimums().map(|minimums| minimums[[row, group]]);
                let (target, codes) =
                    (target.slice(s![row, chunk.clone()]), codes.slice(s![row, chunk.clone()]));
                for (column, (&target, &code)) in chunk.clone().zip(target.into_iter().zip(codes)) {
                    let (level, at) = (levels.level(code), column * lanes + row);
                    for (direction, multiples) in directions.iter().zip(&mut multiples) {
                        multiples[at] = match direction {
                            Direction::Scale => level - zero_point,
                            Direction::ScaleAbout(middle) => level - middle,
                            Direction::Minimum => 1.0,
                        };
                    }
                    errors[at] = target
                        - match minimum {
                            None => scale * (level - zero_point),
                            Some(minimum) => scale * level + minimum,
                        };
                }
            }
        }
        let matrix = |numbers| Array2::from_shape_vec((columns, lanes), numbers).expect("made to measure");
        Self { multiples: multiples.into_iter().map(matrix).collect(), errors: matrix(errors) }
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
        let unknowns = multiples.len() * groups;
        let mut a = Array3::<f32>::zeros((unknowns, unknowns, lanes));
        let mut b = Array2::<f64>::zeros((unknowns, lanes));
        let mut seen = vec![0.0; lanes];
        // (z_g H)ᵀ of some columns of whole groups: what a product writes is still in cache when it is read.
        let panel = (PANEL / size).max(1) * size;
        let mut image = Array2::<f32>::zeros((panel.min(columns), lanes));
        for first in (0..columns).step_by(panel) {
            let others = first..(first + panel).min(columns);
            let mut image = image.slice_axis_mut(Axis(0), (..others.len()).into());
            let flat = others.start * lanes..others.end * lanes;
            let d = &errors.as_slice().expect("made here")[flat.clone()];
            for unknown in 0..unknowns {
                let (of, group) = (&multiples[unknown / groups], unknown % groups);
                let members = group * size..(group + 1) * size;
                let h = hessian.full();
                let h = h.slice(s![others.clone(), members.clone()]);
                product_nn(h, of.slice_axis(Axis(0), members.into()), image.view_mut());
                for (direction, multiples) in multiples.iter().enumerate() {
                    let z = &multiples.as_slice().expect("made here")[flat.clone()];
                    let place = direction * groups;
                    let mut a = a.slice_mut(s![unknown, place + first / size..place + others.end / size, ..]);
                    let mut b = b.row_mut(unknown);
                    // The errors are to be counted once.
                    let with_errors = if direction == 0 {
                        b.as_slice_mut().expect("a row of a matrix made here")
                    } else {
                        &mut seen
                    };
                    part_products(
                        size,
                        image.as_slice().expect("whole rows of a matrix made here"),
                        z,
                        d,
                        a.as_slice_mut().expect("whole rows of a matrix made here"),
                        with_errors,
                    );
                }
            }
        }
        Self { a, b }
    }

    fn solve(&self, row: usize, grid: &Grid) -> Change {
        let a = self.a.index_axis(Axis(2), row);
        let a = Array2::from_shape_fn(a.dim(), |(g, h)| 0.5 * (f64::from(a[[g, h]]) + f64::from(a[[h, g]])));
        let b = self.b.column(row);
        let ideal = conjugate_gradients(&a, b);
        stored::closest(&stored::Quadratic { a, b: b.to_vec() }, &ideal, row, grid)
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
