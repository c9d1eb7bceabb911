//! A model's numbers as values of a file, and back as the config.json that would give them.

use model::Model;
use model::architecture::{Architecture, LlamaCpp, Mlp, Scores, SharedWidth};
use model::architectures;
use model::experts::ExpertNumbers;
use model::hyperparameters::Activation;
use model::rope::{Rope, RopeScaling};
use serde_json::json;

use super::{Header, Value, Values, stored_rope};

const ARCHITECTURE: &str = "general.architecture";

/// YaRN as llama.cpp computes it where a file says no more than factor and original context.
const BETAS: (f64, f64) = (32.0, 1.0);

/// Values of `model`, or why llama.cpp would compute something else. What has to be said about it is added to `notes`.
pub(crate) fn values(model: &Model, notes: &mut Vec<String>) -> Result<Values, String> {
    let there = llama_cpp(model)?;
    let numbers = &model.hyperparameters;
    if numbers.activation != Activation::Silu {
        return Err(format!(
            "llama.cpp runs {} with the activation silu, not {:?}",
            there.name, numbers.activation
        ));
    }
    let sinks = model.architecture.layer.attention.sinks.is_some();
    if sinks || numbers.clamp.is_some() || numbers.latent.is_some() {
        return Err(format!(
            "llama.cpp runs {} without sinks, clamped gates and latent features of attention",
            there.name
        ));
    }
    let mut context = numbers.context;
    if let Some(window) = numbers.windows.iter().flatten().min().filter(|window| **window < context) {
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
    put("attention.layer_norm_rms_epsilon", Value::F32(numbers.norm_eps as f32));
    put("vocab_size", count(numbers.vocabulary));
    put("rope.dimension_count", count(numbers.rope.dim));
    put("rope.freq_base", Value::F32(numbers.rope.theta as f32));
    let mut scaling = |kind: &str, factor: f64| {
        put("rope.scaling.type", Value::Text(kind.to_owned()));
        put("rope.scaling.factor", Value::F32(factor as f32));
    };
    match &numbers.rope.scaling {
        RopeScaling::Default => {}
        RopeScaling::Llama3 { .. } if there.rotates_neighbours => {}
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
    if numbers.rope.dim != numbers.head_dim {
        return Err(format!(
            "llama.cpp rotates whole heads of {}, not {} of {} features",
            there.name, numbers.rope.dim, numbers.head_dim
        ));
    }
    values.insert(ARCHITECTURE.to_owned(), Value::Text(there.name.to_owned()));
    Ok(values)
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

/// config.json of the model in a file; `rope_factors` is what its tensor of them holds.
pub(crate) fn config(header: &Header, rope_factors: Option<&[f32]>) -> Result<serde_json::Value, String> {
    let name = header.text(ARCHITECTURE)?;
    let known = || architectures::ALL.iter().filter_map(|known| Some((known, known.llama_cpp?)));
    let sends =
        header.values.get(&format!("{name}.expert_count")).and_then(Value::as_u64).is_some_and(|n| n > 0);
    let fits = |known: &Architecture| sends == matches!(known.layer.mlp, Mlp::Experts { .. });
    let found = known().find(|(known, there)| there.name == name && fits(known));
    let (architecture, _) = found.ok_or_else(|| {
        let mut names: Vec<&str> = known().map(|(_, there)| there.name).collect();
        names.dedup();
        format!("holds a model of the architecture `{name}`, known are {}", names.join(", "))
    })?;
    let get = |key: &str| header.values.get(&format!("{name}.{key}"));
    let number = |key: &str| {
        let value = get(key).ok_or_else(|| format!("has no `{name}.{key}`"))?;
        value.as_u64().ok_or_else(|| format!("has no single number for `{name}.{key}`"))
    };
    let real = |key: &str| get(key).and_then(Value::as_f32).map(f64::from);
    let heads = number("attention.head_count")?;
    let (hidden, context) = (number("embedding_length")?, number("context_length")?);
    let head_dim = number("attention.key_length").or_else(|_| {
        hidden.checked_div(heads).ok_or_else(|| format!("has no heads in `{name}.attention.head_count`"))
    })?;
    let embedding = header.tensors.get("token_embd.weight").ok_or("has no tensor `token_embd.weight`")?;
    let rope = stored_rope::read(header, name, head_dim, context, rope_factors)?;
    let has = |tensor: &str| header.tensors.contains_key(tensor);
    let mut config = json!({
        "architectures": [architecture.class], "model_type": architecture.model_type, "hidden_size": hidden, "intermediate_size": number("feed_forward_length")?,
        "num_hidden_layers": number("block_count")?, "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv").unwrap_or(heads), "head_dim": head_dim,
        "vocab_size": embedding.shape.first(), "max_position_embeddings": context, "hidden_act": "silu",
        "rms_norm_eps": real("attention.layer_norm_rms_epsilon"), "rope_parameters": rope,
        "tie_word_embeddings": !has("output.weight"), "attention_bias": has("blk.0.attn_output.bias"),
        "mlp_bias": has("blk.0.ffn_up.bias")
    });
    if let Mlp::Experts { experts, .. } = architecture.layer.mlp {
        config[experts.keys.count[0]] = json!(number("expert_count")?);
        config["num_experts_per_tok"] = json!(number("expert_used_count")?);
        config["norm_topk_prob"] = json!(experts.llama_cpp_normalizes);
        let width = number("expert_feed_forward_length").or_else(|_| number("feed_forward_length"))?;
        config[experts.keys.width] = json!(width);
        if let Some(SharedWidth::Key(key)) = experts.shared.map(|shared| shared.width) {
            config[key] = json!(number("expert_shared_feed_forward_length")?);
        }
    }
    for key in ["bos_token_id", "eos_token_id"] {
        if let Some(id) = header.values.get(&format!("tokenizer.ggml.{key}")).and_then(Value::as_u64) {
            config[key] = json!(id);
        }
    }
    Ok(config)
}
