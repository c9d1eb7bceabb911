//! How well a model predicts text, and how far it is from another.
//!
//! Perplexity is `exp` of the mean negative log-likelihood over positions 1 to the end of every window. The divergence of a token position
//! is `KL(reference || measured) = Σ p (ln p - ln q)` over the vocabulary. Both models advance layer by layer over all windows, so that the
//! weights of one layer of one model are in memory. The head comes in slices of the vocabulary, and logits exist for a few tokens and one
//! slice at a time.

pub mod comparison;
pub mod endings;
mod scoring;
pub(crate) mod softmax;
mod statistics;
mod stream;

use std::ops::ControlFlow;

use model::Model;
use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::error::CalibrationError;
use crate::forward::Forward;
use crate::weights::WeightSource;
pub use scoring::Favourite;
use scoring::{WindowFigures, WindowScore};
pub use statistics::{Estimate, PairedDifference};
use stream::Stream;

/// Numbers of a slice of the head.
const HEAD_SLICE: usize = 1 << 22;
/// Positions whose logits exist together.
const POSITIONS: usize = 64;

/// What a model scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Of the measured model.
    pub measured: Score,
    /// Of the reference, where there is one.
    pub reference: Option<Score>,
    /// Between the two.
    pub divergence: Option<Divergence>,
}

/// How well one model predicts the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// exp of the mean negative log-likelihood.
    pub perplexity: Estimate,
    /// Mean negative log-likelihood of each window, nats a token.
    pub window_nll: Vec<f64>,
}

/// How far the measured model is from the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// Mean KL divergence, nats a token.
    pub mean: Estimate,
    /// 99th percentile over tokens, nats.
    pub p99: Estimate,
    /// Share of positions where both rank the same token first.
    pub top1_agreement: f64,
}

/// Windows whose states are in memory together: as many as have `tokens` tokens, and one at least.
pub fn batches(windows: &[Vec<u32>], tokens: usize) -> impl Iterator<Item = &[Vec<u32>]> {
    let mut rest = windows;
    std::iter::from_fn(move || {
        let mut held = 0_usize;
        let fits = |window: &&Vec<u32>| {
            held = held.saturating_add(window.len());
            held <= tokens
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let batch;
        (batch, rest) = rest.split_at(count);
        (!batch.is_empty()).then_some(batch)
    })
}

/// Scores `measured` and, where given, its divergence from `reference` on `windows`, of which so many tokens are in memory together; the
/// figures do not depend on how many. The models take turns layer by layer, so that the first steps tell how long the others take. `step` is called
/// after each layer of each model and when a batch is scored: for each of [`batches`] `model.layers.len()` times for each model, and once; a
/// break ends the work.
///
/// # Errors
/// A break, those of the weight sources, a forward pass that leaves the finite numbers, and windows of which none has two tokens.
pub fn evaluate(
    model: &Model,
    measured: &dyn WeightSource,
    reference: Option<&dyn WeightSource>,
    (windows, tokens): (&[Vec<u32>], usize),
    step: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Evaluation, CalibrationError> {
    if windows.iter().all(|window| window.len() < 2) {
        return Err(CalibrationError::NothingToScore);
    }
    let forward = Forward::new(model, windows.iter().map(Vec::len).max().unwrap_or(0));
    let mut figures = Vec::with_capacity(windows.len());
    for batch in batches(windows, tokens) {
        let first = figures.len();
        let number = |error| in_batch(error, first);
        let mut measured = Stream::start(&forward, measured, batch)?;
        let mut reference = reference.map(|source| Stream::start(&forward, source, batch)).transpose()?;
        for layer in &model.layers {
            for stream in [Some(&mut measured), reference.as_mut()].into_iter().flatten() {
                stream.advance(layer).map_err(number)?;
                go_on(step)?;
            }
        }
        figures.extend(score_windows(batch, &measured, reference.as_ref()).map_err(number)?);
        go_on(step)?;
    }

    let score_of =
        |nll: &dyn Fn(&WindowFigures) -> Vec<f64>| score(&figures.iter().map(nll).collect::<Vec<_>>());
    let divergence = reference.is_some().then(|| {
        let divergences: Vec<_> = figures.iter().map(|window| window.divergence.clone()).collect();
        let positions: usize = divergences.iter().map(Vec::len).sum();
        let agreements = figures.iter().flat_map(WindowFigures::agreements).filter(|&agrees| agrees).count();
        Divergence {
            mean: statistics::mean(&divergences),
            p99: statistics::quantile(&divergences, 0.99),
            top1_agreement: agreements as f64 / positions as f64,
        }
    });
    Ok(Evaluation {
        measured: score_of(&|window| window.measured_nll.clone()),
        reference: reference.is_some().then(|| score_of(&|window| window.reference_nll.clone())),
        divergence,
    })
}

/// Calls `see` with the logits `[tokens, vocabulary]` of each window in turn. Here, unlike in [`evaluate`], the whole head is in memory.
///
/// # Errors
/// Those of the weight source, and a forward pass that leaves the finite numbers.
pub fn visit_logits(
    model: &Model,
    source: &dyn WeightSource,
    windows: &[Vec<u32>],
    see: &mut dyn FnMut(ArrayView2<'_, f32>),
) -> Result<(), CalibrationError> {
    let forward = Forward::new(model, windows.iter().map(Vec::len).max().unwrap_or(0));
    let stream = Stream::run(&forward, source, windows, &mut || ControlFlow::Continue(()))?;
    let head = source.head_rows(0..model.hyperparameters.vocabulary).map_err(CalibrationError::Source)?;
    for (window, tokens) in windows.iter().enumerate() {
        see(stream.logits(&head, window, 0..tokens.len()).view());
    }
    Ok(())
}

fn go_on(step: &mut dyn FnMut() -> ControlFlow<()>) -> Result<(), CalibrationError> {
    if step().is_break() { Err(CalibrationError::Interrupted) } else { Ok(()) }
}

/// Numbers the window that an error of a batch names among all, of which the batch's first is `first`.
fn in_batch(error: CalibrationError, first: usize) -> CalibrationError {
    match error {
        CalibrationError::NotFinite { window, place } => {
            CalibrationError::NotFinite { window: first + window, place }
        }
        other => other,
    }
}

/// Figures of all windows, in order.
fn score_windows(
    windows: &[impl AsRef<[u32]> + Sync],
    measured: &Stream<'_>,
    reference: Option<&Stream<'_>>,
) -> Result<Vec<WindowFigures>, CalibrationError> {
    let numbers = &measured.model().hyperparameters;
    let width = reference.map_or(0, |stream| stream.model().hyperparameters.hidden_size);
    let slice = (HEAD_SLICE / numbers.hidden_size.max(width)).clamp(1, numbers.vocabulary);
    let mut scores: Vec<WindowScore<'_>> =
        windows.iter().map(|tokens| WindowScore::new(tokens.as_ref(), reference.is_some())).collect();
    for first in (0..numbers.vocabulary).step_by(slice) {
        let vocabulary = first..(first + slice).min(numbers.vocabulary);
        let measured_head = measured.head_rows(vocabulary.clone())?;
        let reference = match reference {
            Some(stream) => Some((stream, stream.head_rows(vocabulary.clone())?)),
            None => None,
        };
        scores.par_iter_mut().enumerate().for_each(|(window, score)| {
            for first in (0..score.positions()).step_by(POSITIONS) {
                let positions = first..(first + POSITIONS).min(score.positions());
                let logits = measured.logits(&measured_head, window, positions.clone());
                let others =
                    reference.as_ref().map(|(stream, head)| stream.logits(head, window, positions.clone()));
                score.add(positions, vocabulary.clone(), logits.view(), others.as_ref().map(|l| l.view()));
            }
        });
    }
    let finished = scores.into_iter().enumerate().map(|(window, score)| {
        score.finish().ok_or_else(|| CalibrationError::NotFinite { window, place: "logits".to_owned() })
    });
    finished.collect()
}

/// `nll` holds the negative log-likelihoods of each window's positions.
fn score(nll: &[Vec<f64>]) -> Score {
    let mean = statistics::mean(nll);
    let perplexity = mean.value.exp();
    let mean_of = |window: &Vec<f64>| {
        if window.is_empty() { 0.0 } else { window.iter().sum::<f64>() / window.len() as f64 }
    };
    Score {
        perplexity: Estimate { value: perplexity, stderr: perplexity * mean.stderr },
        window_nll: nll.iter().map(mean_of).collect(),
    }
}
