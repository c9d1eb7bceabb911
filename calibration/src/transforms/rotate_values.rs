//! A rotation of each value head: R2 of SpinQuant (arXiv 2405.16406, section 3.1), the per-head part of QuaRot's stage 1b (arXiv 2404.00456,
//! section 4).
//!
//! Attention takes weighted sums of the rows `v` of a value head, and the output projection is linear. With `R_h` `[head_dim, head_dim]`
//! orthogonal for each key and value head `h`,
//!
//! ```text
//! value rows of head h                                        W' = R_hᵀ W,  b' = b R_h
//! output columns of every query head that attends with h      W' = W R_h
//! ```
//!
//! leave `Σ p v R_h R_hᵀ Wᵀ = Σ p v Wᵀ`. Norms over heads and rotary positions concern queries and keys alone.

use kernels::rotation::Rotation;
use model::Layer;
use model::hyperparameters::Hyperparameters;
use model::linear::Role;
use ndarray::{Axis, s};

use super::dense::DenseLayer;

/// Seeds count from here: layer by layer, head by head.
const FIRST_SEED: u64 = 1 << 32;

/// Turns a layer's value heads.
pub(super) fn layer(numbers: &Hyperparameters, layer: &Layer, dense: &mut DenseLayer) {
    let group = numbers.heads / numbers.key_value_heads;
    for head in 0..numbers.key_value_heads {
        let seed = FIRST_SEED + (layer.index * numbers.key_value_heads + head) as u64;
        let rotation = Rotation::random(numbers.head_dim, seed);
        let features = |head: usize| head * numbers.head_dim..(head + 1) * numbers.head_dim;
        let value = dense.linear_mut(Role::Value);
        rotation.rotate_columns(value.weight.slice_mut(s![features(head), ..]));
        if let Some(bias) = &mut value.bias {
            rotation.rotate_rows(bias.slice_mut(s![features(head)]).insert_axis(Axis(0)));
        }
        let output = dense.linear_mut(Role::Output);
        for query_head in head * group..(head + 1) * group {
            rotation.rotate_rows(output.weight.slice_mut(s![.., features(query_head)]));
        }
    }
}
