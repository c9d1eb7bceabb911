//! What a walk back through a layer shows: the parts that gradients of its weights are made of.

use kernels::product::product_tn;
use model::graph::NormPlace;
use model::linear::Slot;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};

/// One linear or one norm, with one window's part of its gradient.
#[derive(Clone, Copy, Debug)]
pub enum Visit<'v> {
    /// A linear.
    Linear(LinearVisit<'v>),
    /// A norm.
    Norm(NormVisit<'v>),
    /// What sends tokens to experts.
    Router(RouterVisit<'v>),
}

/// What a linear was given, and the gradient of what it gave.
#[derive(Clone, Copy, Debug)]
pub struct LinearVisit<'v> {
    /// Which one.
    pub slot: Slot,
    /// `[tokens, in_features]`.
    pub input: ArrayView2<'v, f32>,
    /// `[tokens, out_features]`.
    pub output_gradient: ArrayView2<'v, f32>,
}

/// What a router, or the gate of the shared expert, was given, and the gradient of what it gave.
#[derive(Clone, Copy, Debug)]
pub struct RouterVisit<'v> {
    /// Whether it is the gate of the shared expert.
    pub shared_gate: bool,
    /// `[tokens, hidden]`.
    pub input: ArrayView2<'v, f32>,
    /// `[tokens, experts]`, or `[tokens, 1]` of the gate.
    pub output_gradient: ArrayView2<'v, f32>,
}

/// The gradients of a norm's weights.
#[derive(Clone, Copy, Debug)]
pub struct NormVisit<'v> {
    /// Which one.
    pub place: NormPlace,
    /// Shaped like the weight, `[features]`.
    pub gradient: ArrayView1<'v, f32>,
    /// Of the bias, where there is one, `[features]`.
    pub bias_gradient: Option<ArrayView1<'v, f32>>,
}

impl RouterVisit<'_> {
    /// The gradient of the weight, `[experts, hidden]`, or `[1, hidden]` of the gate.
    #[must_use]
    pub fn weight_gradient(&self) -> Array2<f32> {
        let mut gradient = Array2::zeros((self.output_gradient.ncols(), self.input.ncols()));
        product_tn(self.output_gradient, self.input, gradient.view_mut());
        gradient
    }
}

impl LinearVisit<'_> {
    /// The gradient of the weight, `[out_features, in_features]`.
    #[must_use]
    pub fn weight_gradient(&self) -> Array2<f32> {
        let mut gradient = Array2::zeros((self.output_gradient.ncols(), self.input.ncols()));
        product_tn(self.output_gradient, self.input, gradient.view_mut());
        gradient
    }

    /// The gradient of the bias, `[out_features]`, whether there is one or not.
    #[must_use]
    pub fn bias_gradient(&self) -> Array1<f32> {
        self.output_gradient.sum_axis(Axis(0))
    }
}
