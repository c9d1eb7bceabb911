//! The seam between ndarray's views and faer's: the same memory, the other library's type. Nothing is copied.

use faer::{MatMut, MatRef};
use ndarray::{ArrayView2, ArrayViewMut2, Axis};

/// `view` `[m, n]` as faer sees it, whatever its strides.
pub(crate) fn mat<'a, T>(view: &ArrayView2<'a, T>) -> MatRef<'a, T> {
    let (rows, columns) = view.dim();
    let strides = view.strides();
    // SAFETY: pointer, shape and strides (in elements, signed, for both libraries) describe exactly the elements that
    // `view` may read for `'a`.
    unsafe { MatRef::from_raw_parts(view.as_ptr(), rows, columns, strides[0], strides[1]) }
}

/// `view` `[m, n]` as faer sees it, whatever its strides.
pub(crate) fn mat_mut<T>(mut view: ArrayViewMut2<'_, T>) -> MatMut<'_, T> {
    let (rows, columns) = view.dim();
    let strides = [view.strides()[0], view.strides()[1]];
    // SAFETY: as in `mat`; the view is consumed, so that its exclusive borrow passes to the result, and a mutable view of
    // ndarray never names an element twice.
    unsafe { MatMut::from_raw_parts_mut(view.as_mut_ptr(), rows, columns, strides[0], strides[1]) }
}

/// One rectangle of a larger matrix, and where it begins.
pub(crate) struct Tile<'a, T> {
    pub(crate) row: usize,
    pub(crate) column: usize,
    pub(crate) view: ArrayViewMut2<'a, T>,
}

/// Cuts `view` into tiles of at most `rows` x `columns`, in row-major order. The cut depends on the shape alone, never on
/// the number of threads.
pub(crate) fn tiles<T>(view: ArrayViewMut2<'_, T>, rows: usize, columns: usize) -> Vec<Tile<'_, T>> {
    let mut tiles = Vec::new();
    let mut below = view;
    let mut row = 0;
    while below.nrows() > 0 {
        let (mut right, rest) = below.split_at_clamped(Axis(0), rows);
        below = rest;
        let height = right.nrows();
        let mut column = 0;
        while right.ncols() > 0 {
            let (view, rest) = right.split_at_clamped(Axis(1), columns);
            right = rest;
            let width = view.ncols();
            tiles.push(Tile { row, column, view });
            column += width;
        }
        row += height;
    }
    tiles
}

trait SplitClamped: Sized {
    fn split_at_clamped(self, axis: Axis, index: usize) -> (Self, Self);
}

impl<T> SplitClamped for ArrayViewMut2<'_, T> {
    fn split_at_clamped(self, axis: Axis, index: usize) -> (Self, Self) {
        let index = index.min(self.len_of(axis));
        self.split_at(axis, index)
    }
}
