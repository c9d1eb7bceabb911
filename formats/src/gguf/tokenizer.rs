//! The tokenizer as values of a file: tokens, their types, merges or scores, what begins and ends a text, the chat template.
//!
//! Two kinds are written, as llama.cpp knows them: byte pairs of a byte-level alphabet, and SentencePiece-like byte pairs with bytes as a
//! last resort, whose scores are the order of their merges (which tokenizer.json has as the order of ids).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;

use super::pretokenizers;
use super::{Array, Value, Values};
use crate::error::FormatsError;
use crate::files::read_small;
use crate::json;

const FILE: &str = "tokenizer.json";
/// Largest chat template, bytes.
const MOST_TEMPLATE: u64 = 16 << 20;

// Types of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Score of a token that no merge makes.
const NO_MERGE: f32 = -1000.0;

/// Values of the tokenizer in `directory`, for an embedding of `vocabulary` rows; `config` is the model's config.json.
pub(crate) fn values(directory: &Path, config: &Json, vocabulary: usize) -> Result<Values, FormatsError> {
    let path = directory.join(FILE);
    let tokenizer = json::read(directory, FILE)?;
    let settings = optional(directory, "tokenizer_config.json")?;
    let bad = |problem: String| FormatsError::malformed(&path, problem);
    let mut values = vocabulary_values(&tokenizer, vocabulary).map_err(&bad)?;
    let mut put = |key: &str, value: Value| values.insert(format!("tokenizer.{key}"), value);
    let ids = ids(&tokenizer);
    let special = optional(directory, "special_tokens_map.json")?;
    let named =
        [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")];
    for (key, name) in named {
        let text = settings.get(name).filter(|value| !value.is_null()).or_else(|| special.get(name));
        let text = text.and_then(|value| value.as_str().or_else(|| value["content"].as_str()));
        let number = &config[format!("{name}_id")];
        let number = number.as_u64().or_else(|| number[0].as_u64()).filter(|id| *id < vocabulary as u64);
        let id = text.and_then(|text| ids.get(text).copied()).or(number.map(|id| id as u32));
        if let Some(id) = id {
            put(&format!("ggml.{key}_token_id"), Value::U32(id));
        }
    }
    for (key, place) in [("add_bos_token", Ends::Begin), ("add_eos_token", Ends::End)] {
        let adds = settings.get(key).and_then(Json::as_bool);
        let adds = adds.unwrap_or_else(|| adds_special(&tokenizer["post_processor"], place));
        put(&format!("ggml.{key}"), Value::Bool(adds));
    }
    if let Some(template) = chat_template(directory, &settings)? {
        put("chat_template", Value::Text(template));
    }
    Ok(values)
}

/// A file that need not be there.
fn optional(directory: &Path, name: &str) -> Result<Json, FormatsError> {
    if directory.join(name).exists() { json::read(directory, name) } else { Ok(Json::Null) }
}

fn chat_template(directory: &Path, settings: &Json) -> Result<Option<String>, FormatsError> {
    const NAME: &str = "chat_template.jinja";
    if directory.join(NAME).exists() {
        let text = read_small(directory, NAME, MOST_TEMPLATE)?;
        let text = String::from_utf8(text);
        return text.map(Some).map_err(|_| FormatsError::malformed(&directory.join(NAME), "is not UTF-8"));
    }
    let template = &settings["chat_template"];
    let named = template.as_array().into_iter().flatten().find(|entry| entry["name"] == "default");
    let text = template.as_str().or_else(|| named.and_then(|entry| entry["template"].as_str()));
    Ok(text.map(str::to_owned))
}

/// Ids by text, added tokens included.
fn ids(tokenizer: &Json) -> BTreeMap<&str, u32> {
    let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let own = tokenizer["model"]["vocab"].as_object().into_iter().flatten();
    let own = own.filter_map(|(text, value)| Some((text.as_str(), id(value)?)));
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    own.chain(added.filter_map(|token| Some((token["content"].as_str()?, id(&token["id"])?)))).collect()
}

fn vocabulary_values(tokenizer: &Json, vocabulary: usize) -> Result<Values, String> {
    let model = &tokenizer["model"];
    if model["type"] != "BPE" {
        return Err(format!("holds a tokenizer of the type {}, expected BPE", model["type"]));
    }
    let pieces = model["byte_fallback"] == true;
    let mut tokens: Vec<(String, i32)> = (0..vocabulary).map(|id| (format!("[PAD{id}]"), UNUSED)).collect();
    let room = |id: u32| (id as usize) < vocabulary;
    for (text, id) in ids(tokenizer) {
        if !room(id) {
            return Err(format!("gives `{text}` the id {id}, and the embedding has {vocabulary} rows"));
        }
        let is_byte = pieces && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let unknown = model["unk_token"] == text;
        let kind = if is_byte {
            BYTE
        } else if unknown {
            UNKNOWN
        } else {
            NORMAL
        };
        tokens[id as usize] = (text.to_owned(), kind);
    }
    for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let place = added["id"].as_u64().and_then(|id| tokens.get_mut(id as usize));
        if let Some((text, kind)) = place.filter(|(_, kind)| *kind != UNKNOWN) {
            *kind = if added["special"] == true { CONTROL } else { USER_DEFINED };
            if pieces && *kind == USER_DEFINED {
                *text = text.replace('\u{2581}', " ");
            }
        }
    }
    let mut values = Values::new();
    let mut put = |key: &str, value: Value| values.insert(format!("tokenizer.ggml.{key}"), value);
    if pieces {
        put("model", Value::Text("llama".to_owned()));
        put("pre", Value::Text("default".to_owned()));
        put("add_space_prefix", Value::Bool(adds_space(tokenizer)));
        let scores = tokens.iter().enumerate().map(|(id, (_, kind))| match *kind {
            CONTROL | USER_DEFINED | UNUSED => NO_MERGE,
            _ => -(id as f32),
        });
        put("scores", Value::Array(Array::F32(scores.collect())));
    } else {
        put("model", Value::Text("gpt2".to_owned()));
        put("pre", Value::Text(pretokenizers::name(tokenizer)?.to_owned()));
        put("merges", Value::Array(Array::Texts(merges(model)?)));
    }
    let (texts, kinds) = tokens.into_iter().unzip();
    put("tokens", Value::Array(Array::Texts(texts)));
    put("token_type", Value::Array(Array::I32(kinds)));
    Ok(values)
}

/// Merges as `left right`; a space within a part would end it, and is spelled as the byte-level alphabet does.
fn merges(model: &Json) -> Result<Vec<String>, String> {
    let merges = model["merges"].as_array().ok_or("has no `merges`")?;
    let spelled = merges.iter().map(|merge| match merge {
        Json::String(text) => Some(text.clone()),
        Json::Array(parts) => {
            let part = |index: usize| Some(parts.get(index)?.as_str()?.replace(' ', "\u{120}"));
            (parts.len() == 2).then(|| Some(format!("{} {}", part(0)?, part(1)?))).flatten()
        }
        _ => None,
    });
    spelled.collect::<Option<_>>().ok_or_else(|| "has a merge that is not of two parts".to_owned())
}

/// Whether a space is put before a text.
fn adds_space(tokenizer: &Json) -> bool {
    fn any(step: &Json, holds: &dyn Fn(&Json) -> bool) -> bool {
        let nested = ["normalizers", "pretokenizers"];
        let mut nested = nested.iter().filter_map(|key| step[*key].as_array()).flatten();
        holds(step) || nested.any(|step| any(step, holds))
    }
    any(&tokenizer["normalizer"], &|step| step["type"] == "Prepend")
        || any(&tokenizer["pre_tokenizer"], &|step| {
            step["type"] == "Metaspace"
                && step["prepend_scheme"] != "never"
                && step["add_prefix_space"] != false
        })
}

/// An end of a text.
#[derive(Clone, Copy)]
enum Ends {
    Begin,
    End,
}

/// Whether the post-processor puts a special token there.
fn adds_special(processor: &Json, place: Ends) -> bool {
    match processor["type"].as_str() {
        Some("Sequence") => {
            let steps = processor["processors"].as_array().into_iter().flatten();
            steps.into_iter().any(|step| adds_special(step, place))
        }
        Some("TemplateProcessing") => {
            let parts = processor["single"].as_array();
            let part = parts.and_then(|parts| match place {
                Ends::Begin => parts.first(),
                Ends::End => parts.last(),
            });
            part.is_some_and(|part| part.get("SpecialToken").is_some())
        }
        _ => false,
    }
}
