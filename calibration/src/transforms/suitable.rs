//! Which models a transform leaves as they are: each says what it takes for granted.

use model::Model;
use model::architecture::{Mlp, Norm, NormKind, Qkv};

use super::Transform;

impl Transform {
    /// # Errors
    /// Why it would change what `model` computes, or would change nothing.
    pub fn check(self, model: &Model) -> Result<(), String> {
        let name =
            super::ALL.iter().find(|(transform, ..)| *transform == self).map_or("", |(_, name, _)| name);
        match self.problem(model) {
            None => Ok(()),
            Some(problem) => {
                Err(format!("{name} does not suit models of `{}`: {problem}", model.architecture.model_type))
            }
        }
    }

    fn problem(self, model: &Model) -> Option<&'static str> {
        let architecture = model.architecture;
        let layer = &architecture.layer;
        let norms = [layer.attention_norms, layer.mlp_norms];
        let is_rms = |norm: &Norm| norm.kind == NormKind::Rms;
        let all_rms_before = || norms.iter().all(|norms| norms.before.is_some_and(|norm| is_rms(&norm)));
        if model.hyperparameters.experts.is_some() {
            return Some("no transform knows experts");
        }
        let separate = || matches!(layer.attention.qkv, Qkv::Separate { .. });
        match self {
            Self::RotateResidual => {
                let bare = architecture.embedding_norm.is_none()
                    && architecture.positions.is_none()
                    && model.projections().is_none()
                    && norms.iter().all(|norms| norms.after.is_none() && norms.joined.is_none())
                    && model.hyperparameters.factors.residual == 1.0;
                let fits = bare && all_rms_before() && architecture.final_norm.as_ref().is_some_and(is_rms);
                (!fits).then_some(
                    "it takes an RMS norm before each branch and before the head, and nothing else on the residual stream",
                )
            }
            Self::RotateValues => (!separate()).then_some("values have no projection of their own"),
            Self::EqualizeInputs => (!all_rms_before())
                .then_some("it takes RMS norms before both branches, whose weights are the factors"),
            Self::EqualizeOutputs => (!(separate() && matches!(layer.mlp, Mlp::Gated { .. })))
                .then_some("it takes projections of their own for values, gate and up"),
        }
    }
}
