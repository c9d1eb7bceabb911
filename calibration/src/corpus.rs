//! Text to windows of tokens.
//!
//! **Plain text** gives disjoint windows from its start, all of one length, each with the model's beginning token first where it has one. The
//! text is cut to 12 characters for each token that is needed and tokenized in one piece, as other quantizers' evaluations do, so that figures
//! compare; what is behind the cut is not even read. Where that gives too few windows, more is read. Line ends are read as `\n`, whatever
//! the file has.
//!
//! **JSON lines**: each line is an object with `text`, `messages` (rendered by the model's chat template) or `input_ids`. The tokens of texts
//! and conversations follow each other and are cut like plain text; no token is put between them. `input_ids` need no tokenizer: each line
//! is a document of its own, cut into windows that are taken as they are, without a beginning token; its last one may be shorter.
//!
//! **Parquet**: each row is what a line is in JSON lines, its columns the keys.
//!
//! With a seed, windows are drawn from four times the text, and at least [`DRAWN_CHARACTERS`] characters, instead of taken from its start.

mod reader;
mod rows;

use std::path::Path;

use kernels::random::SplitMix;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::CalibrationError;
use crate::tokenizer::TextTokenizer;
use reader::{Lines, Source, Text};
use rows::Rows;

/// Characters read for each token that is needed.
const CHARACTERS_PER_TOKEN: usize = 12;
/// Characters, at least, that windows are drawn from with a seed.
pub const DRAWN_CHARACTERS: usize = 4 << 20;

/// Text with a name for messages.
#[derive(Clone, Debug)]
pub struct Corpus {
    name: String,
    source: Source,
    json_lines: bool,
}

/// Windows of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Token ids. All windows are equally long, except the last one of each line of `input_ids`.
    pub tokens: Vec<Vec<u32>>,
    /// SHA-256 over the tokens.
    pub fingerprint: String,
}

/// How many windows of how many tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowShape {
    /// Windows at most.
    pub samples: usize,
    /// Tokens of a window, the beginning token included; at least 2.
    pub context: usize,
    /// Draw at random; none: the first ones.
    pub seed: Option<u64>,
}

impl Corpus {
    /// Text that is at hand.
    #[must_use]
    pub fn new(name: impl Into<String>, content: impl Into<String>) -> Self {
        let source = Source::Memory(content.into());
        // Memory can always be read.
        let json_lines = source.first_line().is_ok_and(|line| is_object(&line));
        Self { name: name.into(), source, json_lines }
    }

    /// A file: Parquet when it begins as such, JSON lines when it is called `.jsonl` or `.ndjson` or its first line is a JSON object, plain text otherwise. No more of it
    /// is read, later, than the windows need. A pipe, which can be read only once, is read to its end here.
    ///
    /// # Errors
    /// A file that cannot be read, JSON that is not one object on each line.
    pub fn read(path: &Path) -> Result<Self, CalibrationError> {
        let source = Source::of(path)?;
        let name = path.display().to_string();
        if matches!(source, Source::Parquet(_)) {
            return Ok(Self { name, source, json_lines: true });
        }
        let first = source.first_line()?;
        // Other JSON read as prose would calibrate on brackets and key names.
        let json = path.extension().is_some_and(|kind| kind == "json");
        if json && first.trim_start().starts_with(['[', '{']) && !is_object(&first) {
            let problem = "begins JSON of several lines, expected one JSON object on each line".to_owned();
            return Err(CalibrationError::Line { text: name, line: 1, problem });
        }
        let by_name = path.extension().is_some_and(|kind| kind == "jsonl" || kind == "ndjson");
        let json_lines = by_name || is_object(&first);
        Ok(Self { name, source, json_lines })
    }

    /// The same with another name for messages.
    #[must_use]
    pub fn called(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The windows; fewer than asked for where the text is short.
    ///
    /// # Errors
    /// Text that is empty, not UTF-8 or does not fill one window, a line that is no document, a token that the embedding does not have
    /// (`vocabulary` is its number of rows), text that needs a tokenizer where there is none.
    pub fn windows(
        &self,
        tokenizer: Option<&TextTokenizer>,
        vocabulary: usize,
        shape: WindowShape,
    ) -> Result<Windows, CalibrationError> {
        if shape.samples == 0 || shape.context < 2 {
            return Err(CalibrationError::Shape { samples: shape.samples, context: shape.context });
        }
        let mut cutter = Cutter::new(tokenizer, shape);
        if self.json_lines {
            self.cut_lines(tokenizer, vocabulary, &mut cutter)?;
        } else {
            self.cut_plain(tokenizer, vocabulary, &mut cutter)?;
        }
        let (found, needed) = (cutter.tokens, cutter.step);
        let tokens = cutter.finish();
        if tokens.is_empty() {
            return Err(CalibrationError::TooShort { text: self.name.clone(), found, needed });
        }
        let fingerprint = fingerprint(&tokens);
        Ok(Windows { tokens, fingerprint })
    }

    fn cut_plain(
        &self,
        tokenizer: Option<&TextTokenizer>,
        vocabulary: usize,
        cutter: &mut Cutter,
    ) -> Result<(), CalibrationError> {
        let tokenizer = tokenizer.ok_or_else(|| self.no_tokenizer())?;
        let mut text = Text::open(&self.name, &self.source)?;
        let mut characters = cutter.characters();
        loop {
            let prefix = text.prefix(characters)?;
            if prefix.trim().is_empty() {
                return Err(self.empty());
            }
            let tokens = tokenizer.encode(prefix)?;
            let complete = text.is_complete(characters);
            if !complete && tokens.len() / cutter.step < cutter.shape.samples {
                characters = characters.saturating_mul(2);
                continue;
            }
            check(&self.name, tokenizer, tokens.iter().chain(&cutter.begin), vocabulary)?;
            cutter.follow(tokens);
            return Ok(());
        }
    }

    fn cut_lines(
        &self,
        tokenizer: Option<&TextTokenizer>,
        vocabulary: usize,
        cutter: &mut Cutter,
    ) -> Result<(), CalibrationError> {
        let mut documents_of = match &self.source {
            Source::Parquet(path) => Documents::Rows(Rows::open(&self.name, path)?),
            source => Documents::Lines(Lines::open(&self.name, source)?),
        };
        let unit = documents_of.unit();
        let mut documents = 0;
        let mut characters = 0_usize;
        while let Some((number, line)) = documents_of.next()? {
            documents += 1;
            characters += line.len();
            let place = format!("{}, {unit} {number}", self.name);
            match self.document(number, &line)? {
                Document::Tokens(tokens) => {
                    if let Some(&token) = tokens.iter().find(|&&token| token >= vocabulary as u64) {
                        let text = place;
                        return Err(CalibrationError::TokenOutOfRange {
                            text,
                            token: token.to_string(),
                            vocabulary,
                        });
                    }
                    let tokens: Vec<u32> = tokens.into_iter().map(|token| token as u32).collect();
                    cutter.stand_alone(&tokens);
                }
                Document::Text(text) => {
                    let tokenizer = tokenizer.ok_or_else(|| self.no_tokenizer())?;
                    let tokens = tokenizer.encode(&text)?;
                    check(&place, tokenizer, tokens.iter().chain(&cutter.begin), vocabulary)?;
                    cutter.follow(tokens);
                }
                Document::Messages(messages) => {
                    let tokenizer = tokenizer.ok_or_else(|| self.no_tokenizer())?;
                    let text = tokenizer.render_chat(&messages).map_err(|error| match error {
                        CalibrationError::Chat { problem, .. } => self.bad_line(number, problem),
                        other => other,
                    })?;
                    let tokens = tokenizer.encode(&text)?;
                    check(&place, tokenizer, tokens.iter().chain(&cutter.begin), vocabulary)?;
                    cutter.follow(tokens);
                }
            }
            let enough = match cutter.shape.seed {
                None => cutter.windows.len() >= cutter.shape.samples,
                Some(_) => cutter.windows.len() >= cutter.shape.samples && characters >= cutter.characters(),
            };
            if enough {
                return Ok(());
            }
        }
        if documents == 0 { Err(self.empty()) } else { Ok(()) }
    }

    fn document(&self, number: usize, line: &str) -> Result<Document, CalibrationError> {
        let fail = |problem: String| self.bad_line(number, problem);
        let mut value: Value = serde_json::from_str(line).map_err(|e| fail(e.to_string()))?;
        let expected = || fail("expected an object with `text`, `messages` or `input_ids`".to_owned());
        let object = value.as_object_mut().ok_or_else(expected)?;
        let kind = |value: &Value| match value {
            Value::Null => "null",
            Value::Bool(_) => "a truth value",
            Value::Number(_) => "a number",
            Value::String(_) => "text",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        let mut take = |key| object.get_mut(key).filter(|value| !value.is_null()).map(Value::take);
        if let Some(value) = take("text") {
            let found = kind(&value);
            return match value {
                Value::String(text) => Ok(Document::Text(text)),
                _ => Err(fail(format!("`text` is {found}, expected text"))),
            };
        }
        if let Some(value) = take("messages") {
            return match value {
                Value::Array(_) => Ok(Document::Messages(value)),
                other => Err(fail(format!("`messages` is {}, expected a list", kind(&other)))),
            };
        }
        let value = take("input_ids").ok_or_else(expected)?;
        let Value::Array(ids) = value else {
            return Err(fail(format!("`input_ids` is {}, expected a list", kind(&value))));
        };
        let id = |value: &Value| {
            value.as_u64().ok_or_else(|| fail(format!("`input_ids` holds {value}, expected whole numbers")))
        };
        ids.iter().map(id).collect::<Result<_, _>>().map(Document::Tokens)
    }

    fn bad_line(&self, line: usize, problem: String) -> CalibrationError {
        CalibrationError::Line { text: self.name.clone(), line, problem }
    }

    fn no_tokenizer(&self) -> CalibrationError {
        CalibrationError::NoTokenizer { text: self.name.clone() }
    }

    fn empty(&self) -> CalibrationError {
        CalibrationError::Empty { text: self.name.clone() }
    }
}

/// What gives documents, one after the other.
enum Documents<'a> {
    Lines(Lines<'a>),
    Rows(Rows),
}

impl Documents<'_> {
    fn next(&mut self) -> Result<Option<(usize, String)>, CalibrationError> {
        match self {
            Self::Lines(lines) => lines.next_line(),
            Self::Rows(rows) => rows.next_row(),
        }
    }

    /// What messages count.
    fn unit(&self) -> &'static str {
        match self {
            Self::Lines(_) => "line",
            Self::Rows(_) => "row",
        }
    }
}

enum Document {
    Text(String),
    Messages(Value),
    Tokens(Vec<u64>),
}

/// Cuts tokens into windows as they come.
struct Cutter {
    shape: WindowShape,
    begin: Option<u32>,
    /// Tokens of a window that come from the text.
    step: usize,
    /// Tokens that do not fill a window yet.
    rest: Vec<u32>,
    /// All tokens seen.
    tokens: usize,
    windows: Vec<Vec<u32>>,
}

impl Cutter {
    fn new(tokenizer: Option<&TextTokenizer>, shape: WindowShape) -> Self {
        let begin = tokenizer.and_then(TextTokenizer::begin);
        let step = shape.context - usize::from(begin.is_some());
        Self { shape, begin, step, rest: Vec::new(), tokens: 0, windows: Vec::new() }
    }

    /// Characters of text to take in at first.
    fn characters(&self) -> usize {
        let needed =
            self.shape.samples.saturating_mul(self.shape.context).saturating_mul(CHARACTERS_PER_TOKEN);
        if self.shape.seed.is_some() { needed.saturating_mul(4).max(DRAWN_CHARACTERS) } else { needed }
    }

    /// Tokens that follow those before.
    fn follow(&mut self, tokens: Vec<u32>) {
        self.tokens += tokens.len();
        let tokens =
            if self.rest.is_empty() { tokens } else { [std::mem::take(&mut self.rest), tokens].concat() };
        let windows = tokens.chunks_exact(self.step);
        self.rest = windows.remainder().to_vec();
        self.windows
            .extend(windows.map(|window| self.begin.iter().chain(window).copied().collect::<Vec<u32>>()));
    }

    /// Tokens of a document of its own.
    fn stand_alone(&mut self, tokens: &[u32]) {
        self.tokens += tokens.len();
        let windows = tokens.chunks(self.shape.context).filter(|window| window.len() >= 2);
        self.windows.extend(windows.map(<[u32]>::to_vec));
    }

    fn finish(mut self) -> Vec<Vec<u32>> {
        if let Some(seed) = self.shape.seed {
            shuffle(&mut self.windows, seed);
        }
        self.windows.truncate(self.shape.samples);
        self.windows
    }
}

/// Whether a line is a JSON object: then all lines are, and one without a document's keys is a mistake, not prose.
fn is_object(line: &str) -> bool {
    line.trim_start().starts_with('{') && serde_json::from_str::<Value>(line).is_ok()
}

fn check<'t>(
    place: &str,
    tokenizer: &TextTokenizer,
    mut tokens: impl Iterator<Item = &'t u32>,
    vocabulary: usize,
) -> Result<(), CalibrationError> {
    match tokens.find(|&&token| token as usize >= vocabulary) {
        None => Ok(()),
        Some(&token) => {
            let token = match tokenizer.name_of(token) {
                Some(name) => format!("{token} ({name:?})"),
                None => token.to_string(),
            };
            Err(CalibrationError::TokenOutOfRange { text: place.to_owned(), token, vocabulary })
        }
    }
}

/// Fisher-Yates.
fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut random = SplitMix::new(seed);
    for last in (1..items.len()).rev() {
        items.swap(last, random.below(last + 1));
    }
}

/// SHA-256 over the lengths and tokens of windows.
#[must_use]
pub fn fingerprint(windows: &[Vec<u32>]) -> String {
    let mut hash = Sha256::new();
    for window in windows {
        hash.update((window.len() as u64).to_le_bytes());
        for token in window {
            hash.update(token.to_le_bytes());
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
