//! Norms and activations in reverse.

use kernels::elementwise::{gate_silu_vjp, inner_product};
use model::hyperparameters::Activation;
use ndarray::{Array1, Array2, ArrayView2, Zip};

use crate::forward::elementwise::{erf, gelu, gelu_tanh, relu, rms_factor};

type Scalar = fn(f32) -> f32;

/// The derivative of `y = x r w`, `r = 1 / sqrt(mean(x²) + eps)`, over each run of `weight.len()` features of `x`, which are rows or the
/// heads of rows. `gradient`, of `y` and shaped like `x`, becomes that of `x`; the result is that of the weight, summed in f64.
pub(super) fn rms_norm_vjp(
    x: ArrayView2<'_, f32>,
    weight: &Array1<f32>,
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
            weight_gradient.iter_mut().zip(gradient.iter_mut()).zip(x.iter().zip(weight))
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
    let (apply, slope): (Scalar, Scalar) = match activation {
        Activation::Silu => {
            let gate = gate.as_slice_mut().expect("an owned matrix is contiguous");
            let up = up.as_slice_mut().expect("an owned matrix is contiguous");
            gate_silu_vjp(gate, up, gradient.as_slice().expect("an owned matrix is contiguous"));
            return;
        }
        Activation::Gelu => (gelu, gelu_slope),
        Activation::GeluTanh => (gelu_tanh, gelu_tanh_slope),
        Activation::Relu => (relu, relu_slope),
    };
    Zip::from(gate).and(up).and(gradient).for_each(|gate, up, &gradient| {
        (*gate, *up) = (gradient * *up * slope(*gate), gradient * apply(*gate));
    });
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
        }
    }
}
