//! Latent attention in reverse, from the gradients of queries, keys and values to that of attention's input.

use model::Layer;
use model::architecture::Qkv;
use model::graph::NormPlace;
use model::linear::Role;
use ndarray::{Array2, ArrayView2};

use super::Walk;
use crate::forward::latent::{Latents, keys_and_values_vjp};
use crate::forward::{Forward, fused};
use crate::weights::LayerWeights;

/// The latent features of a window on their way back.
pub(super) struct LatentPass {
    /// As their linears gave them.
    given: Latents,
    /// Behind their norms.
    normed: Latents,
}

impl LatentPass {
    /// Of attention's input, `[tokens, hidden]`; none where attention has no latent features.
    pub(super) fn run(
        forward: &Forward<'_>,
        weights: &LayerWeights,
        input: ArrayView2<'_, f32>,
    ) -> Option<Self> {
        let Qkv::Latent(_) = forward.model().architecture.layer.attention.qkv else { return None };
        let given = forward.latents(weights, input);
        let normed = forward.normed_latents(weights, given.clone());
        Some(Self { given, normed })
    }

    /// Queries, keys and values as they were made.
    pub(super) fn heads(
        &self,
        forward: &Forward<'_>,
        layer: &Layer,
        weights: &LayerWeights,
    ) -> [Array2<f32>; 3] {
        let [key, value] = forward.keys_and_values(layer, weights, &self.normed);
        [forward.queries(weights, &self.normed), key, value]
    }

    /// The gradient of attention's `input`, shaped like it.
    pub(super) fn vjp(
        &self,
        walk: &mut Walk<'_, '_>,
        input: &Array2<f32>,
        [query, key, value]: [&Array2<f32>; 3],
    ) -> Array2<f32> {
        let numbers = walk.forward.latent_numbers();
        let heads = walk.forward.heads(walk.layer, walk.weights);
        let [made, shared_key] = keys_and_values_vjp(&heads, numbers.turned_dim, key.view(), value.view());
        let mut latent = walk.linear_vjp(Role::KeyValue, &self.normed.key_value, made.view());
        walk.norm_vjp(NormPlace::KeyValueLatent, self.given.key_value.view(), &mut latent);
        let compressed = fused::beside(latent.view(), shared_key.view());
        let gradient = if numbers.query_rank.is_some() {
            let mut latent = walk.linear_vjp(Role::Query, &self.normed.query, query.view());
            walk.norm_vjp(NormPlace::QueryLatent, self.given.query.view(), &mut latent);
            walk.linear_vjp(Role::QueryLatent, input, latent.view())
        } else {
            walk.linear_vjp(Role::Query, input, query.view())
        };
        gradient + walk.linear_vjp(Role::KeyValueLatent, input, compressed.view())
    }
}
