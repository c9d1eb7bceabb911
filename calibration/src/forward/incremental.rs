//! The forward pass one token at a time, for many sequences in step, or a run of tokens of one sequence: the keys and values of earlier
//! tokens are kept, not computed again.
//!
//! Every linear is applied to the newest token of all sequences at once, so that a step over many sequences is a product of matrices. The
//! angles of rotary positions are those of a sequence of the length that the [`Forward`] was made for: where they depend on the length, what
//! is computed here is what [`Forward::advance_layer`] computes for the whole sequence of that length.

use std::borrow::Cow;

use model::Layer;
use ndarray::{Array2, Array3, Axis, s};
use rayon::prelude::*;

use super::attention::{QUERY_TILE, attend_tile};
use super::{Forward, WindowState};
use crate::weights::{LayerWeights, SourceError, WeightSource};

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
        by_head.for_each(|(head, mut out)| {
            let shared = head * heads.key_value_count / heads.count;
            for (tile, out) in out.axis_chunks_iter_mut(Axis(0), QUERY_TILE).enumerate() {
                let start = tile * QUERY_TILE;
                attend_tile(
                    &heads,
                    head,
                    first + start,
                    query.slice(s![start..start + out.nrows(), heads.columns(head)]),
                    cache.keys.slice(s![0, .., heads.columns(shared)]),
                    cache.values.slice(s![0, .., heads.value_columns(shared)]),
                    out,
                );
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
            for head in 0..heads.count {
                let shared = head * heads.key_value_count / heads.count;
                attend_tile(
                    &heads,
                    head,
                    position,
                    query.slice(s![sequence..=sequence, heads.columns(head)]),
                    cache.keys.slice(s![sequence, .., heads.columns(shared)]),
                    cache.values.slice(s![sequence, .., heads.value_columns(shared)]),
                    out.slice_mut(s![heads.value_columns(head)]).insert_axis(Axis(0)),
                );
            }
        });
        out
    }
}
