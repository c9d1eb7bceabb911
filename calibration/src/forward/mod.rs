//! The forward pass of a described decoder layer, stage by stage, for one window.
//!
//! A stage's input can be looked at before its linears are applied, and the linears may be replaced between looking and applying: that is
//! all that staged calibration needs. Everything is computed in f32; the equations are those of the architecture's reference implementation.
//! Windows are independent of each other. Nothing here depends on the number of threads.

pub(crate) mod attention;
pub(crate) mod elementwise;
mod incremental;
pub(crate) mod rotary;
pub(crate) mod routing;

use model::graph::StageInput;
use std::borrow::Cow;

use model::linear::{Part, Role, Slot};
use model::{Layer, Model, Stage};
use ndarray::{Array1, Array2, ArrayView2, CowArray, Ix2};
use rayon::prelude::*;

use crate::weights::{LayerWeights, LinearOperator, SourceError, WeightSource};
use attention::Heads;
pub use incremental::LayerCache;
use rotary::Rotary;
use routing::Routed;

/// Where one window is in the model: the residual stream, and what waits between two stages.
#[derive(Clone, Debug)]
pub struct WindowState {
    /// The residual stream, `[tokens, hidden]`.
    hidden: Array2<f32>,
    /// Input of the next stage where it is not the normed residual stream.
    waiting: Option<Array2<f32>>,
    /// What experts are given, between attention and the layer's end.
    routed: Option<Routed>,
}

impl WindowState {
    /// The state before the first layer.
    #[must_use]
    pub fn new(embedded: Array2<f32>) -> Self {
        Self { hidden: embedded, waiting: None, routed: None }
    }

    /// The residual stream, `[tokens, hidden]`.
    #[must_use]
    pub fn hidden(&self) -> ArrayView2<'_, f32> {
        self.hidden.view()
    }

    /// How many tokens are sent to an expert of the layer whose attention was run last.
    #[must_use]
    pub fn sent_to(&self, expert: usize) -> usize {
        self.routed.as_ref().map_or(0, |routed| routed.sent(expert).len())
    }

    /// The MLP's input, `[tokens, hidden]`, in a layer that has experts and whose attention was run.
    #[must_use]
    pub fn expert_inputs(&self) -> Option<ArrayView2<'_, f32>> {
        self.routed.as_ref().map(Routed::input)
    }

    /// Whether every number of the residual stream is finite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        match self.hidden.as_slice() {
            Some(values) => kernels::elementwise::all_finite(values),
            None => self.hidden.iter().all(|value| value.is_finite()),
        }
    }
}

/// Runs a model's layers; holds what is the same for all of them.
#[derive(Debug)]
pub struct Forward<'m> {
    model: &'m Model,
    rotary: Rotary,
}

impl<'m> Forward<'m> {
    /// For windows of at most `tokens` tokens.
    #[must_use]
    pub fn new(model: &'m Model, tokens: usize) -> Self {
        Self { model, rotary: Rotary::new(&model.hyperparameters.rope, tokens) }
    }

    /// The model that is run.
    #[must_use]
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// The input of the linears of `layer.stages[stage]`, `[tokens, in_features]`; of an expert's, those of the tokens that are sent to it.
    ///
    /// # Panics
    /// When the stages before it were not advanced.
    #[must_use]
    pub fn stage_input<'s>(
        &self,
        layer: &Layer,
        stage: usize,
        weights: &LayerWeights,
        state: &'s WindowState,
    ) -> CowArray<'s, f32, Ix2> {
        let stage = &layer.stages[stage];
        match (stage.input, stage.part()) {
            (StageInput::AttentionInput, _) => self.normed(state, &weights.attention_norm).into(),
            (StageInput::MlpInput, Part::Main) => self.normed(state, &weights.mlp_norm).into(),
            (StageInput::MlpInput, Part::Shared) => state.routed().input().into(),
            (StageInput::MlpInput, Part::Expert(expert)) => state.routed().gathered(expert).into(),
            (StageInput::AttentionOutput | StageInput::MlpOutput, _) => {
                state.waiting.as_ref().expect("the stage before was advanced").view().into()
            }
        }
    }

    /// Applies the linears of `layer.stages[stage]` and what follows them, up to the next stage's input. An expert that no token of the window
    /// is sent to need not be in memory.
    ///
    /// # Panics
    /// When the stages before it were not advanced.
    pub fn advance(&self, layer: &Layer, stage: usize, weights: &LayerWeights, state: &mut WindowState) {
        let last = stage + 1 == layer.stages.len();
        let Stage { input, linears } = &layer.stages[stage];
        let part = layer.stages[stage].part();
        match input {
            StageInput::AttentionInput => {
                let input = self.normed(state, &weights.attention_norm);
                state.waiting = Some(self.attend(layer, weights, input.view()));
            }
            StageInput::AttentionOutput => {
                write_residual(state, weights, Role::Output.into());
                self.route(layer, weights, state);
            }
            StageInput::MlpInput => {
                let input = self.stage_input(layer, stage, weights, state);
                let gated = if input.is_empty() {
                    Array2::zeros((0, linears[0].out_features))
                } else {
                    self.gated(weights, part, input.view())
                };
                state.waiting = Some(gated);
            }
            StageInput::MlpOutput => {
                write_residual(state, weights, Slot { part, role: Role::Down });
                if last {
                    state.routed = None;
                }
            }
        }
    }

    /// All stages of a layer, whose experts are in memory.
    pub fn advance_layer(&self, layer: &Layer, weights: &LayerWeights, state: &mut WindowState) {
        for stage in 0..layer.stages.len() {
            self.advance(layer, stage, weights, state);
        }
    }

    /// All stages of a layer for many windows, one of its experts in memory at a time, and none that no token is sent to.
    ///
    /// # Errors
    /// Those of the source.
    pub fn advance_windows(
        &self,
        layer: &Layer,
        source: &dyn WeightSource,
        states: &mut [WindowState],
    ) -> Result<(), SourceError> {
        self.advance_from(layer, 0, &mut Cow::Owned(source.layer(layer)?), source, states)
    }

    /// The same from a stage on; experts that `weights` lack are read.
    ///
    /// # Errors
    /// Those of the source.
    pub fn advance_from(
        &self,
        layer: &Layer,
        first: usize,
        weights: &mut Cow<'_, LayerWeights>,
        source: &dyn WeightSource,
        states: &mut [WindowState],
    ) -> Result<(), SourceError> {
        for (place, stage) in layer.stages.iter().enumerate().skip(first) {
            let part = stage.part();
            let wanted =
                part.expert().is_none_or(|expert| states.iter().any(|state| state.sent_to(expert) > 0));
            if wanted && !weights.holds(layer, part) {
                weights.to_mut().fetch(layer, part, source)?;
            }
            states.par_iter_mut().for_each(|state| self.advance(layer, place, weights, state));
            // What is only borrowed is somebody's who keeps it.
            if let (Cow::Owned(weights), Part::Expert(_), StageInput::MlpOutput) =
                (&mut *weights, part, stage.input)
            {
                weights.release(part);
            }
        }
        Ok(())
    }

    /// What the head multiplies with, `[tokens, hidden]`: the residual stream after the last layer, normed.
    #[must_use]
    pub fn head_input(&self, final_norm: &Array1<f32>, hidden: ArrayView2<'_, f32>) -> Array2<f32> {
        elementwise::rms_norm(hidden, final_norm, self.model.hyperparameters.norm_eps)
    }

    /// Logits of some tokens of a window, `[tokens, rows of projection]`: `projection` is the head or some rows of it.
    #[must_use]
    pub fn logits(
        &self,
        final_norm: &Array1<f32>,
        projection: &LinearOperator,
        hidden: ArrayView2<'_, f32>,
    ) -> Array2<f32> {
        projection.apply(self.head_input(final_norm, hidden).view())
    }

    fn normed(&self, state: &WindowState, weight: &Array1<f32>) -> Array2<f32> {
        elementwise::rms_norm(state.hidden.view(), weight, self.model.hyperparameters.norm_eps)
    }

    /// Sends a window's tokens to the experts of a layer that has them.
    fn route(&self, layer: &Layer, weights: &LayerWeights, state: &mut WindowState) {
        if let (Some(tensors), Some(router)) = (&layer.router, &weights.router) {
            let input = self.normed(state, &weights.mlp_norm);
            state.routed = Some(Routed::new(&tensors.routing, router, input));
        }
    }

    /// `activation(gate(x)) * up(x)` of one part of a layer, which is in memory; for an expert of any tokens, sent to it or not.
    #[must_use]
    pub fn gated(&self, weights: &LayerWeights, part: Part, input: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut gate = weights.linear(Slot { part, role: Role::Gate }).apply(input);
        let up = weights.linear(Slot { part, role: Role::Up }).apply(input);
        elementwise::gate(self.model.hyperparameters.activation, &mut gate, &up);
        gate
    }

    /// The angles of the positions.
    pub(crate) fn rotary(&self) -> &Rotary {
        &self.rotary
    }

    /// Shape of a layer's heads.
    pub(crate) fn heads(&self, layer: &Layer) -> Heads {
        let numbers = &self.model.hyperparameters;
        Heads {
            count: numbers.heads,
            key_value_count: numbers.key_value_heads,
            dim: numbers.head_dim,
            scale: 1.0 / (numbers.head_dim as f32).sqrt(),
            window: layer.window,
        }
    }

    /// What attention does to queries `[tokens, heads * head_dim]` and keys `[tokens, key_value_heads * head_dim]` before they meet: the
    /// norms over heads, where there are any, and the rotation.
    pub(crate) fn place(&self, weights: &LayerWeights, query: &mut Array2<f32>, key: &mut Array2<f32>) {
        self.norm_heads(weights, query, key);
        let head_dim = self.model.hyperparameters.head_dim;
        self.rotary.rotate(query, head_dim);
        self.rotary.rotate(key, head_dim);
    }

    /// The norms over heads, where there are any.
    fn norm_heads(&self, weights: &LayerWeights, query: &mut Array2<f32>, key: &mut Array2<f32>) {
        let eps = self.model.hyperparameters.norm_eps;
        if let Some((query_norm, key_norm)) = &weights.head_norms {
            elementwise::rms_norm_heads(query, query_norm, eps);
            elementwise::rms_norm_heads(key, key_norm, eps);
        }
    }

    fn attend(&self, layer: &Layer, weights: &LayerWeights, input: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut query = weights.linear(Role::Query).apply(input);
        let mut key = weights.linear(Role::Key).apply(input);
        let value = weights.linear(Role::Value).apply(input);
        self.place(weights, &mut query, &mut key);
        attention::causal(&self.heads(layer), query.view(), key.view(), value.view())
    }
}

impl WindowState {
    fn routed(&self) -> &Routed {
        self.routed.as_ref().expect("the layer has experts, and its attention was run")
    }
}

/// Adds what a linear makes of the waiting features to the residual stream; of an expert, weighted, to that of its tokens.
fn write_residual(state: &mut WindowState, weights: &LayerWeights, slot: Slot) {
    let input = state.waiting.take().expect("the stage before was advanced");
    if input.is_empty() {
        return;
    }
    let mut output = weights.linear(slot).apply(input.view());
    match slot.part {
        Part::Main => state.hidden += &output,
        Part::Shared => {
            let routed = state.routed.as_ref().expect("the layer has experts, and its attention was run");
            if let Some(shares) = routed.shared() {
                output.rows_mut().into_iter().zip(shares).for_each(|(mut row, &share)| row *= share);
            }
            state.hidden += &output;
        }
        Part::Expert(expert) => {
            let routed = state.routed.as_ref().expect("the layer has experts, and its attention was run");
            for (row, &(token, weight)) in output.rows().into_iter().zip(routed.sent(expert)) {
                state.hidden.row_mut(token).scaled_add(weight, &row);
            }
        }
    }
}
