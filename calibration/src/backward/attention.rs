//! Causal attention in reverse, a tile of queries at a time (arXiv 2205.14135, appendix B.2).
//!
//! With `S = s Q Kᵀ`, `P = softmax(S)` over the visible keys and `O = P V`,
//!
//! ```text
//! V̄ = Pᵀ Ō
//! P̄ = Ō Vᵀ
//! S̄ = P ∘ (P̄ - rowsum(P ∘ P̄))
//! Q̄ = s S̄ K
//! K̄ = s S̄ᵀ Q
//! ```
//!
//! and, where a cap makes `c tanh(S / c)` of `S`, `S̄` times `1 - tanh(S / c)²`. The probabilities of a tile are computed again from its queries; memory is tile x tokens for each thread. Key heads are independent, the
//! order of all sums within one is fixed.

use std::ops::Range;

use kernels::elementwise;
use kernels::product::{product_nn, product_nt, product_tn};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use crate::forward::attention::{Heads, QUERY_TILE, scaled};

/// Gradients of what attention is given, each shaped like it.
pub(super) struct Gradients {
    /// `[tokens, count * dim]`.
    pub(super) query: Array2<f32>,
    /// `[tokens, key_value_count * dim]`.
    pub(super) key: Array2<f32>,
    /// `[tokens, key_value_count * value_dim]`.
    pub(super) value: Array2<f32>,
}

/// The derivative of `forward::attention::causal`. `output_gradient` is `[tokens, count * value_dim]`.
pub(super) fn causal_vjp(
    heads: &Heads<'_>,
    query: &Array2<f32>,
    key: &Array2<f32>,
    value: &Array2<f32>,
    output_gradient: &Array2<f32>,
) -> Gradients {
    let mut gradients = Gradients {
        query: Array2::zeros(query.dim()),
        key: Array2::zeros(key.dim()),
        value: Array2::zeros(value.dim()),
    };
    // The query heads that share a key head lie side by side.
    let sharing = heads.count / heads.key_value_count;
    let by_key_head: Vec<_> = gradients
        .query
        .axis_chunks_iter_mut(Axis(1), sharing * heads.dim)
        .zip(gradients.key.axis_chunks_iter_mut(Axis(1), heads.dim))
        .zip(gradients.value.axis_chunks_iter_mut(Axis(1), heads.value_dim))
        .enumerate()
        .collect();
    by_key_head.into_par_iter().for_each(|(shared, ((query_gradient, key_gradient), value_gradient))| {
        let mut key_head = KeyHead {
            keys: key.slice(s![.., heads.columns(shared)]),
            values: value.slice(s![.., heads.value_columns(shared)]),
            key_gradient,
            value_gradient,
        };
        let first_head = shared * sharing;
        let of_group = |dim: usize| first_head * dim..(first_head + sharing) * dim;
        let queries = query.slice(s![.., of_group(heads.dim)]);
        let output_gradient = output_gradient.slice(s![.., of_group(heads.value_dim)]);
        key_head.visit(heads, first_head, queries, output_gradient, query_gradient);
    });
    gradients
}

/// A key and value head, with the gradients that its query heads add up.
struct KeyHead<'a, 'g> {
    /// `[tokens, dim]`, as is their gradient.
    keys: ArrayView2<'a, f32>,
    /// `[tokens, value_dim]`.
    values: ArrayView2<'a, f32>,
    key_gradient: ArrayViewMut2<'g, f32>,
    value_gradient: ArrayViewMut2<'g, f32>,
}

impl KeyHead<'_, '_> {
    /// All query heads of this key head, from `first_head` on, side by side in `[tokens, sharing heads * dim]`, `* value_dim` of what they gave.
    fn visit(
        &mut self,
        heads: &Heads<'_>,
        first_head: usize,
        queries: ArrayView2<'_, f32>,
        output_gradient: ArrayView2<'_, f32>,
        mut query_gradient: ArrayViewMut2<'_, f32>,
    ) {
        let tokens = queries.nrows();
        for own in 0..queries.ncols() / heads.dim {
            for first in (0..tokens).step_by(QUERY_TILE) {
                let rows = first..(first + QUERY_TILE).min(tokens);
                let tile = s![rows.clone(), heads.columns(own)];
                let query_gradient = query_gradient.slice_mut(tile);
                let (queries, of_output) =
                    (queries.slice(tile), output_gradient.slice(s![rows, heads.value_columns(own)]));
                self.tile_vjp(heads, (first_head + own, first), queries, of_output, query_gradient);
            }
        }
    }

    /// The queries of a head at positions from `first` on, `[tile, dim]`.
    fn tile_vjp(
        &mut self,
        heads: &Heads<'_>,
        (head, first): (usize, usize),
        queries: ArrayView2<'_, f32>,
        output_gradient: ArrayView2<'_, f32>,
        query_gradient: ArrayViewMut2<'_, f32>,
    ) {
        let seen = heads.seen_from(first)..first + queries.nrows();
        let rows = s![seen.clone(), ..];
        let (keys, values) = (self.keys.slice(rows), self.values.slice(rows));
        let (probabilities, slopes) = probabilities(heads, (head, first), queries, keys, seen.start);
        add_product_tn(probabilities.view(), output_gradient, self.value_gradient.slice_mut(rows));

        let mut gradient = Array2::zeros(probabilities.dim());
        product_nt(output_gradient, values, gradient.view_mut());
        softmax_vjp(&probabilities, &mut gradient);
        if let Some(slopes) = slopes {
            gradient *= &slopes;
        }
        gradient *= heads.scale;
        product_nn(gradient.view(), keys, query_gradient);
        add_product_tn(gradient.view(), queries, self.key_gradient.slice_mut(rows));
    }
}

/// `[tile, keys]`, zero where a query does not see a key; the first key is at position `seen_from`. With them, where products are capped, the
/// slopes of the cap.
fn probabilities(
    heads: &Heads<'_>,
    (head, first): (usize, usize),
    queries: ArrayView2<'_, f32>,
    keys: ArrayView2<'_, f32>,
    seen_from: usize,
) -> (Array2<f32>, Option<Array2<f32>>) {
    let mut scores = Array2::zeros((queries.nrows(), keys.nrows()));
    let scaled = scaled(queries, heads.scale);
    product_nt(scaled.view(), keys, scores.view_mut());
    heads.cap_scores(scores.as_slice_mut().expect("an owned matrix is contiguous"));
    let slopes = heads.cap.map(|cap| scores.mapv(|capped| 1.0 - (capped / cap).powi(2)));
    for (mut row, position) in scores.rows_mut().into_iter().zip(first..) {
        let row = row.as_slice_mut().expect("the rows of an owned matrix are contiguous");
        let visible: Range<usize> = heads.seen_from(position) - seen_from..position + 1 - seen_from;
        row[..visible.start].fill(0.0);
        row[visible.end..].fill(0.0);
        let row = &mut row[visible.clone()];
        heads.lean(head, position, seen_from + visible.start, row);
        let sink = heads.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head]);
        let highest = elementwise::max(row).max(sink);
        let total = elementwise::exponentiate(row, highest) + elementwise::exp(sink - highest);
        row.iter_mut().for_each(|value| *value *= 1.0 / total);
    }
    (scores, slopes)
}

/// `gradient`, of the probabilities, becomes that of the scores. Probabilities of zero, those of what is not seen, make zeros.
fn softmax_vjp(probabilities: &Array2<f32>, gradient: &mut Array2<f32>) {
    for (row, mut gradient) in probabilities.rows().into_iter().zip(gradient.rows_mut()) {
        let row = row.to_slice().expect("the rows of an owned matrix are contiguous");
        let gradient = gradient.as_slice_mut().expect("the rows of an owned matrix are contiguous");
        let mean = elementwise::inner_product(row, gradient) as f32;
        for (gradient, probability) in gradient.iter_mut().zip(row) {
            *gradient = probability * (*gradient - mean);
        }
    }
}

/// `out += aᵀ b`.
fn add_product_tn(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) {
    let mut product = Array2::zeros(out.dim());
    product_tn(a, b, product.view_mut());
    for (mut out, product) in out.rows_mut().into_iter().zip(product.rows()) {
        out += &product;
    }
}
