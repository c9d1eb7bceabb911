//! A file's values as the config.json that would give them.

use std::collections::BTreeMap;

use model::Model;
use model::architecture::{
    Architecture, Bias, Branches, Factor, LlamaCpp, Mlp, Positions, Qkv, Scores, SharedWidth, Window,
};
use model::architectures;
use serde_json::{Value as Json, json};

use super::hyperparameters::{ARCHITECTURE, CAPS, FACTORS, SIGMOID};
use super::{Header, Value, names, refused, stored_rope};

/// config.json of the model in a file; `divisors` is what its tensors of divisors of frequencies hold, by their names. Of several architectures of one
/// name it is the first that the file has the tensors of.
pub(super) fn config(header: &Header, divisors: &BTreeMap<&str, Vec<f32>>) -> Result<Json, String> {
    let name = header.text(ARCHITECTURE)?;
    let known = || architectures::ALL.iter().copied().filter_map(|known| Some((known, known.llama_cpp?)));
    let sends =
        header.values.get(&format!("{name}.expert_count")).and_then(Value::as_u64).is_some_and(|n| n > 0);
    let fits = |(known, there): &(&Architecture, LlamaCpp)| {
        sends == matches!(known.layer.mlp, Mlp::Experts { .. }) && says_so(header, known, *there)
    };
    let mut named = known().filter(|(_, there)| there.name == name).filter(fits).peekable();
    let Some(&(first, _)) = named.peek() else {
        let mut names: Vec<&str> = known().map(|(_, there)| there.name).collect();
        names.dedup();
        return Err(format!("holds a model of the architecture `{name}`, known are {}", names.join(", ")));
    };
    // The one that knows most of the file's tensors, the first of those.
    let mut best: Option<(usize, Json)> = None;
    for (known, _) in named {
        let Ok(config) = config_as(known, name, header, divisors) else { continue };
        let Ok(model) = Model::resolve(&config) else { continue };
        let count = if has_tensors(header, &model) { names::tensors(&model).len() } else { 0 };
        if count > best.as_ref().map_or(0, |(most, _)| *most) {
            best = Some((count, config));
        }
    }
    // What is wrong with none is said of the first.
    best.map_or_else(|| config_as(first, name, header, divisors), |(_, config)| Ok(config))
}

/// Whether a file says what tells an architecture from others of its name that have the same tensors.
fn says_so(header: &Header, known: &Architecture, there: LlamaCpp) -> bool {
    let get = |key: &str| header.values.get(&format!("{}.{key}", there.name));
    let parallel = known.layer.branches == Branches::Parallel;
    let branches = match get("use_parallel_residual") {
        Some(Value::Bool(said)) if there.asks_parallel => *said == parallel,
        _ => true,
    };
    let scores = match known.layer.mlp {
        Mlp::Experts { experts, .. } if there.says_routing => {
            let sigmoid = get("expert_gating_func").and_then(Value::as_u64) == Some(u64::from(SIGMOID));
            sigmoid == (experts.routing.scores == Scores::Sigmoid)
        }
        _ => true,
    };
    branches && scores
}

/// Whether a file has all tensors of a model, with as many numbers.
fn has_tensors(header: &Header, model: &Model) -> bool {
    let numbers =
        |shape: &[usize]| shape.iter().try_fold(1_usize, |numbers, extent| numbers.checked_mul(*extent));
    let expected: BTreeMap<String, Option<usize>> =
        model.expected_tensors().map(|tensor| (tensor.name, numbers(&tensor.shape))).collect();
    let experts = model.hyperparameters.experts.as_ref().map_or(1, |experts| experts.routing.experts);
    names::tensors(model).iter().all(|named| {
        let Some(entry) = header.tensors.get(&named.name) else { return false };
        let count = if named.expert.is_some() { experts } else { 1 };
        let one = expected.get(&named.original).copied().flatten();
        one.and_then(|one| one.checked_mul(count)) == numbers(&entry.shape)
    })
}

/// The same, if it is of this architecture.
fn config_as(
    architecture: &Architecture,
    name: &str,
    header: &Header,
    divisors: &BTreeMap<&str, Vec<f32>>,
) -> Result<Json, String> {
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
    let latent = matches!(architecture.layer.attention.qkv, Qkv::Latent(_));
    let of = stored_rope::RotatedHeads { head_dim, context, latent };
    let mut rope = stored_rope::read(header, name, of, divisors)?;
    if matches!(architecture.layer.attention.positions, Positions::Rotary { local: true, .. }) {
        let theta = real("rope.freq_base_swa").unwrap_or(10_000.0);
        rope = json!({"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": theta}});
    }
    let has = |tensor: &str| header.tensors.contains_key(tensor);
    let mut config = json!({
        "architectures": [architecture.class], "model_type": architecture.model_type, "hidden_size": hidden, "intermediate_size": number("feed_forward_length")?,
        "num_hidden_layers": number("block_count")?, "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv").unwrap_or(heads), "head_dim": head_dim,
        "vocab_size": embedding.shape.first(), "max_position_embeddings": context,
        "rms_norm_eps": real("attention.layer_norm_rms_epsilon").or(real("attention.layer_norm_epsilon")), "rope_parameters": rope,
        "tie_word_embeddings": !has("output.weight"), "attention_bias": has("blk.0.attn_output.bias"),
        "mlp_bias": has("blk.0.ffn_up.bias")
    });
    if architecture.defaults.iter().all(|(key, _)| *key != "hidden_act") {
        config["hidden_act"] = json!("silu");
    }
    for (key, setting) in architecture.when {
        config[*key] = json!(setting);
    }
    if let Some(window) = get("attention.sliding_window").and_then(Value::as_u64).filter(|&window| window > 0)
        && matches!(architecture.layer.attention.window, Window::AllButEvery(_))
    {
        config["sliding_window"] = json!(window);
    }
    let of = &architecture.factors;
    for (stored, factor) in FACTORS.into_iter().zip([of.embedding, of.attention, of.residual, of.logits]) {
        if let (Factor::Key(key) | Factor::OneOver(key), Some(value)) = (factor, real(stored)) {
            config[key] = json!(value);
        }
    }
    if let (Factor::OneOverRootOf(key), Some(there)) = (of.attention, architecture.llama_cpp)
        && key != "head_dim"
    {
        let extents = [hidden, heads, head_dim].map(|extent| extent as usize);
        config[key] = json!(refused::attention_root(there, number("block_count")? as usize, extents));
    }
    for (stored, key) in CAPS.into_iter().zip([of.attention_cap, of.logit_cap]) {
        if let (Some(key), Some(cap)) = (key, real(stored)) {
            config[key] = json!(cap);
        }
    }
    let attention = &architecture.layer.attention;
    if latent {
        let turned = number("rope.dimension_count")?;
        let unturned = head_dim.checked_sub(turned).ok_or("rotates more features than heads have")?;
        config["kv_lora_rank"] = json!(number("attention.kv_lora_rank")?);
        config["q_lora_rank"] = json!(number("attention.q_lora_rank").ok().filter(|&rank| rank > 0));
        (config["qk_nope_head_dim"], config["qk_rope_head_dim"]) = (json!(unturned), json!(turned));
        config["v_head_dim"] = json!(number("attention.value_length")?);
    }
    let input = has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias");
    let biases = [
        (attention.input_bias, input),
        (attention.output_bias, has("blk.0.attn_output.bias")),
        (architecture.layer.mlp_bias, has("blk.0.ffn_up.bias")),
    ];
    for (bias, found) in biases {
        if let Bias::Key(key) = bias {
            config[key] = json!(found);
        }
    }
    if let Mlp::Experts { experts, .. } = architecture.layer.mlp {
        config[experts.keys.count[0]] = json!(number("expert_count")?);
        config["num_experts_per_tok"] = json!(number("expert_used_count")?);
        config["norm_topk_prob"] = json!(experts.llama_cpp_normalizes);
        let width = number("expert_feed_forward_length").or_else(|_| number("feed_forward_length"))?;
        config[experts.keys.width] = json!(width);
        match experts.shared.map(|shared| shared.width) {
            Some(SharedWidth::Key(key)) => {
                config[key] = json!(number("expert_shared_feed_forward_length")?);
            }
            Some(SharedWidth::Experts(key)) => config[key] = json!(number("expert_shared_count")?),
            None => {}
        }
        if architecture.llama_cpp.is_some_and(|there| there.says_routing) {
            config["first_k_dense_replace"] = json!(number("leading_dense_block_count")?);
            config["routed_scaling_factor"] =
                json!(real("expert_weights_scale").filter(|&factor| factor != 0.0).unwrap_or(1.0));
            config["norm_topk_prob"] = json!(get("expert_weights_norm") == Some(&Value::Bool(true)));
            let groups = [("n_group", "expert_group_count"), ("topk_group", "expert_group_used_count")];
            for (key, stored) in groups {
                config[key] = json!(number(stored).unwrap_or(1));
            }
        }
    }
    for key in ["bos_token_id", "eos_token_id"] {
        if let Some(id) = header.values.get(&format!("tokenizer.ggml.{key}")).and_then(Value::as_u64) {
            config[key] = json!(id);
        }
    }
    Ok(config)
}
