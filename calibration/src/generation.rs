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
//! allow. A step needs all layers: they and the head stay in memory where they fit (`held.rs`), and are read again for
//! every step of every batch otherwise. The result depends on none of that in principle, and on the batch in the last bits of a product; threads
//! change nothing.

use std::ops::ControlFlow;

use kernels::bf16::Precision;
use kernels::elementwise;
use kernels::random::SplitMix;
use model::Model;
use rayon::prelude::*;

use crate::error::CalibrationError;
use crate::forward::{Forward, LayerCache};
use crate::held::HeldWeights;
use crate::sampling::{draw, likeliest};
use crate::weights::WeightSource;

/// Tokens taken without drawing after an arbitrary first one.
pub const LIKELIEST: usize = 4;
/// Bytes that the keys and values of one batch may take.
pub const CACHE_BYTES: usize = 2 << 30;

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
    /// What factors of products with weights are rounded to, where weights are held.
    pub precision: Precision,
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
    let weights = HeldWeights::open(model, source, request.precision)?;
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

/// Bytes of weights that are kept between steps, for a model that is not read again for each.
#[must_use]
pub fn held_bytes(model: &Model) -> usize {
    crate::held::bytes(model)
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
    weights: &HeldWeights<'_>,
    request: &Request,
    batch: &mut [Writer],
    step: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<(), CalibrationError> {
    let model = forward.model();
    let mut caches: Vec<LayerCache> =
        model.layers.iter().map(|_| forward.layer_cache(batch.len(), request.tokens)).collect();
    for position in 0..request.tokens - 1 {
        let newest: Vec<u32> = batch.iter().map(|writer| writer.tokens[position]).collect();
        let embedded = forward.embed_each(weights.source, &newest, position);
        let mut state = embedded.map_err(CalibrationError::Source)?;
        for (layer, cache) in model.layers.iter().zip(&mut caches) {
            forward
                .advance_layer_token(
                    layer,
                    weights.layer(layer)?,
                    weights.source,
                    position,
                    &mut state,
                    cache,
                )
                .map_err(CalibrationError::Source)?;
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
