//! Matrix products in single precision, parallel over fixed tiles of the output, so that no bit depends on the number of threads.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular_matmul};
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

/// Rows of an output tile.
const TILE_ROWS: usize = 512;
/// Columns of an output tile.
const TILE_COLUMNS: usize = 512;
/// Multiplications below which a product stays on the calling thread, whatever the tiles.
const SMALL: usize = 1 << 20;

/// `out = x wᵀ`: `x` is `[m, k]`, `w` `[n, k]`, `out` `[m, n]`.
pub fn product_nt(x: ArrayView2<'_, f32>, w: ArrayView2<'_, f32>, out: ArrayViewMut2<'_, f32>) {
    product_nn(x, w.reversed_axes(), out);
}

/// `out = aᵀ b`: `a` is `[t, m]`, `b` `[t, n]`, `out` `[m, n]`.
pub fn product_tn(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, out: ArrayViewMut2<'_, f32>) {
    product_nn(a.reversed_axes(), b, out);
}

/// `out = a b`: `a` is `[m, k]`, `b` `[k, n]`, `out` `[m, n]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn product_nn(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) {
    assert_eq!(
        (a.nrows(), b.ncols(), a.ncols()),
        (out.nrows(), out.ncols(), b.nrows()),
        "shapes of a product"
    );
    let work = a.nrows().saturating_mul(a.ncols()).saturating_mul(b.ncols());
    let mut tiles = Vec::new();
    for (rows, band) in out.axis_chunks_iter_mut(Axis(0), TILE_ROWS).enumerate() {
        let left = a.slice_axis(Axis(0), (rows * TILE_ROWS..rows * TILE_ROWS + band.nrows()).into());
        let mut rest = band;
        let mut first = 0;
        while rest.ncols() > 0 {
            let take = TILE_COLUMNS.min(rest.ncols());
            let (tile, more) = rest.split_at(Axis(1), take);
            tiles.push((left, b.slice_axis(Axis(1), (first..first + take).into()), tile));
            rest = more;
            first += take;
        }
    }
    let multiply = |(left, right, mut tile): (_, _, ArrayViewMut2<'_, f32>)| {
        matmul(faer_mut(&mut tile), Accum::Replace, faer_ref(left), faer_ref(right), 1.0_f32, Par::Seq);
    };
    if work < SMALL {
        tiles.into_iter().for_each(multiply);
    } else {
        tiles.into_par_iter().for_each(multiply);
    }
}

/// `out = xᵀ x`, the lower triangle: `x` is `[t, n]`, `out` `[n, n]`. What lies above the diagonal is left undefined.
///
/// # Panics
/// When the shapes do not fit.
pub fn gram(x: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) {
    let n = x.ncols();
    assert_eq!((n, n), out.dim(), "shape of a Gram matrix");
    let mut tiles = Vec::new();
    for (rows, band) in out.axis_chunks_iter_mut(Axis(0), TILE_ROWS).enumerate() {
        let mut rest = band;
        for columns in 0..=rows {
            let take = TILE_COLUMNS.min(rest.ncols());
            let (tile, more) = rest.split_at(Axis(1), take);
            tiles.push((rows, columns, tile));
            rest = more;
        }
    }
    tiles.into_par_iter().for_each(|(rows, columns, mut tile)| {
        let part = |index: usize, extent: usize| {
            x.slice_axis(Axis(1), (index * TILE_ROWS..index * TILE_ROWS + extent).into())
        };
        let left = part(rows, tile.nrows()).reversed_axes();
        let right = part(columns, tile.ncols());
        let lower =
            if rows == columns { BlockStructure::TriangularLower } else { BlockStructure::Rectangular };
        triangular_matmul(
            faer_mut(&mut tile),
            lower,
            Accum::Replace,
            faer_ref(left),
            BlockStructure::Rectangular,
            faer_ref(right),
            BlockStructure::Rectangular,
            1.0_f32,
            Par::Seq,
        );
    });
}

fn faer_ref<'a>(view: ArrayView2<'a, f32>) -> MatRef<'a, f32> {
    let (rows, columns) = view.dim();
    let strides = view.strides();
    // SAFETY: the pointer, extents and strides are those of a view that lives for 'a.
    unsafe { MatRef::from_raw_parts(view.as_ptr(), rows, columns, strides[0], strides[1]) }
}

fn faer_mut<'a>(view: &'a mut ArrayViewMut2<'_, f32>) -> MatMut<'a, f32> {
    let (rows, columns) = view.dim();
    let (row_stride, column_stride) = (view.strides()[0], view.strides()[1]);
    // SAFETY: the pointer, extents and strides are those of a view that is borrowed mutably for 'a.
    unsafe { MatMut::from_raw_parts_mut(view.as_mut_ptr(), rows, columns, row_stride, column_stride) }
}
