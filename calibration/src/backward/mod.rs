//! The derivative of the forward pass, in reverse: from the gradient of a layer's result to those of its input and of its weights.
//!
//! For a layer `y = f(x)` and a gradient `ȳ` of some loss with respect to `y`, [`Backward::layer_vjp`] gives `x̄ = ȳᵀ ∂f/∂x`, the
//! vector-Jacobian product. It takes the layer's input alone and computes what lies between again, so that one layer's activations of one
//! window exist at a time (checkpoints at layer boundaries, arXiv 1604.06174). On its way it shows each linear's input `X` and the
//! gradient `Ȳ` of what the linear gave, of which a weight's gradient is `Ȳᵀ X`. The chain begins with a loss at the head, see [`Loss`].
//!
//! | forward | backward |
//! |---|---|
//! | `Y = X Wᵀ + b` | `X̄ = Ȳ W`, `W̄ = Ȳᵀ X`, `b̄ = Σ_t Ȳ_t` |
//! | `y = x r w`, `r = (mean(x²) + eps)^-1/2` | `x̄ = r (w ȳ - x r² mean(x w ȳ))`, `w̄ = Σ_t ȳ x r` |
//! | `y = x - mean(x)` | `x̄ = ȳ - mean(ȳ)` |
//! | `y = act(g) u` | `ḡ = ȳ u act'(g)`, `ū = ȳ act(g)` |
//! | rotation by `R` | `x̄ = Rᵀ ȳ` |
//! | `y = Σ_c p_c f_c(x)` over the chosen experts | `x̄ = Σ_c p_c f̄_c`, `p̄_c = ȳ · f_c(x)`; of the router's outputs see `forward/routing.rs` |
//! | `S = s Q Kᵀ`, `P = softmax(S)`, `O = P V` | `V̄ = Pᵀ Ō`, `P̄ = Ō Vᵀ`, `S̄ = P ∘ (P̄ - rowsum(P ∘ P̄))`, `Q̄ = s S̄ K`, `K̄ = s S̄ᵀ Q` |
//!
//! Numbers are f32 as in the forward pass, sums over a row's features in norms and softmax f64. Windows are independent of each other, and
//! nothing here depends on the number of threads.

mod attention;
mod elementwise;
mod latent;
mod loss;
mod mlp;
mod signs;
mod visit;

use model::architecture::{Branches, Qkv};
use model::graph::{NormPlace, StageInput};
use model::linear::{Part, Role, Slot};
use model::{Layer, Stage};
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use crate::forward::{Forward, fused};
use crate::weights::{LayerWeights, SourceError, WeightSource};
use elementwise::NormGradients;
use latent::LatentPass;
pub use loss::{Head, Loss};
use mlp::MlpPass;
pub use visit::{LinearVisit, NormVisit, RouterVisit, Visit};

/// Goes back through what a [`Forward`] runs.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'f, 'm> {
    forward: &'f Forward<'m>,
}

impl<'f, 'm> Backward<'f, 'm> {
    /// For the model, and for windows as long, of `forward`.
    #[must_use]
    pub fn new(forward: &'f Forward<'m>) -> Self {
        Self { forward }
    }

    /// The gradient of the residual stream before a layer, `[tokens, hidden]`, of one window.
    ///
    /// `input` is that residual stream and `output_gradient` the gradient of the one after the layer, both `[tokens, hidden]`. `see` is shown
    /// what the gradients of the layer's weights are made of, the last linear first. Packed weights are unpacked in each call; where there
    /// are many windows, give dense ones.
    ///
    /// # Panics
    /// When the shapes do not fit the layer or each other.
    #[must_use]
    pub fn layer_vjp(
        &self,
        layer: &Layer,
        weights: &LayerWeights,
        input: ArrayView2<'_, f32>,
        output_gradient: ArrayView2<'_, f32>,
        see: &mut dyn FnMut(Visit<'_>),
    ) -> Array2<f32> {
        let mut window = Window::run(self.forward, layer, weights, input, output_gradient);
        for part in parts(layer) {
            window.part_vjp(self.forward, weights, part, see);
        }
        Walk { forward: self.forward, layer, weights, see }.finish(window, input)
    }

    /// The same for many windows, one expert in memory at a time, and none that no token is sent to. `kept` has a place for each window, in
    /// which `see` may keep what it is shown.
    ///
    /// # Errors
    /// Those of the source.
    ///
    /// # Panics
    /// As [`Backward::layer_vjp`], and when there are not as many of one as of the other.
    pub fn windows_vjp<K: Send>(
        &self,
        layer: &Layer,
        source: &dyn WeightSource,
        inputs: &[Array2<f32>],
        output_gradients: &[Array2<f32>],
        kept: &mut [K],
        see: &(dyn Fn(&mut K, Visit<'_>) + Sync),
    ) -> Result<Vec<Array2<f32>>, SourceError> {
        assert_eq!((inputs.len(), inputs.len()), (output_gradients.len(), kept.len()), "windows");
        let mut weights = source.layer(layer)?;
        let common = &weights;
        let mut windows: Vec<Window> = inputs
            .par_iter()
            .zip(output_gradients)
            .map(|(input, gradient)| Window::run(self.forward, layer, common, input.view(), gradient.view()))
            .collect();
        for part in parts(layer) {
            if part.expert().is_some_and(|expert| windows.iter().all(|window| !window.mlp.sends_to(expert))) {
                continue;
            }
            let fetched = weights.fetch(layer, part, source)?;
            let held = &weights;
            windows.par_iter_mut().zip(kept.par_iter_mut()).for_each(|(window, kept)| {
                window.part_vjp(self.forward, held, part, &mut |visit| see(kept, visit));
            });
            if fetched {
                weights.release(part);
            }
        }
        let common = &weights;
        let finished =
            windows.into_par_iter().zip(inputs).zip(kept.par_iter_mut()).map(|((window, input), kept)| {
                let see = &mut |visit: Visit<'_>| see(kept, visit);
                Walk { forward: self.forward, layer, weights: common, see }.finish(window, input.view())
            });
        Ok(finished.collect())
    }
}

/// The parts of a layer's MLP, in forward order.
fn parts(layer: &Layer) -> impl Iterator<Item = Part> + '_ {
    let reads = |stage: &&Stage| matches!(stage.input, StageInput::MlpInput | StageInput::SharedInput);
    layer.stages.iter().filter(reads).map(Stage::part)
}

/// What a layer computed for one window, on its way back.
struct Window {
    attention: Attention,
    /// The residual stream with what attention gave, before a norm of both, `[tokens, hidden]`; where the branches are in turn.
    joined: Option<Array2<f32>>,
    /// What the MLP's norm was given, `[tokens, hidden]`.
    between: Array2<f32>,
    mlp: MlpPass,
    /// The gradient of the residual stream with what the MLP gave, before a norm of both, `[tokens, hidden]`.
    gradient: Array2<f32>,
    /// Those of that norm.
    of_last_norm: Option<NormGradients>,
}

impl Window {
    fn run(
        forward: &Forward<'_>,
        layer: &Layer,
        weights: &LayerWeights,
        input: ArrayView2<'_, f32>,
        output_gradient: ArrayView2<'_, f32>,
    ) -> Self {
        assert_eq!(input.dim(), output_gradient.dim(), "shape of the gradient of a layer's result");
        let attention = Attention::run(forward, layer, weights, input);
        let shape = &forward.model().architecture.layer;
        let mut window = match shape.branches {
            Branches::InTurn => {
                let (output, after) = (Role::Output.into(), NormPlace::AttentionOutput);
                let joined = joined(forward, weights, output, after, &attention.attended, input);
                let between = forward.normed(weights, NormPlace::AttentionJoined, joined.view()).into_owned();
                let mlp = MlpPass::new(forward, layer, weights, between.view(), NormPlace::MlpInput);
                let gradient = output_gradient.to_owned();
                Self { attention, joined: Some(joined), between, mlp, gradient, of_last_norm: None }
            }
            Branches::Parallel => {
                let place =
                    if shape.shares_input() { NormPlace::AttentionInput } else { NormPlace::MlpInput };
                let mlp = MlpPass::new(forward, layer, weights, input, place);
                let (between, gradient) = (input.to_owned(), output_gradient.to_owned());
                Self { attention, joined: None, between, mlp, gradient, of_last_norm: None }
            }
        };
        if let Some(norm) = weights.norms.get(&NormPlace::MlpJoined) {
            let inner = window.mlp.inner(forward, weights);
            let (down, after) = (Role::Down.into(), NormPlace::MlpOutput);
            let joined = joined(forward, weights, down, after, &inner, window.between.view());
            let eps = forward.model().hyperparameters.norm_eps;
            window.of_last_norm = Some(elementwise::norm_vjp(joined.view(), norm, eps, &mut window.gradient));
        }
        window
    }

    /// Adds what comes back through one part of the MLP.
    fn part_vjp(
        &mut self,
        forward: &Forward<'_>,
        weights: &LayerWeights,
        part: Part,
        see: &mut dyn FnMut(Visit<'_>),
    ) {
        self.mlp.part_vjp(forward, weights, part, self.gradient.view(), see);
    }
}

/// The residual stream with what a branch gives for the input `x` of its last linear, before a norm of both.
fn joined(
    forward: &Forward<'_>,
    weights: &LayerWeights,
    last: Slot,
    after: NormPlace,
    x: &Array2<f32>,
    hidden: ArrayView2<'_, f32>,
) -> Array2<f32> {
    let given = weights.linear(last).apply(x.view());
    let given = forward.normed(weights, after, given.view());
    &given * forward.model().hyperparameters.factors.residual + hidden
}

/// `gradient`, of what a norm gave for `x`, becomes that of `x`; it is that where there is no such norm.
fn norm_vjp(
    forward: &Forward<'_>,
    weights: &LayerWeights,
    place: NormPlace,
    x: ArrayView2<'_, f32>,
    gradient: &mut Array2<f32>,
    see: &mut dyn FnMut(Visit<'_>),
) {
    let Some(norm) = weights.norms.get(&place) else { return };
    let eps = forward.eps_of(place);
    show_norm(place, &elementwise::norm_vjp(x, norm, eps, gradient), see);
}

fn show_norm(place: NormPlace, gradients: &NormGradients, see: &mut dyn FnMut(Visit<'_>)) {
    let bias_gradient = gradients.bias.as_ref().map(|bias| bias.view());
    see(Visit::Norm(NormVisit { place, gradient: gradients.weight.view(), bias_gradient }));
}

/// The gradient of the input `x` of the linear that ends a branch, given that of the residual stream with what the branch gave.
fn end_vjp(
    forward: &Forward<'_>,
    weights: &LayerWeights,
    last: Slot,
    after: NormPlace,
    x: &Array2<f32>,
    gradient: ArrayView2<'_, f32>,
    see: &mut dyn FnMut(Visit<'_>),
) -> Array2<f32> {
    let mut gradient = &gradient * forward.model().hyperparameters.factors.residual;
    if weights.norms.contains_key(&after) {
        let output = weights.linear(last).apply(x.view());
        norm_vjp(forward, weights, after, output.view(), &mut gradient, see);
    }
    linear_vjp(weights, last, x, gradient.view(), see)
}

/// The gradient of a linear's input, shown before it is computed.
fn linear_vjp(
    weights: &LayerWeights,
    slot: impl Into<Slot>,
    input: &Array2<f32>,
    output_gradient: ArrayView2<'_, f32>,
    see: &mut dyn FnMut(Visit<'_>),
) -> Array2<f32> {
    let slot = slot.into();
    see(Visit::Linear(LinearVisit { slot, input: input.view(), output_gradient }));
    weights.linear(slot).apply_transposed(output_gradient)
}

/// The way back from the MLP's input through one layer for one window.
struct Walk<'w, 's> {
    forward: &'w Forward<'w>,
    layer: &'w Layer,
    weights: &'w LayerWeights,
    see: &'s mut dyn FnMut(Visit<'_>),
}

impl Walk<'_, '_> {
    /// The gradient of the layer's input, when all parts of the MLP have come back.
    fn finish(mut self, window: Window, input: ArrayView2<'_, f32>) -> Array2<f32> {
        let Window { attention, joined, between, mlp, mut gradient, of_last_norm } = window;
        if let Some(gradients) = &of_last_norm {
            show_norm(NormPlace::MlpJoined, gradients, self.see);
        }
        let mut of_mlp = mlp.finish(self.layer, self.weights, self.see);
        if let Some(joined) = joined {
            self.norm_vjp(NormPlace::MlpInput, between.view(), &mut of_mlp);
            gradient += &of_mlp;
            self.norm_vjp(NormPlace::AttentionJoined, joined.view(), &mut gradient);
            let mut back = self.attention_vjp(attention, &gradient);
            self.norm_vjp(NormPlace::AttentionInput, input, &mut back);
            return gradient + back;
        }
        let shared = self.forward.model().architecture.layer.shares_input();
        let mut back = self.attention_vjp(attention, &gradient);
        if shared {
            back += &of_mlp;
        } else {
            self.norm_vjp(NormPlace::MlpInput, input, &mut of_mlp);
            gradient += &of_mlp;
        }
        self.norm_vjp(NormPlace::AttentionInput, input, &mut back);
        gradient + back
    }

    /// The gradient of what attention reads.
    fn attention_vjp(&mut self, attention: Attention, output_gradient: &Array2<f32>) -> Array2<f32> {
        let Attention { input, latents, before_norms, query, key, value, attended } = attention;
        let heads = self.forward.heads(self.layer, self.weights);
        let attended_gradient =
            self.end_vjp(Role::Output, NormPlace::AttentionOutput, &attended, output_gradient);
        let attention::Gradients { query: mut query_gradient, key: mut key_gradient, value: value_gradient } =
            attention::causal_vjp(&heads, &query, &key, &value, &attended_gradient);
        if let Some(rotary) = self.forward.rotary(self.layer) {
            rotary.rotate_back(&mut query_gradient, heads.dim);
            rotary.rotate_back(&mut key_gradient, heads.dim);
        }
        if let Some((query, key)) = &before_norms {
            self.norm_vjp(NormPlace::Query, query.view(), &mut query_gradient);
            self.norm_vjp(NormPlace::Key, key.view(), &mut key_gradient);
        }
        match self.forward.model().architecture.layer.attention.qkv {
            Qkv::Separate { .. } => {
                let mut gradient = self.linear_vjp(Role::Value, &input, value_gradient.view());
                gradient += &self.linear_vjp(Role::Key, &input, key_gradient.view());
                gradient + self.linear_vjp(Role::Query, &input, query_gradient.view())
            }
            Qkv::Fused { rows, .. } => {
                let fused = fused::join(rows, &heads, [&query_gradient, &key_gradient, &value_gradient]);
                self.linear_vjp(Role::QueryKeyValue, &input, fused.view())
            }
            Qkv::Latent(_) => {
                let latents = latents.expect("the description has latent features");
                latents.vjp(self, &input, [&query_gradient, &key_gradient, &value_gradient])
            }
        }
    }

    fn norm_vjp(&mut self, place: NormPlace, x: ArrayView2<'_, f32>, gradient: &mut Array2<f32>) {
        norm_vjp(self.forward, self.weights, place, x, gradient, self.see);
    }

    fn end_vjp(
        &mut self,
        last: Role,
        after: NormPlace,
        x: &Array2<f32>,
        gradient: &Array2<f32>,
    ) -> Array2<f32> {
        end_vjp(self.forward, self.weights, last.into(), after, x, gradient.view(), self.see)
    }

    fn linear_vjp(&mut self, role: Role, input: &Array2<f32>, gradient: ArrayView2<'_, f32>) -> Array2<f32> {
        linear_vjp(self.weights, role, input, gradient, self.see)
    }
}

/// What a layer's attention computed for one window.
struct Attention {
    /// What it read, `[tokens, hidden]`.
    input: Array2<f32>,
    /// What queries, keys and values were made of, where it is no input of theirs.
    latents: Option<LatentPass>,
    /// Queries and keys as their linears gave them, where norms follow.
    before_norms: Option<(Array2<f32>, Array2<f32>)>,
    /// Queries as they meet the keys, `[tokens, heads * head_dim]`.
    query: Array2<f32>,
    /// `[tokens, key_value_heads * head_dim]`.
    key: Array2<f32>,
    /// `[tokens, key_value_heads * value_dim]`.
    value: Array2<f32>,
    /// The heads' weighted values, `[tokens, heads * value_dim]`.
    attended: Array2<f32>,
}

impl Attention {
    fn run(
        forward: &Forward<'_>,
        layer: &Layer,
        weights: &LayerWeights,
        hidden: ArrayView2<'_, f32>,
    ) -> Self {
        let input = forward.normed(weights, NormPlace::AttentionInput, hidden).into_owned();
        let latents = LatentPass::run(forward, weights, input.view());
        let [mut query, mut key, value] = match &latents {
            Some(latents) => latents.heads(forward, layer, weights),
            None => forward.projected_heads(layer, weights, input.view()),
        };
        let norms = weights.norms.contains_key(&NormPlace::Query);
        let before_norms = norms.then(|| (query.clone(), key.clone()));
        let heads = forward.heads(layer, weights);
        forward.place(layer, weights, &mut query, &mut key, |rotary, rows| rotary.rotate(rows, heads.dim));
        let attended = forward.attend_placed(&heads, &[&query, &key, &value]);
        Self { input, latents, before_norms, query, key, value, attended }
    }
}
