//! Norms and activations in reverse.

use kernels::elementwise::{gate_silu_vjp, inner_product};
use model::architecture::NormKind;
use model::hyperparameters::{Activation, GateClamp};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Zip};

use crate::forward::elementwise::{center, erf, logistic, rms_factor, scalar};
use crate::weights::NormWeights;

/// The gradients of a norm's weights, `[features]`.
pub(super) struct NormGradients {
    pub(super) weight: Array1<f32>,
    pub(super) bias: Option<Array1<f32>>,
}

/// The derivative of a norm over each run of as many features of `x` as it has weights. `gradient`, of what it gave and shaped like `x`, becomes
/// that of `x`; sums over runs are in f64.
pub(super) fn norm_vjp(
    x: ArrayView2<'_, f32>,
    norm: &NormWeights,
    eps: f64,
    gradient: &mut Array2<f32>,
) -> NormGradients {
    let bias = norm.bias.as_ref().map(|bias| sum_of_runs(gradient, bias.len()));
    let gains = norm.gains();
    let weight = match norm.kind {
        NormKind::Rms | NormKind::RmsPlusOne => rms_norm_vjp(x, gains.view(), eps, gradient),
        NormKind::Layer | NormKind::LayerWithoutBias => {
            let mut centered = x.as_standard_layout().into_owned();
            runs_of(&mut centered, gains.len()).for_each(center);
            let weight = rms_norm_vjp(centered.view(), gains.view(), eps, gradient);
            runs_of(gradient, gains.len()).for_each(center);
            weight
        }
    };
    NormGradients { weight, bias }
}

fn runs_of(x: &mut Array2<f32>, features: usize) -> std::slice::ChunksExactMut<'_, f32> {
    x.as_slice_mut().expect("an owned matrix is contiguous").chunks_exact_mut(features)
}

fn sum_of_runs(x: &Array2<f32>, features: usize) -> Array1<f32> {
    let mut sums = vec![0.0_f64; features];
    for run in x.as_slice().expect("an owned matrix is contiguous").chunks_exact(features) {
        sums.iter_mut().zip(run).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

/// The derivative of `y = x r w`, `r = 1 / sqrt(mean(x²) + eps)`, over each run of `weight.len()` features of `x`, which are rows or the
/// heads of rows. `gradient`, of `y` and shaped like `x`, becomes that of `x`; the result is that of the weight, summed in f64.
fn rms_norm_vjp(
    x: ArrayView2<'_, f32>,
    weight: ArrayView1<'_, f32>,
    eps: f64,
    gradient: &mut Array2<f32>,
) -> Array1<f32> {
    let x = x.as_standard_layout();
    let x = x.as_slice().expect("made contiguous above");
    let gradient = gradient.as_slice_mut().expect("an owned matrix is contiguous");
    let mut weight_gradient = vec![0.0_f64; weight.len()];
    for (x, gradient) in x.chunks_exact(weight.len()).zip(gradient.chunks_exact_mut(weight.len())) {
        let factor = rms_factor(x, eps);
        for ((sum, gradient), (&x, &weight)) in
            weight_gradient.iter_mut().zip(gradient.iter_mut()).zip(x.iter().zip(&weight))
        {
            *sum += f64::from(*gradient * x * factor);
            *gradient *= weight;
        }
        let mean = inner_product(x, gradient) / x.len() as f64;
        let along = (mean * f64::from(factor).powi(2)) as f32;
        for (gradient, &x) in gradient.iter_mut().zip(x) {
            *gradient = factor * (*gradient - x * along);
        }
    }
    weight_gradient.into_iter().map(|sum| sum as f32).collect()
}

/// The derivative of `activation(gate) * up`, whose gradient is `gradient`: `gate` and `up` become their own gradients.
pub(super) fn gate_vjp(
    activation: Activation,
    gate: &mut Array2<f32>,
    up: &mut Array2<f32>,
    gradient: &Array2<f32>,
) {
    if activation == Activation::Silu {
        let gate = gate.as_slice_mut().expect("an owned matrix is contiguous");
        let up = up.as_slice_mut().expect("an owned matrix is contiguous");
        gate_silu_vjp(gate, up, gradient.as_slice().expect("an owned matrix is contiguous"));
        return;
    }
    let (apply, slope) = (scalar(activation), slope(activation));
    Zip::from(gate).and(up).and(gradient).for_each(|gate, up, &gradient| {
        (*gate, *up) = (gradient * *up * slope(*gate), gradient * apply(*gate));
    });
}

/// The derivative of what clamped gates and ups give: both become their own gradients, which are zero beyond the limit.
pub(super) fn gate_clamped_vjp(
    clamp: GateClamp,
    gate: &mut Array2<f32>,
    up: &mut Array2<f32>,
    gradient: &Array2<f32>,
) {
    let GateClamp { alpha, limit } = clamp;
    Zip::from(gate).and(up).and(gradient).for_each(|gate, up, &gradient| {
        let (g, u) = (gate.min(limit), up.clamp(-limit, limit));
        let s = logistic(alpha * g);
        let of_gate = gradient * (u + 1.0) * s * (1.0 + alpha * g * (1.0 - s));
        let of_up = gradient * g * s;
        *gate = if *gate <= limit { of_gate } else { 0.0 };
        *up = if up.abs() <= limit { of_up } else { 0.0 };
    });
}

/// The derivative of `activation(x)`, whose gradient is `gradient`: `x` becomes its own gradient.
pub(super) fn activation_vjp(activation: Activation, x: &mut Array2<f32>, gradient: &Array2<f32>) {
    let slope = slope(activation);
    Zip::from(x).and(gradient).for_each(|x, &gradient| *x = gradient * slope(*x));
}

fn slope(activation: Activation) -> fn(f32) -> f32 {
    match activation {
        Activation::Silu => silu_slope,
        Activation::Gelu => gelu_slope,
        Activation::GeluTanh => gelu_tanh_slope,
        Activation::Relu => relu_slope,
    }
}

/// With `s` the logistic function: `s (1 + x (1 - s))`.
fn silu_slope(x: f32) -> f32 {
    let s = 1.0 / (1.0 + (-x).exp());
    s * (1.0 + x * (1.0 - s))
}

/// `Φ(x) + x φ(x)`.
fn gelu_slope(x: f32) -> f32 {
    let x = f64::from(x);
    let below = 0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
    let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    (below + x * density) as f32
}

/// With `t = tanh(c (x + a x³))`: `(1 + t) / 2 + x (1 - t²) c (1 + 3 a x²) / 2`.
fn gelu_tanh_slope(x: f32) -> f32 {
    let c = (2.0 / std::f32::consts::PI).sqrt();
    let t = (c * (x + 0.044_715 * x * x * x)).tanh();
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044_715 * x * x)
}

/// Zero at zero, where there is none, as in PyTorch.
fn relu_slope(x: f32) -> f32 {
    if x > 0.0 { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clamped_gates_have_their_slopes_and_none_beyond_the_limit() {
        let clamp = GateClamp { alpha: 1.702, limit: 2.0 };
        let value = |gate: f32, up: f32| {
            let mut gate = Array2::from_elem((1, 1), gate);
            crate::forward::elementwise::gate_clamped(clamp, &mut gate, &Array2::from_elem((1, 1), up));
            f64::from(gate[[0, 0]])
        };
        for (gate, up) in [(0.7_f32, -0.4_f32), (-3.0, 1.5), (2.5, 0.3), (0.2, 2.5), (-1.0, -2.5)] {
            let mut found = [Array2::from_elem((1, 1), gate), Array2::from_elem((1, 1), up)];
            let [of_gate, of_up] = &mut found;
            gate_clamped_vjp(clamp, of_gate, of_up, &Array2::from_elem((1, 1), 1.0));
            let step = 0.01;
            let slopes = [
                (value(gate + step, up) - value(gate - step, up)) / 0.02,
                (value(gate, up + step) - value(gate, up - step)) / 0.02,
            ];
            for (found, expected) in found.iter().zip(slopes) {
                assert!(
                    (f64::from(found[[0, 0]]) - expected).abs() < 2e-4,
                    "{gate} {up}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn slopes_are_those_of_the_definitions() {
        let gelu = |x: f64| 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
        let gelu_tanh = |x: f64| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
        };
        for step in -150..150 {
            let x = (step as f32 + 0.5) * 0.05;
            let close = |found: f32, definition: &dyn Fn(f64) -> f64| {
                let expected = (definition(f64::from(x) + 1e-5) - definition(f64::from(x) - 1e-5)) / 2e-5;
                assert!((f64::from(found) - expected).abs() < 1e-6, "{x}: {found} {expected}");
            };
            close(gelu_slope(x), &gelu);
            close(gelu_tanh_slope(x), &gelu_tanh);
            close(relu_slope(x), &|x| x.max(0.0));
            close(silu_slope(x), &|x| x / (1.0 + (-x).exp()));
        }
    }
}
