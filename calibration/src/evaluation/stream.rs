//! One model on its way through windows of tokens: all of them after the same layer, so that one layer's weights are in memory.

use std::ops::{ControlFlow, Range};

use model::{Layer, Model};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use crate::error::CalibrationError;
use crate::forward::{Forward, WindowState};
use crate::weights::{LinearOperator, OuterWeights, WeightSource};

/// The hidden states of all windows.
pub(super) struct Stream<'s> {
    forward: &'s Forward<'s>,
    source: &'s dyn WeightSource,
    outer: OuterWeights,
    /// One for each window.
    states: Vec<WindowState>,
}

impl<'s> Stream<'s> {
    /// Before the first layer.
    pub(super) fn start(
        forward: &'s Forward<'s>,
        source: &'s dyn WeightSource,
        windows: &[impl AsRef<[u32]> + Sync],
    ) -> Result<Self, CalibrationError> {
        let embedded = windows.par_iter().map(|tokens| forward.embed(source, tokens.as_ref(), 0));
        let states = embedded.collect::<Result<Vec<_>, _>>().map_err(CalibrationError::Source)?;
        let outer = source.outer().map_err(CalibrationError::Source)?;
        Ok(Self { forward, source, outer, states })
    }

    /// After the last layer; `step` is called after each.
    pub(super) fn run(
        forward: &'s Forward<'s>,
        source: &'s dyn WeightSource,
        windows: &[impl AsRef<[u32]> + Sync],
        step: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Self, CalibrationError> {
        let mut stream = Self::start(forward, source, windows)?;
        for layer in &forward.model().layers {
            stream.advance(layer)?;
            super::go_on(step)?;
        }
        Ok(stream)
    }

    /// Takes every window through a layer.
    pub(super) fn advance(&mut self, layer: &Layer) -> Result<(), CalibrationError> {
        self.forward
            .advance_windows(layer, self.source, &mut self.states)
            .map_err(CalibrationError::Source)?;
        match self.states.iter().position(|state| !state.is_finite()) {
            None => Ok(()),
            Some(window) => {
                Err(CalibrationError::NotFinite { window, place: format!("layer {}", layer.index) })
            }
        }
    }

    pub(super) fn model(&self) -> &'s Model {
        self.forward.model()
    }

    /// The residual stream of each window, `[tokens, hidden]`.
    pub(super) fn hidden(&self) -> impl ExactSizeIterator<Item = ArrayView2<'_, f32>> {
        self.states.iter().map(WindowState::hidden)
    }

    /// Forgets all tokens of each window before the position that `first` gives for it.
    pub(super) fn keep_from(&mut self, first: &[usize]) {
        for (state, &first) in self.states.iter_mut().zip(first) {
            *state = WindowState::new(state.hidden().slice(s![first.., ..]).to_owned());
        }
    }

    pub(super) fn head_rows(&self, rows: Range<usize>) -> Result<LinearOperator, CalibrationError> {
        self.source.head_rows(rows).map_err(CalibrationError::Source)
    }

    /// Logits of some positions of a window for the vocabulary that `head` holds the rows of.
    pub(super) fn logits(
        &self,
        head: &LinearOperator,
        window: usize,
        positions: Range<usize>,
    ) -> Array2<f32> {
        let hidden = self.states[window].hidden();
        self.forward.logits(&self.outer, head, hidden.slice(s![positions, ..]))
    }
}
