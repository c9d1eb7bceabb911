//! Latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): queries, keys and values of all heads out of a few features of each token.
//!
//! With the normed input `x` and the norms `n`, head by head,
//!
//! ```text
//! c_q = n(W_qa x)            q = W_qb c_q                 (q = W_q x where queries have no latent features)
//! [c; k_r] = W_kva x         [k_c; v] = W_kvb n(c)        k = [k_c; k_r]
//! ```
//!
//! of which the last features of `q`, and `k_r`, which all heads share, are rotated. What is kept for later tokens is keys and values, not the
//! latent features: memory for products that would have to be made again for every token.

use model::hyperparameters::LatentNumbers;
use ndarray::{Array2, ArrayView2, s};

use super::attention::Heads;

/// What queries, keys and values of a window are made of.
#[derive(Clone, Debug)]
pub(crate) struct Latents {
    /// `[tokens, query_rank]`; the queries themselves, `[tokens, heads * dim]`, once they are made.
    pub(crate) query: Array2<f32>,
    /// `[tokens, key_value_rank]`.
    pub(crate) key_value: Array2<f32>,
    /// Features of the keys that all heads share, `[tokens, turned_dim]`.
    pub(crate) shared_key: Array2<f32>,
}

impl Latents {
    /// Of what the two linears gave, the second `[tokens, key_value_rank + turned_dim]`.
    pub(crate) fn new(numbers: &LatentNumbers, query: Array2<f32>, compressed: &Array2<f32>) -> Self {
        let rank = numbers.key_value_rank;
        Self {
            query,
            key_value: compressed.slice(s![.., ..rank]).to_owned(),
            shared_key: compressed.slice(s![.., rank..]).to_owned(),
        }
    }
}

/// Keys `[tokens, heads * dim]` and values `[tokens, heads * value_dim]` of `made`, in which each head has its part of the key and its value.
pub(crate) fn keys_and_values(
    heads: &Heads<'_>,
    made: ArrayView2<'_, f32>,
    shared_key: ArrayView2<'_, f32>,
) -> [Array2<f32>; 2] {
    let own = heads.dim - shared_key.ncols();
    let mut key = Array2::zeros((made.nrows(), heads.count * heads.dim));
    let mut value = Array2::zeros((made.nrows(), heads.count * heads.value_dim));
    for head in 0..heads.count {
        let (from, to) = (head * (own + heads.value_dim), head * heads.dim);
        key.slice_mut(s![.., to..to + own]).assign(&made.slice(s![.., from..from + own]));
        key.slice_mut(s![.., to + own..to + heads.dim]).assign(&shared_key);
        let value_at = head * heads.value_dim;
        value
            .slice_mut(s![.., value_at..value_at + heads.value_dim])
            .assign(&made.slice(s![.., from + own..from + own + heads.value_dim]));
    }
    [key, value]
}

/// The other way round: the gradients of what was made and of the shared features, `turned` of them, from those of keys and values.
pub(crate) fn keys_and_values_vjp(
    heads: &Heads<'_>,
    turned: usize,
    key: ArrayView2<'_, f32>,
    value: ArrayView2<'_, f32>,
) -> [Array2<f32>; 2] {
    let own = heads.dim - turned;
    let mut made = Array2::zeros((key.nrows(), heads.count * (own + heads.value_dim)));
    let mut shared_key = Array2::zeros((key.nrows(), turned));
    for head in 0..heads.count {
        let (to, from) = (head * (own + heads.value_dim), head * heads.dim);
        made.slice_mut(s![.., to..to + own]).assign(&key.slice(s![.., from..from + own]));
        shared_key += &key.slice(s![.., from + own..from + heads.dim]);
        let value_at = head * heads.value_dim;
        made.slice_mut(s![.., to + own..to + own + heads.value_dim])
            .assign(&value.slice(s![.., value_at..value_at + heads.value_dim]));
    }
    [made, shared_key]
}
