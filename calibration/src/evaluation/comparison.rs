//! Several models on the same text, side by side: what each gives every token, how far from the reference, and after which layer.
//!
//! All models advance layer by layer together, so that one layer of one model is in memory and the hidden states after it can be compared.
//! Models may be of different shapes as long as they have one vocabulary; hidden states are compared where theirs have the same.

use std::ops::ControlFlow;

use model::Model;
use rayon::prelude::*;

use super::scoring::{Favourite, WindowFigures};
use super::stream::Stream;
use super::{Estimate, PairedDifference, batches, in_batch, score_windows, statistics};
use crate::error::CalibrationError;
use crate::forward::Forward;
use crate::weights::WeightSource;

/// One of the models.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "a source of weights need not have one")]
pub struct Contender<'m> {
    /// Its description.
    pub model: &'m Model,
    /// Its weights.
    pub source: &'m dyn WeightSource,
}

/// What one model gave the text. All lists are of windows, and in them of positions that have a next token.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// Negative log-likelihoods, nats.
    pub nll: Vec<Vec<f64>>,
    /// What it ranks first.
    pub first: Vec<Vec<Favourite>>,
    /// How far it is from the reference; none for the reference itself.
    pub distance: Option<Distance>,
}

/// How far a model is from the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Distance {
    /// KL(reference || model), nats.
    pub divergence: Vec<Vec<f32>>,
    /// 1 where both rank the same token first, 0 elsewhere.
    pub agreement: Vec<Vec<f32>>,
    /// Mean over tokens of ‖h' - h‖ / ‖h‖ of the residual streams after each layer; none where they are of different shapes.
    pub layers: Option<Vec<Estimate>>,
}

/// What happens to which model, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its next layer begins.
    Layer(usize),
    /// The layer is done.
    LayerDone(usize),
    /// Its logits begin, after all layers.
    Logits(usize),
}

impl Compared {
    /// exp of the mean negative log-likelihood.
    #[must_use]
    pub fn perplexity(&self) -> Estimate {
        super::score(&self.nll).perplexity
    }

    /// Difference of the mean negative log-likelihoods, this model's less the other's: the logarithm of the perplexities' ratio.
    #[must_use]
    pub fn nll_less(&self, other: &Self) -> PairedDifference {
        PairedDifference::of(&self.nll, &other.nll)
    }
}

impl Distance {
    /// Mean divergence, nats a token.
    #[must_use]
    pub fn mean(&self) -> Estimate {
        statistics::mean(&self.divergence)
    }

    /// 99th percentile of the divergence over tokens, nats.
    #[must_use]
    pub fn p99(&self) -> Estimate {
        statistics::quantile(&self.divergence, 0.99)
    }

    /// Share of positions where both rank the same token first.
    #[must_use]
    pub fn top1_agreement(&self) -> Estimate {
        statistics::mean(&self.agreement)
    }
}

/// Measures every model on `windows`, of which so many tokens are in memory together; the figures do not depend on how many. The first model
/// is the reference. `see` is told what happens; a break ends the work.
///
/// # Errors
/// A break, those of the weight sources, a forward pass that leaves the finite numbers, windows of which none has two tokens.
///
/// # Panics
/// Where a model has another vocabulary than the first.
pub fn compare(
    contenders: &[Contender<'_>],
    (windows, tokens): (&[Vec<u32>], usize),
    see: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Vec<Compared>, CalibrationError> {
    if windows.iter().all(|window| window.len() < 2) {
        return Err(CalibrationError::NothingToScore);
    }
    let mut told = |event| match see(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(CalibrationError::Interrupted),
    };
    let longest = windows.iter().map(Vec::len).max().unwrap_or(0);
    let forwards: Vec<Forward<'_>> =
        contenders.iter().map(|contender| Forward::new(contender.model, longest)).collect();
    let mut found: Vec<Seen> = contenders.iter().map(|_| Seen::default()).collect();
    for batch in batches(windows, tokens) {
        let first = found[0].figures.len();
        advance(contenders, &forwards, batch, &mut found, &mut told)
            .map_err(|error| in_batch(error, first))?;
    }
    let finished = found.into_iter().enumerate().map(|(number, seen)| {
        let alike = alike(contenders[number].model, contenders[0].model);
        seen.finish(number > 0, alike)
    });
    Ok(finished.collect())
}

/// Whether the residual streams of two models can be compared.
fn alike(model: &Model, reference: &Model) -> bool {
    let shape = |model: &Model| (model.layers.len(), model.hyperparameters.hidden_size);
    shape(model) == shape(reference)
}

/// What was seen of one model so far.
#[derive(Default)]
struct Seen {
    /// By window.
    figures: Vec<WindowFigures>,
    /// By layer, window and token.
    distances: Vec<Vec<Vec<f32>>>,
}

impl Seen {
    fn finish(self, has_reference: bool, alike: bool) -> Compared {
        let agreements = |window: &WindowFigures| {
            window.agreements().into_iter().map(|agrees| f32::from(u8::from(agrees))).collect()
        };
        let distance = has_reference.then(|| Distance {
            divergence: self.figures.iter().map(|window| window.divergence.clone()).collect(),
            agreement: self.figures.iter().map(agreements).collect(),
            layers: alike.then(|| self.distances.iter().map(|layer| statistics::mean(layer)).collect()),
        });
        let (nll, first) =
            self.figures.into_iter().map(|window| (window.measured_nll, window.measured_first)).unzip();
        Compared { nll, first, distance }
    }
}

/// Takes some windows through all models, and adds what is seen to `found`.
fn advance(
    contenders: &[Contender<'_>],
    forwards: &[Forward<'_>],
    windows: &[Vec<u32>],
    found: &mut [Seen],
    told: &mut dyn FnMut(Event) -> Result<(), CalibrationError>,
) -> Result<(), CalibrationError> {
    let mut streams = Vec::with_capacity(contenders.len());
    for (number, (forward, contender)) in forwards.iter().zip(contenders).enumerate() {
        told(Event::Layer(number))?;
        streams.push(Stream::start(forward, contender.source, windows)?);
    }
    let deepest = contenders.iter().map(|contender| contender.model.layers.len()).max().unwrap_or(0);
    for index in 0..deepest {
        for (number, stream) in streams.iter_mut().enumerate() {
            let Some(layer) = contenders[number].model.layers.get(index) else { continue };
            told(Event::Layer(number))?;
            stream.advance(layer)?;
            told(Event::LayerDone(number))?;
        }
        let (reference, others) = streams.split_first().expect("there is a reference");
        for (seen, stream) in found[1..].iter_mut().zip(others) {
            if alike(stream.model(), reference.model()) {
                seen.distances.resize_with(deepest, Vec::new);
                seen.distances[index].extend(distances(reference, stream));
            }
        }
    }
    for (number, seen) in found.iter_mut().enumerate() {
        told(Event::Logits(number))?;
        let reference = (number > 0).then_some(&streams[0]);
        seen.figures.extend(score_windows(windows, &streams[number], reference)?);
    }
    Ok(())
}

/// ‖h' - h‖ / ‖h‖ of every token, by window.
fn distances(reference: &Stream<'_>, other: &Stream<'_>) -> Vec<Vec<f32>> {
    let pairs: Vec<_> = reference.hidden().zip(other.hidden()).collect();
    let of_window = |(reference, other): &(ndarray::ArrayView2<'_, f32>, ndarray::ArrayView2<'_, f32>)| {
        let tokens = reference.rows().into_iter().zip(other.rows());
        tokens
            .map(|(h, other)| {
                let square = |value: f32| f64::from(value) * f64::from(value);
                let norm: f64 = h.iter().map(|&value| square(value)).sum();
                let apart: f64 = h.iter().zip(other).map(|(&a, &b)| square(b - a)).sum();
                if apart == 0.0 { 0.0 } else { (apart / norm.max(f64::MIN_POSITIVE)).sqrt() as f32 }
            })
            .collect()
    };
    pairs.par_iter().map(of_window).collect()
}
