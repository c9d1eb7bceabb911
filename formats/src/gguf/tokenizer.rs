//! The tokenizer as values of a file: the vocabulary, what begins and ends a text, the chat template.

use std::path::Path;

use serde_json::Value as Json;

use super::{Value, Values, vocabulary};
use crate::end_tokens::end_tokens;
use crate::error::FormatsError;
use crate::files::read_small;
use crate::json;

const FILE: &str = "tokenizer.json";
/// SentencePiece's own file, from which transformers makes the other.
const PIECES: &str = "tokenizer.model";
/// Largest chat template, bytes.
const MOST_TEMPLATE: u64 = 16 << 20;

/// Values of the tokenizer in `directory`, for an embedding of `vocabulary` rows; `config` is the model's config.json. What has to be said
/// about it is added to `notes`.
pub(crate) fn values(
    directory: &Path,
    config: &Json,
    vocabulary: usize,
    notes: &mut Vec<String>,
) -> Result<Values, FormatsError> {
    let path = directory.join(FILE);
    if !path.exists() && directory.join(PIECES).exists() {
        let problem = format!(
            "has `{PIECES}` and no `{FILE}`, which is read; `python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('{0}').save_pretrained('{0}')\"` makes one",
            directory.display()
        );
        return Err(FormatsError::malformed(directory, problem));
    }
    let tokenizer = json::read(directory, FILE)?;
    let settings = optional(directory, "tokenizer_config.json")?;
    let bad = |problem: String| FormatsError::malformed(&path, problem);
    let mut values = vocabulary::values(&tokenizer, vocabulary, notes).map_err(&bad)?;
    let mut put = |key: &str, value: Value| values.insert(format!("tokenizer.{key}"), value);
    let ids = vocabulary::ids(&tokenizer);
    let special = optional(directory, "special_tokens_map.json")?;
    let id_of = |name: &str| {
        let text = settings.get(name).filter(|value| !value.is_null()).or_else(|| special.get(name));
        let text = text.and_then(|value| value.as_str().or_else(|| value["content"].as_str()));
        let number = &config[format!("{name}_id")];
        let number = number.as_u64().or_else(|| number[0].as_u64()).map(|id| id as u32);
        let id = text.and_then(|text| ids.get(text).copied()).or(number);
        id.filter(|id| (*id as usize) < vocabulary)
    };
    let ends = Ends::of(&tokenizer["post_processor"]);
    let alone = |ids: &[u32]| if let [id] = ids { Some(*id) } else { None };
    let (begin, end) = (id_of("bos_token").or(alone(&ends.before)), id_of("eos_token"));
    let named =
        [("bos", begin), ("eos", end), ("unknown", id_of("unk_token")), ("padding", id_of("pad_token"))];
    for (key, id) in named {
        if let Some(id) = id {
            put(&format!("ggml.{key}_token_id"), Value::U32(id));
        }
    }
    for (key, found, token) in [("add_bos_token", &ends.before, begin), ("add_eos_token", &ends.after, end)] {
        let asked = settings.get(key).and_then(Json::as_bool);
        let adds = asked.unwrap_or_else(|| alone(found).is_some_and(|id| Some(id) == token));
        if asked.is_none() && !adds && !found.is_empty() {
            notes.push(format!(
                "tokenizer.json puts the tokens {found:?} beside a text, and llama.cpp only the one that begins or ends it"
            ));
        }
        put(&format!("ggml.{key}"), Value::Bool(adds && token.is_some()));
    }
    // llama.cpp has places for two that end a turn or a message.
    let others = end_tokens(directory, config, vocabulary)?.into_iter().filter(|id| Some(*id) != end);
    for (key, id) in ["eot", "eom"].into_iter().zip(others) {
        put(&format!("ggml.{key}_token_id"), Value::U32(id));
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

/// Special tokens that the post-processor puts before and after a text.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ends {
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Ends {
    fn of(processor: &Json) -> Self {
        let mut ends = Self::default();
        ends.add(processor);
        ends
    }

    fn add(&mut self, processor: &Json) {
        match processor["type"].as_str() {
            Some("Sequence") => {
                let steps = processor["processors"].as_array().into_iter().flatten();
                steps.into_iter().for_each(|step| self.add(step));
            }
            Some("TemplateProcessing") => {
                let mut text_came = false;
                for part in processor["single"].as_array().into_iter().flatten() {
                    let Some(token) = part.get("SpecialToken") else {
                        text_came = true;
                        continue;
                    };
                    let end = if text_came { &mut self.after } else { &mut self.before };
                    let known = token["id"].as_str().map(|name| &processor["special_tokens"][name]["ids"]);
                    let ids = known.and_then(Json::as_array).into_iter().flatten();
                    end.extend(ids.filter_map(Json::as_u64).filter_map(|id| u32::try_from(id).ok()));
                }
            }
            Some("BertProcessing" | "RobertaProcessing") => {
                for (key, end) in [("cls", &mut self.before), ("sep", &mut self.after)] {
                    end.extend(processor[key][1].as_u64().and_then(|id| u32::try_from(id).ok()));
                }
            }
            _ => {}
        }
    }
}
