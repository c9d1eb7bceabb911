//! Text that a model writes itself: ancestral sampling at temperature 1, which draws from what the model believes text to be.
//!
//! For calibration without data (LLM-QAT, arXiv 2305.17888, section 3.1). A sequence begins
//!
//! - with the token that begins every text, where the model has one; all that follows is drawn from the model's distribution;
//! - otherwise, as in that paper, with a token drawn evenly from the vocabulary. The next [`LIKELIEST`] tokens are the likeliest ones, which
//!   lead from an arbitrary token back to text that the model knows; the rest is drawn.
//!
//! Where the model ends a text before the sequence is full, the beginning token follows, as in packed training data; a model without one goes on
//! by itself. Logits are not truncated (no top-k, no top-p): rare tokens belong to the distribution.
//!
//! All sequences of a batch advance together, one token at a time, with their keys and values kept. A batch is as large as `CACHE_BYTES`
//! allow. A step needs all layers: they and the head stay in memory where they take no more than `HELD_BYTES` in f32, and are read again for
//! every step of every batch otherwise. The result depends on none of that in principle, and on the batch in the last bits of a product; threads
//! change nothing.

use std::borrow::Cow;
use std::ops::{ControlFlow, Range};

use kernels::elementwise;
use kernels::random::SplitMix;
use model::{Layer, Model};
use ndarray::{Array1, Array2, ArrayView2, s};
use rayon::prelude::*;

use crate::error::CalibrationError;
use crate::forward::{Forward, LayerCache, WindowState};
use crate::weights::{LayerWeights, LinearOperator, WeightSource};

/// Tokens taken without drawing after an arbitrary first one.
pub const LIKELIEST: usize = 4;
/// Bytes that the keys and values of one batch may take.
const CACHE_BYTES: usize = 2 << 30;
/// Bytes of f32 weights that are kept in memory between steps.
const HELD_BYTES: usize = 4 << 30;
/// Numbers of a slice of the head that is read at a time where it is not kept.
const HEAD_SLICE: usize = 1 << 22;

/// How sequences begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// With this token.
    Token(u32),
    /// With one of these, drawn evenly.
    AnyOf(Vec<u32>),
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// How many sequences.
    pub sequences: usize,
    /// Tokens of each, the first included; at least 2.
    pub tokens: usize,
    /// How they begin.
    pub beginning: Beginning,
    /// Tokens that end a text.
    pub ends: Vec<u32>,
    /// Of the draws.
    pub seed: u64,
}

/// Calls of `step` that [`sample`] makes.
#[must_use]
pub fn steps(model: &Model, request: &Request) -> usize {
    let batch = batch_size(&Forward::new(model, request.tokens), request);
    request.sequences.div_ceil(batch) * request.tokens.saturating_sub(1)
}

/// Lets the model write `request.sequences` sequences. `step` is called after each token of a batch; a break ends the work.
///
/// # Errors
/// A break, those of the source, sequences that hold nothing, a first token that the embedding does not have, and logits that are not finite.
pub fn sample(
    model: &Model,
    source: &dyn WeightSource,
    request: &Request,
    step: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Vec<Vec<u32>>, CalibrationError> {
    check(model, request)?;
    let forward = Forward::new(model, request.tokens);
    let weights = Weights::open(model, source)?;
    let mut seeds = SplitMix::new(request.seed);
    let mut writers: Vec<Writer> =
        (0..request.sequences).map(|_| Writer::start(request, seeds.bits())).collect();
    let size = batch_size(&forward, request);
    for (number, batch) in writers.chunks_mut(size).enumerate() {
        write(&forward, &weights, request, batch, step).map_err(|error| match error {
            CalibrationError::NotFinite { window, place } => {
                CalibrationError::NotFinite { window: window + number * size, place }
            }
            other => other,
        })?;
    }
    Ok(writers.into_iter().map(|writer| writer.tokens).collect())
}

fn check(model: &Model, request: &Request) -> Result<(), CalibrationError> {
    let vocabulary = model.hyperparameters.vocabulary;
    let first = match &request.beginning {
        Beginning::Token(token) => std::slice::from_ref(token),
        Beginning::AnyOf(tokens) => tokens,
    };
    if request.sequences == 0 || request.tokens < 2 || first.is_empty() {
        return Err(CalibrationError::Shape { samples: request.sequences, context: request.tokens });
    }
    match first.iter().find(|&&token| token as usize >= vocabulary) {
        None => Ok(()),
        Some(token) => Err(CalibrationError::TokenOutOfRange {
            text: "the beginning of what the model writes".to_owned(),
            token: token.to_string(),
            vocabulary,
        }),
    }
}

fn batch_size(forward: &Forward<'_>, request: &Request) -> usize {
    (CACHE_BYTES / forward.cache_bytes(request.tokens).max(1)).clamp(1, request.sequences.max(1))
}

/// One sequence as far as it is written.
struct Writer {
    tokens: Vec<u32>,
    random: SplitMix,
}

impl Writer {
    fn start(request: &Request, seed: u64) -> Self {
        let mut random = SplitMix::new(seed);
        let first = match &request.beginning {
            Beginning::Token(token) => *token,
            Beginning::AnyOf(tokens) => tokens[random.below(tokens.len())],
        };
        Self { tokens: vec![first], random }
    }

    /// Adds the token after the last one; false where the logits are not finite.
    fn go_on(&mut self, request: &Request, logits: &mut [f32]) -> bool {
        let last = self.tokens[self.tokens.len() - 1];
        if !elementwise::all_finite(logits) {
            return false;
        }
        let next = match &request.beginning {
            Beginning::Token(begin) if request.ends.contains(&last) => *begin,
            Beginning::AnyOf(_) if self.tokens.len() <= LIKELIEST => likeliest(logits),
            _ => draw(logits, self.random.unit()),
        };
        self.tokens.push(next);
        true
    }
}

/// Writes a batch to its end.
fn write(
    forward: &Forward<'_>,
    weights: &Weights<'_>,
    request: &Request,
    batch: &mut [Writer],
    step: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<(), CalibrationError> {
    let model = forward.model();
    let mut caches: Vec<LayerCache> =
        model.layers.iter().map(|_| forward.layer_cache(batch.len(), request.tokens)).collect();
    for position in 0..request.tokens - 1 {
        let newest: Vec<u32> = batch.iter().map(|writer| writer.tokens[position]).collect();
        let embedded = weights.source.embed(&newest).map_err(CalibrationError::Source)?;
        let mut state = WindowState::new(embedded);
        for (layer, cache) in model.layers.iter().zip(&mut caches) {
            forward.advance_layer_token(layer, &*weights.layer(layer)?, position, &mut state, cache);
        }
        let mut logits = weights.logits(forward, state.hidden())?;
        let rows: Vec<&mut [f32]> = logits
            .rows_mut()
            .into_iter()
            .map(|row| row.into_slice().expect("rows of an owned matrix are contiguous"))
            .collect();
        let finite: Vec<bool> =
            batch.par_iter_mut().zip(rows).map(|(writer, logits)| writer.go_on(request, logits)).collect();
        if let Some(window) = finite.iter().position(|finite| !finite) {
            return Err(CalibrationError::NotFinite { window, place: "logits".to_owned() });
        }
        if step().is_break() {
            return Err(CalibrationError::Interrupted);
        }
    }
    Ok(())
}

/// The largest logit's token, the first of equals.
fn likeliest(logits: &[f32]) -> u32 {
    let highest = elementwise::max(logits);
    logits.iter().position(|&logit| logit == highest).unwrap_or(0) as u32
}

/// The token whose stretch of the cumulative distribution holds `point`, which is from 0 to 1; `logits` become probabilities, not normalized.
fn draw(logits: &mut [f32], point: f64) -> u32 {
    let highest = elementwise::max(logits);
    elementwise::exponentiate(logits, highest);
    let total: f64 = logits.iter().map(|&share| f64::from(share)).sum();
    let mut left = point * total;
    for (token, &share) in logits.iter().enumerate() {
        left -= f64::from(share);
        if left < 0.0 {
            return token as u32;
        }
    }
    // Rounding left a little: the last token that can be drawn.
    logits.iter().rposition(|&share| share > 0.0).unwrap_or(0) as u32
}

/// The weights of every step.
struct Weights<'s> {
    source: &'s dyn WeightSource,
    final_norm: Array1<f32>,
    vocabulary: usize,
    hidden: usize,
    held: Option<(Vec<LayerWeights>, LinearOperator)>,
}

impl<'s> Weights<'s> {
    fn open(model: &Model, source: &'s dyn WeightSource) -> Result<Self, CalibrationError> {
        let numbers = &model.hyperparameters;
        let (vocabulary, hidden) = (numbers.vocabulary, numbers.hidden_size);
        let linears: usize = model.linears().map(|linear| linear.out_features * linear.in_features).sum();
        let held = if 4 * (linears + vocabulary * hidden) <= HELD_BYTES {
            let layers = model.layers.iter().map(|layer| source.layer(layer));
            let layers = layers.collect::<Result<_, _>>().map_err(CalibrationError::Source)?;
            Some((layers, source.head_rows(0..vocabulary).map_err(CalibrationError::Source)?))
        } else {
            None
        };
        let final_norm = source.final_norm().map_err(CalibrationError::Source)?;
        Ok(Self { source, final_norm, vocabulary, hidden, held })
    }

    fn layer(&self, layer: &Layer) -> Result<Cow<'_, LayerWeights>, CalibrationError> {
        match &self.held {
            Some((layers, _)) => Ok(Cow::Borrowed(&layers[layer.index])),
            None => self.source.layer(layer).map(Cow::Owned).map_err(CalibrationError::Source),
        }
    }

    /// `[sequences, vocabulary]` for the residual streams `[sequences, hidden]`.
    fn logits(
        &self,
        forward: &Forward<'_>,
        hidden: ArrayView2<'_, f32>,
    ) -> Result<Array2<f32>, CalibrationError> {
        if let Some((_, head)) = &self.held {
            return Ok(forward.logits(&self.final_norm, head, hidden));
        }
        let slice = (HEAD_SLICE / self.hidden).clamp(1, self.vocabulary);
        let mut logits = Array2::zeros((hidden.nrows(), self.vocabulary));
        for first in (0..self.vocabulary).step_by(slice) {
            let rows: Range<usize> = first..(first + slice).min(self.vocabulary);
            let head = self.source.head_rows(rows.clone()).map_err(CalibrationError::Source)?;
            logits.slice_mut(s![.., rows]).assign(&forward.logits(&self.final_norm, &head, hidden));
        }
        Ok(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.0_f32, 1.0, -2.0, f32::ln(4.0)];
        let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        let mut counts = [0.0; 4];
        let mut random = SplitMix::new(3);
        for _ in 0..20_000 {
            counts[draw(&mut logits.clone(), random.unit()) as usize] += 1.0 / 20_000.0;
        }
        for (count, logit) in counts.iter().zip(logits) {
            assert!((count - f64::from(logit).exp() / total).abs() < 0.015, "{counts:?}");
        }
        assert_eq!(draw(&mut [0.0, 0.0, -200.0], 1.0), 1);
        assert_eq!(likeliest(&[1.0, 3.0, 3.0]), 1);
    }
}
