//! Which models the graph's builder has operators for.

use model::Model;
use model::architecture::{Branches, Gating, Mlp, Norm, NormKind, NormWidth, Pairs, Positions, Qkv};
use model::hyperparameters::Rotation;
use model::linear::LinearClass;

/// # Errors
/// What of the model has no place in the graph.
pub(crate) fn check(model: &Model) -> Result<(), String> {
    let (architecture, numbers) = (model.architecture, &model.hyperparameters);
    let (layer, factors) = (&architecture.layer, &numbers.factors);
    let norms = [layer.attention_norms, layer.mlp_norms];
    let is_rms = |norm: Option<Norm>| norm.is_some_and(|norm| norm.kind == NormKind::Rms);
    let halves = matches!(layer.attention.positions, Positions::Rotary { pairs: Pairs::Halves, .. });
    let head_norms = layer
        .attention
        .head_norms
        .map(|norms| (norms.kind, norms.over) == (NormKind::Rms, NormWidth::EachHead));
    let rules = [
        (layer.branches == Branches::InTurn, "its branches run in parallel"),
        (norms.iter().all(|norms| is_rms(norms.before)), "it has no RMS norm before each branch"),
        (
            norms.iter().all(|norms| norms.after.is_none() && norms.joined.is_none()),
            "it has norms behind its branches",
        ),
        (is_rms(architecture.final_norm), "it has no RMS norm before the head"),
        (matches!(layer.attention.qkv, Qkv::Separate { .. }), "queries, keys and values are one projection"),
        (matches!(layer.mlp, Mlp::Gated { .. }), "its MLP has no projections of their own for gate and up"),
        (layer.attention.sinks.is_none(), "its heads have sinks"),
        (layer.gating == Gating::Activated, "its gates are clamped"),
        (head_norms != Some(false), "its norms of queries and keys are not RMS norms of each head"),
        (
            halves && numbers.rotations.iter().all(|turn| *turn == Rotation::Global),
            "not all of its layers turn halves of heads by the same angles",
        ),
        (
            factors.embedding == 1.0 && factors.residual == 1.0 && factors.logits == 1.0,
            "it has factors on embedding, residual stream or logits",
        ),
        (factors.attention_cap.is_none() && factors.logit_cap.is_none(), "it has soft caps"),
        (
            architecture.positions.is_none()
                && architecture.embedding_norm.is_none()
                && model.projections().is_none(),
            "more than the embedding lies before its first layer",
        ),
        (!architecture.head_bias, "its head has a bias"),
        (architecture.linears != LinearClass::Transposed, "its linears are stored transposed"),
    ];
    match rules.into_iter().find(|(holds, _)| !holds) {
        None => Ok(()),
        Some((_, problem)) => Err(problem.to_owned()),
    }
}
