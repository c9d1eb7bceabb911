//! A file's values as the config.json that would give them.

use model::Model;
use model::architecture::{Architecture, Bias, Factor, Mlp, SharedWidth, Window};
use model::architectures;
use serde_json::{Value as Json, json};

use super::hyperparameters::{ARCHITECTURE, FACTORS};
use super::{Header, Value, names, stored_rope};

/// config.json of the model in a file; `rope_factors` is what its tensor of them holds. Of several architectures of one name it is the first whose
/// tensors the file has.
pub(super) fn config(header: &Header, rope_factors: Option<&[f32]>) -> Result<Json, String> {
    let name = header.text(ARCHITECTURE)?;
    let known = || architectures::ALL.iter().copied().filter_map(|known| Some((known, known.llama_cpp?)));
    let sends =
        header.values.get(&format!("{name}.expert_count")).and_then(Value::as_u64).is_some_and(|n| n > 0);
    let fits = |known: &Architecture| sends == matches!(known.layer.mlp, Mlp::Experts { .. });
    let mut named = known().filter(|(known, there)| there.name == name && fits(known)).peekable();
    let Some(&(first, _)) = named.peek() else {
        let mut names: Vec<&str> = known().map(|(_, there)| there.name).collect();
        names.dedup();
        return Err(format!("holds a model of the architecture `{name}`, known are {}", names.join(", ")));
    };
    let whole = named.find_map(|(known, _)| {
        let config = config_as(known, name, header, rope_factors).ok()?;
        let model = Model::resolve(&config).ok()?;
        names::tensors(&model).iter().all(|named| header.tensors.contains_key(&named.name)).then_some(config)
    });
    // What is wrong with none is said of the first.
    whole.map_or_else(|| config_as(first, name, header, rope_factors), Ok)
}

/// The same, if it is of this architecture.
fn config_as(
    architecture: &Architecture,
    name: &str,
    header: &Header,
    rope_factors: Option<&[f32]>,
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
    let rope = stored_rope::read(header, name, head_dim, context, rope_factors)?;
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
    let attention = &architecture.layer.attention;
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
