//! `--min-expert-tokens`: as much of a text as it takes until the original sends every expert so many tokens.
//!
//! The text is drawn in rounds, each of more windows than the last, and the original is run on all of them; of the round that suffices the
//! first windows that do are taken. A text that ends before is taken as a whole.

use std::borrow::Cow;

use calibration::corpus::fingerprint;
use calibration::forward::{Forward, WindowState};
use calibration::tokenizer::TextTokenizer;
use calibration::weights::WeightSource;
use model::graph::StageInput;
use rayon::prelude::*;

use crate::corpora::{self, ReadText};
use crate::error::Error;
use crate::job::{Text, WindowRequest};
use crate::progress::{Progress, go_on};
use crate::stored::StoredModel;

/// Most times that a round's windows are those of the one before.
const GROWTH: usize = 4;
/// Windows that go through the model together.
const BATCH: usize = 64;

/// Reads `text` as `request` asks, and more of it until every expert sees at least `least` tokens.
pub(crate) fn read(
    text: &Text,
    request: WindowRequest,
    least: usize,
    source: &StoredModel,
    tokenizer: Option<&TextTokenizer>,
    progress: &dyn Progress,
) -> Result<ReadText, Error> {
    let mut asked = request;
    loop {
        let mut read = corpora::read(text, asked, &source.model, tokenizer, progress)?;
        let found = read.windows.tokens.len();
        let counts = count(source, &read.windows.tokens, progress)?;
        let first = request.samples.min(found);
        let enough = (first..=found).find(|&windows| fewest(&counts[..windows]).1 >= least);
        if let Some(windows) = enough {
            read.windows.tokens.truncate(windows);
            retell(&mut read, request);
            if windows > first {
                read.notes.push(format!(
                    "{windows} calibration windows, where {} were asked for: with these every expert sees {least} tokens",
                    request.samples
                ));
            }
            return Ok(read);
        }
        let (place, tokens) = fewest(&counts);
        if found < asked.samples {
            retell(&mut read, request);
            let (layer, expert) = source.expert_at(place);
            read.notes.push(format!(
                "all {found} windows of {} do not send every expert {least} tokens: expert {expert} of layer {layer} sees {tokens}",
                text.name()
            ));
            return Ok(read);
        }
        let growth = least.div_ceil(tokens.max(1)).clamp(2, GROWTH);
        asked.samples = asked.samples.saturating_mul(growth);
    }
}

/// Makes the summary that of the windows that were taken.
fn retell(read: &mut ReadText, request: WindowRequest) {
    let tokens = &read.windows.tokens;
    read.windows.fingerprint = fingerprint(tokens);
    read.summary.windows = tokens.len();
    read.summary.tokens = tokens.iter().map(Vec::len).sum();
    read.summary.fingerprint.clone_from(&read.windows.fingerprint);
    read.summary.requested = request;
    // Said of rounds that asked for more than was needed.
    read.notes.retain(|note| !note.contains("were asked for"));
    if tokens.len() < request.samples {
        read.notes.push(format!("{} windows, {} were asked for", tokens.len(), request.samples));
    }
}

/// The expert that sees the fewest tokens, numbered through all layers, and how many.
fn fewest(counts: &[Vec<usize>]) -> (usize, usize) {
    let experts = counts.first().map_or(0, Vec::len);
    let sums = (0..experts).map(|expert| (expert, counts.iter().map(|window| window[expert]).sum()));
    sums.min_by_key(|&(_, sum)| sum).unwrap_or((0, 0))
}

/// For each window how many tokens are sent to each expert, numbered through all layers.
fn count(
    source: &StoredModel,
    windows: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<Vec<Vec<usize>>, Error> {
    let model = &source.model;
    let forward = Forward::new(model, windows.iter().map(Vec::len).max().unwrap_or(0));
    let mut counts = vec![Vec::new(); windows.len()];
    progress.phase("counting experts' tokens", model.layers.len() * windows.len().div_ceil(BATCH));
    for (windows, counts) in windows.chunks(BATCH).zip(counts.chunks_mut(BATCH)) {
        let embed =
            |tokens: &Vec<u32>| source.embed(tokens).map(WindowState::new).map_err(Error::from_source);
        let mut states = windows.par_iter().map(embed).collect::<Result<Vec<_>, Error>>()?;
        for layer in &model.layers {
            go_on(progress)?;
            let weights = source.layer_weights(layer)?;
            let behind =
                layer.stages.iter().position(|stage| stage.input == StageInput::MlpInput).unwrap_or(0);
            for place in 0..behind {
                states.par_iter_mut().for_each(|state| forward.advance(layer, place, &weights, state));
            }
            for (state, counts) in states.iter().zip(counts.iter_mut()) {
                counts.extend((0..layer.experts()).map(|expert| state.sent_to(expert)));
            }
            forward
                .advance_from(layer, behind, &mut Cow::Owned(weights), source, &mut states)
                .map_err(Error::from_source)?;
            progress.step("");
        }
    }
    progress.finish();
    Ok(counts)
}
