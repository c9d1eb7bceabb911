//! Text to windows of tokens.
//!
//! Windows are disjoint, from the start of the text, all of one length, each with the model's beginning token first where it has one. The
//! text is cut to 12 characters for each token that is needed before it is tokenized, so that a large file costs no more than a small one;
//! where that gives too few windows, more of it is read. With a seed, windows are drawn from the whole text instead.
//!
//! JSON lines: each line is an object with `text`, `messages` (rendered by the model's chat template) or `input_ids` (tokens, which need no
//! tokenizer and get no beginning token). The tokens of all lines follow each other.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::CalibrationError;
use crate::tokenizer::TextTokenizer;

/// Characters read for each token that is needed.
const CHARACTERS_PER_TOKEN: usize = 12;

/// Text with a name for messages.
#[derive(Clone, Debug)]
pub struct Corpus {
    name: String,
    content: String,
    json_lines: bool,
}

/// Windows of one length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Token ids; all windows are equally long.
    pub tokens: Vec<Vec<u32>>,
    /// SHA-256 over the tokens.
    pub fingerprint: String,
}

/// How many windows of how many tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowShape {
    /// Windows at most.
    pub samples: usize,
    /// Tokens of a window, the beginning token included.
    pub context: usize,
    /// Draw at random; none: the first ones.
    pub seed: Option<u64>,
}

/// A run of tokens, and whether it came as tokens already.
struct Stream {
    tokens: Vec<u32>,
    given_as_tokens: bool,
    complete: bool,
}

impl Corpus {
    /// Text that is at hand.
    #[must_use]
    pub fn new(name: impl Into<String>, content: impl Into<String>) -> Self {
        let (name, content) = (name.into(), content.into());
        let json_lines = looks_like_json_lines(&content);
        Self { name, content, json_lines }
    }

    /// A file: JSON lines when it is called `.jsonl` or `.ndjson` or its first line is a document, plain text otherwise.
    ///
    /// # Errors
    /// A file that cannot be read, is not UTF-8 or is empty.
    pub fn read(path: &Path) -> Result<Self, CalibrationError> {
        let name = path.display().to_string();
        let bytes =
            std::fs::read(path).map_err(|source| CalibrationError::Io { path: path.to_owned(), source })?;
        let content = String::from_utf8(bytes).map_err(|error| CalibrationError::NotUtf8 {
            text: name.clone(),
            offset: error.utf8_error().valid_up_to(),
        })?;
        let by_name = path.extension().is_some_and(|kind| kind == "jsonl" || kind == "ndjson");
        let json_lines = by_name || looks_like_json_lines(&content);
        Ok(Self { name, content, json_lines })
    }

    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The windows; fewer than asked for where the text is short.
    ///
    /// # Errors
    /// Empty text, text that does not fill one window, a line that is no document, a token that the embedding does not have, text that
    /// needs a tokenizer where there is none.
    pub fn windows(
        &self,
        tokenizer: Option<&TextTokenizer>,
        vocabulary: usize,
        shape: WindowShape,
    ) -> Result<Windows, CalibrationError> {
        if self.content.trim().is_empty() {
            return Err(CalibrationError::Empty { text: self.name.clone() });
        }
        let needed = shape.samples.saturating_mul(shape.context);
        let mut budget =
            if shape.seed.is_some() { usize::MAX } else { needed.saturating_mul(CHARACTERS_PER_TOKEN) };
        loop {
            let stream = self.stream(tokenizer, budget, needed)?;
            let begin = if stream.given_as_tokens { None } else { tokenizer.and_then(TextTokenizer::begin) };
            let step = shape.context - usize::from(begin.is_some());
            let found = stream.tokens.len();
            let whole = found / step;
            if whole < shape.samples && !stream.complete {
                budget = budget.saturating_mul(4);
                continue;
            }
            if whole == 0 {
                return Err(CalibrationError::TooShort { text: self.name.clone(), found, needed: step });
            }
            let ids = stream.tokens.iter().chain(&begin);
            if let Some(&token) = ids.into_iter().find(|&&token| token as usize >= vocabulary) {
                let token = u64::from(token);
                return Err(CalibrationError::TokenOutOfRange { text: self.name.clone(), token, vocabulary });
            }
            let mut order: Vec<usize> = (0..whole).collect();
            if let Some(seed) = shape.seed {
                shuffle(&mut order, seed);
            }
            order.truncate(shape.samples);
            let window = |&index: &usize| {
                begin
                    .into_iter()
                    .chain(stream.tokens[index * step..(index + 1) * step].iter().copied())
                    .collect()
            };
            let tokens: Vec<Vec<u32>> = order.iter().map(window).collect();
            let fingerprint = fingerprint(&tokens);
            return Ok(Windows { tokens, fingerprint });
        }
    }

    /// Tokens from the start of the text: of at most `characters` characters of plain text, of lines until `needed` tokens.
    fn stream(
        &self,
        tokenizer: Option<&TextTokenizer>,
        characters: usize,
        needed: usize,
    ) -> Result<Stream, CalibrationError> {
        let missing = || CalibrationError::NoTokenizer { text: self.name.clone() };
        if !self.json_lines {
            let cut =
                self.content.char_indices().nth(characters).map_or(self.content.len(), |(offset, _)| offset);
            let tokens = tokenizer.ok_or_else(missing)?.encode(&self.content[..cut])?;
            return Ok(Stream { tokens, given_as_tokens: false, complete: cut == self.content.len() });
        }
        let mut tokens = Vec::new();
        let mut given_as_tokens = true;
        for (index, line) in self.content.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            if tokens.len() >= needed && characters != usize::MAX {
                return Ok(Stream { tokens, given_as_tokens, complete: false });
            }
            match self.document(index + 1, line)? {
                Document::Tokens(more) => tokens.extend(more),
                Document::Text(text) => {
                    given_as_tokens = false;
                    tokens.extend(tokenizer.ok_or_else(missing)?.encode(&text)?);
                }
                Document::Messages(messages) => {
                    given_as_tokens = false;
                    let tokenizer = tokenizer.ok_or_else(missing)?;
                    tokens.extend(tokenizer.encode(&tokenizer.render_chat(&messages)?)?);
                }
            }
        }
        Ok(Stream { tokens, given_as_tokens, complete: true })
    }

    fn document(&self, line: usize, text: &str) -> Result<Document, CalibrationError> {
        let fail = |problem: String| CalibrationError::Line { text: self.name.clone(), line, problem };
        let mut value: Value = serde_json::from_str(text).map_err(|e| fail(e.to_string()))?;
        if let Some(text) = value.get("text").and_then(Value::as_str) {
            return Ok(Document::Text(text.to_owned()));
        }
        if let Some(messages) = value.get_mut("messages").filter(|value| value.is_array()) {
            return Ok(Document::Messages(messages.take()));
        }
        if let Some(ids) = value.get("input_ids").and_then(Value::as_array) {
            let id = |value: &Value| match value.as_u64() {
                Some(id) => u32::try_from(id).map_err(|_| fail(format!("token {id} is too large"))),
                None => Err(fail(format!("`input_ids` holds {value}, expected whole numbers"))),
            };
            return ids.iter().map(id).collect::<Result<_, _>>().map(Document::Tokens);
        }
        Err(fail("expected an object with `text`, `messages` or `input_ids`".to_owned()))
    }
}

enum Document {
    Text(String),
    Messages(Value),
    Tokens(Vec<u32>),
}

fn looks_like_json_lines(content: &str) -> bool {
    let first = content.lines().find(|line| !line.trim().is_empty()).unwrap_or("");
    first.trim_start().starts_with('{')
        && serde_json::from_str::<Value>(first)
            .is_ok_and(|value| ["text", "messages", "input_ids"].iter().any(|key| value.get(key).is_some()))
}

/// Fisher-Yates with the SplitMix64 generator (Steele et al. 2014), so that a seed means the same everywhere.
fn shuffle(order: &mut [usize], seed: u64) {
    let mut state = seed;
    for last in (1..order.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let other = (u128::from(mixed) * (last as u128 + 1)) >> 64;
        order.swap(last, other as usize);
    }
}

fn fingerprint(windows: &[Vec<u32>]) -> String {
    let mut hash = Sha256::new();
    for window in windows {
        hash.update((window.len() as u64).to_le_bytes());
        for token in window {
            hash.update(token.to_le_bytes());
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
