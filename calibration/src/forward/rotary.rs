//! Rotary positions (RoFormer, arXiv 2104.09864): pairs of features turned by angles that grow with the position.
//!
//! Feature `i` and `i + dim/2` of a head form a pair; its angle is `position * frequency[i]`. The stretches of [`RopeScaling`] change the
//! frequencies and may scale cosine and sine.

use std::f64::consts::{PI, TAU};

use model::rope::{Rope, RopeScaling};
use ndarray::Array2;

/// Cosine and sine of every position and pair.
#[derive(Debug)]
pub struct RotaryTable {
    /// Pairs of a head.
    pairs: usize,
    /// `[tokens, pairs]`.
    cosine: Array2<f32>,
    /// `[tokens, pairs]`.
    sine: Array2<f32>,
}

impl RotaryTable {
    /// For positions 0 to `tokens - 1` of a sequence of that length.
    #[must_use]
    pub fn new(rope: &Rope, tokens: usize) -> Self {
        let (frequencies, factor) = frequencies(rope, tokens);
        let pairs = frequencies.len();
        // Angles in f32 like the reference implementations: a position times a frequency, both f32.
        let angle = |position: usize, pair: usize| position as f32 * frequencies[pair] as f32;
        let table = |turn: fn(f64) -> f64| {
            Array2::from_shape_fn((tokens, pairs), |(position, pair)| {
                (turn(f64::from(angle(position, pair))) * factor) as f32
            })
        };
        Self { pairs, cosine: table(f64::cos), sine: table(f64::sin) }
    }

    /// Turns every head of `x` `[tokens, heads * head_dim]` in place; row `t` is at position `t`.
    pub(super) fn rotate(&self, x: &mut Array2<f32>, head_dim: usize) {
        for (position, mut row) in x.rows_mut().into_iter().enumerate() {
            let row = row.as_slice_mut().expect("the rows of an owned matrix are contiguous");
            let cosine = self.cosine.row(position);
            let sine = self.sine.row(position);
            for head in row.chunks_exact_mut(head_dim) {
                let (first, rest) = head.split_at_mut(self.pairs);
                for (((a, b), &cosine), &sine) in first.iter_mut().zip(rest).zip(cosine).zip(sine) {
                    (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
                }
            }
        }
    }
}

/// Frequencies of all pairs, and the factor on cosine and sine.
fn frequencies(rope: &Rope, tokens: usize) -> (Vec<f64>, f64) {
    let series = |theta: f64| -> Vec<f64> {
        (0..rope.dim / 2).map(|pair| theta.powf(-2.0 * pair as f64 / rope.dim as f64)).collect()
    };
    let plain = series(rope.theta);
    match &rope.scaling {
        RopeScaling::Default => (plain, 1.0),
        RopeScaling::Linear { factor } => (plain.into_iter().map(|f| f / factor).collect(), 1.0),
        RopeScaling::Dynamic { factor, original_context } => {
            let stretch = tokens.max(*original_context) as f64 / *original_context as f64;
            let dim = rope.dim as f64;
            let base = (factor * stretch - (factor - 1.0)).powf(dim / (dim - 2.0).max(1.0));
            (series(rope.theta * base), 1.0)
        }
        RopeScaling::Llama3 {
            factor,
            low_frequency_factor: low,
            high_frequency_factor: high,
            original_context,
        } => {
            let original = *original_context as f64;
            let stretch = |f: f64| {
                let wavelength = TAU / f;
                if wavelength < original / high {
                    f
                } else if wavelength > original / low {
                    f / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            };
            (plain.into_iter().map(stretch).collect(), 1.0)
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, attention_factor, original_context } => {
            let ramp = yarn_ramp(rope, *original_context, *beta_fast, *beta_slow, *truncate);
            let mixed = plain.iter().zip(ramp).map(|(f, ramp)| f / factor * ramp + f * (1.0 - ramp));
            (mixed.collect(), *attention_factor)
        }
        RopeScaling::LongRope { short_factor, long_factor, attention_factor, original_context } => {
            let divisors = if tokens > *original_context { long_factor } else { short_factor };
            (plain.iter().zip(divisors).map(|(f, divisor)| f / divisor).collect(), *attention_factor)
        }
    }
}

/// For each pair how far it is interpolated, 0 to 1 (arXiv 2309.00071, section 3.2).
fn yarn_ramp(rope: &Rope, original_context: usize, fast: f64, slow: f64, truncate: bool) -> Vec<f64> {
    let dim = rope.dim as f64;
    let pair_with = |rotations: f64| {
        dim * (original_context as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * rope.theta.ln())
    };
    let (mut low, mut high) = (pair_with(fast), pair_with(slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    (0..rope.dim / 2).map(|pair| ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_frequencies_meet_the_reference() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 8192,
        };
        let (found, factor) = frequencies(&Rope { theta: 5e5, dim: 128, scaling }, 100);
        assert_eq!(factor, 1.0);
        for (pair, expected) in [
            (0, 1.0),
            (28, 3.211446e-3),
            (30, 1.3718936e-3),
            (32, 5.248462e-4),
            (36, 7.784655e-5),
            (63, 3.068926e-7),
        ] {
            assert!((found[pair] / expected - 1.0).abs() < 1e-6, "{pair}: {} {expected}", found[pair]);
        }
    }

    #[test]
    fn stretches_leave_short_wavelengths_and_lengths_alone() {
        let rope = |scaling| Rope { theta: 1e4, dim: 64, scaling };
        let (plain, _) = frequencies(&rope(RopeScaling::Default), 10);
        let dynamic = rope(RopeScaling::Dynamic { factor: 2.0, original_context: 2048 });
        assert_eq!(frequencies(&dynamic, 2048).0, plain);
        assert!(frequencies(&dynamic, 4096).0[31] < plain[31]);
        let yarn = rope(RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: 1.1,
            original_context: 2048,
        });
        let (found, factor) = frequencies(&yarn, 10);
        assert_eq!((found[0], factor), (plain[0], 1.1));
        assert!((found[31] * 4.0 / plain[31] - 1.0).abs() < 1e-12);
    }
}
