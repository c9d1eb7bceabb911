//! Rotary positions (RoFormer, arXiv 2104.09864): pairs of features turned by angles that grow with the position.
//!
//! Feature `i` and `i + dim/2` of a head form a pair; its angle is `position * frequency[i]`. The stretches of [`RopeScaling`] change the
//! frequencies and may scale cosine and sine.

use std::borrow::Cow;
use std::f64::consts::{PI, TAU};

use model::rope::{Rope, RopeScaling};
use ndarray::Array2;

/// The angles of a model.
#[derive(Debug)]
pub(crate) struct Rotary {
    rope: Rope,
    /// Length of the sequences that `long` is for.
    longest: usize,
    /// For sequences up to the original context; for all, where the length changes nothing.
    short: Table,
    /// For longer ones of length `longest`.
    long: Option<Table>,
}

/// Cosine and sine of every position and pair.
#[derive(Clone, Debug)]
struct Table {
    /// `[tokens, pairs]`.
    cosine: Array2<f32>,
    /// `[tokens, pairs]`.
    sine: Array2<f32>,
}

impl Rotary {
    /// For sequences of at most `longest` tokens.
    pub(crate) fn new(rope: &Rope, longest: usize) -> Self {
        let (short, long) = match changes_beyond(&rope.scaling) {
            Some(context) if longest > context => {
                (Table::new(rope, context), Some(Table::new(rope, longest)))
            }
            _ => (Table::new(rope, longest), None),
        };
        Self { rope: rope.clone(), longest, short, long }
    }

    /// Turns every head of `x` `[tokens, heads * head_dim]` in place; row `t` is at position `t` of a sequence of as many tokens as `x`
    /// has rows.
    pub(crate) fn rotate(&self, x: &mut Array2<f32>, head_dim: usize) {
        self.turn(x, head_dim, 1.0, &self.table(x.nrows()), |row| row);
    }

    /// Turns every head of every row of `x` to `position` of a sequence of the longest length.
    pub(crate) fn rotate_to(&self, position: usize, x: &mut Array2<f32>, head_dim: usize) {
        self.turn(x, head_dim, 1.0, &self.table(self.longest), |_| position);
    }

    /// The transpose of [`Rotary::rotate`], with which gradients go back: the same angles the other way. It is not the inverse where a
    /// stretch scales cosine and sine.
    pub(crate) fn rotate_back(&self, gradient: &mut Array2<f32>, head_dim: usize) {
        self.turn(gradient, head_dim, -1.0, &self.table(gradient.nrows()), |row| row);
    }

    /// `direction` is 1 or -1; `position_of` says where a row of `x` is.
    fn turn(
        &self,
        x: &mut Array2<f32>,
        head_dim: usize,
        direction: f32,
        table: &Table,
        position_of: impl Fn(usize) -> usize,
    ) {
        let pairs = table.cosine.ncols();
        for (row_index, mut row) in x.rows_mut().into_iter().enumerate() {
            let position = position_of(row_index);
            let row = row.as_slice_mut().expect("the rows of an owned matrix are contiguous");
            let cosine = table.cosine.row(position).to_slice().expect("so are a table's");
            let sine = table.sine.row(position).to_slice().expect("so are a table's");
            for head in row.chunks_exact_mut(head_dim) {
                let (first, rest) = head.split_at_mut(pairs);
                for (((a, b), &cosine), &sine) in first.iter_mut().zip(rest).zip(cosine).zip(sine) {
                    let sine = direction * sine;
                    (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
                }
            }
        }
    }

    fn table(&self, tokens: usize) -> Cow<'_, Table> {
        match (&self.long, &self.rope.scaling) {
            (Some(long), _) if tokens == self.longest => Cow::Borrowed(long),
            (Some(_), scaling) if changes_beyond(scaling).is_some_and(|context| tokens > context) => {
                Cow::Owned(Table::new(&self.rope, tokens))
            }
            _ => Cow::Borrowed(&self.short),
        }
    }
}

impl Table {
    /// Positions 0 to `tokens - 1` of a sequence of that length.
    fn new(rope: &Rope, tokens: usize) -> Self {
        let (frequencies, factor) = frequencies(rope, tokens);
        // Angles in f32 like the reference implementations: a position times a frequency, both f32.
        let angle = |position: usize, pair: usize| position as f32 * frequencies[pair] as f32;
        let table = |turn: fn(f64) -> f64| {
            Array2::from_shape_fn((tokens, frequencies.len()), |(position, pair)| {
                (turn(f64::from(angle(position, pair))) * factor) as f32
            })
        };
        Self { cosine: table(f64::cos), sine: table(f64::sin) }
    }
}

/// The length beyond which frequencies depend on the length.
fn changes_beyond(scaling: &RopeScaling) -> Option<usize> {
    match scaling {
        RopeScaling::Dynamic { original_context, .. } | RopeScaling::LongRope { original_context, .. } => {
            Some(*original_context)
        }
        RopeScaling::Default
        | RopeScaling::Linear { .. }
        | RopeScaling::Llama3 { .. }
        | RopeScaling::Yarn { .. } => None,
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

    fn goldens() -> Vec<serde_json::Value> {
        serde_json::from_str(include_str!("../../tests/data/rope.json")).unwrap()
    }

    fn rope_of(golden: &serde_json::Value) -> Rope {
        model::Model::resolve(&golden["config"]).unwrap().hyperparameters.rope
    }

    #[test]
    fn every_stretch_turns_as_in_transformers() {
        for golden in goldens() {
            let rope = rope_of(&golden);
            let numbers = |key: &str| -> Vec<f64> {
                golden[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
            };
            let close = |found: f64, expected: f64, tolerance: f64| {
                assert!((found - expected).abs() < tolerance, "{}: {found} {expected}", golden["config"]);
            };
            let length = golden["length"].as_u64().unwrap() as usize;
            let (found, factor) = frequencies(&rope, length);
            close(factor, golden["factor"].as_f64().unwrap(), 1e-6);
            for (found, expected) in found.iter().zip(numbers("frequencies")) {
                close(found / expected, 1.0, 1e-6);
            }
            // However long the longest sequence is, one of this length turns like this.
            for longest in [length, length + 1, 4 * length] {
                let rotary = Rotary::new(&rope, longest);
                let mut x = Array2::from_shape_fn((length, 64), |(_, column)| f32::from(column % 32 < 16));
                rotary.rotate(&mut x, 32);
                let last = x.row(length - 1);
                for (pair, (cosine, sine)) in
                    numbers("last_cosines").into_iter().zip(numbers("last_sines")).enumerate()
                {
                    for head in [0, 32] {
                        close(f64::from(last[head + pair]), cosine, 2e-4);
                        close(f64::from(last[head + 16 + pair]), sine, 2e-4);
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_turn_back_by_the_transpose_of_every_stretch() {
        for golden in goldens() {
            let length = golden["length"].as_u64().unwrap() as usize;
            let rotary = Rotary::new(&rope_of(&golden), length);
            let noise = |seed: usize| {
                Array2::from_shape_fn((length, 64), |(t, i)| ((t * 64 + i + seed) as f32 * 0.7).sin())
            };
            let inner = |a: &Array2<f32>, b: &Array2<f32>| -> f64 {
                a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
            };
            let (x, gradient) = (noise(1), noise(5));
            let (mut turned, mut turned_back) = (x.clone(), gradient.clone());
            rotary.rotate(&mut turned, 32);
            rotary.rotate_back(&mut turned_back, 32);
            let (found, expected) = (inner(&x, &turned_back), inner(&turned, &gradient));
            let scale = inner(&turned, &turned);
            assert!((found - expected).abs() < 1e-6 * scale, "{}: {found} {expected}", golden["config"]);
        }
    }
}
