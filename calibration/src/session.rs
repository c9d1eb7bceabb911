//! One sequence that grows: tokens go in, the logits of what follows come out, and nothing is computed twice.

use kernels::bf16::Precision;
use kernels::elementwise;
use model::Model;
use ndarray::{Array1, s};

use crate::error::CalibrationError;
use crate::forward::{Forward, LayerCache};
use crate::held::HeldWeights;
use crate::weights::WeightSource;

/// Tokens of a prompt that go through a layer together.
const RUN: usize = 256;

/// A sequence as far as it is known.
#[expect(missing_debug_implementations, reason = "a source of weights need not have one")]
pub struct Session<'m> {
    forward: Forward<'m>,
    weights: HeldWeights<'m>,
    caches: Vec<LayerCache>,
    position: usize,
    capacity: usize,
}

impl<'m> Session<'m> {
    /// Room for `capacity` tokens.
    ///
    /// # Errors
    /// Those of the source.
    pub fn open(
        model: &'m Model,
        source: &'m dyn WeightSource,
        capacity: usize,
    ) -> Result<Self, CalibrationError> {
        let forward = Forward::new(model, capacity);
        let caches = model.layers.iter().map(|_| forward.layer_cache(1, capacity)).collect();
        let weights = HeldWeights::open(model, source, Precision::Single)?;
        Ok(Self { forward, weights, caches, position: 0, capacity })
    }

    /// Tokens so far.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Tokens that there is room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.capacity - self.position
    }

    /// Forgets all tokens from `position` on, if there are any.
    pub fn rewind(&mut self, position: usize) {
        self.position = self.position.min(position);
    }

    /// Adds tokens, at least one and no more than there is room for; gives the logits of what follows, `[vocabulary]`.
    ///
    /// # Errors
    /// Those of the source, more tokens than there is room for, and logits that are not finite.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<Array1<f32>, CalibrationError> {
        // On a thread of the pool: from outside, each of the many short parallel loops would be handed over and waited for.
        rayon::scope(|_| self.feed_here(tokens))
    }

    fn feed_here(&mut self, tokens: &[u32]) -> Result<Array1<f32>, CalibrationError> {
        if tokens.is_empty() || tokens.len() > self.room() {
            return Err(CalibrationError::Shape { samples: tokens.len(), context: self.room() });
        }
        let mut logits = Array1::zeros(0);
        let mut left = tokens.len();
        for run in tokens.chunks(RUN) {
            let embedded = self.forward.embed(self.weights.source, run, self.position);
            let mut state = embedded.map_err(CalibrationError::Source)?;
            for (layer, cache) in self.forward.model().layers.iter().zip(&mut self.caches) {
                let weights = self.weights.layer(layer)?;
                let source = self.weights.source;
                self.forward
                    .advance_layer_run(layer, weights, source, self.position, &mut state, cache)
                    .map_err(CalibrationError::Source)?;
            }
            self.position += run.len();
            left -= run.len();
            if left == 0 {
                let hidden = state.hidden();
                let last = hidden.slice(s![run.len() - 1.., ..]);
                logits = self.weights.logits(&self.forward, last)?.row(0).to_owned();
            }
        }
        if logits.as_slice().is_some_and(elementwise::all_finite) {
            Ok(logits)
        } else {
            Err(CalibrationError::NotFinite { window: 0, place: "logits".to_owned() })
        }
    }
}
