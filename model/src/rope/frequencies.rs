//! The frequencies that rotary positions turn with (RoFormer, arXiv 2104.09864): a geometric series, stretched for long contexts.

use std::f64::consts::{PI, TAU};

use super::{Rope, RopeScaling};

impl Rope {
    /// The length beyond which frequencies depend on the length, tokens.
    #[must_use]
    pub fn changes_beyond(&self) -> Option<usize> {
        match &self.scaling {
            RopeScaling::Dynamic { original_context, .. }
            | RopeScaling::LongRope { original_context, .. } => Some(*original_context),
            RopeScaling::Default
            | RopeScaling::Linear { .. }
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Yarn { .. } => None,
        }
    }

    /// What the products of queries and keys are multiplied by where an architecture tempers them.
    #[must_use]
    pub fn temperature(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { temperature, .. } => temperature * temperature,
            _ => 1.0,
        }
    }

    /// Frequencies of all pairs for a sequence of `tokens`, radians a position, and the factor on cosine and sine.
    #[must_use]
    pub fn frequencies(&self, tokens: usize) -> (Vec<f64>, f64) {
        let rope = self;
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
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                truncate,
                attention_factor,
                temperature: _,
                original_context,
            } => {
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
        let (found, factor) = Rope { theta: 5e5, first: 0, dim: 128, scaling }.frequencies(100);
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
}
