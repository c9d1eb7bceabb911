//! From a job's text and window request to windows of tokens, with what has to be said about them.

use std::collections::HashSet;

use calibration::corpus::{Corpus, WindowShape, Windows};
use calibration::tokenizer::TextTokenizer;
use model::Model;

use crate::error::Error;
use crate::hub;
use crate::job::{Text, USUAL_CONTEXT, WindowRequest};
use crate::progress::Progress;
use crate::render::text::counted_windows;
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
    progress: &dyn Progress,
) -> Result<ReadText, Error> {
    let corpus = match text {
        Text::BuiltInCalibration => Corpus::new(text.name(), CALIBRATION),
        Text::BuiltInEvaluation => Corpus::new(text.name(), EVALUATION),
        Text::Windows(documents) => {
            let line = |tokens: &Vec<u32>| format!("{}\n", serde_json::json!({ "input_ids": tokens }));
            Corpus::new(text.name(), documents.iter().map(line).collect::<String>())
        }
        Text::File(path) => Corpus::read(&hub::text_file(path, progress)?)?.called(text.name()),
    };
    let context = request.context.min(model.hyperparameters.context);
    let shape = WindowShape { samples: request.samples, context, seed: request.seed };
    let windows = corpus.windows(tokenizer, model.hyperparameters.vocabulary, shape)?;
    let found = windows.tokens.len();
    let mut notes: Vec<String> = shortened(request, model.hyperparameters.context).into_iter().collect();
    notes.extend(tiny(request, corpus.name()));
    notes.iter().for_each(|note| progress.warn(note));
    if found < request.samples {
        notes.push(format!(
            "{} gives {} of {context} tokens, {} were asked for",
            corpus.name(),
            counted_windows(found),
            request.samples
        ));
    }
    let longest = windows.tokens.iter().map(Vec::len).max().unwrap_or(0);
    let shorter = windows.tokens.iter().filter(|window| window.len() < context).count();
    if shorter > 0 {
        notes.push(format!(
            "{shorter} of {} of {} are shorter than {context} tokens",
            counted_windows(found),
            corpus.name()
        ));
    }
    let summary = TextSummary {
        text: corpus.name().to_owned(),
        windows: found,
        context: longest,
        tokens: windows.tokens.iter().map(Vec::len).sum(),
        requested: request,
        fingerprint: windows.fingerprint.clone(),
    };
    Ok(ReadText { windows, summary, notes })
}

/// What is said where windows were asked for that are longer than a model attends. Those that nobody asked for are as long as they can be.
pub(crate) fn shortened(request: WindowRequest, context: usize) -> Option<String> {
    let asked = request.context;
    (asked > context && asked != USUAL_CONTEXT)
        .then(|| format!("windows have {context} tokens, not {asked}: the model attends to no more"))
}

/// What is said where windows were asked for in which a model has hardly anything to go by.
fn tiny(request: WindowRequest, text: &str) -> Option<String> {
    let asked = request.context;
    (asked < TINY).then(|| {
        format!("windows of {asked} tokens of {text} show nothing of how a model uses what it read before: {USUAL_CONTEXT} are usual")
    })
}

/// Tokens of a window that are too few to say much.
const TINY: usize = 32;

/// Tokens of a passage: long enough not to be in two texts by chance.
const PASSAGE: usize = 32;

/// Share of the passages of `evaluation` that are in `calibration` as well, wherever the windows were cut.
pub(crate) fn overlap(calibration: &[Vec<u32>], evaluation: &[Vec<u32>]) -> f64 {
    let seen: HashSet<&[u32]> = calibration.iter().flat_map(|window| window.windows(PASSAGE)).collect();
    let passages = || evaluation.iter().flat_map(|window| window.chunks_exact(PASSAGE));
    let shared = passages().filter(|passage| seen.contains(passage)).count();
    shared as f64 / passages().count().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_passages_are_found_wherever_windows_begin() {
        let text: Vec<u32> = (0..4000_u32).map(|i| i.wrapping_mul(2_654_435_761) >> 16).collect();
        let cut = |tokens: &[u32], length: usize| tokens.chunks_exact(length).map(<[u32]>::to_vec).collect();
        let calibration: Vec<Vec<u32>> = cut(&text[..2000], 200);
        let apart: Vec<Vec<u32>> = cut(&text[2000..], 128);
        let half: Vec<Vec<u32>> = cut(&text[1013..3013], 100);
        assert_eq!(overlap(&calibration, &apart), 0.0);
        assert_eq!(overlap(&calibration, &calibration), 1.0);
        assert!((0.3..0.6).contains(&overlap(&calibration, &half)));
    }
}
