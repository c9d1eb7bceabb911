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
//! | `y = act(g) u` | `ḡ = ȳ u act'(g)`, `ū = ȳ act(g)` |
//! | rotation by `R` | `x̄ = Rᵀ ȳ` |
//! | `y = Σ_c p_c f_c(x)` over the chosen experts | `x̄ = Σ_c p_c f̄_c`, `p̄_c = ȳ · f_c(x)`; of the router's outputs see `forward/routing.rs` |
//! | `S = s Q Kᵀ`, `P = softmax(S)`, `O = P V` | `V̄ = Pᵀ Ō`, `P̄ = Ō Vᵀ`, `S̄ = P ∘ (P̄ - rowsum(P ∘ P̄))`, `Q̄ = s S̄ K`, `K̄ = s S̄ᵀ Q` |
//!
//! Numbers are f32 as in the forward pass, sums over a row's features in norms and softmax f64. Windows are independent of each other, and
//! nothing here depends on the number of threads.

mod attention;
mod elementwise;
mod loss;
mod mlp;
mod signs;
mod visit;

use model::Layer;
use model::linear::{Role, Slot};
use ndarray::{Array1, Array2, ArrayView2};
use rayon::prelude::*;

use crate::forward::{Forward, attention as forward_attention, elementwise as forward_elementwise};
use crate::weights::{LayerWeights, SourceError, WeightSource};
pub use loss::{Head, Loss};
use mlp::MlpPass;
pub use visit::{LayerNorm, LinearVisit, NormVisit, RouterVisit, Visit};

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
            window.mlp.part_vjp(self.forward, weights, part, output_gradient, see);
        }
        self.finish(layer, weights, window, input, output_gradient, see)
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
            windows.par_iter_mut().zip(output_gradients).zip(kept.par_iter_mut()).for_each(
                |((window, gradient), kept)| {
                    window
                        .mlp
                        .part_vjp(self.forward, held, part, gradient.view(), &mut |visit| see(kept, visit));
                },
            );
            if fetched {
                weights.release(part);
            }
        }
        let common = &weights;
        let finished =
            windows.into_par_iter().zip(inputs).zip(output_gradients).zip(kept.par_iter_mut()).map(
                |(((window, input), gradient), kept)| {
                    let see = &mut |visit: Visit<'_>| see(kept, visit);
                    self.finish(layer, common, window, input.view(), gradient.view(), see)
                },
            );
        Ok(finished.collect())
    }

    /// From the gradient of the MLP's input to that of the layer's.
    fn finish(
        &self,
        layer: &Layer,
        weights: &LayerWeights,
        window: Window,
        input: ArrayView2<'_, f32>,
        output_gradient: ArrayView2<'_, f32>,
        see: &mut dyn FnMut(Visit<'_>),
    ) -> Array2<f32> {
        let Window { attention, between, mlp } = window;
        let mut gradient = mlp.finish(layer, weights, see);
        self.norm_vjp(LayerNorm::Mlp, &weights.mlp_norm, between.view(), &mut gradient, see);
        gradient += &output_gradient;
        self.attention_vjp(layer, weights, attention, input, gradient, see)
    }

    /// Of `hidden + output(attend(norm(hidden)))`.
    fn attention_vjp(
        &self,
        layer: &Layer,
        weights: &LayerWeights,
        attention: Attention,
        hidden: ArrayView2<'_, f32>,
        output_gradient: Array2<f32>,
        see: &mut dyn FnMut(Visit<'_>),
    ) -> Array2<f32> {
        let Attention { input, before_norms, query, key, value, attended } = attention;
        let attended_gradient = linear_vjp(weights, Role::Output, &attended, output_gradient.view(), see);
        let attention::Gradients { query: mut query_gradient, key: mut key_gradient, value: value_gradient } =
            attention::causal_vjp(&self.forward.heads(layer), &query, &key, &value, &attended_gradient);
        let head_dim = self.forward.model().hyperparameters.head_dim;
        self.forward.rotary().rotate_back(&mut query_gradient, head_dim);
        self.forward.rotary().rotate_back(&mut key_gradient, head_dim);
        if let (Some((query, key)), Some((query_norm, key_norm))) = (&before_norms, &weights.head_norms) {
            self.norm_vjp(LayerNorm::Query, query_norm, query.view(), &mut query_gradient, see);
            self.norm_vjp(LayerNorm::Key, key_norm, key.view(), &mut key_gradient, see);
        }

        let mut gradient = linear_vjp(weights, Role::Value, &input, value_gradient.view(), see);
        gradient += &linear_vjp(weights, Role::Key, &input, key_gradient.view(), see);
        gradient += &linear_vjp(weights, Role::Query, &input, query_gradient.view(), see);
        self.norm_vjp(LayerNorm::Attention, &weights.attention_norm, hidden, &mut gradient, see);
        gradient + output_gradient
    }

    /// `gradient`, of what a norm over runs of `weight.len()` features gave for `x`, becomes that of `x`.
    fn norm_vjp(
        &self,
        norm: LayerNorm,
        weight: &Array1<f32>,
        x: ArrayView2<'_, f32>,
        gradient: &mut Array2<f32>,
        see: &mut dyn FnMut(Visit<'_>),
    ) {
        let eps = self.forward.model().hyperparameters.norm_eps;
        let weight_gradient = elementwise::rms_norm_vjp(x, weight, eps, gradient);
        see(Visit::Norm(NormVisit { norm, gradient: weight_gradient.view() }));
    }
}

/// The parts of a layer's MLP, in forward order.
fn parts(layer: &Layer) -> impl Iterator<Item = model::linear::Part> + '_ {
    let inputs = layer.stages.iter().filter(|stage| stage.input == model::graph::StageInput::MlpInput);
    inputs.map(model::Stage::part)
}

/// What a layer computed for one window.
struct Window {
    attention: Attention,
    /// The residual stream behind attention, `[tokens, hidden]`.
    between: Array2<f32>,
    mlp: MlpPass,
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
        let between = &input + &weights.linear(Role::Output).apply(attention.attended.view());
        let mlp = MlpPass::new(forward, layer, weights, between.view());
        Self { attention, between, mlp }
    }
}

/// What a layer's attention computed for one window.
struct Attention {
    /// The normed residual stream, `[tokens, hidden]`.
    input: Array2<f32>,
    /// Queries and keys as their linears gave them, where norms follow.
    before_norms: Option<(Array2<f32>, Array2<f32>)>,
    /// Queries as they meet the keys, `[tokens, heads * head_dim]`.
    query: Array2<f32>,
    /// `[tokens, key_value_heads * head_dim]`.
    key: Array2<f32>,
    /// `[tokens, key_value_heads * head_dim]`.
    value: Array2<f32>,
    /// The heads' weighted values, `[tokens, heads * head_dim]`.
    attended: Array2<f32>,
}

impl Attention {
    fn run(
        forward: &Forward<'_>,
        layer: &Layer,
        weights: &LayerWeights,
        hidden: ArrayView2<'_, f32>,
    ) -> Self {
        let eps = forward.model().hyperparameters.norm_eps;
        let input = forward_elementwise::rms_norm(hidden, &weights.attention_norm, eps);
        let apply = |role: Role| weights.linear(role).apply(input.view());
        let (mut query, mut key, value) = (apply(Role::Query), apply(Role::Key), apply(Role::Value));
        let before_norms = weights.head_norms.is_some().then(|| (query.clone(), key.clone()));
        forward.place(weights, &mut query, &mut key);
        let heads = forward.heads(layer);
        let attended = forward_attention::causal(&heads, query.view(), key.view(), value.view());
        Self { input, before_norms, query, key, value, attended }
    }
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
