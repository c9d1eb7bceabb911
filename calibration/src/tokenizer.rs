//! A model's tokenizer, with what its configuration adds: the token that begins a sequence, and the chat template.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};
use tokenizers::{
    DecodeStream, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer,
};

use crate::charsmap;
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
        charsmap::check(&bytes).map_err(&failed)?;
        let parsed = foreign::call(|| Tokenizer::from_bytes(&bytes)).map_err(&failed)?;
        let mut tokenizer = parsed.map_err(|problem| failed(problem.to_string()))?;
        // A file may ask for texts to be cut or filled up, which is meant for other uses.
        tokenizer.with_truncation(None).map_err(|problem| failed(problem.to_string()))?;
        tokenizer.with_padding(None);
        let configuration = Settings::read(directory.join("tokenizer_config.json"))?;
        let special = Settings::read(directory.join("special_tokens_map.json"))?;
        let named = |key: &str| {
            // A configuration that says null means none, whatever the older file says.
            let says = if configuration.has(key) { &configuration } else { &special };
            says.token(key)
        };
        let begin_text = named("bos_token")?;
        let begin = begin_text.as_deref().and_then(|text| tokenizer.token_to_id(text));
        let chat_template = match read(&directory.join("chat_template.jinja"))? {
            Some(bytes) => Some(
                String::from_utf8(bytes)
                    .map_err(|_| failed("`chat_template.jinja` is not UTF-8".to_owned()))?,
            ),
            None => configuration.chat_template()?,
        };
        Ok(Some(Self {
            path,
            tokenizer,
            begin,
            special: SpecialTokens {
                begin: begin_text.unwrap_or_default(),
                end: named("eos_token")?.unwrap_or_default(),
                unknown: named("unk_token")?,
                padding: named("pad_token")?,
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

/// A file of settings beside the tokenizer; empty where there is none.
struct Settings {
    path: PathBuf,
    values: Map<String, Value>,
}

impl Settings {
    fn read(path: PathBuf) -> Result<Self, CalibrationError> {
        let values = match read(&path)? {
            None => Ok(Map::new()),
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| e.to_string()),
        };
        match values {
            Ok(values) => Ok(Self { path, values }),
            Err(problem) => Err(CalibrationError::Tokenizer { path, problem }),
        }
    }

    fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    fn problem(&self, key: &str, expected: &str) -> CalibrationError {
        CalibrationError::Tokenizer { path: self.path.clone(), problem: format!("`{key}` is not {expected}") }
    }

    /// A special token: its text, an object that has it, or null.
    fn token(&self, key: &str) -> Result<Option<String>, CalibrationError> {
        let Some(value) = self.values.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
        let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str));
        text.map(|text| Some(text.to_owned()))
            .ok_or_else(|| self.problem(key, "a text or an object with one"))
    }

    /// One template, or of a list of named ones the default, if there is one.
    fn chat_template(&self) -> Result<Option<String>, CalibrationError> {
        const KEY: &str = "chat_template";
        const EXPECTED: &str = "a text or a list of named texts";
        let template = match self.values.get(KEY) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Array(entries)) => match entries.iter().find(|entry| entry["name"] == "default") {
                None => return Ok(None),
                Some(entry) => entry["template"].as_str(),
            },
            Some(value) => value.as_str(),
        };
        template.map(|text| Some(text.to_owned())).ok_or_else(|| self.problem(KEY, EXPECTED))
    }
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
