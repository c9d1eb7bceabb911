//! llama.cpp's usual mixtures of types (src/llama-quant.cpp at 0c1e570), for dense models: values and outputs of MLPs get more bits, and
//! more of them in the first and last layers. Embedding and head are left in 16 bit here.

use model::linear::{LinearId, Role};

use crate::gguf::blocks::{BlockLayout, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K};

/// The first and the last eighth of the layers, and every third between.
fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

pub(super) fn q5_k_m(linear: LinearId, layers: usize) -> &'static BlockLayout {
    match linear.role {
        Role::Value | Role::Down if more_bits(linear.layer, layers) => &Q6_K,
        _ => &Q5_K,
    }
}

pub(super) fn q4_k_m(linear: LinearId, layers: usize) -> &'static BlockLayout {
    match linear.role {
        Role::Value | Role::Down if more_bits(linear.layer, layers) => &Q6_K,
        _ => &Q4_K,
    }
}

pub(super) fn q4_k_s(linear: LinearId, layers: usize) -> &'static BlockLayout {
    match linear.role {
        Role::Value if linear.layer < 4 => &Q5_K,
        Role::Down if linear.layer < layers / 8 => &Q5_K,
        _ => &Q4_K,
    }
}

pub(super) fn q3_k_m(linear: LinearId, layers: usize) -> &'static BlockLayout {
    match linear.role {
        Role::Value if linear.layer < 2 => &Q5_K,
        Role::Down if linear.layer < layers / 16 => &Q5_K,
        Role::Value | Role::Down | Role::Output => &Q4_K,
        _ => &Q3_K,
    }
}

pub(super) fn q2_k(linear: LinearId, _layers: usize) -> &'static BlockLayout {
    match linear.role {
        Role::Value | Role::Down | Role::Output => &Q3_K,
        _ => &Q2_K,
    }
}
