//! llama.cpp's usual mixtures of types (src/llama-quant.cpp at 0c1e570), for dense models: values and outputs of MLPs get more bits, and
//! more of them in the first and last layers. Embedding and head are left in 16 bit here.

use model::linear::{Linear, Role};

use crate::gguf::blocks::{BlockLayout, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K};

/// The first and the last eighth of the layers, and every third between.
fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

pub(super) fn q5_k_m(linear: &Linear, layers: usize) -> &'static BlockLayout {
    match linear.id.role {
        Role::Value | Role::Down if more_bits(linear.id.layer, layers) => &Q6_K,
        Role::QueryKeyValue => &Q6_K,
        _ => &Q5_K,
    }
}

pub(super) fn q4_k_m(linear: &Linear, layers: usize) -> &'static BlockLayout {
    match linear.id.role {
        Role::Value | Role::Down if more_bits(linear.id.layer, layers) => &Q6_K,
        Role::QueryKeyValue => &Q5_K,
        _ => &Q4_K,
    }
}

pub(super) fn q4_k_s(linear: &Linear, layers: usize) -> &'static BlockLayout {
    match linear.id.role {
        Role::Value if linear.id.layer < 4 => &Q5_K,
        Role::Down if linear.id.layer < layers / 8 => &Q5_K,
        _ => &Q4_K,
    }
}

pub(super) fn q3_k_l(linear: &Linear, _layers: usize) -> &'static BlockLayout {
    match linear.id.role {
        Role::Value | Role::Down | Role::Output => &Q5_K,
        Role::QueryKeyValue => &Q4_K,
        _ => &Q3_K,
    }
}

pub(super) fn q3_k_m(linear: &Linear, layers: usize) -> &'static BlockLayout {
    match linear.id.role {
        Role::Value if linear.id.layer < 2 => &Q5_K,
        Role::Down if linear.id.layer < layers / 16 => &Q5_K,
        Role::Value | Role::Down | Role::Output | Role::QueryKeyValue => &Q4_K,
        _ => &Q3_K,
    }
}

/// Whether few heads serve many queries: their values are worth more.
fn has_few_values(linear: &Linear) -> bool {
    linear.id.role == Role::Value && linear.in_features >= 4 * linear.out_features
}

pub(super) fn q2_k_s(linear: &Linear, layers: usize) -> &'static BlockLayout {
    match linear.id.role {
        Role::Value if has_few_values(linear) => &Q4_K,
        Role::Down if linear.id.layer < layers / 8 => &Q4_K,
        _ => &Q2_K,
    }
}

pub(super) fn q2_k(linear: &Linear, _layers: usize) -> &'static BlockLayout {
    match linear.id.role {
        Role::Value if has_few_values(linear) => &Q4_K,
        Role::Value | Role::Down | Role::Output => &Q3_K,
        _ => &Q2_K,
    }
}
