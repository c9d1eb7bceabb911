//! The MLP in reverse: dense, or what a router made of many.

use kernels::elementwise::inner_product;
use model::Layer;
use model::architecture::Mlp;
use model::graph::NormPlace;
use model::linear::{Part, Role, Slot};
use ndarray::{Array2, ArrayView2, Axis};

use super::visit::{LinearVisit, RouterVisit, Visit};
use super::{elementwise, end_vjp, linear_vjp};
use crate::forward::routing::{Chosen, Routed, choose};
use crate::forward::{Forward, elementwise as forward_elementwise, fused};
use crate::weights::LayerWeights;

/// The MLP of one window on its way back.
pub(super) struct MlpPass {
    /// The normed residual stream, `[tokens, hidden]`; where there are experts it is in `routed`.
    input: Array2<f32>,
    /// The gradient of that, as far as it is known.
    gradient: Array2<f32>,
    experts: Option<ExpertsPass>,
}

/// What is known of a window's experts.
struct ExpertsPass {
    routed: Routed,
    chosen: Vec<Chosen>,
    /// The gradients of the chosen experts' weights, by token and place among its experts.
    weights: Vec<Vec<f64>>,
    /// The same of the shared expert's, by token.
    shared: Vec<f32>,
}

impl MlpPass {
    /// For the residual stream `hidden` in front of the MLP, `[tokens, hidden]`, and the norm that the MLP reads it behind.
    pub(super) fn new(
        forward: &Forward<'_>,
        layer: &Layer,
        weights: &LayerWeights,
        hidden: ArrayView2<'_, f32>,
        norm: NormPlace,
    ) -> Self {
        let input = forward.normed(weights, norm, hidden).into_owned();
        let experts = layer.router.as_ref().zip(weights.router.as_ref()).map(|(tensors, router)| {
            let chosen = choose(&tensors.routing, router, input.view());
            let of_weights = chosen.iter().map(|chosen| vec![0.0; chosen.experts.len()]).collect();
            let routed = Routed::of(&tensors.routing, router, input.clone(), &chosen);
            ExpertsPass { routed, chosen, weights: of_weights, shared: Vec::new() }
        });
        Self { gradient: Array2::zeros(input.dim()), input, experts }
    }

    /// The inner features of a layer without experts, `[tokens, intermediate]`.
    pub(super) fn inner(&self, forward: &Forward<'_>, weights: &LayerWeights) -> Array2<f32> {
        forward.inner(weights, Part::Main, self.input.view())
    }

    /// Whether a token of the window is sent to an expert.
    pub(super) fn sends_to(&self, expert: usize) -> bool {
        self.experts.as_ref().is_some_and(|experts| !experts.routed.sent(expert).is_empty())
    }

    /// Adds what comes back through one part. `output_gradient` is that of the residual stream with what the MLP gave, `[tokens, hidden]`.
    pub(super) fn part_vjp(
        &mut self,
        forward: &Forward<'_>,
        weights: &LayerWeights,
        part: Part,
        output_gradient: ArrayView2<'_, f32>,
        see: &mut dyn FnMut(Visit<'_>),
    ) {
        let Self { input, gradient, experts } = self;
        let gated = Gated { forward, weights, part };
        match (part, experts) {
            (Part::Expert(expert), Some(experts)) => {
                let sent = experts.routed.sent(expert).to_vec();
                if sent.is_empty() {
                    return;
                }
                let tokens: Vec<usize> = sent.iter().map(|&(token, _)| token).collect();
                let shares: Vec<f32> = sent.iter().map(|&(_, weight)| weight).collect();
                let of_output = output_gradient.select(Axis(0), &tokens);
                let input = experts.routed.gathered(expert);
                let (back, of_shares) = gated.vjp(&input, of_output.view(), Some(&shares), see);
                for (row, (&token, of_share)) in back.rows().into_iter().zip(tokens.iter().zip(of_shares)) {
                    let mut target = gradient.row_mut(token);
                    target += &row;
                    let place =
                        experts.chosen[token].experts.iter().position(|&(chosen, _)| chosen == expert);
                    if let Some(place) = place {
                        experts.weights[token][place] = of_share;
                    }
                }
            }
            (Part::Shared, Some(experts)) => {
                let shares = experts.routed.shared().map(<[f32]>::to_vec);
                let (back, of_shares) = gated.vjp(input, output_gradient, shares.as_deref(), see);
                *gradient += &back;
                experts.shared = of_shares.into_iter().map(|value| value as f32).collect();
            }
            _ => *gradient += &gated.whole_vjp(input, output_gradient, see),
        }
    }

    /// The gradient of the normed residual stream, `[tokens, hidden]`, when all parts have come back.
    pub(super) fn finish(
        self,
        layer: &Layer,
        weights: &LayerWeights,
        see: &mut dyn FnMut(Visit<'_>),
    ) -> Array2<f32> {
        let Self { input, mut gradient, experts } = self;
        let (Some(experts), Some(tensors), Some(router)) = (experts, &layer.router, &weights.router) else {
            return gradient;
        };
        if let (Some(gate), Some(shares)) = (&router.shared_gate, experts.routed.shared()) {
            let of_outputs =
                experts.shared.iter().zip(shares).map(|(of_share, &share)| of_share * share * (1.0 - share));
            let of_outputs = Array2::from_shape_fn((input.nrows(), 1), {
                let of_outputs: Vec<f32> = of_outputs.collect();
                move |(token, _)| of_outputs[token]
            });
            let (input, output_gradient) = (input.view(), of_outputs.view());
            see(Visit::Router(RouterVisit { shared_gate: true, input, output_gradient }));
            gradient += &gate.apply_transposed(of_outputs.view());
        }
        let mut of_outputs = Array2::zeros((input.nrows(), tensors.routing.experts));
        for ((mut row, chosen), of_weights) in
            of_outputs.rows_mut().into_iter().zip(&experts.chosen).zip(&experts.weights)
        {
            let found = chosen.vjp(&tensors.routing, of_weights);
            row.iter_mut().zip(found).for_each(|(gradient, found)| *gradient = found);
        }
        let (input, output_gradient) = (input.view(), of_outputs.view());
        see(Visit::Router(RouterVisit { shared_gate: false, input, output_gradient }));
        gradient + router.outputs.apply_transposed(of_outputs.view())
    }
}

/// `share * down(activation(gate(x)) * up(x))`.
struct Gated<'a, 'm> {
    forward: &'a Forward<'m>,
    weights: &'a LayerWeights,
    part: Part,
}

impl Gated<'_, '_> {
    /// Gate and up become their own gradients.
    fn gate_vjp(&self, gate: &mut Array2<f32>, up: &mut Array2<f32>, gradient: &Array2<f32>) {
        let numbers = &self.forward.model().hyperparameters;
        match numbers.clamp {
            None => elementwise::gate_vjp(numbers.activation, gate, up, gradient),
            Some(clamp) => elementwise::gate_clamped_vjp(clamp, gate, up, gradient),
        }
    }

    /// The gradient of `input`, shaped like it, of a layer without experts, whatever its MLP is.
    fn whole_vjp(
        &self,
        input: &Array2<f32>,
        output_gradient: ArrayView2<'_, f32>,
        see: &mut dyn FnMut(Visit<'_>),
    ) -> Array2<f32> {
        let activation = self.forward.model().hyperparameters.activation;
        let slot = |role| Slot { part: self.part, role };
        let apply = |role| self.weights.linear(slot(role)).apply(input.view());
        let shape = &self.forward.model().architecture.layer.mlp;
        // What the activation is given, and what is multiplied with what it gives.
        let (mut gate, up) = match shape {
            Mlp::Gated { .. } | Mlp::Experts { .. } => (apply(Role::Gate), Some(apply(Role::Up))),
            Mlp::GatedFused { .. } => {
                let [gate, up] = fused::halves(&apply(Role::GateUp));
                (gate, Some(up))
            }
            Mlp::Plain { .. } => (apply(Role::Up), None),
        };
        let mut inner = gate.clone();
        match &up {
            Some(up) => self.forward.gate(&mut inner, up),
            None => forward_elementwise::activate(activation, &mut inner),
        }
        let (forward, weights) = (self.forward, self.weights);
        let (down, after) = (slot(Role::Down), NormPlace::MlpOutput);
        let gradient = end_vjp(forward, weights, down, after, &inner, output_gradient, see);
        let Some(mut up) = up else {
            elementwise::activation_vjp(activation, &mut gate, &gradient);
            return linear_vjp(weights, slot(Role::Up), input, gate.view(), see);
        };
        self.gate_vjp(&mut gate, &mut up, &gradient);
        if matches!(shape, Mlp::GatedFused { .. }) {
            let both = fused::beside(gate.view(), up.view());
            return linear_vjp(weights, slot(Role::GateUp), input, both.view(), see);
        }
        let gradient = linear_vjp(weights, slot(Role::Up), input, up.view(), see);
        gradient + linear_vjp(weights, slot(Role::Gate), input, gate.view(), see)
    }

    /// The gradients of `input`, shaped like it, and of the shares, one for each token; without shares all of them are one, and none has a
    /// gradient.
    fn vjp(
        &self,
        input: &Array2<f32>,
        output_gradient: ArrayView2<'_, f32>,
        shares: Option<&[f32]>,
        see: &mut dyn FnMut(Visit<'_>),
    ) -> (Array2<f32>, Vec<f64>) {
        let slot = |role| Slot { part: self.part, role };
        let mut gate = self.weights.linear(slot(Role::Gate)).apply(input.view());
        let mut up = self.weights.linear(slot(Role::Up)).apply(input.view());
        let mut gated = gate.clone();
        self.forward.gate(&mut gated, &up);
        let mut of_shares = Vec::new();
        let gated_gradient = match shares {
            None => linear_vjp(self.weights, slot(Role::Down), &gated, output_gradient, see),
            Some(shares) => {
                let down = self.weights.linear(slot(Role::Down));
                let mut back = down.apply_transposed(output_gradient);
                let mut weighted = output_gradient.to_owned();
                for (token, &share) in shares.iter().enumerate() {
                    // What the linear gives times the gradient of it: W x · ȳ is x · ȳ W.
                    let bias = down
                        .bias
                        .as_ref()
                        .map_or(0.0, |bias| f64::from(bias.dot(&output_gradient.row(token))));
                    let (x, y) = (gated.row(token), back.row(token));
                    let along = x.as_slice().zip(y.as_slice()).map_or(0.0, |(x, y)| inner_product(x, y));
                    of_shares.push(along + bias);
                    weighted.row_mut(token).map_inplace(|value| *value *= share);
                    back.row_mut(token).map_inplace(|value| *value *= share);
                }
                let (input, output_gradient) = (gated.view(), weighted.view());
                see(Visit::Linear(LinearVisit { slot: slot(Role::Down), input, output_gradient }));
                back
            }
        };
        self.gate_vjp(&mut gate, &mut up, &gated_gradient);
        let mut gradient = linear_vjp(self.weights, slot(Role::Up), input, up.view(), see);
        gradient += &linear_vjp(self.weights, slot(Role::Gate), input, gate.view(), see);
        (gradient, of_shares)
    }
}
