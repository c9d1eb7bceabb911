//! A model's numbers as values of a file.

use model::Model;
use model::architecture::{Branches, Divisors, Factor, LlamaCpp, NormKind, Positions, Scores, Window};
use model::experts::ExpertNumbers;
use model::rope::{Rope, RopeScaling};

use super::names::{LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS};
use super::{Value, Values, refused};

pub(super) const ARCHITECTURE: &str = "general.architecture";
/// Factors by llama.cpp's names. Their values are those of config.json's keys, whichever way they count.
pub(super) const FACTORS: [&str; 4] = ["embedding_scale", "attention.scale", "residual_scale", "logit_scale"];

/// Caps of products of queries and keys, and of logits.
pub(super) const CAPS: [&str; 2] = ["attn_logit_softcapping", "final_logit_softcapping"];
/// What becomes of a router's outputs.
const SOFTMAX: u32 = 1;
pub(super) const SIGMOID: u32 = 2;

/// YaRN as llama.cpp computes it where a file says no more than factor and original context.
const BETAS: (f64, f64) = (32.0, 1.0);

/// Values of `model`, or why llama.cpp would compute something else. What has to be said about it is added to `notes`.
pub(crate) fn values(model: &Model, notes: &mut Vec<String>) -> Result<Values, String> {
    let there = llama_cpp(model)?;
    let numbers = &model.hyperparameters;
    refused::demand_same(model, there, notes)?;
    let mut context = numbers.context;
    let some = matches!(model.architecture.layer.attention.window, Window::AllButEvery(_));
    let window = refused::window(model);
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
        put("expert_count", count(experts.routing.experts));
        put("expert_used_count", count(experts.routing.chosen));
        put("expert_feed_forward_length", count(experts.width));
        if there.says_routing {
            routing(experts, &mut put);
        } else if let Some(width) = experts.shared_width {
            put("expert_shared_feed_forward_length", count(width));
        }
    }
    put("attention.head_count", count(numbers.heads));
    put("attention.head_count_kv", count(numbers.key_value_heads));
    put("attention.key_length", count(numbers.head_dim));
    put("attention.value_length", count(numbers.value_dim));
    if let Some(latent) = numbers.latent {
        put("attention.kv_lora_rank", count(latent.key_value_rank));
        put("attention.q_lora_rank", count(latent.query_rank.unwrap_or(0)));
    }
    for (key, cap) in CAPS.into_iter().zip([numbers.factors.attention_cap, numbers.factors.logit_cap]) {
        if let Some(cap) = cap {
            put(key, Value::F32(cap));
        }
    }
    let norm = model.architecture.final_norm.map(|norm| norm.kind);
    let eps = match norm {
        Some(NormKind::Layer | NormKind::LayerWithoutBias) => "attention.layer_norm_epsilon",
        Some(NormKind::Rms | NormKind::RmsPlusOne) | None => "attention.layer_norm_rms_epsilon",
    };
    put(eps, Value::F32(numbers.norm_eps as f32));
    if let Some(window) = window {
        put("attention.sliding_window", count(window));
    }
    if there.asks_parallel {
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
    if matches!(model.architecture.layer.attention.positions, Positions::Rotary { .. }) {
        rotation(model, there, &mut put, notes)?;
    }
    values.insert(ARCHITECTURE.to_owned(), Value::Text(there.name.to_owned()));
    Ok(values)
}

/// How tokens are sent to experts, where a file says it.
fn routing(experts: &ExpertNumbers, put: &mut dyn FnMut(&str, Value) -> Option<Value>) {
    let count = |number: usize| Value::U32(number as u32);
    let routing = &experts.routing;
    let leading = experts.layers.iter().take_while(|experts| !**experts).count();
    put("leading_dense_block_count", count(leading));
    put("expert_shared_count", count(experts.shared_width.unwrap_or(0) / experts.width));
    put("expert_weights_scale", Value::F32(routing.factor as f32));
    put("expert_weights_norm", Value::Bool(routing.normalized));
    put("expert_gating_func", Value::U32(if routing.scores == Scores::Sigmoid { SIGMOID } else { SOFTMAX }));
    if let Some(groups) = routing.groups {
        put("expert_group_count", count(groups.count));
        put("expert_group_used_count", count(groups.chosen));
    }
}

/// How queries and keys are rotated.
fn rotation(
    model: &Model,
    there: LlamaCpp,
    put: &mut dyn FnMut(&str, Value) -> Option<Value>,
    notes: &mut Vec<String>,
) -> Result<(), String> {
    let numbers = &model.hyperparameters;
    let count = |number: usize| Value::U32(number as u32);
    put("rope.dimension_count", count(numbers.rope.dim));
    put("rope.freq_base", Value::F32(numbers.rope.theta as f32));
    if let Some(local) = &numbers.local_rope {
        put("rope.freq_base_swa", Value::F32(local.theta as f32));
    }
    let mut scaling = |kind: &str, factor: f64| {
        put("rope.scaling.type", Value::Text(kind.to_owned()));
        put("rope.scaling.factor", Value::F32(factor as f32));
    };
    match &numbers.rope.scaling {
        RopeScaling::Default => {}
        RopeScaling::Llama3 { .. } if there.divisors == Divisors::One => {}
        RopeScaling::Linear { factor } => scaling("linear", *factor),
        RopeScaling::LongRope { attention_factor, original_context, .. }
            if there.divisors == Divisors::ShortAndLong =>
        {
            put("rope.scaling.attn_factor", Value::F32(*attention_factor as f32));
            put("rope.scaling.original_context_length", count(*original_context));
            notes.push(format!(
                "llama.cpp rotates for long sequences once its context is longer than {original_context} tokens, and the model once the sequence is"
            ));
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            truncate,
            attention_factor,
            original_context,
            temperature,
        } if (*beta_fast, *beta_slow) == BETAS
            && *attention_factor == usual_attention(*factor, numbers.latent.is_some())
            && (*truncate || there.parts.sinks) =>
        {
            scaling("yarn", *factor);
            put("rope.scaling.original_context_length", count(*original_context));
            if numbers.latent.is_some() {
                // The temperature is 1 + 0.1 c ln(factor), and llama.cpp wants 0.1 c.
                put(
                    "rope.scaling.yarn_log_multiplier",
                    Value::F32(((temperature - 1.0) / factor.ln()) as f32),
                );
            }
            if !truncate {
                notes.push(format!(
                    "llama.cpp rounds the ends of the ramp between stretched frequencies of {} to whole features, and the model does not (`truncate`)",
                    there.name
                ));
            }
        }
        other => return Err(format!("llama.cpp does not rotate {} like {other:?}", there.name)),
    }
    if numbers.rope.dim != numbers.head_dim && !there.part_of_heads {
        return Err(format!(
            "llama.cpp rotates whole heads of {}, not {} of {} features",
            there.name, numbers.rope.dim, numbers.head_dim
        ));
    }
    Ok(())
}

/// YaRN's factor on cosine and sine in llama.cpp. With latent features the temperature takes it up.
pub(super) fn usual_attention(factor: f64, latent: bool) -> f64 {
    if latent { 1.0 } else { 0.1 * factor.ln() + 1.0 }
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

fn llama_cpp(model: &Model) -> Result<LlamaCpp, String> {
    let known = model.architecture.llama_cpp;
    known
        .ok_or_else(|| format!("models of `{}` are not written for llama.cpp", model.architecture.model_type))
}

/// The tensors of divisors of the rotation's frequencies, `[dim / 2]` each.
pub(crate) fn divisors(model: &Model) -> Vec<(&'static str, Vec<f32>)> {
    let rope = &model.hyperparameters.rope;
    let narrowed = |numbers: &[f64]| numbers.iter().map(|&number| number as f32).collect();
    match (model.architecture.llama_cpp.map(|there| there.divisors), &rope.scaling) {
        (Some(Divisors::One), _) => {
            rope_factors(rope).map(|found| (ROPE_FACTORS, found)).into_iter().collect()
        }
        (Some(Divisors::ShortAndLong), RopeScaling::LongRope { short_factor, long_factor, .. }) => {
            vec![(SHORT_FACTORS, narrowed(short_factor)), (LONG_FACTORS, narrowed(long_factor))]
        }
        _ => Vec::new(),
    }
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
