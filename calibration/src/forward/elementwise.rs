//! Norms and activations: one pass over rows, written so that compilers vectorize them.

use kernels::elementwise::{gate_silu, scale_to_unit_mean_square, sum_of_squares};
use model::hyperparameters::Activation;
use ndarray::{Array1, Array2, ArrayView2, Zip};

/// `x / sqrt(mean(x²) + eps) * weight` for each row (arXiv 1910.07467); the mean in f64.
pub(crate) fn rms_norm(x: ArrayView2<'_, f32>, weight: &Array1<f32>, eps: f64) -> Array2<f32> {
    let mut out = x.as_standard_layout().into_owned();
    rms_norm_heads(&mut out, weight, eps);
    out
}

/// The same over each head of a row, `weight` `[head_dim]`.
pub(crate) fn rms_norm_heads(x: &mut Array2<f32>, weight: &Array1<f32>, eps: f64) {
    let values = x.as_slice_mut().expect("an owned matrix is contiguous");
    scale_to_unit_mean_square(values, weight.as_standard_layout().as_slice().expect("standard layout"), eps);
}

/// `1 / sqrt(mean(x²) + eps)`.
pub(crate) fn rms_factor(x: &[f32], eps: f64) -> f32 {
    let mean = sum_of_squares(x) / x.len() as f64;
    (1.0 / (mean + eps).sqrt()) as f32
}

/// `gate = activation(gate) * up`.
pub(crate) fn gate(activation: Activation, gate: &mut Array2<f32>, up: &Array2<f32>) {
    let apply: fn(f32) -> f32 = match activation {
        Activation::Silu => {
            let gate = gate.as_slice_mut().expect("an owned matrix is contiguous");
            gate_silu(gate, up.as_slice().expect("an owned matrix is contiguous"));
            return;
        }
        Activation::Gelu => gelu,
        Activation::GeluTanh => gelu_tanh,
        Activation::Relu => relu,
    };
    Zip::from(gate).and(up).for_each(|gate, &up| *gate = apply(*gate) * up);
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
