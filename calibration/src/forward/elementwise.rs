//! Norms and activations: one pass over rows, written so that compilers vectorize them.

use kernels::elementwise::{gate_silu, scale_to_unit_mean_square, sum_of_squares};
use model::architecture::NormKind;
use model::hyperparameters::{Activation, GateClamp};
use ndarray::{Array2, ArrayView2, Zip};

use crate::weights::NormWeights;

/// A norm over each run of as many features of `x` as it has weights: rows, or the heads of rows.
pub(crate) fn norm(x: ArrayView2<'_, f32>, norm: &NormWeights, eps: f64) -> Array2<f32> {
    let mut out = x.as_standard_layout().into_owned();
    norm_in_place(&mut out, norm, eps);
    out
}

/// The same in place. Means are in f64.
pub(crate) fn norm_in_place(x: &mut Array2<f32>, norm: &NormWeights, eps: f64) {
    let values = x.as_slice_mut().expect("an owned matrix is contiguous");
    let gains = norm.gains();
    let gains = gains.as_standard_layout();
    let gains = gains.as_slice().expect("standard layout");
    match norm.kind {
        NormKind::Rms | NormKind::RmsPlusOne => scale_to_unit_mean_square(values, gains, eps),
        NormKind::Layer | NormKind::LayerWithoutBias => {
            values.chunks_exact_mut(gains.len()).for_each(center);
            scale_to_unit_mean_square(values, gains, eps);
        }
    }
    if let Some(bias) = &norm.bias {
        for run in values.chunks_exact_mut(bias.len()) {
            run.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
    }
}

/// Takes the mean away.
pub(crate) fn center(run: &mut [f32]) {
    let mean = run.iter().map(|&value| f64::from(value)).sum::<f64>() / run.len() as f64;
    run.iter_mut().for_each(|value| *value = (f64::from(*value) - mean) as f32);
}

/// `c tanh(x / c)`.
pub(crate) fn cap(values: &mut [f32], cap: f32) {
    values.iter_mut().for_each(|value| *value = cap * (*value / cap).tanh());
}

/// `1 / sqrt(mean(x²) + eps)`.
pub(crate) fn rms_factor(x: &[f32], eps: f64) -> f32 {
    let mean = sum_of_squares(x) / x.len() as f64;
    (1.0 / (mean + eps).sqrt()) as f32
}

/// `gate = activation(gate) * up`.
pub(crate) fn gate(activation: Activation, gate: &mut Array2<f32>, up: &Array2<f32>) {
    if activation == Activation::Silu {
        let gate = gate.as_slice_mut().expect("an owned matrix is contiguous");
        gate_silu(gate, up.as_slice().expect("an owned matrix is contiguous"));
        return;
    }
    let apply = scalar(activation);
    Zip::from(gate).and(up).for_each(|gate, &up| *gate = apply(*gate) * up);
}

/// `gate = g sigmoid(alpha g) (u + 1)` of clamped gates `g` and ups `u`.
pub(crate) fn gate_clamped(clamp: GateClamp, gate: &mut Array2<f32>, up: &Array2<f32>) {
    let GateClamp { alpha, limit } = clamp;
    Zip::from(gate).and(up).for_each(|gate, &up| {
        let g = gate.min(limit);
        *gate = g * logistic(alpha * g) * (up.clamp(-limit, limit) + 1.0);
    });
}

/// `1 / (1 + exp(-x))`.
pub(crate) fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `x = activation(x)`.
pub(crate) fn activate(activation: Activation, x: &mut Array2<f32>) {
    x.mapv_inplace(scalar(activation));
}

/// The function of one number.
pub(crate) fn scalar(activation: Activation) -> fn(f32) -> f32 {
    match activation {
        Activation::Silu => silu,
        Activation::Gelu => gelu,
        Activation::GeluTanh => gelu_tanh,
        Activation::Relu => relu,
    }
}

/// `x / (1 + exp(-x))`.
fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// `x Φ(x)` with the distribution function of the normal distribution (arXiv 1606.08415).
pub(crate) fn gelu(x: f32) -> f32 {
    (0.5 * f64::from(x) * (1.0 + erf(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2))) as f32
}

/// The approximation of [`gelu`] by a hyperbolic tangent.
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// `max(x, 0)`.
pub(crate) fn relu(x: f32) -> f32 {
    x.max(0.0)
}

/// The error function, to about 1e-15 (series below 3, continued fraction above).
pub(crate) fn erf(x: f64) -> f64 {
    let magnitude = x.abs();
    let value = if magnitude < 3.0 {
        let square = magnitude * magnitude;
        let mut term = magnitude;
        let mut sum = magnitude;
        let mut n = 0.0;
        while term.abs() > 1e-17 * sum.abs() {
            n += 1.0;
            term *= -square / n;
            sum += term / (2.0 * n + 1.0);
        }
        2.0 / std::f64::consts::PI.sqrt() * sum
    } else if magnitude < 6.0 {
        let fraction = (1..=60).rev().fold(magnitude, |below, k| magnitude + f64::from(k) / 2.0 / below);
        1.0 - (-magnitude * magnitude).exp() / (std::f64::consts::PI.sqrt() * fraction)
    } else {
        1.0
    };
    value.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_function_meets_its_table() {
        for (x, expected) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (2.0, 0.995_322_265_018_952_7),
            (-3.5, -0.999_999_256_901_628),
        ] {
            assert!((erf(x) - expected).abs() < 1e-13, "{x}: {}", erf(x));
        }
    }
}
