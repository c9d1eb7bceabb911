//! What llama.cpp calls each tensor of a model, derived from the model's description, and how its rows lie there.

use model::Model;
use model::architecture::{Pairs, Positions};
use model::graph::{NormPlace, NormTensor};
use model::linear::{Linear, Part, Role};

/// Factors of the rotation's frequencies, which no checkpoint has as a tensor.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// A tensor under both names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// In the checkpoint.
    pub(crate) original: String,
    /// In the file.
    pub(crate) name: String,
    /// Heads whose rows are interleaved; none: rows lie as in the checkpoint.
    pub(crate) heads: Option<usize>,
    /// Whether rows are rounded; what is not is always in single precision.
    pub(crate) is_matrix: bool,
    /// Its number where experts' tensors lie behind one another in one of this name.
    pub(crate) expert: Option<usize>,
    /// Whether the checkpoint has one row where the file has a vector.
    pub(crate) is_row: bool,
}

/// What GGUF calls a linear's weight.
#[must_use]
pub fn weight(linear: &Linear) -> String {
    format!("{}.weight", module(linear))
}

fn module(linear: &Linear) -> String {
    let role = match linear.id.role {
        Role::Embedding => return "token_embd".to_owned(),
        Role::Head => return "output".to_owned(),
        Role::QueryKeyValue => "attn_qkv",
        Role::GateUp => "ffn_up",
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

/// Every tensor that a checkpoint of `model` has, in the order in which it is written.
pub(crate) fn tensors(model: &Model) -> Vec<Named> {
    let vector = |original: String, name: &str| Named {
        original,
        name: format!("{name}.weight"),
        heads: None,
        is_matrix: false,
        expert: None,
        is_row: false,
    };
    let bias_of =
        |original: String, name: &str| Named { name: format!("{name}.bias"), ..vector(original, "") };
    let norm_of = |norm: &NormTensor, name: &str| {
        let bias = norm.bias.clone().map(|bias| bias_of(bias, name));
        std::iter::once(vector(norm.weight.clone(), name)).chain(bias).collect::<Vec<_>>()
    };
    let mut found = vec![Named { is_matrix: true, ..vector(model.embedding(), "token_embd") }];
    for layer in &model.layers {
        let of_layer = |name: &str| format!("blk.{}.{name}", layer.index);
        for (place, norm) in &layer.norms {
            let name = match place {
                NormPlace::AttentionInput => "attn_norm",
                NormPlace::QueryLatent => "attn_q_a_norm",
                NormPlace::KeyValueLatent => "attn_kv_a_norm",
                NormPlace::Query => "attn_q_norm",
                NormPlace::Key => "attn_k_norm",
                NormPlace::AttentionOutput | NormPlace::AttentionJoined => "post_attention_norm",
                NormPlace::MlpInput => "ffn_norm",
                NormPlace::MlpOutput | NormPlace::MlpJoined => "post_ffw_norm",
            };
            found.extend(norm_of(norm, &of_layer(name)));
        }
        if let Some(router) = &layer.router {
            found.push(vector(router.weight.clone(), &of_layer("ffn_gate_inp")));
            let gate = router.shared_gate.iter();
            found.extend(
                gate.map(|gate| Named {
                    is_row: true,
                    ..vector(gate.clone(), &of_layer("ffn_gate_inp_shexp"))
                }),
            );
            found.extend(router.correction.iter().map(|correction| Named {
                name: of_layer("exp_probs_b.bias"),
                ..vector(correction.clone(), "")
            }));
        }
        for linear in layer.stages.iter().flat_map(|stage| &stage.linears) {
            let expert = linear.id.part.expert();
            let heads = heads(model, linear);
            found.push(Named {
                original: linear.weight_name(),
                name: weight(linear),
                heads,
                is_matrix: true,
                expert,
                is_row: false,
            });
            found.extend(linear.bias_name().map(|original| Named {
                original,
                name: format!("{}.bias", module(linear)),
                heads,
                is_matrix: false,
                expert,
                is_row: false,
            }));
        }
    }
    found.extend(model.final_norm().iter().flat_map(|norm| norm_of(norm, "output_norm")));
    if !model.hyperparameters.tied_head {
        found.push(Named { is_matrix: true, ..vector(model.head(), "output") });
    }
    found.extend(model.head_bias().map(|bias| bias_of(bias, "output")));
    found
}

/// Heads whose rows are interleaved in this linear.
pub(crate) fn heads(model: &Model, linear: &Linear) -> Option<usize> {
    let positions = model.architecture.layer.attention.positions;
    let interleaves = model.architecture.llama_cpp.is_some_and(|there| there.rotates_neighbours)
        && matches!(positions, Positions::Rotary { pairs: Pairs::Halves, .. });
    match linear.id.role {
        Role::Query if interleaves => Some(model.hyperparameters.heads),
        Role::Key if interleaves => Some(model.hyperparameters.key_value_heads),
        _ => None,
    }
}

/// The row of the checkpoint that lies at `row` in the file: within a head the halves alternate there.
pub(crate) fn original_row(row: usize, rows: usize, heads: usize) -> usize {
    let features = rows / heads;
    let (head, feature) = (row / features, row % features);
    head * features + feature % 2 * (features / 2) + feature / 2
}

/// The row of the file at which the checkpoint's `row` lies.
pub(crate) fn stored_row(row: usize, rows: usize, heads: usize) -> usize {
    let features = rows / heads;
    let (head, feature) = (row / features, row % features);
    head * features + feature % (features / 2) * 2 + feature / (features / 2)
}

/// Rows of the checkpoint's order in the file's.
pub(crate) fn interleaved(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / rows.max(1);
    let order = (0..rows).map(|row| original_row(row, rows, heads));
    order.flat_map(|row| &bytes[row * row_bytes..][..row_bytes]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_move_as_llama_cpp_moves_them_and_back() {
        let order: Vec<usize> = (0..16).map(|row| original_row(row, 16, 2)).collect();
        assert_eq!(order, [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]);
        assert!((0..16).all(|row| original_row(stored_row(row, 16, 2), 16, 2) == row));
        let bytes: Vec<u8> = (0..32).collect();
        assert_eq!(interleaved(&bytes, 16, 2)[..6], [0, 1, 8, 9, 2, 3]);
    }
}
