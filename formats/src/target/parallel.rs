//! A model over several devices (tensor parallelism, arXiv 1909.08053, section 3): what each of them holds of every linear.
//!
//! Linears that read the residual stream are cut by outputs, those that write to it by inputs. Runtimes load a quantized part only where the
//! cut falls between groups; their rules then hold for the part.

use model::Model;
use model::linear::{Linear, Role};
use quantizer::scheme::Granularity;

use super::PlannedLinear;

/// Each device's part of a plan.
///
/// # Errors
/// The first linear that cannot be cut into so many parts, and why.
pub fn shard(plan: &[PlannedLinear], model: &Model, parts: usize) -> Result<Vec<PlannedLinear>, String> {
    plan.iter().map(|planned| part(planned, model, parts)).collect()
}

fn part(planned: &PlannedLinear, model: &Model, parts: usize) -> Result<PlannedLinear, String> {
    let linear = &planned.linear;
    let name = &linear.name;
    let cut = |features: usize, parts: usize, what: &str| {
        if features.is_multiple_of(parts) {
            Ok(features / parts)
        } else {
            Err(format!("`{name}` has {features} {what} features, which {parts} devices cannot share"))
        }
    };
    let (mut out_features, mut in_features) = (linear.out_features, linear.in_features);
    match linear.id.role {
        Role::Query | Role::KeyValue | Role::Gate | Role::Up | Role::GateUp => {
            out_features = cut(out_features, parts, "output")?;
        }
        Role::Key | Role::Value => {
            let heads = model.hyperparameters.key_value_heads;
            if !heads.is_multiple_of(parts) && !parts.is_multiple_of(heads) {
                return Err(format!("`{name}` has {heads} heads, which {parts} devices cannot share"));
            }
            // More devices than heads hold the same ones.
            out_features = cut(out_features, parts.min(heads), "output")?;
        }
        Role::QueryKeyValue => {
            let heads = model.hyperparameters.key_value_heads;
            if !heads.is_multiple_of(parts) {
                return Err(format!("`{name}` has {heads} key heads, which {parts} devices cannot share"));
            }
            out_features = cut(out_features, parts, "output")?;
        }
        Role::Output | Role::Down => in_features = cut(in_features, parts, "input")?,
        // Every device holds all latent features; rows of the vocabulary are shared out with padding.
        Role::QueryLatent | Role::KeyValueLatent | Role::Embedding | Role::Head => {}
    }
    if let Some(scheme) = planned.scheme
        && let Granularity::PerGroup(size) = scheme.granularity
        && !in_features.is_multiple_of(size.get())
    {
        return Err(format!(
            "a cut of `{name}` into parts of {in_features} input features falls into a group of {}",
            size.get()
        ));
    }
    let linear = Linear { out_features, in_features, ..linear.clone() };
    Ok(PlannedLinear { linear, ..planned.clone() })
}

#[cfg(test)]
mod tests {
    use quantizer::levels::Levels;
    use quantizer::scheme::{BitWidth, GroupSize, ScaleDtype, Scheme, Symmetry};
    use serde_json::json;

    use super::*;

    fn plan(intermediate: usize, group: usize) -> (Model, Vec<PlannedLinear>) {
        let config = json!({
            "model_type": "llama", "hidden_size": 256, "intermediate_size": intermediate, "num_attention_heads": 8,
            "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 32, "max_position_embeddings": 32
        });
        let model = Model::resolve(&config).unwrap();
        let scheme = Scheme {
            bits: BitWidth::new(4).unwrap(),
            levels: Levels::Uniform,
            granularity: Granularity::PerGroup(GroupSize::new(group).unwrap()),
            symmetry: Symmetry::Symmetric,
            scale_dtype: ScaleDtype::F16,
        };
        let planned =
            |linear: &Linear| PlannedLinear { linear: linear.clone(), fused_group: 0, scheme: Some(scheme) };
        let plan = model.linears().map(planned).collect();
        (model, plan)
    }

    #[test]
    fn readers_of_the_stream_are_cut_by_outputs_and_writers_by_inputs() {
        let (model, plan) = plan(512, 64);
        let parts = shard(&plan, &model, 4).unwrap();
        let shape = |role| {
            let part = parts.iter().find(|part| part.linear.id.role == role).unwrap();
            (part.linear.out_features, part.linear.in_features)
        };
        assert_eq!(shape(Role::Query), (64, 256));
        // Two heads on four devices.
        assert_eq!(shape(Role::Key), (32, 256));
        assert_eq!(shape(Role::Output), (256, 64));
        assert_eq!(shape(Role::Up), (128, 256));
        assert_eq!(shape(Role::Down), (256, 128));
    }

    #[test]
    fn a_cut_within_a_group_or_a_feature_is_refused() {
        let (model, plan_of) = plan(512, 128);
        let problem = shard(&plan_of, &model, 4).unwrap_err();
        assert!(problem.contains("o_proj") && problem.contains("group of 128"), "{problem}");
        let (model, plan_of) = plan(520, 16);
        assert!(shard(&plan_of, &model, 16).unwrap_err().contains("cannot share"));
        assert!(shard(&plan_of, &model, 3).is_err());
    }
}
