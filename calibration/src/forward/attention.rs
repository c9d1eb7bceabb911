//! Causal attention in tiles with an online softmax (FlashAttention, arXiv 2205.14135): memory linear in the context.
//!
//! For each head and each tile of queries, tiles of keys are visited in order; a running maximum and sum for each query rescale what was
//! gathered before. Heads and query tiles are independent, the order within one is fixed.

use std::ops::Range;

use kernels::bf16::{Bf16Matrix, Precision};
use kernels::elementwise;
use kernels::product::{product_nn, product_nt};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

/// Queries that are answered together.
pub(crate) const QUERY_TILE: usize = 64;
/// Keys that are visited together.
const KEY_TILE: usize = 128;

/// Shape of the heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads<'w> {
    /// Query heads.
    pub(crate) count: usize,
    /// Key and value heads; query head `h` uses head `h * key_value_count / count`.
    pub(crate) key_value_count: usize,
    /// Features of a head's queries and keys.
    pub(crate) dim: usize,
    /// Features of its values.
    pub(crate) value_dim: usize,
    /// Factor on the products of queries and keys.
    pub(crate) scale: f32,
    /// Tokens that a query sees, itself included; none: all earlier ones.
    pub(crate) window: Option<usize>,
    /// `c` where `c tanh(s / c)` takes the place of the scaled products `s`.
    pub(crate) cap: Option<f32>,
    /// Whether products fall with the distance (ALiBi, arXiv 2108.12409).
    pub(crate) alibi: bool,
    /// What the softmax of each head counts beside the products and drops again (StreamingLLM, arXiv 2309.17453, section 3.3).
    pub(crate) sinks: Option<&'w [f32]>,
}

impl Heads<'_> {
    /// Where a head lies in queries, or in keys.
    pub(crate) fn columns(&self, head: usize) -> Range<usize> {
        head * self.dim..(head + 1) * self.dim
    }

    /// Where a head lies in values, or in what attention gives.
    pub(crate) fn value_columns(&self, head: usize) -> Range<usize> {
        head * self.value_dim..(head + 1) * self.value_dim
    }

    /// The first key that the query at `position` sees.
    pub(crate) fn seen_from(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// By how much products of a head fall with each token of distance: a geometric series that begins at `2^(-8 / n)`, with what is missing
    /// to a power of two `n` of heads taken from between (the reference implementation of ALiBi).
    fn slope(&self, head: usize) -> f32 {
        if !self.alibi {
            return 0.0;
        }
        let power =
            if self.count.is_power_of_two() { self.count } else { self.count.next_power_of_two() / 2 };
        let exponent = match head.checked_sub(power) {
            None => (head + 1) as f64 / power as f64,
            Some(extra) => (2 * extra + 1) as f64 / (2 * power) as f64,
        };
        (-8.0 * exponent).exp2() as f32
    }

    /// Caps scaled products.
    pub(crate) fn cap_scores(&self, scores: &mut [f32]) {
        if let Some(cap) = self.cap {
            super::elementwise::cap(scores, cap);
        }
    }

    /// Lets capped products of the query at `position` with the keys from `first` on fall with the distance.
    pub(crate) fn lean(&self, head: usize, position: usize, first: usize, scores: &mut [f32]) {
        if self.alibi {
            let slope = self.slope(head);
            for (key, score) in (first..).zip(scores) {
                *score -= slope * (position - key) as f32;
            }
        }
    }
}

/// Keys and values of a head, `[tokens, dim]` and `[tokens, value_dim]`, as products take them.
pub(crate) enum Remembered<'a> {
    /// As they are.
    Single(ArrayView2<'a, f32>, ArrayView2<'a, f32>),
    /// Rounded, as are queries and what values are weighted with: keys with a column for each token, values.
    Bf16(Box<[Bf16Matrix; 2]>),
}

impl<'a> Remembered<'a> {
    fn new(precision: Precision, keys: ArrayView2<'a, f32>, values: ArrayView2<'a, f32>) -> Self {
        match precision {
            Precision::Single => Self::Single(keys, values),
            Precision::Bf16 => Self::Bf16(Box::new([Bf16Matrix::of_linear(keys), Bf16Matrix::new(values)])),
        }
    }

    /// `out = queries keysᵀ` for the keys of these tokens.
    fn scores(&self, queries: ArrayView2<'_, f32>, tokens: Range<usize>, out: ArrayViewMut2<'_, f32>) {
        match self {
            Self::Single(keys, _) => product_nt(queries, keys.slice(s![tokens, ..]), out),
            Self::Bf16(rounded) => rounded[0].part_product(queries, (0, tokens.start), out),
        }
    }

    /// `out = weights values` for the values of these tokens.
    fn weighted(&self, weights: ArrayView2<'_, f32>, tokens: Range<usize>, out: ArrayViewMut2<'_, f32>) {
        match self {
            Self::Single(_, values) => product_nn(weights, values.slice(s![tokens, ..]), out),
            Self::Bf16(rounded) => rounded[1].part_product(weights, (tokens.start, 0), out),
        }
    }
}

/// `query` is `[tokens, count * dim]`, `key` `[tokens, key_value_count * dim]` and `value` `[tokens, key_value_count * value_dim]`; the result is
/// `[tokens, count * value_dim]`. Factors of products are rounded to `precision`.
pub(crate) fn causal(
    heads: &Heads<'_>,
    precision: Precision,
    query: ArrayView2<'_, f32>,
    key: ArrayView2<'_, f32>,
    value: ArrayView2<'_, f32>,
) -> Array2<f32> {
    let tokens = query.nrows();
    let mut out = Array2::zeros((tokens, heads.count * heads.value_dim));
    let mut tiles: Vec<(usize, usize, ArrayViewMut2<'_, f32>)> = Vec::new();
    for (head, columns) in out.axis_chunks_iter_mut(Axis(1), heads.value_dim).enumerate() {
        let mut rest = columns;
        let mut first = 0;
        while first < tokens {
            let take = QUERY_TILE.min(tokens - first);
            let (tile, below) = rest.split_at(Axis(0), take);
            tiles.push((head, first, tile));
            rest = below;
            first += take;
        }
    }
    let remembered = (0..heads.key_value_count).into_par_iter().map(|shared| {
        let keys = key.slice(s![.., heads.columns(shared)]);
        Remembered::new(precision, keys, value.slice(s![.., heads.value_columns(shared)]))
    });
    let remembered: Vec<Remembered<'_>> = remembered.collect();
    tiles.into_par_iter().for_each(|(head, first, tile)| {
        let shared = head * heads.key_value_count / heads.count;
        let queries = query.slice(s![first..first + tile.nrows(), heads.columns(head)]);
        attend_tile(heads, head, first, queries, &remembered[shared], tile);
    });
    out
}

/// Queries times a factor: row by row, since the rows of a head have gaps between them.
pub(crate) fn scaled(queries: ArrayView2<'_, f32>, scale: f32) -> Array2<f32> {
    let mut scaled = Array2::zeros(queries.dim());
    for (mut to, from) in scaled.rows_mut().into_iter().zip(queries.rows()) {
        to.zip_mut_with(&from, |to, from| *to = from * scale);
    }
    scaled
}

/// Answers the queries of a head at positions from `first` on; keys and values behind the last of these positions are not looked at.
pub(crate) fn attend_tile(
    heads: &Heads<'_>,
    head: usize,
    first: usize,
    queries: ArrayView2<'_, f32>,
    remembered: &Remembered<'_>,
    mut out: ArrayViewMut2<'_, f32>,
) {
    let count = queries.nrows();
    let scaled = scaled(queries, heads.scale);
    let (sink, of_sink) = heads.sinks.map_or((f32::NEG_INFINITY, 0.0), |sinks| (sinks[head], 1.0));
    let mut highest = vec![sink; count];
    let mut total: Vec<f32> = vec![of_sink; count];
    let mut gathered = Array2::<f32>::zeros((count, heads.value_dim));
    let mut scores = Array2::<f32>::zeros((count, KEY_TILE));
    let mut part = Array2::<f32>::zeros((count, heads.value_dim));

    let mut start = heads.seen_from(first) / KEY_TILE * KEY_TILE;
    let end = first + count;
    while start < end {
        let stop = (start + KEY_TILE).min(end);
        let mut scores = scores.slice_mut(s![.., ..stop - start]);
        remembered.scores(scaled.view(), start..stop, scores.view_mut());
        for (row, mut scores) in scores.rows_mut().into_iter().enumerate() {
            let position = first + row;
            let scores = scores.as_slice_mut().expect("the rows of a tile are contiguous");
            let from = heads.seen_from(position).clamp(start, stop) - start;
            let to = (position + 1).clamp(start, stop) - start;
            scores[..from].fill(0.0);
            scores[to..].fill(0.0);
            let visible = &mut scores[from..to];
            heads.cap_scores(visible);
            heads.lean(head, position, start + from, visible);
            let tallest = elementwise::max(visible).max(highest[row]);
            if tallest == f32::NEG_INFINITY {
                // No key of this tile is in the query's window.
                continue;
            }
            let rescale = elementwise::exp(highest[row] - tallest);
            total[row] = total[row] * rescale + elementwise::exponentiate(visible, tallest);
            highest[row] = tallest;
            if rescale != 1.0 {
                gathered.row_mut(row).mapv_inplace(|value| value * rescale);
            }
        }
        remembered.weighted(scores.view(), start..stop, part.view_mut());
        gathered += &part;
        start = stop;
    }
    for (row, total) in total.iter().enumerate() {
        let factor = 1.0 / total;
        out.row_mut(row).zip_mut_with(&gathered.row(row), |out, value| *out = value * factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
        let mut state = seed;
        Array2::from_shape_fn((rows, columns), |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) as f32 / (1_u64 << 31) as f32 - 0.5) * 4.0
        })
    }

    fn plain(heads: &Heads<'_>, query: &Array2<f32>, key: &Array2<f32>, value: &Array2<f32>) -> Array2<f64> {
        let mut out = Array2::zeros((query.nrows(), heads.count * heads.value_dim));
        for head in 0..heads.count {
            let shared = head * heads.key_value_count / heads.count;
            for i in 0..query.nrows() {
                let from = heads.window.map_or(0, |window| (i + 1).saturating_sub(window));
                let weights: Vec<f64> = (from..=i)
                    .map(|j| {
                        let products = (0..heads.dim).map(|d| {
                            f64::from(query[[i, head * heads.dim + d]])
                                * f64::from(key[[j, shared * heads.dim + d]])
                        });
                        let product = products.sum::<f64>() * f64::from(heads.scale);
                        let capped = heads
                            .cap
                            .map_or(product, |cap| f64::from(cap) * (product / f64::from(cap)).tanh());
                        // Of four heads: 1/4, 1/16, 1/64, 1/256.
                        let slope = if heads.alibi { 0.25_f64.powi(head as i32 + 1) } else { 0.0 };
                        (capped - slope * (i - j) as f64).exp()
                    })
                    .collect();
                let sink = heads.sinks.map_or(0.0, |sinks| f64::from(sinks[head]).exp());
                let total: f64 = weights.iter().sum::<f64>() + sink;
                for d in 0..heads.value_dim {
                    let sum: f64 = weights
                        .iter()
                        .zip(from..)
                        .map(|(w, j)| w * f64::from(value[[j, shared * heads.value_dim + d]]))
                        .sum();
                    out[[i, head * heads.value_dim + d]] = sum / total;
                }
            }
        }
        out
    }

    #[test]
    fn tiles_give_what_the_definition_gives() {
        let plain_heads = Heads {
            count: 4,
            key_value_count: 2,
            dim: 16,
            value_dim: 12,
            scale: 0.25,
            window: None,
            cap: None,
            alibi: false,
            sinks: None,
        };
        let sinks = [0.5, -2.0, 3.0, 0.0];
        for (tokens, window, cap, alibi) in [
            (1, None, None, false),
            (7, None, None, false),
            (200, None, None, false),
            (200, None, Some(1.5), false),
            (200, None, None, true),
            (301, Some(5), Some(0.5), true),
            (301, Some(150), None, false),
            (130, Some(1), None, false),
        ] {
            let sinks = (tokens > 100).then_some(&sinks[..]);
            let heads = Heads { window, cap, alibi, sinks, ..plain_heads };
            let (query, key, value) = (noise(tokens, 64, 1), noise(tokens, 32, 2), noise(tokens, 24, 3));
            let expected = plain(&heads, &query, &key, &value);
            // Values are at most 2, of which half a unit of bfloat16 is 2^-8; scores move weights by about as much.
            for (precision, most) in [(Precision::Single, 2e-6), (Precision::Bf16, 0.03)] {
                let found = causal(&heads, precision, query.view(), key.view(), value.view());
                for (found, expected) in found.iter().zip(&expected) {
                    assert!(
                        (f64::from(*found) - expected).abs() < most,
                        "{tokens} {window:?} {precision:?}: {found} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn slopes_are_those_of_the_reference_implementation() {
        let heads = Heads {
            count: 6,
            key_value_count: 6,
            dim: 2,
            value_dim: 2,
            scale: 1.0,
            window: None,
            cap: None,
            alibi: true,
            sinks: None,
        };
        let slopes: Vec<f32> = (0..6).map(|head| heads.slope(head)).collect();
        assert_eq!(slopes, [0.25, 0.0625, 0.015_625, 0.003_906_25, 0.5, 0.125]);
    }
}
