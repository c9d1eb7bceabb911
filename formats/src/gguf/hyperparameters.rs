//! A model's numbers as values of a file.

use model::Model;
use model::architecture::{Branches, Factor, LlamaCpp, Mlp, NormKind, Scores, Window};
use model::experts::ExpertNumbers;
use model::rope::{Rope, RopeScaling};

use super::{Value, Values, dialects};

pub(super) const ARCHITECTURE: &str = "general.architecture";
/// Factors by llama.cpp's names. Their values are those of config.json's keys, whichever way they count.
pub(super) const FACTORS: [&str; 4] = ["embedding_scale", "attention.scale", "residual_scale", "logit_scale"];

/// YaRN as llama.cpp computes it where a file says no more than factor and original context.
const BETAS: (f64, f64) = (32.0, 1.0);

/// Values of `model`, or why llama.cpp would compute something else. What has to be said about it is added to `notes`.
pub(crate) fn values(model: &Model, notes: &mut Vec<String>) -> Result<Values, String> {
    let there = llama_cpp(model)?;
    let numbers = &model.hyperparameters;
    let sinks = model.architecture.layer.attention.sinks.is_some();
    if sinks || numbers.clamp.is_some() || numbers.latent.is_some() {
        return Err(format!(
            "llama.cpp runs {} without sinks, clamped gates and latent features of attention",
            there.name
        ));
    }
    dialects::demand_same(model, there)?;
    let dialect = dialects::of(there);
    let mut context = numbers.context;
    let some = matches!(model.architecture.layer.attention.window, Window::AllButEvery(_));
    let window = dialects::window(model);
    if some && window.is_none() {
        return Err(format!("llama.cpp has windows on other layers of {} than the model", there.name));
    }
    if some {
        // As it runs it.
    } else if let Some(window) = numbers.windows.iter().flatten().min().filter(|window| **window < context) {
        context = *window;
        notes.push(format!("llama.cpp runs {} without a sliding window: the context is {window} tokens, for which there is no difference", there.name));
    }
    let mut values = Values::new();
    let mut put = |key: &str, value: Value| values.insert(format!("{}.{key}", there.name), value);
    let count = |number: usize| Value::U32(number as u32);
    put("context_length", count(context));
    put("embedding_length", count(numbers.hidden_size));
    put("block_count", count(numbers.layers));
    put("feed_forward_length", count(numbers.intermediate_size));
    if let Some(experts) = &numbers.experts {
        demand_same_routing(model, experts, there.name)?;
        put("expert_count", count(experts.routing.experts));
        put("expert_used_count", count(experts.routing.chosen));
        put("expert_feed_forward_length", count(experts.width));
        if let Some(width) = experts.shared_width {
            put("expert_shared_feed_forward_length", count(width));
        }
    }
    put("attention.head_count", count(numbers.heads));
    put("attention.head_count_kv", count(numbers.key_value_heads));
    put("attention.key_length", count(numbers.head_dim));
    put("attention.value_length", count(numbers.head_dim));
    let norm = model.architecture.final_norm.map(|norm| norm.kind);
    let eps = match norm {
        Some(NormKind::Layer | NormKind::LayerWithoutBias) => "attention.layer_norm_epsilon",
        Some(NormKind::Rms | NormKind::RmsPlusOne) | None => "attention.layer_norm_rms_epsilon",
    };
    put(eps, Value::F32(numbers.norm_eps as f32));
    if let Some(window) = window {
        put("attention.sliding_window", count(window));
    }
    if dialect.asks_parallel {
        let parallel = model.architecture.layer.branches == Branches::Parallel;
        put("use_parallel_residual", Value::Bool(parallel));
    }
    for (key, (factor, value)) in FACTORS.into_iter().zip(factors(model)) {
        match factor {
            Factor::Key(_) => drop(put(key, Value::F32(value))),
            Factor::OneOver(_) => drop(put(key, Value::F32(1.0 / value))),
            // Built in.
            Factor::One
            | Factor::OneOverRootOf(_)
            | Factor::TemperedOneOverRootOf(_)
            | Factor::RoundedRootOf(_) => {}
        }
    }
    put("vocab_size", count(numbers.vocabulary));
    put("rope.dimension_count", count(numbers.rope.dim));
    put("rope.freq_base", Value::F32(numbers.rope.theta as f32));
    let mut scaling = |kind: &str, factor: f64| {
        put("rope.scaling.type", Value::Text(kind.to_owned()));
        put("rope.scaling.factor", Value::F32(factor as f32));
    };
    match &numbers.rope.scaling {
        RopeScaling::Default => {}
        RopeScaling::Llama3 { .. } if dialect.rope_tensor => {}
        RopeScaling::Linear { factor } => scaling("linear", *factor),
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            truncate: true,
            attention_factor,
            original_context,
            // Not of architectures that llama.cpp is written for here.
            temperature: _,
        } if (*beta_fast, *beta_slow) == BETAS && *attention_factor == 0.1 * factor.ln() + 1.0 => {
            scaling("yarn", *factor);
            put("rope.scaling.original_context_length", count(*original_context));
        }
        other => return Err(format!("llama.cpp does not rotate {} like {other:?}", there.name)),
    }
    if numbers.rope.dim != numbers.head_dim && !dialect.part_of_heads {
        return Err(format!(
            "llama.cpp rotates whole heads of {}, not {} of {} features",
            there.name, numbers.rope.dim, numbers.head_dim
        ));
    }
    values.insert(ARCHITECTURE.to_owned(), Value::Text(there.name.to_owned()));
    Ok(values)
}

/// Factors with their values, in the order of [`FACTORS`].
fn factors(model: &Model) -> [(Factor, f32); 4] {
    let (of, value) = (&model.architecture.factors, &model.hyperparameters.factors);
    [
        (of.embedding, value.embedding),
        (of.attention, value.attention),
        (of.residual, value.residual),
        (of.logits, value.logits),
    ]
}

/// Fails where llama.cpp would send tokens elsewhere, or weigh their experts otherwise.
fn demand_same_routing(model: &Model, numbers: &ExpertNumbers, name: &str) -> Result<(), String> {
    let Mlp::Experts { experts, .. } = model.architecture.layer.mlp else { return Ok(()) };
    if let Some(dense) = numbers.layers.iter().position(|&experts| !experts) {
        return Err(format!("llama.cpp runs every layer of {name} with experts, and layer {dense} is dense"));
    }
    let routing = &numbers.routing;
    let plain = routing.scores == Scores::Softmax && routing.factor == 1.0;
    if !plain || routing.normalized != experts.llama_cpp_normalizes {
        let how = if experts.llama_cpp_normalizes { "divides" } else { "does not divide" };
        return Err(format!(
            "llama.cpp {how} the weights of the experts of {name} by their sum (norm_topk_prob)"
        ));
    }
    Ok(())
}

fn llama_cpp(model: &Model) -> Result<LlamaCpp, String> {
    let known = model.architecture.llama_cpp;
    known
        .ok_or_else(|| format!("models of `{}` are not written for llama.cpp", model.architecture.model_type))
}

/// Divisors of the rotation's frequencies, `[dim / 2]`; none where they are all one.
pub(crate) fn rope_factors(rope: &Rope) -> Option<Vec<f32>> {
    if !matches!(rope.scaling, RopeScaling::Llama3 { .. }) {
        return None;
    }
    let (stretched, _) = rope.frequencies(0);
    let (plain, _) = Rope { scaling: RopeScaling::Default, ..rope.clone() }.frequencies(0);
    Some(plain.iter().zip(&stretched).map(|(plain, stretched)| (plain / stretched) as f32).collect())
}
