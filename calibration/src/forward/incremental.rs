//! The forward pass one token at a time, for many sequences in step, or a run of tokens of one sequence: the keys and values of earlier
//! tokens are kept, not computed again.
//!
//! Every linear is applied to the newest token of all sequences at once, so that a step over many sequences is a product of matrices. The
//! angles of rotary positions are those of a sequence of the length that the [`Forward`] was made for: where they depend on the length, what
//! is computed here is what [`Forward::advance_layer`] computes for the whole sequence of that length.

use std::borrow::Cow;
use std::ops::Range;

use kernels::{elementwise, single};
use model::Layer;
use ndarray::{Array2, Array3, Axis, s};
use rayon::prelude::*;

use super::attention::{Heads, QUERY_TILE, Remembered, attend_tile};
use super::{Forward, WindowState};
use crate::weights::{LayerWeights, SourceError, WeightSource};

/// Products of queries and keys, number by number, that are worth another thread.
const LEAST_WORK: usize = 1 << 17;

/// Keys and values of one layer, for all sequences.
#[derive(Clone, Debug)]
pub struct LayerCache {
    /// As attention meets them: normed and turned; `[sequences, tokens, key_value_heads * head_dim]`.
    keys: Array3<f32>,
    /// `[sequences, tokens, key_value_heads * value_dim]`.
    values: Array3<f32>,
}

impl Forward<'_> {
    /// Room for the keys and values of `sequences` sequences of `tokens` tokens in one layer.
    #[must_use]
    pub fn layer_cache(&self, sequences: usize, tokens: usize) -> LayerCache {
        let numbers = &self.model().hyperparameters;
        let rows = |features| Array3::zeros((sequences, tokens, numbers.key_value_heads * features));
        LayerCache { keys: rows(numbers.head_dim), values: rows(numbers.value_dim) }
    }

    /// Bytes of the caches of all layers for one sequence of `tokens` tokens.
    #[must_use]
    pub fn cache_bytes(&self, tokens: usize) -> usize {
        let numbers = &self.model().hyperparameters;
        4 * numbers.layers * tokens * numbers.key_value_heads * (numbers.head_dim + numbers.value_dim)
    }

    /// One layer for the token at `position` of every sequence: `state` holds one row for each, and `cache` all earlier positions, to which
    /// this one is added. Experts that `weights` lack are read from `source`, those alone that a token is sent to.
    ///
    /// # Errors
    /// Those of the source.
    ///
    /// # Panics
    /// When the position is behind the end of the cache or of the sequences that this pass is for.
    pub fn advance_layer_token(
        &self,
        layer: &Layer,
        mut weights: Cow<'_, LayerWeights>,
        source: &dyn WeightSource,
        position: usize,
        state: &mut WindowState,
        cache: &mut LayerCache,
    ) -> Result<(), SourceError> {
        for stage in 0..layer.stages_before_output() {
            self.advance_by(layer, stage, &weights, state, &mut |heads| {
                self.attend_token(layer, &weights, position, heads, cache)
            });
        }
        let rest = layer.stages_before_output();
        self.advance_from(layer, rest, &mut weights, source, std::slice::from_mut(state))
    }

    /// One layer for a run of tokens of a single sequence: `state` holds those from position `first` on, and `cache` all earlier ones, to
    /// which these are added. Experts as in [`Forward::advance_layer_token`].
    ///
    /// # Errors
    /// Those of the source.
    ///
    /// # Panics
    /// When the cache is for several sequences, or the run goes beyond its end or that of the sequences that this pass is for.
    pub fn advance_layer_run(
        &self,
        layer: &Layer,
        mut weights: Cow<'_, LayerWeights>,
        source: &dyn WeightSource,
        first: usize,
        state: &mut WindowState,
        cache: &mut LayerCache,
    ) -> Result<(), SourceError> {
        assert_eq!(cache.keys.len_of(Axis(0)), 1, "sequences of the cache");
        for stage in 0..layer.stages_before_output() {
            self.advance_by(layer, stage, &weights, state, &mut |heads| {
                self.attend_run(layer, &weights, first, heads, cache)
            });
        }
        let rest = layer.stages_before_output();
        self.advance_from(layer, rest, &mut weights, source, std::slice::from_mut(state))
    }

    fn attend_run(
        &self,
        layer: &Layer,
        weights: &LayerWeights,
        first: usize,
        [mut query, mut key, value]: [Array2<f32>; 3],
        cache: &mut LayerCache,
    ) -> Array2<f32> {
        let heads = self.heads(layer, weights);
        self.place(layer, weights, &mut query, &mut key, |rotary, rows| {
            rotary.rotate_from(first, rows, heads.dim);
        });
        let positions = first..first + query.nrows();
        cache.keys.slice_mut(s![0, positions.clone(), ..]).assign(&key);
        cache.values.slice_mut(s![0, positions, ..]).assign(&value);
        let mut out = Array2::zeros((query.nrows(), heads.count * heads.value_dim));
        let by_head = out.axis_chunks_iter_mut(Axis(1), heads.value_dim).into_par_iter().enumerate();
        let work = (first + query.nrows()) * query.nrows() * heads.dim;
        by_head.with_min_len(LEAST_WORK.div_ceil(work)).for_each(|(head, mut out)| {
            if let (1, Some(query), Some(out)) = (query.nrows(), query.as_slice(), out.as_slice_mut()) {
                cache.answer(0, &heads, head, first, query, out);
                return;
            }
            let shared = head * heads.key_value_count / heads.count;
            let keys = cache.keys.slice(s![0, .., heads.columns(shared)]);
            let remembered =
                Remembered::Single(keys, cache.values.slice(s![0, .., heads.value_columns(shared)]));
            for (tile, out) in out.axis_chunks_iter_mut(Axis(0), QUERY_TILE).enumerate() {
                let start = tile * QUERY_TILE;
                let queries = query.slice(s![start..start + out.nrows(), heads.columns(head)]);
                attend_tile(&heads, head, first + start, queries, &remembered, out);
            }
        });
        out
    }

    fn attend_token(
        &self,
        layer: &Layer,
        weights: &LayerWeights,
        position: usize,
        [mut query, mut key, value]: [Array2<f32>; 3],
        cache: &mut LayerCache,
    ) -> Array2<f32> {
        let heads = self.heads(layer, weights);
        self.place(layer, weights, &mut query, &mut key, |rotary, rows| {
            rotary.rotate_to(position, rows, heads.dim);
        });
        cache.keys.slice_mut(s![.., position, ..]).assign(&key);
        cache.values.slice_mut(s![.., position, ..]).assign(&value);
        let mut out = Array2::zeros((query.nrows(), heads.count * heads.value_dim));
        let sequences = out.axis_iter_mut(Axis(0)).into_par_iter().enumerate();
        sequences.for_each(|(sequence, mut out)| {
            let query = query.row(sequence);
            let (query, out) = (query.as_slice(), out.as_slice_mut());
            let (query, out) = query.zip(out).expect("rows of owned matrices are contiguous");
            for (head, out) in out.chunks_exact_mut(heads.value_dim).enumerate() {
                cache.answer(sequence, &heads, head, position, query, out);
            }
        });
        out
    }
}

impl LayerCache {
    /// The answer of a head to one token's queries, of all heads, in a sequence at `position`, whose keys and values are there, as are those before
    /// it.
    fn answer(
        &self,
        sequence: usize,
        heads: &Heads<'_>,
        head: usize,
        position: usize,
        query: &[f32],
        out: &mut [f32],
    ) {
        let first = heads.seen_from(position);
        let shared = head * heads.key_value_count / heads.count;
        let rows = |array: &Array3<f32>, columns: Range<usize>| {
            let (_, tokens, width) = array.dim();
            ((sequence * tokens + first) * width + columns.start, width)
        };
        let (keys, values) = (self.keys.as_slice(), self.values.as_slice());
        let (keys, values) = keys.zip(values).expect("caches are in standard layout");
        let scaled: Vec<f32> = query[heads.columns(head)].iter().map(|value| value * heads.scale).collect();
        let mut scores = vec![0.0; position + 1 - first];
        let (from, width) = rows(&self.keys, heads.columns(shared));
        single::inner_products(&scaled, &keys[from..], width, &mut scores);
        heads.cap_scores(&mut scores);
        heads.lean(head, position, first, &mut scores);
        let sink = heads.sinks.map(|sinks| sinks[head]);
        let highest = elementwise::max(&scores).max(sink.unwrap_or(f32::NEG_INFINITY));
        let of_sink = sink.map_or(0.0, |sink| (sink - highest).exp());
        let total = elementwise::exponentiate(&mut scores, highest) + of_sink;
        let (from, width) = rows(&self.values, heads.value_columns(shared));
        single::combination(&scores, &values[from..], width, out);
        let factor = 1.0 / total;
        out.iter_mut().for_each(|value| *value *= factor);
    }
}
