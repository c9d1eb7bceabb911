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
//! | `S = s Q Kᵀ`, `P = softmax(S)`, `O = P V` | `V̄ = Pᵀ Ō`, `P̄ = Ō Vᵀ`, `S̄ = P ∘ (P̄ - rowsum(P ∘ P̄))`, `Q̄ = s S̄ K`, `K̄ = s S̄ᵀ Q` |
//!
//! Numbers are f32 as in the forward pass, sums over a row's features in norms and softmax f64. Windows are independent of each other, and
//! nothing here depends on the number of threads.

mod attention;
mod elementwise;
mod loss;
mod signs;
mod visit;

use model::Layer;
use model::linear::Role;
use ndarray::{Array1, Array2, ArrayView2};

use crate::forward::{Forward, attention as forward_attention, elementwise as forward_elementwise};
use crate::weights::LayerWeights;
pub use loss::{Head, Loss};
pub use visit::{LayerNorm, LinearVisit, NormVisit, Visit};

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
        assert_eq!(input.dim(), output_gradient.dim(), "shape of the gradient of a layer's result");
        let attention = Attention::run(self.forward, layer, weights, input);
        let between = &input + &weights.linear(Role::Output).apply(attention.attended.view());
        let gradient = self.mlp_vjp(weights, between.view(), output_gradient, see);
        self.attention_vjp(layer, weights, attention, input, gradient, see)
    }

    /// Of `hidden + down(gate(norm(hidden)))`.
    fn mlp_vjp(
        &self,
        weights: &LayerWeights,
        hidden: ArrayView2<'_, f32>,
        output_gradient: ArrayView2<'_, f32>,
        see: &mut dyn FnMut(Visit<'_>),
    ) -> Array2<f32> {
        let numbers = &self.forward.model().hyperparameters;
        let input = forward_elementwise::rms_norm(hidden, &weights.mlp_norm, numbers.norm_eps);
        let mut gate = weights.linear(Role::Gate).apply(input.view());
        let mut up = weights.linear(Role::Up).apply(input.view());
        let mut gated = gate.clone();
        forward_elementwise::gate(numbers.activation, &mut gated, &up);
        let gated_gradient = linear_vjp(weights, Role::Down, &gated, output_gradient, see);
        elementwise::gate_vjp(numbers.activation, &mut gate, &mut up, &gated_gradient);

        let mut gradient = linear_vjp(weights, Role::Up, &input, up.view(), see);
        gradient += &linear_vjp(weights, Role::Gate, &input, gate.view(), see);
        self.norm_vjp(LayerNorm::Mlp, &weights.mlp_norm, hidden, &mut gradient, see);
        gradient + output_gradient
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
    role: Role,
    input: &Array2<f32>,
    output_gradient: ArrayView2<'_, f32>,
    see: &mut dyn FnMut(Visit<'_>),
) -> Array2<f32> {
    see(Visit::Linear(LinearVisit { role, input: input.view(), output_gradient }));
    weights.linear(role).apply_transposed(output_gradient)
}
