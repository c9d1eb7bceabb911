//! The forward pass of a described decoder layer, stage by stage, for one window.
//!
//! A stage's input can be looked at before its linears are applied, and the linears may be replaced between looking and applying: that is
//! all that staged calibration needs. Everything is computed in f32; the equations are those of the architecture's reference implementation.
//! Windows are independent of each other. Nothing here depends on the number of threads.

pub(crate) mod attention;
pub(crate) mod elementwise;
mod incremental;
pub(crate) mod rotary;

use model::graph::StageInput;
use model::linear::Role;
use model::{Layer, Model};
use ndarray::{Array1, Array2, ArrayView2, CowArray, Ix2};

use crate::weights::{LayerWeights, LinearOperator};
use attention::Heads;
pub use incremental::LayerCache;
use rotary::Rotary;

/// Where one window is in the model: the residual stream, and what waits between two stages.
#[derive(Clone, Debug)]
pub struct WindowState {
    /// The residual stream, `[tokens, hidden]`.
    hidden: Array2<f32>,
    /// Input of the next stage where it is not the normed residual stream.
    waiting: Option<Array2<f32>>,
}

impl WindowState {
    /// The state before the first layer.
    #[must_use]
    pub fn new(embedded: Array2<f32>) -> Self {
        Self { hidden: embedded, waiting: None }
    }

    /// The residual stream, `[tokens, hidden]`.
    #[must_use]
    pub fn hidden(&self) -> ArrayView2<'_, f32> {
        self.hidden.view()
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

    /// The input of the linears of `layer.stages[stage]`, `[tokens, in_features]`.
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
        match layer.stages[stage].input {
            StageInput::AttentionInput => self.normed(state, &weights.attention_norm).into(),
            StageInput::MlpInput => self.normed(state, &weights.mlp_norm).into(),
            StageInput::AttentionOutput | StageInput::MlpOutput => {
                state.waiting.as_ref().expect("the stage before was advanced").view().into()
            }
        }
    }

    /// Applies the linears of `layer.stages[stage]` and what follows them, up to the next stage's input.
    ///
    /// # Panics
    /// When the stages before it were not advanced.
    pub fn advance(&self, layer: &Layer, stage: usize, weights: &LayerWeights, state: &mut WindowState) {
        match layer.stages[stage].input {
            StageInput::AttentionInput => {
                let input = self.normed(state, &weights.attention_norm);
                state.waiting = Some(self.attend(layer, weights, input.view()));
            }
            StageInput::MlpInput => {
                let input = self.normed(state, &weights.mlp_norm);
                let mut gate = weights.linear(Role::Gate).apply(input.view());
                let up = weights.linear(Role::Up).apply(input.view());
                elementwise::gate(self.model.hyperparameters.activation, &mut gate, &up);
                state.waiting = Some(gate);
            }
            StageInput::AttentionOutput => write_residual(state, weights, Role::Output),
            StageInput::MlpOutput => write_residual(state, weights, Role::Down),
        }
    }

    /// All stages of a layer.
    pub fn advance_layer(&self, layer: &Layer, weights: &LayerWeights, state: &mut WindowState) {
        for stage in 0..layer.stages.len() {
            self.advance(layer, stage, weights, state);
        }
    }

    /// Logits of some tokens of a window, `[tokens, rows of projection]`: `projection` is the head or some rows of it.
    #[must_use]
    pub fn logits(
        &self,
        final_norm: &Array1<f32>,
        projection: &LinearOperator,
        hidden: ArrayView2<'_, f32>,
    ) -> Array2<f32> {
        let normed = elementwise::rms_norm(hidden, final_norm, self.model.hyperparameters.norm_eps);
        projection.apply(normed.view())
    }

    fn normed(&self, state: &WindowState, weight: &Array1<f32>) -> Array2<f32> {
        elementwise::rms_norm(state.hidden.view(), weight, self.model.hyperparameters.norm_eps)
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

fn write_residual(state: &mut WindowState, weights: &LayerWeights, role: Role) {
    let input = state.waiting.take().expect("the stage before was advanced");
    state.hidden += &weights.linear(role).apply(input.view());
}
