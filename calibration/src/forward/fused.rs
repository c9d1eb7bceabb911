//! Projections that are one linear on disk: what they give is taken apart, and gradients of the parts are put together.

use model::architecture::FusedRows;
use ndarray::{Array2, ArrayView2, Axis, concatenate, s};

use super::attention::Heads;

/// Queries `[tokens, heads * dim]`, keys and values `[tokens, key_value_heads * dim]`, of `fused` `[tokens, all of them]`.
pub(crate) fn split(rows: FusedRows, heads: &Heads<'_>, fused: &Array2<f32>) -> [Array2<f32>; 3] {
    let mut parts = [heads.count, heads.key_value_count, heads.key_value_count]
        .map(|count| Array2::zeros((fused.nrows(), count * heads.dim)));
    for (part, from, to) in pieces(rows, heads) {
        let width = to.len();
        parts[part].slice_mut(s![.., to]).assign(&fused.slice(s![.., from..from + width]));
    }
    parts
}

/// The other way round.
pub(crate) fn join(rows: FusedRows, heads: &Heads<'_>, parts: [&Array2<f32>; 3]) -> Array2<f32> {
    let columns = parts.iter().map(|part| part.ncols()).sum();
    let mut fused = Array2::zeros((parts[0].nrows(), columns));
    for (part, from, to) in pieces(rows, heads) {
        let width = to.len();
        fused.slice_mut(s![.., from..from + width]).assign(&parts[part].slice(s![.., to]));
    }
    fused
}

/// Which part, where in the fused features it begins, and where in the part that is.
fn pieces(rows: FusedRows, heads: &Heads<'_>) -> Vec<(usize, usize, std::ops::Range<usize>)> {
    let (queries, keys) = (heads.count * heads.dim, heads.key_value_count * heads.dim);
    match rows {
        FusedRows::Concatenated => {
            vec![(0, 0, 0..queries), (1, queries, 0..keys), (2, queries + keys, 0..keys)]
        }
        FusedRows::ByKeyHead => {
            let sharing = queries / heads.key_value_count;
            let pieces = (0..heads.key_value_count).flat_map(|head| {
                let first = head * (sharing + 2 * heads.dim);
                let of_head = head * heads.dim..(head + 1) * heads.dim;
                [
                    (0, first, head * sharing..(head + 1) * sharing),
                    (1, first + sharing, of_head.clone()),
                    (2, first + sharing + heads.dim, of_head),
                ]
            });
            pieces.collect()
        }
    }
}

/// The two halves of the features.
pub(crate) fn halves(fused: &Array2<f32>) -> [Array2<f32>; 2] {
    let (first, rest) = fused.view().split_at(Axis(1), fused.ncols() / 2);
    [first, rest].map(|half| half.as_standard_layout().into_owned())
}

/// The other way round.
pub(crate) fn beside(first: ArrayView2<'_, f32>, second: ArrayView2<'_, f32>) -> Array2<f32> {
    concatenate(Axis(1), &[first, second]).expect("both have a row for each token")
}
