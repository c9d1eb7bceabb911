//! How rounded matrices lie in memory: two terms of a sum in one 32-bit word, the earlier one in the low half.
//!
//! | | index of the sum | lies | used as |
//! |---|---|---|---|
//! | [`Pairs`] | along a row | `[rows][pairs]` | left side |
//! | [`Panels`] | along a column | `[columns / 32][pairs][32]` | right side, or the left side transposed |
//!
//! What is missing to whole tiles is zero.

use std::borrow::Cow;
use std::ops::Range;

use ndarray::{ArrayView1, ArrayView2, Axis};
use rayon::prelude::*;

use super::tiled::{COLUMNS, ROWS};
use crate::arch::lanes::{Lanes, Task, Unit};

/// The nearest bfloat16's bits in the upper half of a word, halves to the even one. What is no number stays none, whatever its low bits are.
#[inline(always)]
pub(crate) fn upper(value: f32) -> u32 {
    let bits = value.to_bits();
    let near = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    if value.is_nan() { 0x7fc0_0000 } else { near }
}

/// `first` and `second` in one word.
#[inline(always)]
fn pair(first: f32, second: f32) -> u32 {
    upper(first) >> 16 | upper(second)
}

/// Neighbours in pairs; a last one alone is with zero.
struct PairNeighbours<'a> {
    words: &'a mut [u32],
    values: &'a [f32],
}

impl Task for PairNeighbours<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let (whole, rest) = self.values.as_chunks::<2>();
        for (word, &[first, second]) in self.words.iter_mut().zip(whole) {
            *word = pair(first, second);
        }
        if let ([last], Some(word)) = (rest, self.words.last_mut()) {
            *word = pair(*last, 0.0);
        }
    }
}

fn pair_row(words: &mut [u32], row: ArrayView1<'_, f32>) {
    let values = row.as_slice().map_or_else(|| row.to_vec().into(), Cow::from);
    Unit::widest().run(PairNeighbours { words, values: &values });
}

/// The values of a matrix, without gaps.
#[derive(Clone, Copy)]
enum Lies<'a> {
    ByRows(&'a [f32]),
    ByColumns(&'a [f32]),
}

/// One panel: the columns `part` of a matrix of this shape, each row with the next.
struct FillPanel<'a> {
    words: &'a mut [u32],
    lies: Lies<'a>,
    dim: (usize, usize),
    part: Range<usize>,
}

impl Task for FillPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { words, lies, dim: (rows, columns), part } = self;
        match lies {
            Lies::ByRows(values) => {
                let zeros = [0.0; COLUMNS];
                let row = |row: usize| match row < rows {
                    true => &values[row * columns + part.start..row * columns + part.end],
                    false => &zeros[..part.len()],
                };
                for (pair_of_rows, words) in words.chunks_exact_mut(COLUMNS).enumerate() {
                    let (first, second) = (row(2 * pair_of_rows), row(2 * pair_of_rows + 1));
                    for ((word, &first), &second) in words.iter_mut().zip(first).zip(second) {
                        *word = pair(first, second);
                    }
                }
            }
            Lies::ByColumns(values) => {
                let mut paired = vec![0; rows.div_ceil(2)];
                for (place, column) in part.enumerate() {
                    let values = &values[column * rows..(column + 1) * rows];
                    PairNeighbours { words: &mut paired, values }.run(lanes);
                    for (words, &pair) in words.chunks_exact_mut(COLUMNS).zip(&paired) {
                        words[place] = pair;
                    }
                }
            }
        }
    }
}

/// A matrix whose rows meet a column of the other one.
#[derive(Clone, Debug)]
pub(crate) struct Pairs {
    /// `[rows, in whole tiles][pairs]`
    words: Vec<u32>,
    pairs: usize,
}

/// A matrix whose columns meet a row of the other one.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    /// `[panels][pairs][COLUMNS]`
    words: Vec<u32>,
    rows: usize,
    columns: usize,
}

/// Some rows of a left side: the word of row `i` and pair `p` is `words[i * row_stride + p * pair_stride]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left<'a> {
    pub(crate) words: &'a [u32],
    pub(crate) row_stride: usize,
    pub(crate) pair_stride: usize,
}

/// What can stand on the left.
pub(crate) trait LeftSide: Sync {
    /// Pairs of a sum.
    fn pairs(&self) -> usize;
    /// [`ROWS`] rows from `row` on, which is a multiple of it; from pair `first` on.
    fn rows(&self, row: usize, first: usize) -> Left<'_>;
}

impl Pairs {
    /// Of `matrix`, `[rows, k]`.
    pub(crate) fn of(matrix: ArrayView2<'_, f32>) -> Self {
        let (rows, k) = matrix.dim();
        let pairs = k.div_ceil(2);
        let mut words = vec![0_u32; rows.next_multiple_of(ROWS) * pairs];
        if pairs > 0 {
            let rows = matrix.axis_iter(Axis(0)).into_par_iter();
            words.par_chunks_mut(pairs).zip(rows).for_each(|(words, row)| pair_row(words, row));
        }
        Self { words, pairs }
    }

    /// The same on this thread alone.
    pub(crate) fn of_few(matrix: ArrayView2<'_, f32>) -> Self {
        let (rows, k) = matrix.dim();
        let pairs = k.div_ceil(2);
        let mut words = vec![0_u32; rows.next_multiple_of(ROWS) * pairs];
        if pairs > 0 {
            words
                .chunks_mut(pairs)
                .zip(matrix.axis_iter(Axis(0)))
                .for_each(|(words, row)| pair_row(words, row));
        }
        Self { words, pairs }
    }
}

impl LeftSide for Pairs {
    fn pairs(&self) -> usize {
        self.pairs
    }

    fn rows(&self, row: usize, first: usize) -> Left<'_> {
        let words = &self.words[row * self.pairs..(row + ROWS) * self.pairs];
        Left { words: &words[first..], row_stride: self.pairs, pair_stride: 1 }
    }
}

impl Panels {
    /// Of `matrix`, `[k, n]`, whatever its strides.
    pub(crate) fn of(matrix: ArrayView2<'_, f32>) -> Self {
        let (rows, columns) = matrix.dim();
        let lies = match (matrix.to_slice(), matrix.reversed_axes().to_slice()) {
            (Some(values), _) => Lies::ByRows(values),
            (None, Some(values)) => Lies::ByColumns(values),
            (None, None) => return Self::of(matrix.as_standard_layout().view()),
        };
        let pairs = rows.div_ceil(2);
        let mut words = vec![0_u32; columns.div_ceil(COLUMNS) * pairs * COLUMNS];
        if pairs > 0 {
            words.par_chunks_mut(pairs * COLUMNS).enumerate().for_each(|(panel, words)| {
                let first = panel * COLUMNS;
                let part = first..columns.min(first + COLUMNS);
                Unit::widest().run(FillPanel { words, lies, dim: (rows, columns), part });
            });
        }
        Self { words, rows, columns }
    }

    /// Rows and columns of the matrix.
    pub(crate) fn dim(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// The panel of the [`COLUMNS`] columns from `column` on, which is a multiple of it, from pair `first` on.
    pub(crate) fn panel(&self, column: usize, first: usize) -> &[u32] {
        let pairs = LeftSide::pairs(self);
        let start = column / COLUMNS * pairs;
        &self.words[(start + first) * COLUMNS..(start + pairs) * COLUMNS]
    }
}

impl LeftSide for Panels {
    fn pairs(&self) -> usize {
        self.rows.div_ceil(2)
    }

    fn rows(&self, row: usize, first: usize) -> Left<'_> {
        let words = &self.panel(row / COLUMNS * COLUMNS, first)[row % COLUMNS..];
        Left { words, row_stride: 1, pair_stride: COLUMNS }
    }
}
