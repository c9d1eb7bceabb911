//! The tokens that end what a model writes, by all files that say so: runtimes that are told fewer go on behind a turn's end.

use std::path::Path;

use serde_json::Value;

use crate::error::FormatsError;
use crate::gguf::token_ids;
use crate::json;

/// Their ids, below `vocabulary`: the tokenizer's own first, then those of generation_config.json, then config.json's; each once.
///
/// # Errors
/// A file that is there and cannot be read.
pub(crate) fn end_tokens(
    directory: &Path,
    config: &Value,
    vocabulary: usize,
) -> Result<Vec<u32>, FormatsError> {
    let optional = |name: &str| {
        if directory.join(name).exists() { json::read(directory, name) } else { Ok(Value::Null) }
    };
    let settings = optional("tokenizer_config.json")?;
    let token = &settings["eos_token"];
    let text = token.as_str().or_else(|| token["content"].as_str());
    let tokenizer = if text.is_some() { optional("tokenizer.json")? } else { Value::Null };
    let own = text.and_then(|text| token_ids(&tokenizer).get(text).copied());
    let generation = optional("generation_config.json")?;
    let listed = [&generation["eos_token_id"], &config["eos_token_id"]].into_iter().flat_map(|said| {
        let list = said.as_array().map_or(std::slice::from_ref(said), Vec::as_slice);
        list.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok())
    });
    let mut found: Vec<u32> = Vec::new();
    for id in own.into_iter().chain(listed).filter(|id| (*id as usize) < vocabulary) {
        if !found.contains(&id) {
            found.push(id);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_file_that_names_an_end_is_heard_once() {
        let folder = tempfile::tempdir().unwrap();
        let ends = |config: Value| end_tokens(folder.path(), &config, 10).unwrap();
        assert!(ends(json!({})).is_empty());
        assert_eq!(ends(json!({"eos_token_id": 3})), [3]);
        let put = |name: &str, content: Value| {
            std::fs::write(folder.path().join(name), content.to_string()).unwrap();
        };
        put("generation_config.json", json!({"eos_token_id": [4, 3, 11]}));
        assert_eq!(ends(json!({"eos_token_id": 3})), [4, 3]);
        put("tokenizer_config.json", json!({"eos_token": {"content": "<|im_end|>"}}));
        // Nobody knows its number yet.
        assert_eq!(ends(json!({"eos_token_id": null})), [4, 3]);
        let added = json!([{"id": 7, "content": "<|im_end|>"}]);
        put("tokenizer.json", json!({"model": {"vocab": {"a": 0}}, "added_tokens": added}));
        assert_eq!(ends(json!({"eos_token_id": [3, 5]})), [7, 4, 3, 5]);
    }
}
