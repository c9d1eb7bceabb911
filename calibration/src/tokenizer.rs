//! A model's tokenizer, with what its configuration adds: the token that begins a sequence, and the chat template.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokenizers::{
    DecodeStream, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer,
};

use crate::chat::{self, SpecialTokens};
use crate::error::CalibrationError;
use crate::foreign;

/// Largest tokenizer.json or configuration that is read, bytes.
const MOST_BYTES: u64 = 256 << 20;

/// Longest that a chat template may take for a conversation: its fuel is used up in about a second, but a list that is added to itself again
/// and again takes none (minijinja 3.1), and grows by about 100 MB a second.
const LONGEST_TEMPLATE: Duration = Duration::from_secs(3);

/// Text to tokens, as the model was trained.
#[derive(Debug)]
pub struct TextTokenizer {
    path: PathBuf,
    tokenizer: Tokenizer,
    begin: Option<u32>,
    special: SpecialTokens,
    chat_template: Option<String>,
}

impl TextTokenizer {
    /// The tokenizer of a checkpoint directory; none where it has no tokenizer.json.
    ///
    /// # Errors
    /// A tokenizer.json, tokenizer_config.json or special_tokens_map.json that does not parse.
    pub fn open(directory: &Path) -> Result<Option<Self>, CalibrationError> {
        let path = directory.join("tokenizer.json");
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let failed = |problem: String| CalibrationError::Tokenizer { path: path.clone(), problem };
        check_charsmap(&bytes).map_err(&failed)?;
        let parsed = foreign::call(|| Tokenizer::from_bytes(&bytes)).map_err(&failed)?;
        let mut tokenizer = parsed.map_err(|problem| failed(problem.to_string()))?;
        // A file may ask for texts to be cut or filled up, which is meant for other uses.
        tokenizer.with_truncation(None).map_err(|problem| failed(problem.to_string()))?;
        tokenizer.with_padding(None);
        let configuration = read_json(&directory.join("tokenizer_config.json"))?;
        let special = read_json(&directory.join("special_tokens_map.json"))?;
        let named = |key: &str| {
            // A configuration that says null means none, whatever the older file says.
            match configuration.get(key) {
                Some(value) => token_text(value),
                None => special.get(key).and_then(token_text),
            }
        };
        let begin_text = named("bos_token");
        let begin = begin_text.as_deref().and_then(|text| tokenizer.token_to_id(text));
        let chat_template = match read(&directory.join("chat_template.jinja"))? {
            Some(bytes) => Some(
                String::from_utf8(bytes)
                    .map_err(|_| failed("`chat_template.jinja` is not UTF-8".to_owned()))?,
            ),
            None => configuration.get("chat_template").and_then(default_template),
        };
        Ok(Some(Self {
            path,
            tokenizer,
            begin,
            special: SpecialTokens {
                begin: begin_text.unwrap_or_default(),
                end: named("eos_token").unwrap_or_default(),
                unknown: named("unk_token"),
                padding: named("pad_token"),
            },
            chat_template,
        }))
    }

    /// The token that begins every sequence, if the model has one.
    #[must_use]
    pub fn begin(&self) -> Option<u32> {
        self.begin
    }

    /// Tokens of `text`, without special tokens around them.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, CalibrationError> {
        let encoding =
            foreign::call(|| self.tokenizer.encode_fast(text, false)).map_err(|e| self.problem(&e))?;
        let encoding = encoding.map_err(|e| self.problem(&e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// A conversation as the text that the model was trained on: `messages` is a list of objects with `role` and `content`.
    ///
    /// # Errors
    /// A model without a chat template, or a template that refuses the messages.
    pub fn render_chat(&self, messages: &Value) -> Result<String, CalibrationError> {
        self.render(messages, false)
    }

    /// The same up to where the model's answer begins.
    ///
    /// # Errors
    /// As [`TextTokenizer::render_chat`].
    pub fn render_question(&self, messages: &Value) -> Result<String, CalibrationError> {
        self.render(messages, true)
    }

    /// Whether there is a chat template.
    #[must_use]
    pub fn has_chat(&self) -> bool {
        self.chat_template.is_some()
    }

    fn render(&self, messages: &Value, answer: bool) -> Result<String, CalibrationError> {
        let failed = |problem: String| CalibrationError::Chat { path: self.path.clone(), problem };
        match &self.chat_template {
            None => Err(failed("the model has no chat template, which `messages` need".to_owned())),
            Some(template) => {
                let (template, messages) = (template.clone(), messages.clone());
                let special = self.special.clone();
                // The error as text: it may hold values of the template, which are not to be dropped on a smaller stack.
                let render = move || {
                    chat::render(&template, &messages, &special, answer).map_err(|error| format!("{error:#}"))
                };
                foreign::call_within(LONGEST_TEMPLATE, render)
                    .map_err(|problem| failed(format!("chat template: {problem}")))?
                    .map_err(|problem| failed(format!("chat template: {problem}")))
            }
        }
    }

    /// The token that ends what somebody says or a text, if the model names one.
    #[must_use]
    pub fn end(&self) -> Option<u32> {
        self.tokenizer.token_to_id(&self.special.end)
    }

    /// Text from tokens as they come.
    #[must_use]
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { stream: self.tokenizer.decode_stream(true) }
    }

    /// Tokens below `vocabulary` that stand for text: all but the special ones.
    #[must_use]
    pub fn ordinary_tokens(&self, vocabulary: usize) -> Vec<u32> {
        let added = self.tokenizer.get_added_tokens_decoder();
        let special = |id: &u32| added.get(id).is_some_and(|token| token.special);
        let mut tokens: Vec<u32> = self.tokenizer.get_vocab(true).into_values().collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens.retain(|id| (*id as usize) < vocabulary && !special(id));
        tokens
    }

    /// What the tokenizer calls a token.
    #[must_use]
    pub fn name_of(&self, token: u32) -> Option<String> {
        self.tokenizer.id_to_token(token)
    }

    fn problem(&self, problem: &dyn std::fmt::Display) -> CalibrationError {
        CalibrationError::Tokenizer { path: self.path.clone(), problem: problem.to_string() }
    }
}

/// Text from tokens as they come: a character may need several.
#[expect(missing_debug_implementations, reason = "the tokenizer's stream has none")]
pub struct TextStream<'t> {
    stream: DecodeStream<
        't,
        ModelWrapper,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >,
}

impl TextStream<'_> {
    /// What the next token adds; nothing where it ends in the middle of a character, or is a special one.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn push(&mut self, token: u32) -> Result<String, CalibrationError> {
        let failed = |problem| CalibrationError::Tokenizer { path: PathBuf::from("tokenizer.json"), problem };
        let text = foreign::call(|| self.stream.step(token)).map_err(failed)?;
        text.map(Option::unwrap_or_default).map_err(|e| failed(e.to_string()))
    }
}

/// A special token is text, or an object with its text.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content").and_then(Value::as_str)).map(str::to_owned)
}

/// One template, or a list of named ones with a default.
fn default_template(value: &Value) -> Option<String> {
    if let Some(template) = value.as_str() {
        return Some(template.to_owned());
    }
    let named = value.as_array()?.iter().find(|entry| entry["name"] == "default")?;
    named["template"].as_str().map(str::to_owned)
}

/// Fails where a `precompiled_charsmap` lies about its length: four bytes of base64 would make its reader take gigabytes.
fn check_charsmap(bytes: &[u8]) -> Result<(), String> {
    let holds = |word: &[u8]| bytes.windows(word.len()).any(|part| part == word);
    // Few files need to be read for it; a name may be spelled with escapes.
    if !holds(b"recompiled") && !holds(b"\\u00") {
        return Ok(());
    }
    // What is no JSON has a better error from its own reader.
    let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let mut open = vec![&value["normalizer"]];
    while let Some(step) = open.pop() {
        open.extend(step["normalizers"].as_array().into_iter().flatten());
        let Some(map) = step["precompiled_charsmap"].as_str() else { continue };
        let mut length = 0_u64;
        for (place, digit) in map.bytes().take(6).enumerate() {
            let digit = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return Err("has a `precompiled_charsmap` that is not base64".to_owned()),
            };
            // Little-endian: the first digits hold the first byte.
            length |= u64::from(digit) << (30 - 6 * place);
        }
        let length = u64::from(((length >> 4) as u32).swap_bytes());
        let room = (map.len() as u64 / 4 * 3).saturating_sub(4);
        if length > room {
            return Err(format!(
                "has a `precompiled_charsmap` of {room} bytes whose first table is said to have {length}"
            ));
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, CalibrationError> {
    let failed = |source| CalibrationError::Io { path: path.to_owned(), source };
    let refused = |problem: String| CalibrationError::Tokenizer { path: path.to_owned(), problem };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        // A pipe or device, to which a link may lead, has no length and may never end.
        Ok(found) if !found.is_file() => return Err(refused("is not a regular file".to_owned())),
        Ok(found) if found.len() > MOST_BYTES => {
            return Err(refused(format!("{} bytes, expected at most {MOST_BYTES}", found.len())));
        }
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    // It may grow while it is read.
    file.take(MOST_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}

fn read_json(path: &Path) -> Result<Value, CalibrationError> {
    match read(path)? {
        None => Ok(Value::Null),
        Some(bytes) => serde_json::from_slice(&bytes)
            .map_err(|e| CalibrationError::Tokenizer { path: path.to_owned(), problem: e.to_string() }),
    }
}
