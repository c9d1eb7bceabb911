//! Products of dense matrices in single precision.
//!
//! Every function cuts its output into fixed tiles, computes each tile on one thread with its sum over the whole inner
//! dimension, and spreads the tiles over rayon's current pool. The bits of the result are therefore the same for any
//! number of threads. Inputs and outputs may be any views, transposed or strided.
//!
//! Sums are single precision, as the inputs are. Whoever sums over more rows than fit one call (a Hessian over all
//! calibration tokens) adds up the calls' results in double precision.
//!
//! Not here: products with packed words ([`crate::packed`]), and anything about what the numbers mean.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Par};
use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use crate::dense::{Tile, mat, mat_mut, tiles};

pub(crate) mod thin;

/// Rows and columns of an output tile. Large enough that packing the operands costs little, small enough that a
/// 2048 x 2048 output still feeds 16 threads.
const TILE: usize = 512;
/// Rows and columns of the smallest one.
const LEAST_TILE: usize = 128;
/// Multiplications of a product below which another thread does not pay.
const LEAST_WORK: usize = 1 << 22;

/// Rows and columns of a tile of an output `[m, n]` of sums of `k`: smaller where there would be few tiles, by the shape alone.
fn tile(m: usize, k: usize, n: usize) -> usize {
    let mut tile = TILE;
    while tile > LEAST_TILE && m.div_ceil(tile) * n.div_ceil(tile) < 4 && m * n * k >= LEAST_WORK {
        tile /= 2;
    }
    tile
}

/// `out = x wᵀ`: the forward product of a linear with weight `w`.
///
/// Shapes: `x` `[m, k]`, `w` `[n, k]`, `out` `[m, n]`.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn product_nt(x: ArrayView2<'_, f32>, w: ArrayView2<'_, f32>, out: ArrayViewMut2<'_, f32>) {
    multiply(x, w.reversed_axes(), out);
}

/// `out = a b`.
///
/// Shapes: `a` `[m, k]`, `b` `[k, n]`, `out` `[m, n]`.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn product_nn(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, out: ArrayViewMut2<'_, f32>) {
    multiply(a, b, out);
}

/// `out = aᵀ b`: the cross moment of two streams of rows.
///
/// Shapes: `a` `[t, m]`, `b` `[t, n]`, `out` `[m, n]`.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn product_tn(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, out: ArrayViewMut2<'_, f32>) {
    multiply(a.reversed_axes(), b, out);
}

/// The lower triangle of `xᵀ x`, diagonal included: the second moment of the rows of `x`, not divided by their number.
/// The strict upper triangle of `out` is left as it is.
///
/// Shapes: `x` `[t, n]`, `out` `[n, n]`.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn gram(x: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) {
    let n = x.ncols();
    assert_eq!(out.dim(), (n, n), "shape of the gram matrix of x {:?}", x.dim());
    if x.nrows() == 0 {
        out.indexed_iter_mut().filter(|((i, j), _)| i >= j).for_each(|(_, value)| *value = 0.0);
        return;
    }
    let tile = tile(n, x.nrows(), n);
    let lower = tiles(out, tile, tile).into_par_iter().filter(|tile| tile.row >= tile.column);
    lower.for_each(|tile| {
        let (height, width) = tile.view.dim();
        let left = x.slice(s![.., tile.row..tile.row + height]).reversed_axes();
        let right = x.slice(s![.., tile.column..tile.column + width]);
        if tile.row == tile.column {
            triangular::matmul(
                mat_mut(tile.view),
                BlockStructure::TriangularLower,
                Accum::Replace,
                mat(&left),
                BlockStructure::Rectangular,
                mat(&right),
                BlockStructure::Rectangular,
                1.0,
                Par::Seq,
            );
        } else {
            matmul(mat_mut(tile.view), Accum::Replace, mat(&left), mat(&right), 1.0, Par::Seq);
        }
    });
}

/// A tile of `xᵀ y`, on one thread.
pub(crate) fn tile_tn(x: ArrayView2<'_, f32>, y: ArrayView2<'_, f32>, tile: Tile<'_, f32>) {
    let Tile { row, column, mut view } = tile;
    let left = x.slice(s![.., row..row + view.nrows()]).reversed_axes();
    let right = y.slice(s![.., column..column + view.ncols()]);
    if x.nrows() == 0 {
        view.fill(0.0);
    } else {
        matmul(mat_mut(view), Accum::Replace, mat(&left), mat(&right), 1.0, Par::Seq);
    }
}

/// `out = a b` for any strides.
fn multiply(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) {
    let ((m, k), (inner, n)) = (a.dim(), b.dim());
    assert_eq!(k, inner, "inner dimensions of a product");
    assert_eq!(out.dim(), (m, n), "shape of a product of [{m}, {k}] and [{inner}, {n}]");
    if k == 0 {
        out.fill(0.0);
        return;
    }
    let by_columns = b.reversed_axes();
    if thin::product(a, by_columns, &mut out)
        || thin::product(by_columns, a, &mut out.view_mut().reversed_axes())
    {
        return;
    }
    let tile = tile(m, k, n);
    tiles(out, tile, tile).into_par_iter().for_each(|tile| {
        let rows = a.slice_axis(Axis(0), (tile.row..tile.row + tile.view.nrows()).into());
        let columns = b.slice_axis(Axis(1), (tile.column..tile.column + tile.view.ncols()).into());
        matmul(mat_mut(tile.view), Accum::Replace, mat(&rows), mat(&columns), 1.0, Par::Seq);
    });
}

#[cfg(test)]
mod tests;
