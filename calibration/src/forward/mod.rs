//! The forward pass of a described decoder layer, stage by stage, for one window.
//!
//! A stage's input can be looked at before its linears are applied, and the linears may be replaced between looking and applying: that is
//! all that staged calibration needs. Everything is computed in f32; the equations are those of the architecture's reference implementation.
//! Windows are independent of each other. Nothing here depends on the number of threads.

pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod fused;
mod incremental;
pub(crate) mod latent;
mod outer;
pub(crate) mod rotary;
pub(crate) mod routing;

use std::borrow::Cow;

use kernels::bf16::Precision;
use model::architecture::{Mlp, Pairs, Positions, Qkv};
use model::graph::{NormPlace, StageInput};
use model::hyperparameters::{LatentNumbers, Rotation};
use model::linear::{Part, Role, Slot};
use model::{Layer, Model};
use ndarray::{Array2, ArrayView2, CowArray, Ix2};
use rayon::prelude::*;

use crate::weights::{LayerWeights, SourceError, WeightSource};
use attention::Heads;
pub use incremental::LayerCache;
use latent::Latents;
use rotary::Rotary;
use routing::Routed;

/// Where one window is in the model: the residual stream, and what waits between two stages.
#[derive(Clone, Debug)]
pub struct WindowState {
    /// The residual stream, `[tokens, hidden]`.
    hidden: Array2<f32>,
    /// What queries, keys and values are made of, until they are.
    latents: Option<Latents>,
    /// The heads' weighted values, until they are projected.
    attended: Option<Array2<f32>>,
    /// The MLP's inner features, until they are projected.
    inner: Option<Array2<f32>>,
    /// What experts are given, between attention and the layer's end.
    routed: Option<Routed>,
}

/// Matrices that may wait for later stages.
pub(crate) const WAITING: usize = 5;

impl WindowState {
    /// The state before a layer.
    #[must_use]
    pub fn new(hidden: Array2<f32>) -> Self {
        Self { hidden, latents: None, attended: None, inner: None, routed: None }
    }

    /// The state with this residual stream, `[tokens, hidden]`, and what [`WindowState::waiting`] and [`WindowState::routing`] gave.
    pub(crate) fn from_parts(
        hidden: Array2<f32>,
        waiting: [Option<Array2<f32>>; WAITING],
        routed: Option<Routed>,
    ) -> Self {
        let [attended, inner, query, key_value, shared_key] = waiting;
        let latents = query.zip(key_value).zip(shared_key);
        let latents =
            latents.map(|((query, key_value), shared_key)| Latents { query, key_value, shared_key });
        Self { hidden, latents, attended, inner, routed }
    }

    /// What experts are given.
    pub(crate) fn routing(&self) -> Option<&Routed> {
        self.routed.as_ref()
    }

    /// What waits beside the residual stream for later stages, `[tokens, features]` each; of an expert it is its tokens'.
    pub(crate) fn waiting(&self) -> [Option<ArrayView2<'_, f32>>; WAITING] {
        let latents = self.latents.as_ref();
        [
            self.attended.as_ref(),
            self.inner.as_ref(),
            latents.map(|latents| &latents.query),
            latents.map(|latents| &latents.key_value),
            latents.map(|latents| &latents.shared_key),
        ]
        .map(|part| part.map(|part| part.view()))
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

    fn latents(&self) -> &Latents {
        self.latents.as_ref().expect("attention has latent features, and they were computed")
    }

    fn routed(&self) -> &Routed {
        self.routed.as_ref().expect("the layer has experts, and its attention was run")
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
    /// For layers with a rotation of their own kind.
    rotary: Option<Rotary>,
    local_rotary: Option<Rotary>,
    /// Of attention's products.
    precision: Precision,
}

impl<'m> Forward<'m> {
    /// For windows of at most `tokens` tokens.
    #[must_use]
    pub fn new(model: &'m Model, tokens: usize) -> Self {
        let numbers = &model.hyperparameters;
        let pairs = match model.architecture.layer.attention.positions {
            Positions::Rotary { pairs, .. } => pairs,
            Positions::None | Positions::Alibi => Pairs::Halves,
        };
        let turns = |rotation| numbers.rotations.contains(&rotation);
        Self {
            model,
            rotary: turns(Rotation::Global).then(|| Rotary::new(&numbers.rope, pairs, tokens)),
            local_rotary: numbers.local_rope.as_ref().map(|rope| Rotary::new(rope, pairs, tokens)),
            precision: Precision::Single,
        }
    }

    /// With factors of attention's products rounded so; those of linears are as their weights say.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
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
        let waiting = |part: &'s Option<Array2<f32>>| {
            part.as_ref().expect("the stage before was advanced").view().into()
        };
        let stage = &layer.stages[stage];
        match (stage.input, stage.part()) {
            (StageInput::AttentionInput | StageInput::SharedInput, _) => {
                self.normed(weights, NormPlace::AttentionInput, state.hidden())
            }
            (StageInput::MlpInput, Part::Main) => self.normed(weights, NormPlace::MlpInput, state.hidden()),
            (StageInput::MlpInput, Part::Shared) => state.routed().input().into(),
            (StageInput::MlpInput, Part::Expert(expert)) => state.routed().gathered(expert).into(),
            (StageInput::QueryLatent, _) => state.latents().query.view().into(),
            (StageInput::KeyValueLatent, _) => state.latents().key_value.view().into(),
            (StageInput::AttentionOutput, _) => waiting(&state.attended),
            (StageInput::MlpOutput, _) => waiting(&state.inner),
        }
    }

    /// Applies the linears of `layer.stages[stage]` and what follows them, up to the next stage's input. An expert that no token of the window
    /// is sent to need not be in memory.
    ///
    /// # Panics
    /// When the stages before it were not advanced.
    pub fn advance(&self, layer: &Layer, stage: usize, weights: &LayerWeights, state: &mut WindowState) {
        self.advance_by(layer, stage, weights, state, &mut |heads| self.attend(layer, weights, heads));
    }

    /// The same with another way to attend with queries, keys and values as they are projected: one that knows earlier tokens.
    fn advance_by(
        &self,
        layer: &Layer,
        stage: usize,
        weights: &LayerWeights,
        state: &mut WindowState,
        attend: &mut dyn FnMut([Array2<f32>; 3]) -> Array2<f32>,
    ) {
        let part = layer.stages[stage].part();
        match layer.stages[stage].input {
            StageInput::AttentionInput => {
                let input = self.stage_input(layer, stage, weights, state);
                let projected = self.projected(layer, weights, input.view());
                drop(input);
                state.begin_attention(projected, attend);
            }
            StageInput::QueryLatent => {
                let query = self.queries(weights, state.latents());
                state.latents.as_mut().expect("they were there").query = query;
            }
            StageInput::KeyValueLatent => {
                let latents = state.latents.take().expect("the stage before was advanced");
                let [key, value] = self.keys_and_values(layer, weights, &latents);
                state.attended = Some(attend([latents.query, key, value]));
            }
            StageInput::MlpInput => {
                let input = self.stage_input(layer, stage, weights, state);
                let inner = if input.is_empty() {
                    Array2::zeros((0, layer.stages[stage].linears[0].out_features))
                } else {
                    self.inner(weights, part, input.view())
                };
                drop(input);
                state.inner = Some(inner);
            }
            StageInput::SharedInput => {
                let input = self.stage_input(layer, stage, weights, state);
                let projected = self.projected(layer, weights, input.view());
                let inner = self.inner(weights, part, input.view());
                drop(input);
                state.inner = Some(inner);
                state.begin_attention(projected, attend);
            }
            StageInput::AttentionOutput => {
                let attended = state.attended.take().expect("the stage before was advanced");
                let given = weights.linear(Role::Output).apply(attended.view());
                self.join(weights, BRANCH_NORMS[0], &mut state.hidden, given);
                self.route(layer, weights, state);
            }
            StageInput::MlpOutput => {
                let inner = state.inner.take().expect("the stage before was advanced");
                if !inner.is_empty() {
                    let given = weights.linear(Slot { part, role: Role::Down }).apply(inner.view());
                    match part {
                        Part::Main => self.join(weights, BRANCH_NORMS[1], &mut state.hidden, given),
                        Part::Shared | Part::Expert(_) => state.add_weighted(part, given),
                    }
                }
                if stage + 1 == layer.stages.len() {
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

    fn eps(&self) -> f64 {
        self.model.hyperparameters.norm_eps
    }

    /// The epsilon of a layer's norm.
    pub(crate) fn eps_of(&self, place: NormPlace) -> f64 {
        match place {
            NormPlace::QueryLatent | NormPlace::KeyValueLatent => LATENT_EPS,
            _ => self.eps(),
        }
    }

    /// What a norm gives for `x`; `x` itself where the layer has no such norm.
    pub(crate) fn normed<'x>(
        &self,
        weights: &LayerWeights,
        place: NormPlace,
        x: ArrayView2<'x, f32>,
    ) -> CowArray<'x, f32, Ix2> {
        match weights.norms.get(&place) {
            Some(norm) => elementwise::norm(x, norm, self.eps_of(place)).into(),
            None => x.into(),
        }
    }

    fn norm_in_place(&self, weights: &LayerWeights, place: NormPlace, x: &mut Array2<f32>) {
        if let Some(norm) = weights.norms.get(&place) {
            elementwise::norm_in_place(x, norm, self.eps_of(place));
        }
    }

    /// `hidden = joined(hidden + factor * after(given))`.
    fn join(
        &self,
        weights: &LayerWeights,
        [after, joined]: [NormPlace; 2],
        hidden: &mut Array2<f32>,
        mut given: Array2<f32>,
    ) {
        self.norm_in_place(weights, after, &mut given);
        let factor = self.model.hyperparameters.factors.residual;
        if factor != 1.0 {
            given *= factor;
        }
        *hidden += &given;
        self.norm_in_place(weights, joined, hidden);
    }

    /// The angles by which a layer turns; none where it does not.
    pub(crate) fn rotary(&self, layer: &Layer) -> Option<&Rotary> {
        match layer.rotation {
            Rotation::None => None,
            Rotation::Global => self.rotary.as_ref(),
            Rotation::Local => self.local_rotary.as_ref(),
        }
    }

    /// Sends a window's tokens to the experts of a layer that has them.
    fn route(&self, layer: &Layer, weights: &LayerWeights, state: &mut WindowState) {
        if let (Some(tensors), Some(router)) = (&layer.router, &weights.router) {
            let input = self.normed(weights, NormPlace::MlpInput, state.hidden()).into_owned();
            state.routed = Some(Routed::new(&tensors.routing, router, input));
        }
    }

    /// Shape of a layer's heads.
    pub(crate) fn heads<'w>(&self, layer: &Layer, weights: &'w LayerWeights) -> Heads<'w> {
        let numbers = &self.model.hyperparameters;
        Heads {
            count: numbers.heads,
            key_value_count: numbers.key_value_heads,
            dim: numbers.head_dim,
            value_dim: numbers.value_dim,
            scale: numbers.factors.attention,
            window: layer.window,
            cap: numbers.factors.attention_cap,
            alibi: self.model.architecture.layer.attention.positions == Positions::Alibi,
            sinks: weights.sinks.as_ref().and_then(|sinks| sinks.as_slice()),
        }
    }

    /// What the linears that read attention's input give, latent features behind their norms.
    fn projected(&self, layer: &Layer, weights: &LayerWeights, input: ArrayView2<'_, f32>) -> Projected {
        match self.model.architecture.layer.attention.qkv {
            Qkv::Separate { .. } => Projected::Heads(
                [Role::Query, Role::Key, Role::Value].map(|role| weights.linear(role).apply(input)),
            ),
            Qkv::Fused { rows, .. } => {
                let fused = weights.linear(Role::QueryKeyValue).apply(input);
                Projected::Heads(fused::split(rows, &self.heads(layer, weights), &fused))
            }
            Qkv::Latent(_) => Projected::Latents(self.normed_latents(weights, self.latents(weights, input))),
        }
    }

    /// Latent features as their linears give them.
    pub(crate) fn latents(&self, weights: &LayerWeights, input: ArrayView2<'_, f32>) -> Latents {
        let numbers = self.latent_numbers();
        let query = if numbers.query_rank.is_some() { Role::QueryLatent } else { Role::Query };
        let [query, compressed] = [query, Role::KeyValueLatent].map(|role| weights.linear(role).apply(input));
        Latents::new(numbers, query, &compressed)
    }

    pub(crate) fn normed_latents(&self, weights: &LayerWeights, mut latents: Latents) -> Latents {
        // Queries that are no latent features have no such norm.
        self.norm_in_place(weights, NormPlace::QueryLatent, &mut latents.query);
        self.norm_in_place(weights, NormPlace::KeyValueLatent, &mut latents.key_value);
        latents
    }

    /// Queries, `[tokens, heads * head_dim]`, of normed latent features.
    pub(crate) fn queries(&self, weights: &LayerWeights, latents: &Latents) -> Array2<f32> {
        match self.latent_numbers().query_rank {
            Some(_) => weights.linear(Role::Query).apply(latents.query.view()),
            None => latents.query.clone(),
        }
    }

    /// Keys `[tokens, heads * head_dim]` and values `[tokens, heads * value_dim]` of normed latent features.
    pub(crate) fn keys_and_values(
        &self,
        layer: &Layer,
        weights: &LayerWeights,
        latents: &Latents,
    ) -> [Array2<f32>; 2] {
        let made = weights.linear(Role::KeyValue).apply(latents.key_value.view());
        latent::keys_and_values(&self.heads(layer, weights), made.view(), latents.shared_key.view())
    }

    pub(crate) fn latent_numbers(&self) -> &LatentNumbers {
        self.model.hyperparameters.latent.as_ref().expect("the description has latent features")
    }

    /// Queries `[tokens, heads * head_dim]`, keys `[tokens, key_value_heads * head_dim]` and values `[tokens, key_value_heads * value_dim]` as
    /// their linears give them.
    pub(crate) fn projected_heads(
        &self,
        layer: &Layer,
        weights: &LayerWeights,
        input: ArrayView2<'_, f32>,
    ) -> [Array2<f32>; 3] {
        match self.projected(layer, weights, input) {
            Projected::Heads(heads) => heads,
            Projected::Latents(latents) => {
                let [key, value] = self.keys_and_values(layer, weights, &latents);
                [self.queries(weights, &latents), key, value]
            }
        }
    }

    /// What attention does to queries and keys before they meet: norms over heads, where there are any, and the rotation, by `turn`.
    pub(crate) fn place(
        &self,
        layer: &Layer,
        weights: &LayerWeights,
        query: &mut Array2<f32>,
        key: &mut Array2<f32>,
        turn: impl Fn(&Rotary, &mut Array2<f32>),
    ) {
        for (norm, rows) in [(NormPlace::Query, query), (NormPlace::Key, key)] {
            self.norm_in_place(weights, norm, rows);
            if let Some(rotary) = self.rotary(layer) {
                turn(rotary, rows);
            }
        }
    }

    fn attend(
        &self,
        layer: &Layer,
        weights: &LayerWeights,
        [mut query, mut key, value]: [Array2<f32>; 3],
    ) -> Array2<f32> {
        let heads = self.heads(layer, weights);
        self.place(layer, weights, &mut query, &mut key, |rotary, rows| rotary.rotate(rows, heads.dim));
        self.attend_placed(&heads, &[&query, &key, &value])
    }

    /// What heads make of queries, keys and values that know their positions.
    pub(crate) fn attend_placed(
        &self,
        heads: &Heads<'_>,
        [query, key, value]: &[&Array2<f32>; 3],
    ) -> Array2<f32> {
        attention::causal(heads, self.precision, query.view(), key.view(), value.view())
    }

    /// What a gated MLP makes of its gate, `[tokens, inner]`, and `up`, shaped like it.
    pub(crate) fn gate(&self, gate: &mut Array2<f32>, up: &Array2<f32>) {
        let numbers = &self.model.hyperparameters;
        match numbers.clamp {
            None => elementwise::gate(numbers.activation, gate, up),
            Some(clamp) => elementwise::gate_clamped(clamp, gate, up),
        }
    }

    /// The inner features of one part of a layer, which is in memory, `[tokens, intermediate]`; for an expert of any tokens, sent to it or not.
    #[must_use]
    pub fn inner(&self, weights: &LayerWeights, part: Part, input: ArrayView2<'_, f32>) -> Array2<f32> {
        let apply = |role| weights.linear(Slot { part, role }).apply(input);
        let gated = |mut gate: Array2<f32>, up: &Array2<f32>| {
            self.gate(&mut gate, up);
            gate
        };
        match self.model.architecture.layer.mlp {
            Mlp::Gated { .. } | Mlp::Experts { .. } => gated(apply(Role::Gate), &apply(Role::Up)),
            Mlp::GatedFused { .. } => {
                let [gate, up] = fused::halves(&apply(Role::GateUp));
                gated(gate, &up)
            }
            Mlp::Plain { .. } => {
                let mut inner = apply(Role::Up);
                elementwise::activate(self.model.hyperparameters.activation, &mut inner);
                inner
            }
        }
    }
}

impl WindowState {
    /// Attends, or keeps what has to be made into queries, keys and values first.
    fn begin_attention(
        &mut self,
        projected: Projected,
        attend: &mut dyn FnMut([Array2<f32>; 3]) -> Array2<f32>,
    ) {
        match projected {
            Projected::Heads(heads) => self.attended = Some(attend(heads)),
            Projected::Latents(latents) => self.latents = Some(latents),
        }
    }

    /// Adds what an expert gave for the tokens that were sent to it, or the shared one for all, weighted.
    fn add_weighted(&mut self, part: Part, mut given: Array2<f32>) {
        let routed = self.routed.as_ref().expect("the layer has experts, and its attention was run");
        if let Some(expert) = part.expert() {
            for (row, &(token, weight)) in given.rows().into_iter().zip(routed.sent(expert)) {
                self.hidden.row_mut(token).scaled_add(weight, &row);
            }
            return;
        }
        if let Some(shares) = routed.shared() {
            given.rows_mut().into_iter().zip(shares).for_each(|(mut row, &share)| row *= share);
        }
        self.hidden += &given;
    }
}

/// What attention's first linears give.
enum Projected {
    /// Queries, keys and values.
    Heads([Array2<f32>; 3]),
    /// What these are made of.
    Latents(Latents),
}

/// Epsilon of the norms of latent features.
const LATENT_EPS: f64 = 1e-6;

/// For attention and MLP the norm of what it gives, and the norm of the residual stream with that.
const BRANCH_NORMS: [[NormPlace; 2]; 2] =
    [[NormPlace::AttentionOutput, NormPlace::AttentionJoined], [NormPlace::MlpOutput, NormPlace::MlpJoined]];
