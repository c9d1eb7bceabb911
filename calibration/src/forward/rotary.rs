//! Rotary positions (RoFormer, arXiv 2104.09864): pairs of features turned by angles that grow with the position.
//!
//! Feature `i` and `i + dim/2` of a head form a pair, or `2 i` and `2 i + 1`, of `dim` features from `first` on; its angle is `position * frequency[i]`
//! ([`Rope::frequencies`]).

use std::borrow::Cow;

use model::architecture::Pairs;
use model::rope::Rope;
use ndarray::Array2;

/// The angles of a model.
#[derive(Debug)]
pub(crate) struct Rotary {
    rope: Rope,
    pairs: Pairs,
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
    pub(crate) fn new(rope: &Rope, pairs: Pairs, longest: usize) -> Self {
        let (short, long) = match rope.changes_beyond() {
            Some(context) if longest > context => {
                (Table::new(rope, context), Some(Table::new(rope, longest)))
            }
            _ => (Table::new(rope, longest), None),
        };
        Self { rope: rope.clone(), pairs, longest, short, long }
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

    /// Turns every head of row `t` of `x` to position `first + t` of a sequence of the longest length.
    pub(crate) fn rotate_from(&self, first: usize, x: &mut Array2<f32>, head_dim: usize) {
        self.turn(x, head_dim, 1.0, &self.table(self.longest), |row| first + row);
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
                let head = &mut head[self.rope.first..];
                let turn = |a: &mut f32, b: &mut f32, cosine: f32, sine: f32| {
                    let sine = direction * sine;
                    (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
                };
                match self.pairs {
                    Pairs::Halves => {
                        let (first, rest) = head.split_at_mut(pairs);
                        for (((a, b), &cosine), &sine) in first.iter_mut().zip(rest).zip(cosine).zip(sine) {
                            turn(a, b, cosine, sine);
                        }
                    }
                    Pairs::Neighbours => {
                        let neighbours = head.as_chunks_mut::<2>().0;
                        for (([a, b], &cosine), &sine) in neighbours.iter_mut().zip(cosine).zip(sine) {
                            turn(a, b, cosine, sine);
                        }
                    }
                }
            }
        }
    }

    fn table(&self, tokens: usize) -> Cow<'_, Table> {
        match &self.long {
            Some(long) if tokens == self.longest => Cow::Borrowed(long),
            Some(_) if self.rope.changes_beyond().is_some_and(|context| tokens > context) => {
                Cow::Owned(Table::new(&self.rope, tokens))
            }
            _ => Cow::Borrowed(&self.short),
        }
    }
}

impl Table {
    /// Positions 0 to `tokens - 1` of a sequence of that length.
    fn new(rope: &Rope, tokens: usize) -> Self {
        let (frequencies, factor) = rope.frequencies(tokens);
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

#[cfg(test)]
mod tests {
    use super::*;

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
            let (found, factor) = rope.frequencies(length);
            close(factor, golden["factor"].as_f64().unwrap(), 1e-6);
            for (found, expected) in found.iter().zip(numbers("frequencies")) {
                close(found / expected, 1.0, 1e-6);
            }
            // However long the longest sequence is, one of this length turns like this.
            for longest in [length, length + 1, 4 * length] {
                let rotary = Rotary::new(&rope, Pairs::Halves, longest);
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
            let rotary = Rotary::new(&rope_of(&golden), Pairs::Halves, length);
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
