//! One vector with many rows: inner products with each, and their weighted sum. What attention does for one token, and a linear.
//!
//! Rows are given as one slice and the distance from one to the next. Both have one definition for every vector unit: an inner product is 16 sums, of
//! the numbers `i`, `i + 16`, .., one fused multiply-add each, added up pairwise; a weighted sum takes rows in order, one fused multiply-add each.

use half::{bf16, f16};

use crate::arch::lanes::{Lanes, Task, Unit};
use crate::product::thin::SUMS;

/// `out[i] = x rows[i]`, where row `i` begins at `i * stride`.
///
/// # Panics
/// When there are fewer rows than `out` has numbers.
pub fn inner_products(x: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
    inner_products_on(Unit::widest(), x, rows, stride, out);
}

/// `out = sum over i of weights[i] rows[i]`, where row `i` begins at `i * stride` and is as long as `out`.
///
/// # Panics
/// When there are fewer rows than weights.
pub fn combination(weights: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
    Unit::widest().run(Combination { weights, rows, stride, out });
}

/// A type of numbers in memory, all of which are numbers in single precision too.
pub(crate) trait Number: Copy + Sync {
    const ZERO: Self;

    /// The first [`Lanes::COUNT`] of them.
    fn load<L: Lanes>(lanes: L, from: &[Self]) -> L::Vector;
}

impl Number for f32 {
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[Self]) -> L::Vector {
        lanes.load(from)
    }
}

impl Number for bf16 {
    const ZERO: Self = bf16::ZERO;

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[Self]) -> L::Vector {
        lanes.load_bf16(from)
    }
}

impl Number for f16 {
    const ZERO: Self = f16::ZERO;

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[Self]) -> L::Vector {
        lanes.load_f16(from)
    }
}

pub(crate) fn inner_products_on<B: Number>(
    unit: Unit,
    x: &[f32],
    rows: &[B],
    stride: usize,
    out: &mut [f32],
) {
    unit.run(InnerProducts { x, rows, stride, out });
}

struct InnerProducts<'a, B> {
    x: &'a [f32],
    rows: &'a [B],
    stride: usize,
    out: &'a mut [f32],
}

/// Rows at a time.
const ROWS: usize = 4;
/// Bytes of a row that ends before the processor has foreseen where it goes on: the next ones are asked for.
const SHORT: usize = 1 << 13;

impl<B: Number> Task for InnerProducts<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        if L::COUNT == SUMS { self.by::<L, 1>(lanes) } else { self.by::<L, 2>(lanes) }
    }
}

impl<B: Number> InnerProducts<'_, B> {
    /// `V` vectors are 16 numbers.
    #[inline(always)]
    fn by<L: Lanes, const V: usize>(self, lanes: L) {
        let Self { x, rows, stride, out } = self;
        let (fours, rest) = out.as_chunks_mut::<ROWS>();
        let mut first = 0;
        for four in fours {
            let rows = [0, 1, 2, 3].map(|row| &rows[(first + row) * stride..][..x.len()]);
            let next = if x.len() * size_of::<B>() <= SHORT { ROWS * stride } else { 0 };
            *four = products::<L, B, V, ROWS>(lanes, x, rows, next);
            first += ROWS;
        }
        for out in rest {
            let row = &rows[first * stride..][..x.len()];
            [*out] = products::<L, B, V, 1>(lanes, x, [row], 0);
            first += 1;
        }
    }
}

/// `next` is the distance to the rows after these.
#[inline(always)]
fn products<L: Lanes, B: Number, const V: usize, const N: usize>(
    lanes: L,
    x: &[f32],
    rows: [&[B]; N],
    next: usize,
) -> [f32; N] {
    let mut sums = [[lanes.splat(0.0); V]; N];
    let whole = x.len() - x.len() % SUMS;
    for start in (0..whole).step_by(SUMS) {
        let x = &x[start..start + SUMS];
        for n in 0..N {
            let row = &rows[n][start..start + SUMS];
            lanes.prefetch(row.as_ptr().wrapping_add(next));
            for v in 0..V {
                let factor = B::load(lanes, &row[v * L::COUNT..]);
                sums[n][v] = lanes.multiply_add(lanes.load(&x[v * L::COUNT..]), factor, sums[n][v]);
            }
        }
    }
    if whole < x.len() {
        let mut end = [0.0; SUMS];
        end[..x.len() - whole].copy_from_slice(&x[whole..]);
        for n in 0..N {
            let mut row = [B::ZERO; SUMS];
            row[..x.len() - whole].copy_from_slice(&rows[n][whole..]);
            for v in 0..V {
                let factor = B::load(lanes, &row[v * L::COUNT..]);
                sums[n][v] = lanes.multiply_add(lanes.load(&end[v * L::COUNT..]), factor, sums[n][v]);
            }
        }
    }
    let mut out = [0.0; N];
    for n in 0..N {
        let mut numbers = [0.0_f32; SUMS];
        for v in 0..V {
            lanes.store(sums[n][v], &mut numbers[v * L::COUNT..]);
        }
        // Halves onto each other until one is left.
        for i in 0..8 {
            numbers[i] += numbers[i + 8];
        }
        for i in 0..4 {
            numbers[i] += numbers[i + 4];
        }
        out[n] = (numbers[0] + numbers[2]) + (numbers[1] + numbers[3]);
    }
    out
}

struct Combination<'a> {
    weights: &'a [f32],
    rows: &'a [f32],
    stride: usize,
    out: &'a mut [f32],
}

/// Columns of a weighted sum that are summed at once.
const COLUMNS: usize = 64;

impl Task for Combination<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { weights, rows, stride, out } = self;
        let (wide, rest) = out.as_chunks_mut::<COLUMNS>();
        for (place, out) in wide.iter_mut().enumerate() {
            let rows = &rows[place * COLUMNS..];
            match L::COUNT {
                16 => weighted::<L, 4>(lanes, weights, rows, stride, out),
                _ => weighted::<L, 8>(lanes, weights, rows, stride, out),
            }
        }
        let mut first = wide.len() * COLUMNS;
        let (narrow, rest) = rest.as_chunks_mut::<SUMS>();
        for out in narrow {
            let rows = &rows[first..];
            match L::COUNT {
                16 => weighted::<L, 1>(lanes, weights, rows, stride, out),
                _ => weighted::<L, 2>(lanes, weights, rows, stride, out),
            }
            first += SUMS;
        }
        for (column, out) in (first..).zip(rest) {
            let column = (0..weights.len()).map(|row| rows[row * stride + column]);
            *out = weights.iter().zip(column).fold(0.0, |sum, (&weight, x)| weight.mul_add(x, sum));
        }
    }
}

/// `V` vectors of the weighted sum.
#[inline(always)]
fn weighted<L: Lanes, const V: usize>(
    lanes: L,
    weights: &[f32],
    rows: &[f32],
    stride: usize,
    out: &mut [f32],
) {
    let mut sums = [lanes.splat(0.0); V];
    for (i, &weight) in weights.iter().enumerate() {
        let row = &rows[i * stride..][..V * L::COUNT];
        let weight = lanes.splat(weight);
        for v in 0..V {
            sums[v] = lanes.multiply_add(weight, lanes.load(&row[v * L::COUNT..]), sums[v]);
        }
    }
    for v in 0..V {
        lanes.store(sums[v], &mut out[v * L::COUNT..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    #[test]
    fn every_unit_gives_the_definition() {
        for (rows, columns, stride) in
            [(1, 1, 1), (3, 7, 9), (9, 33, 33), (50, 64, 192), (130, 172, 172), (5, 1000, 1001)]
        {
            let matrix = Sample::new(8).matrix(rows, stride);
            let values = matrix.as_slice().unwrap();
            let (x, weights) = (Sample::new(9).matrix(1, columns), Sample::new(10).matrix(1, rows));
            let (x, weights) = (x.as_slice().unwrap(), weights.as_slice().unwrap());
            let of_row = |row: usize| {
                let mut sums = [0.0_f32; SUMS];
                for (place, (&x, &w)) in x.iter().zip(&values[row * stride..]).enumerate() {
                    sums[place % SUMS] = x.mul_add(w, sums[place % SUMS]);
                }
                for half in [8, 4, 2, 1] {
                    (0..half).for_each(|i| sums[i] += sums[i + half]);
                }
                sums[0]
            };
            let products: Vec<f32> = (0..rows).map(of_row).collect();
            let sums: Vec<f32> = (0..columns)
                .map(|column| {
                    (0..rows)
                        .fold(0.0_f32, |sum, row| weights[row].mul_add(values[row * stride + column], sum))
                })
                .collect();
            for unit in Unit::all() {
                let mut out = vec![f32::NAN; rows];
                inner_products_on(unit, x, values, stride, &mut out);
                assert_eq!(out, products, "{unit:?}, {rows} rows of {columns}");
                let mut out = vec![f32::NAN; columns];
                unit.run(Combination { weights, rows: values, stride, out: &mut out });
                assert_eq!(out, sums, "{unit:?}, {rows} rows of {columns}");
            }
        }
        let mut out = [1.0; 3];
        combination(&[], &[], 3, &mut out);
        assert_eq!(out, [0.0; 3]);
    }
}
