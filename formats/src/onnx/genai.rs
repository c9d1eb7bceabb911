//! `genai_config.json`: what onnxruntime-genai has to know to generate with the graph.

use model::Model;
use serde_json::{Value, json};

/// The file, from the original's config.json and generation_config.json and the tokens that end what the model writes.
pub(crate) fn config(model: &Model, config: &Value, generation: Option<&Value>, ends: &[u32]) -> Value {
    let numbers = &model.hyperparameters;
    let find = |key: &str| {
        let given = |object: Option<&Value>| {
            object.and_then(|found| found.get(key)).filter(|value| !value.is_null()).cloned()
        };
        given(generation).or_else(|| given(Some(config)))
    };
    let first = |value: &Value| {
        value.as_array().and_then(|list| list.first()).cloned().unwrap_or_else(|| value.clone())
    };
    // A model without a token for padding pads with one that ends.
    let padding = find("pad_token_id").unwrap_or_else(|| json!(ends.first().copied().unwrap_or(0)));
    let number = |key: &str, otherwise: Value| find(key).unwrap_or(otherwise);
    let mut file = json!({
        "model": {
            "bos_token_id": find("bos_token_id").map_or(json!(0), |value| first(&value)),
            "pad_token_id": padding,
            "context_length": numbers.context,
            "vocab_size": numbers.vocabulary,
            // The runtime's name for a decoder of these inputs and outputs, whatever is inside.
            "type": "decoder",
            "decoder": {
                "session_options": { "log_id": "onnxruntime-genai", "provider_options": [] },
                "filename": "model.onnx",
                "head_size": numbers.head_dim,
                "hidden_size": numbers.hidden_size,
                "num_attention_heads": numbers.heads,
                "num_key_value_heads": numbers.key_value_heads,
                "num_hidden_layers": numbers.layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value"
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value"
                }
            }
        },
        "search": {
            "do_sample": number("do_sample", json!(false)),
            "early_stopping": true,
            "length_penalty": 1.0,
            "max_length": numbers.context,
            "min_length": 0,
            "no_repeat_ngram_size": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": true,
            "repetition_penalty": number("repetition_penalty", json!(1.0)),
            "temperature": number("temperature", json!(1.0)),
            "top_k": number("top_k", json!(50)),
            "top_p": number("top_p", json!(1.0))
        }
    });
    // Without any the runtime stops at the length alone, as the model does.
    match ends {
        [] => {}
        [end] => file["model"]["eos_token_id"] = json!(end),
        several => file["model"]["eos_token_id"] = json!(several),
    }
    file
}
