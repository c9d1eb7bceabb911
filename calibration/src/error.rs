//! What can go wrong with text and with the forward pass.

use std::path::PathBuf;

use crate::weights::SourceError;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// A file that cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Text that is not UTF-8.
    #[error("{text}, line {line}: not UTF-8, byte {offset} of the file does not fit")]
    NotUtf8 {
        /// The text's name.
        text: String,
        /// The line, from 1.
        line: usize,
        /// Offset of the first byte that does not fit.
        offset: usize,
    },
    /// Text without a token.
    #[error("{text} is empty")]
    Empty {
        /// The text's name.
        text: String,
    },
    /// Text that does not fill one window.
    #[error("{text} has {found} tokens, expected at least {needed} for one window")]
    TooShort {
        /// The text's name.
        text: String,
        /// Tokens in it.
        found: usize,
        /// Tokens of a window.
        needed: usize,
    },
    /// A line of a JSON-lines file that is no document.
    #[error("{text}, line {line}: {problem}")]
    Line {
        /// The text's name.
        text: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A Parquet file that cannot be read.
    #[error("{text}: {problem}")]
    Parquet {
        /// The text's name.
        text: String,
        /// What is wrong.
        problem: String,
    },
    /// Windows that hold nothing.
    #[error("{samples} windows of {context} tokens are asked for, expected at least 1 of at least 2")]
    Shape {
        /// Windows asked for.
        samples: usize,
        /// Tokens of a window.
        context: usize,
    },
    /// A conversation that the model's chat template does not render.
    #[error("{path}: {problem}")]
    Chat {
        /// The tokenizer's file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A token that the model's embedding does not have.
    #[error("{text} has token {token}, but the model's embedding has {vocabulary} rows")]
    TokenOutOfRange {
        /// The text's name, and the line where there is one.
        text: String,
        /// The token, and its text where the tokenizer has one.
        token: String,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// A tokenizer that cannot be read or used.
    #[error("{path}: {problem}")]
    Tokenizer {
        /// tokenizer.json or a file beside it.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Text that needs a tokenizer, and a model without one.
    #[error("{text} needs a tokenizer, and the model has no tokenizer.json")]
    NoTokenizer {
        /// The text's name.
        text: String,
    },
    /// Weights that cannot be had.
    #[error(transparent)]
    Source(SourceError),
    /// Nothing to measure on.
    #[error("no window has two tokens, so there is nothing to predict")]
    NothingToScore,
    /// The caller asked for an end.
    #[error("interrupted")]
    Interrupted,
    /// A forward pass that left the numbers.
    #[error("the forward pass gave a value that is not finite in window {window}, {place}")]
    NotFinite {
        /// The window, from 0.
        window: usize,
        /// Layer or logits.
        place: String,
    },
}
