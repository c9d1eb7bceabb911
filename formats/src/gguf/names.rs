//! What llama.cpp calls each tensor of a model, derived from the model's description, and how its rows lie there.

use model::Model;
use model::architecture::{Divisors, FusedRows, NormKind, NormNames, Pairs, Positions, Qkv};
use model::graph::{NormPlace, NormTensor};
use model::linear::{Linear, Part, Role};

use super::rows::RowOrder;

/// Divisors of the rotation's frequencies, which no checkpoint has as tensors: those of llama.cpp's architectures that have one list, and those
/// for contexts up to the original one and beyond it.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";
pub(crate) const SHORT_FACTORS: &str = "rope_factors_short.weight";
pub(crate) const LONG_FACTORS: &str = "rope_factors_long.weight";

/// A tensor under both names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// In the checkpoint.
    pub(crate) original: String,
    /// In the file.
    pub(crate) name: String,
    /// How its rows lie in the file.
    pub(crate) order: RowOrder,
    /// Whether rows are rounded; what is not is always in single precision.
    pub(crate) is_matrix: bool,
    /// Its number where experts' tensors lie behind one another in one of this name.
    pub(crate) expert: Option<usize>,
    /// Whether the checkpoint has one row where the file has a vector.
    pub(crate) is_row: bool,
    /// Whether the checkpoint has `[in_features, out_features]`, where it is not packed.
    pub(crate) is_transposed: bool,
    /// Whether the file has one more than each number.
    pub(crate) adds_one: bool,
}

impl Named {
    fn new(original: String, name: String) -> Self {
        Self {
            original,
            name,
            order: RowOrder::Same,
            is_matrix: false,
            expert: None,
            is_row: false,
            is_transposed: false,
            adds_one: false,
        }
    }

    fn matrix(original: String, name: &str) -> Self {
        Self { is_matrix: true, ..Self::vector(original, name) }
    }

    fn vector(original: String, name: &str) -> Self {
        Self::new(original, format!("{name}.weight"))
    }

    fn bias(original: String, name: &str) -> Self {
        Self::new(original, format!("{name}.bias"))
    }
}

/// What GGUF calls a linear's weight.
#[must_use]
pub fn weight(linear: &Linear) -> String {
    format!("{}.weight", module(linear, false))
}

/// `latent` says whether queries are made of latent features.
fn module(linear: &Linear, latent: bool) -> String {
    let role = match linear.id.role {
        Role::Embedding => return "token_embd".to_owned(),
        Role::Head => return "output".to_owned(),
        Role::QueryKeyValue => "attn_qkv",
        Role::GateUp => "ffn_up",
        Role::Query if latent => "attn_q_b",
        Role::Query => "attn_q",
        Role::Key => "attn_k",
        Role::Value => "attn_v",
        Role::QueryLatent => "attn_q_a",
        Role::KeyValueLatent => "attn_kv_a_mqa",
        Role::KeyValue => "attn_kv_b",
        Role::Output => "attn_output",
        Role::Gate => "ffn_gate",
        Role::Up => "ffn_up",
        Role::Down => "ffn_down",
    };
    let part = match linear.id.part {
        Part::Main => "",
        Part::Shared => "_shexp",
        Part::Expert(_) => "_exps",
    };
    format!("blk.{}.{role}{part}", linear.id.layer)
}

/// What it calls a norm of a layer.
fn norm_name(model: &Model, place: NormPlace, of_both: bool) -> &'static str {
    let names = model.architecture.llama_cpp.map_or(NormNames::Usual, |there| there.norms);
    match (place, names) {
        (NormPlace::AttentionInput, NormNames::Numbered) if of_both => "attn_norm_2",
        (NormPlace::MlpInput, NormNames::Numbered) if of_both => "attn_norm",
        (NormPlace::MlpInput, NormNames::AfterAttention) => "post_attention_norm",
        (NormPlace::AttentionInput, _) => "attn_norm",
        (NormPlace::QueryLatent, _) => "attn_q_a_norm",
        (NormPlace::KeyValueLatent, _) => "attn_kv_a_norm",
        (NormPlace::Query, _) => "attn_q_norm",
        (NormPlace::Key, _) => "attn_k_norm",
        (NormPlace::AttentionOutput | NormPlace::AttentionJoined, _) => "post_attention_norm",
        (NormPlace::MlpInput, _) => "ffn_norm",
        (NormPlace::MlpOutput | NormPlace::MlpJoined, _) => "post_ffw_norm",
    }
}

fn norm(norm: &NormTensor, name: &str) -> impl Iterator<Item = Named> {
    let adds_one = norm.kind == NormKind::RmsPlusOne;
    let weight = Named { adds_one, ..Named::vector(norm.weight.clone(), name) };
    std::iter::once(weight).chain(norm.bias.clone().map(|bias| Named::bias(bias, name)))
}

/// Every tensor that a checkpoint of `model` has, in the order in which it is written.
pub(crate) fn tensors(model: &Model) -> Vec<Named> {
    let latent = model.hyperparameters.latent.is_some_and(|latent| latent.query_rank.is_some());
    let mut found = vec![Named::matrix(model.embedding(), "token_embd")];
    found.extend(model.embedding_norm().iter().flat_map(|tensor| norm(tensor, "token_embd_norm")));
    found.extend(model.positions().map(|(table, _)| Named::vector(table, "position_embd")));
    for layer in &model.layers {
        let of_layer = |name: &str| format!("blk.{}.{name}", layer.index);
        let of_both = layer.norms.contains_key(&NormPlace::AttentionInput)
            && layer.norms.contains_key(&NormPlace::MlpInput);
        for (place, tensor) in &layer.norms {
            found.extend(norm(tensor, &of_layer(norm_name(model, *place, of_both))));
        }
        found.extend(
            layer.sinks.iter().map(|(sinks, _)| Named::vector(sinks.clone(), &of_layer("attn_sinks"))),
        );
        if let Some(router) = &layer.router {
            found.push(Named::vector(router.weight.clone(), &of_layer("ffn_gate_inp")));
            found.extend(router.bias.iter().map(|bias| Named::bias(bias.clone(), &of_layer("ffn_gate_inp"))));
            let gate = router.shared_gate.iter();
            found.extend(gate.map(|gate| Named {
                is_row: true,
                ..Named::vector(gate.clone(), &of_layer("ffn_gate_inp_shexp"))
            }));
            let correction = router.correction.iter();
            found.extend(
                correction.map(|correction| Named::bias(correction.clone(), &of_layer("exp_probs_b"))),
            );
        }
        for linear in layer.stages.iter().flat_map(|stage| &stage.linears) {
            let (expert, order) = (linear.id.part.expert(), order(model, linear));
            let module = module(linear, latent);
            let is_transposed = linear.is_transposed();
            found.push(Named {
                order,
                expert,
                is_transposed,
                ..Named::matrix(linear.weight_name(), &module)
            });
            let bias = linear.bias_name();
            found.extend(bias.map(|bias| Named { order, expert, ..Named::bias(bias, &module) }));
        }
    }
    found.extend(model.final_norm().iter().flat_map(|tensor| norm(tensor, "output_norm")));
    if !model.hyperparameters.tied_head {
        found.push(Named::matrix(model.head(), "output"));
    }
    found.extend(model.head_bias().map(|bias| Named::bias(bias, "output")));
    found
}

/// How the rows of a linear lie in a file.
pub(crate) fn order(model: &Model, linear: &Linear) -> RowOrder {
    let (numbers, attention) = (&model.hyperparameters, &model.architecture.layer.attention);
    let interleaves = model.architecture.llama_cpp.is_some_and(|there| there.rotates_neighbours)
        && matches!(attention.positions, Positions::Rotary { pairs: Pairs::Halves, .. });
    match (linear.id.role, attention.qkv) {
        (Role::Query, _) if interleaves => RowOrder::Interleaved { heads: numbers.heads },
        (Role::Key, _) if interleaves => RowOrder::Interleaved { heads: numbers.key_value_heads },
        (Role::QueryKeyValue, Qkv::Fused { rows: FusedRows::ByKeyHead, .. }) => RowOrder::Regrouped {
            key_heads: numbers.key_value_heads,
            queries: numbers.heads / numbers.key_value_heads,
        },
        _ => RowOrder::Same,
    }
}

/// The tensors of divisors that a file of this model may have.
pub(crate) fn divisors(model: &Model) -> &'static [&'static str] {
    match model.architecture.llama_cpp.map(|there| there.divisors) {
        Some(Divisors::One) => &[ROPE_FACTORS],
        Some(Divisors::ShortAndLong) => &[SHORT_FACTORS, LONG_FACTORS],
        Some(Divisors::None) | None => &[],
    }
}
