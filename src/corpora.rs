//! From a job's text and window request to windows of tokens, with what has to be said about them.

use calibration::corpus::{Corpus, WindowShape, Windows};
use calibration::tokenizer::TextTokenizer;
use model::Model;

use crate::error::Error;
use crate::job::{Text, WindowRequest};
use crate::report::TextSummary;

const CALIBRATION: &str = include_str!("../demo/calibration.txt");
const EVALUATION: &str = include_str!("../demo/evaluation.txt");

/// Windows of a text, and the lines of the report about them.
#[derive(Debug)]
pub(crate) struct ReadText {
    pub(crate) windows: Windows,
    pub(crate) summary: TextSummary,
    pub(crate) notes: Vec<String>,
}

/// Reads `text` as `request` asks, at most as long as the model attends.
pub(crate) fn read(
    text: &Text,
    request: WindowRequest,
    model: &Model,
    tokenizer: Option<&TextTokenizer>,
) -> Result<ReadText, Error> {
    let corpus = match text {
        Text::BuiltInCalibration => Corpus::new(text.name(), CALIBRATION),
        Text::BuiltInEvaluation => Corpus::new(text.name(), EVALUATION),
        Text::File(path) => Corpus::read(path)?,
    };
    let context = request.context.min(model.hyperparameters.context);
    let shape = WindowShape { samples: request.samples, context, seed: request.seed };
    let windows = corpus.windows(tokenizer, model.hyperparameters.vocabulary, shape)?;
    let found = windows.tokens.len();
    let mut notes = Vec::new();
    if found < request.samples {
        notes.push(format!(
            "{} gives {found} windows of {context} tokens, {} were asked for",
            corpus.name(),
            request.samples
        ));
    }
    let summary = TextSummary {
        text: corpus.name().to_owned(),
        windows: found,
        context,
        requested: request,
        fingerprint: windows.fingerprint.clone(),
    };
    Ok(ReadText { windows, summary, notes })
}
