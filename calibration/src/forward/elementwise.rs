//! Norms, activations and the exponential they need: one pass over rows, written so that compilers vectorize them.

use model::hyperparameters::Activation;
use ndarray::{Array1, Array2, ArrayView2, Zip};

/// `x / sqrt(mean(x²) + eps) * weight` for each row (arXiv 1910.07467); the mean in f64.
pub(super) fn rms_norm(x: ArrayView2<'_, f32>, weight: &Array1<f32>, eps: f64) -> Array2<f32> {
    let mut out = x.to_owned();
    for mut row in out.rows_mut() {
        let factor = inverse_rms(row.iter(), eps);
        Zip::from(&mut row).and(weight).for_each(|value, &weight| *value = *value * factor * weight);
    }
    out
}

/// The same over each head of a row, `weight` `[head_dim]`.
pub(super) fn rms_norm_heads(x: &mut Array2<f32>, weight: &Array1<f32>, eps: f64) {
    for mut row in x.rows_mut() {
        for mut head in row.exact_chunks_mut(weight.len()) {
            let factor = inverse_rms(head.iter(), eps);
            Zip::from(&mut head).and(weight).for_each(|value, &weight| *value = *value * factor * weight);
        }
    }
}

fn inverse_rms<'a>(values: impl ExactSizeIterator<Item = &'a f32>, eps: f64) -> f32 {
    let count = values.len() as f64;
    let squares: f64 = values.map(|&value| f64::from(value) * f64::from(value)).sum();
    (1.0 / (squares / count + eps).sqrt()) as f32
}

/// `gate = activation(gate) * up`.
pub(super) fn gate(activation: Activation, gate: &mut Array2<f32>, up: &Array2<f32>) {
    let apply: fn(f32) -> f32 = match activation {
        // The common case gets a loop of its own, which vectorizes.
        Activation::Silu => {
            Zip::from(gate).and(up).for_each(|gate, &up| *gate = silu(*gate) * up);
            return;
        }
        Activation::Gelu => {
            |x| (0.5 * f64::from(x) * (1.0 + erf(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2))) as f32
        }
        Activation::GeluTanh => |x| {
            let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        },
        Activation::Relu => |x| x.max(0.0),
    };
    Zip::from(gate).and(up).for_each(|gate, &up| *gate = apply(*gate) * up);
}

#[inline]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// e to the x, within two units in the last place; zero below -87 and at most e to the 88.
///
/// `x = n ln 2 + r` with `r` at most half of ln 2, a polynomial for `e^r`, and `n` added to the exponent. No branches.
#[inline]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that the reduction is exact for every n that can occur.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.0, 88.0);
    let n = (clamped * LOG2_E + ROUND) - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut polynomial = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        polynomial = polynomial * r + coefficient;
    }
    let mantissa = polynomial * r * r + r + 1.0;
    let power = f32::from_bits(((n as i32 + 127) << 23) as u32);
    if x < -87.0 { 0.0 } else { mantissa * power }
}

/// The error function, to about 1e-15 (series below 3, continued fraction above).
fn erf(x: f64) -> f64 {
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
    fn the_exponential_is_accurate_over_its_range() {
        for step in -86_999..88_000 {
            let x = step as f32 * 1e-3;
            let exact = f64::from(x).exp();
            let relative = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(relative < 2.4e-7, "exp({x}): {relative:e}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

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
