//! The solver's inner loops: rounding the rows of a matrix to a grid, one column after the other.
//!
//! # Mathematics
//!
//! A row `w` is rounded to `q` so that `(w - q) H (w - q)ᵀ` is small. With `H = R Rᵀ`, `R` upper triangular, and columns in
//! processing order, [`successive_rounding`] computes for `k = 0, 1, ..`
//!
//! ```text
//! w'_k = w_k + sum over j < k of (w_j - q_j) U_jk        U = R with column k divided by R_kk
//! q_k  = nearest value of the grid to w'_k
//! loss = sum over k of R_kk² (w'_k - q_k)²  =  (w - q) H (w - q)ᵀ
//! ```
//!
//! These are the codes of GPTQ (arXiv 2210.17323), of LDLQ (QuIP, arXiv 2307.13304) and of Babai's nearest plane
//! (arXiv 2507.18553), without an inverse and without changing `w`. [`coordinate_descent`] then improves codes one at a
//! time (QuantEase, arXiv 2309.01885; CDQuant, arXiv 2406.17542).
//!
//! # Layout
//!
//! Rows never see each other, except in [`coupled_descent`]. A chunk of rows is solved wholly in cache, with one row in each SIMD lane; columns are
//! gathered in panels of 128, and the matrix that mixes columns is packed once in tiles of 8 columns in the order in which
//! the loops read it.
//!
//! # Determinism
//!
//! A row's sums run over the columns in ascending order, one fused multiply-add each, whatever the chunk, the panel or the
//! vector unit. The codes of a row depend on nothing but its inputs: not on the other rows, the number of threads or the
//! machine.
//!
//! Not here: choosing scales, ordering columns, damping. Columns arrive in processing order and scales are given.

mod chunk;
mod coupled;
mod descent;
mod rounding;
mod rule;
#[cfg(test)]
mod tests;
mod tiles;

use std::io;
use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use crate::arch::lanes::Unit;
use crate::stripes::{HEIGHT, Triangle};
pub(crate) use rule::Codebook;
pub use rule::Levels;
use rule::{Rule, Uniform};

use tiles::ColumnTiles;

/// Columns that are solved together.
const PANEL: usize = 128;
/// Columns whose sums are in registers at the same time.
const TILE: usize = 8;

// A stripe of a factor is whole panels.
const _: () = assert!(HEIGHT.is_multiple_of(PANEL) && PANEL.is_multiple_of(TILE));

/// A grid for each row and group of columns: code `c` stands for `scale (level(c) - zero_point)`.
///
/// `w` is rounded to the level nearest to `w / scale + zero_point`, in single precision; on uniform levels that is
/// `clamp(round_half_even(w / scale + zero_point), 0, max_code)`. Scales may have either sign, and zero points need not be integers.
/// Where the scale is 0, or the sum not a number, the value is that of the first or last code.
#[derive(Clone, Copy, Debug)]
pub struct RowGrid<'a> {
    /// `[rows, groups]`.
    pub scales: ArrayView2<'a, f32>,
    /// `[rows, groups]`.
    pub zero_points: ArrayView2<'a, f32>,
    /// The group of each column, in processing order: `[columns]`, values below `groups`.
    pub group_of: &'a [u32],
    /// What codes stand for.
    pub levels: Levels<'a>,
}

/// How the rounding errors of earlier columns feed into later ones: `U = R` with column `k` divided by `R_kk`, in single
/// precision, packed for [`successive_rounding`]; and the weights `R_kk²` of the loss.
///
/// It takes about `2 n²` bytes. One factor serves every matrix that shares the Hessian.
#[derive(Clone, Debug)]
pub struct FeedbackFactor {
    size: usize,
    feedback: ColumnTiles,
    /// `R_kk²`.
    weights: Vec<f64>,
}

impl FeedbackFactor {
    /// Packs the upper triangular factor `r` `[n, n]` of a Hessian whose columns are in processing order. Its strict lower
    /// triangle is not read.
    ///
    /// # Panics
    /// When `r` is not square.
    pub fn new(r: &Array2<f64>) -> Self {
        let n = r.nrows();
        assert_eq!(r.ncols(), n, "a triangular factor {:?}", r.dim());
        let feedback = ColumnTiles::upper(n, |j, k| (r[[j, k]] / r[[k, k]]) as f32);
        Self { size: n, feedback, weights: r.diag().iter().map(|r| r * r).collect() }
    }

    /// Packs `Rᵀ` as [`Triangle::factor`] leaves it.
    ///
    /// # Errors
    /// Those of its store.
    pub fn of_stripes(factor: &Triangle<f64>) -> io::Result<Self> {
        let n = factor.size();
        let panels = factor.map(|rows, stripe| {
            let first = rows.start;
            let entry = |j: usize, k: usize| (stripe[[k - first, j]] / stripe[[k - first, k]]) as f32;
            ColumnTiles::upper_panels(n, rows, entry)
        })?;
        let weights = factor.diagonal()?.into_iter().map(|r| r * r).collect();
        Ok(Self {
            size: n,
            feedback: ColumnTiles::of_panels(panels.into_iter().flatten().collect()),
            weights,
        })
    }

    /// The number of columns.
    pub fn size(&self) -> usize {
        self.size
    }

    /// `R_jk` for `j <= k`, to single precision.
    pub fn entry(&self, j: usize, k: usize) -> f32 {
        let r = self.weights[k].sqrt() as f32;
        if j == k { r } else { r * self.feedback.entry(j, k) }
    }

    /// Some columns of `R` down to the last one's diagonal, to single precision: `[columns.end, columns]`. They begin and end with tiles of 8
    /// columns, or with the matrix.
    ///
    /// # Panics
    /// When they do not.
    pub fn columns(&self, columns: Range<usize>) -> Array2<f32> {
        let whole = |column: usize| column.is_multiple_of(TILE) || column == self.size;
        assert!(whole(columns.start) && whole(columns.end), "columns {columns:?} of {}", self.size);
        let roots: Vec<f32> = columns.clone().map(|k| self.weights[k].sqrt() as f32).collect();
        let mut out = Array2::zeros((columns.end, columns.len()));
        let stripes: Vec<_> = out.axis_chunks_iter_mut(Axis(0), PANEL).enumerate().collect();
        stripes.into_par_iter().for_each(|(stripe, mut rows)| {
            for (row, mut out) in rows.outer_iter_mut().enumerate() {
                let out = out.as_slice_mut().expect("rows of a matrix made here");
                for (tile, out) in out.chunks_mut(TILE).enumerate() {
                    let column = columns.start + tile * TILE;
                    // Above the panel's last stripe, or in it.
                    if stripe <= column / PANEL {
                        let entries = self.feedback.tile(column / PANEL, stripe, column % PANEL / TILE)[row];
                        for (lane, out) in out.iter_mut().enumerate() {
                            *out = entries[lane] * roots[tile * TILE + lane];
                        }
                    }
                }
            }
        });
        for (place, &root) in roots.iter().enumerate() {
            out[[columns.start + place, place]] = root;
        }
        out
    }
}

/// Rounds every row of `weights` so that later columns make up for the errors of earlier ones, and returns the loss of each
/// row, `sum over k of R_kk² (w'_k - q_k)²`.
///
/// Shapes: `weights` and `codes` `[rows, n]`, the factor `n`; the grid has `rows` rows. Columns are in processing order.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn successive_rounding(
    weights: ArrayView2<'_, f32>,
    factor: &FeedbackFactor,
    grid: &RowGrid<'_>,
    codes: ArrayViewMut2<'_, u8>,
) -> Vec<f64> {
    successive_rounding_on(Unit::widest(), weights, factor, grid, codes)
}

fn successive_rounding_on(
    unit: Unit,
    weights: ArrayView2<'_, f32>,
    factor: &FeedbackFactor,
    grid: &RowGrid<'_>,
    codes: ArrayViewMut2<'_, u8>,
) -> Vec<f64> {
    grid.check(weights.dim(), codes.dim());
    assert_eq!(factor.size, weights.ncols(), "size of the factor for weights {:?}", weights.dim());
    match grid.levels {
        Levels::Uniform { max_code } => round_by(Uniform::new(max_code), unit, weights, factor, grid, codes),
        Levels::Codebook(levels) => round_by(Codebook { levels }, unit, weights, factor, grid, codes),
    }
}

fn round_by(
    rule: impl Rule,
    unit: Unit,
    weights: ArrayView2<'_, f32>,
    factor: &FeedbackFactor,
    grid: &RowGrid<'_>,
    codes: ArrayViewMut2<'_, u8>,
) -> Vec<f64> {
    let mut losses = vec![0.0; weights.nrows()];
    chunk::for_each(unit, weights, grid, codes, &mut losses, |lanes, chunk, scratch, loss| {
        rounding::Rounding { chunk, factor, rule, scratch, loss }.run_on(lanes);
    });
    losses
}

/// Improves `codes` one column at a time: each moves to the value of the grid nearest to the minimum of the loss with all
/// other columns held, if that lowers the loss. Returns how many codes changed; at 0 a row cannot be improved this way.
///
/// Shapes: `weights` and `codes` `[rows, n]`, `hessian` `[n, n]`, symmetric and in full; the grid has `rows` rows. Columns are
/// in processing order. Stops after `sweeps` passes over the columns, or, for a chunk of rows, after a pass without a
/// change. `codes` holds the start. The loss of a row never rises but for rounding errors of single precision.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn coordinate_descent(
    weights: ArrayView2<'_, f32>,
    hessian: ArrayView2<'_, f32>,
    grid: &RowGrid<'_>,
    codes: ArrayViewMut2<'_, u8>,
    sweeps: usize,
) -> u64 {
    coordinate_descent_on(Unit::widest(), weights, hessian, grid, codes, sweeps)
}

fn coordinate_descent_on(
    unit: Unit,
    weights: ArrayView2<'_, f32>,
    hessian: ArrayView2<'_, f32>,
    grid: &RowGrid<'_>,
    codes: ArrayViewMut2<'_, u8>,
    sweeps: usize,
) -> u64 {
    grid.check(weights.dim(), codes.dim());
    let n = weights.ncols();
    assert_eq!(hessian.dim(), (n, n), "shape of the Hessian for weights {:?}", weights.dim());
    if sweeps == 0 {
        return 0;
    }
    match grid.levels {
        Levels::Uniform { max_code } => {
            descend_by(Uniform::new(max_code), unit, weights, hessian, grid, codes, sweeps)
        }
        Levels::Codebook(levels) => {
            descend_by(Codebook { levels }, unit, weights, hessian, grid, codes, sweeps)
        }
    }
}

fn descend_by(
    rule: impl Rule,
    unit: Unit,
    weights: ArrayView2<'_, f32>,
    hessian: ArrayView2<'_, f32>,
    grid: &RowGrid<'_>,
    codes: ArrayViewMut2<'_, u8>,
    sweeps: usize,
) -> u64 {
    let n = weights.ncols();
    // Symmetric, so read along its rows: a panel is packed column by column.
    let columns = ColumnTiles::full(n, |j, k| hessian[[k, j]]);
    let curvature = hessian.diag().to_vec();
    let mut changed = vec![0_u64; weights.nrows()];
    chunk::for_each(unit, weights, grid, codes, &mut changed, |lanes, chunk, scratch, changed| {
        let curvature = &curvature;
        let hessian = &columns;
        descent::Descent { chunk, hessian, curvature, rule, scratch, sweeps, changed }.run_on(lanes);
    });
    changed.iter().sum()
}

/// Improves `codes` one at a time like [`coordinate_descent`], where an error costs by its row as well: the loss is `tr(A D H Dᵀ)` for
/// `D = Q - W`, so a row can make up for another. `slopes` are `A D H` of the codes as they come, and in the end of those that are left. Returns how
/// many times a code changed.
///
/// Shapes: `codes` and `slopes` `[rows, n]`, `outer`, which is `A`, `[rows, rows]` and `inner`, which is `H`, `[n, n]`, both symmetric, in
/// full and positive definite; rows of all but `outer` are contiguous; the grid has `rows` rows. Rows whose `A_ii` is not positive stay as they are.
/// The loss never rises but for rounding errors of single precision, which grow with the number of sweeps.
///
/// # Panics
/// When the shapes do not fit each other, or there are gaps in rows.
pub fn coupled_descent(
    outer: ArrayView2<'_, f32>,
    inner: ArrayView2<'_, f32>,
    grid: &RowGrid<'_>,
    codes: ArrayViewMut2<'_, u8>,
    slopes: ArrayViewMut2<'_, f32>,
    sweeps: usize,
) -> u64 {
    coupled_descent_on(Unit::widest(), outer, inner, grid, codes, slopes, sweeps)
}

fn coupled_descent_on(
    unit: Unit,
    outer: ArrayView2<'_, f32>,
    inner: ArrayView2<'_, f32>,
    grid: &RowGrid<'_>,
    codes: ArrayViewMut2<'_, u8>,
    slopes: ArrayViewMut2<'_, f32>,
    sweeps: usize,
) -> u64 {
    grid.check(slopes.dim(), codes.dim());
    let (rows, n) = slopes.dim();
    assert_eq!(outer.dim(), (rows, rows), "shape of the outer matrix for weights {:?}", slopes.dim());
    assert_eq!(inner.dim(), (n, n), "shape of the inner matrix for weights {:?}", slopes.dim());
    coupled::Coupled { outer, inner, grid }.descend_on(unit, codes, slopes, sweeps)
}

impl RowGrid<'_> {
    fn check(&self, weights: (usize, usize), codes: (usize, usize)) {
        assert_eq!(codes, weights, "shape of the codes of weights {weights:?}");
        assert_eq!(self.scales.nrows(), weights.0, "rows of the scales of weights {weights:?}");
        assert_eq!(self.zero_points.dim(), self.scales.dim(), "shape of the zero points");
        if let Levels::Codebook(levels) = self.levels {
            assert!((1..=256).contains(&levels.len()), "a codebook of {} levels", levels.len());
        }
        assert_eq!(self.group_of.len(), weights.1, "groups of the columns of weights {weights:?}");
        let groups = self.scales.ncols();
        let inside = self.group_of.iter().all(|&group| (group as usize) < groups);
        assert!(inside, "a column's group is beyond the {groups} groups of the scales");
    }
}
