//! Products of a few rows with many: inner products straight from memory. The general product copies its operands first,
//! which pays only where each number is used often.
//!
//! An inner product is 16 sums, of the numbers `i`, `i + 16`, .., one fused multiply-add each, added up pairwise. That is
//! its definition for every vector unit.

use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use crate::arch::lanes::{Lanes, Task, Unit};
use crate::dense::{Tile, tiles};
use crate::single::{self, Number};

/// The most rows that are few.
const FEW: usize = 16;
/// The shortest rows for which an inner product is not mostly its beginning and its end.
const SHORTEST: usize = 128;
/// Partial sums of an inner product.
pub(crate) const SUMS: usize = 16;
/// Columns of the output that one thread computes at once.
const COLUMNS: usize = 256;

/// `out = few manyᵀ` on every row of `many`, or `false` if the shapes or strides are not for this kernel.
///
/// Shapes: `few` `[m, k]`, `many` `[n, k]`, `out` `[m, n]`.
pub(super) fn product(
    few: ArrayView2<'_, f32>,
    many: ArrayView2<'_, f32>,
    out: &mut ArrayViewMut2<'_, f32>,
) -> bool {
    product_on(Unit::widest(), few, many, out)
}

pub(super) fn product_on(
    unit: Unit,
    few: ArrayView2<'_, f32>,
    many: ArrayView2<'_, f32>,
    out: &mut ArrayViewMut2<'_, f32>,
) -> bool {
    let contiguous = |view: &ArrayView2<'_, f32>| view.strides()[1] == 1;
    if few.nrows() > FEW || few.ncols() < SHORTEST || !contiguous(&few) || !contiguous(&many) {
        return false;
    }
    multiply(unit, few, many, out.view_mut());
    true
}

/// The same for any number of rows, of any length and kind; both matrices' rows are contiguous.
pub(crate) fn multiply<B: Number>(
    unit: Unit,
    few: ArrayView2<'_, f32>,
    many: ArrayView2<'_, B>,
    out: ArrayViewMut2<'_, f32>,
) {
    for_each(tiles(out, FEW, COLUMNS), |Tile { row, column, view }| {
        let few = few.slice(s![row..row + view.nrows(), ..]);
        let many = many.slice(s![column..column + view.ncols(), ..]);
        let mut view = view;
        if let (1, Some(x), Some(rows)) = (few.nrows(), few.to_slice(), many.to_slice())
            && let Some(out) = view.as_slice_mut()
        {
            single::inner_products_on(unit, x, rows, x.len(), out);
        } else {
            unit.run(Thin { few, many, out: view });
        }
    });
}

/// All tiles, in parallel where there are several.
fn for_each<'o>(tiles: Vec<Tile<'o, f32>>, work: impl Fn(Tile<'o, f32>) + Send + Sync) {
    match tiles.len() {
        1 => tiles.into_iter().for_each(work),
        _ => tiles.into_par_iter().for_each(work),
    }
}

struct Thin<'a, 'o, B> {
    few: ArrayView2<'a, f32>,
    many: ArrayView2<'a, B>,
    out: ArrayViewMut2<'o, f32>,
}

impl<B: Number> Task for Thin<'_, '_, B> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        // As many sums as the registers hold.
        if L::COUNT == SUMS { self.by::<L, 1, 4>(lanes) } else { self.by::<L, 2, 2>(lanes) }
    }
}

impl<B: Number> Thin<'_, '_, B> {
    /// Tiles of at most `N` x `N` inner products, each in `V` vectors.
    #[inline(always)]
    fn by<L: Lanes, const V: usize, const N: usize>(&mut self, lanes: L) {
        let (few, many) = (self.few, self.many);
        for (j, many) in many.axis_chunks_iter(Axis(0), N).enumerate() {
            for (i, few) in few.axis_chunks_iter(Axis(0), N).enumerate() {
                let mut tile =
                    self.out.slice_mut(s![i * N..i * N + few.nrows(), j * N..j * N + many.nrows()]);
                if (few.nrows(), many.nrows()) == (N, N) {
                    let products = inner_products::<L, B, V, N, N>(lanes, few, many);
                    tile.indexed_iter_mut().for_each(|((i, j), value)| *value = products[i][j]);
                } else if many.nrows() == N {
                    for (few, mut tile) in few.rows().into_iter().zip(tile.rows_mut()) {
                        let few = few.insert_axis(Axis(0));
                        let [products] = inner_products::<L, B, V, 1, N>(lanes, few, many);
                        tile.iter_mut().zip(products).for_each(|(value, product)| *value = product);
                    }
                } else {
                    for ((i, j), value) in tile.indexed_iter_mut() {
                        let (few, many) = (few.slice(s![i..=i, ..]), many.slice(s![j..=j, ..]));
                        *value = inner_products::<L, B, V, 1, 1>(lanes, few, many)[0][0];
                    }
                }
            }
        }
    }
}

/// The inner products of `M` rows with `N` rows; `V` vectors are 16 numbers.
#[inline(always)]
fn inner_products<L: Lanes, B: Number, const V: usize, const M: usize, const N: usize>(
    lanes: L,
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, B>,
) -> [[f32; N]; M] {
    let k = a.ncols();
    let whole = k - k % SUMS;
    let mut a_rows = [&[][..]; M];
    let mut b_rows = [&[][..]; N];
    for (i, row) in a_rows.iter_mut().enumerate() {
        *row = &a.index_axis_move(Axis(0), i).to_slice().expect("rows are contiguous")[..k];
    }
    for (i, row) in b_rows.iter_mut().enumerate() {
        *row = &b.index_axis_move(Axis(0), i).to_slice().expect("rows are contiguous")[..k];
    }
    let mut sums = [[[lanes.splat(0.0); V]; N]; M];
    for start in (0..whole).step_by(SUMS) {
        add_products(
            lanes,
            &a_rows.map(|row| &row[start..start + SUMS]),
            &b_rows.map(|row| &row[start..start + SUMS]),
            &mut sums,
        );
    }
    if whole < k {
        let a_ends = a_rows.map(|row| padded(&row[whole..]));
        let b_ends = b_rows.map(|row| padded(&row[whole..]));
        add_products(
            lanes,
            &a_ends.each_ref().map(|end| &end[..]),
            &b_ends.each_ref().map(|end| &end[..]),
            &mut sums,
        );
    }
    sums.map(|sums| sums.map(|sums| total(lanes, sums)))
}

#[inline(always)]
fn padded<B: Number>(end: &[B]) -> [B; SUMS] {
    let mut padded = [B::ZERO; SUMS];
    padded[..end.len()].copy_from_slice(end);
    padded
}

/// `sums[m][n] += a[m] b[n]`, number by number.
#[inline(always)]
fn add_products<L: Lanes, B: Number, const V: usize, const M: usize, const N: usize>(
    lanes: L,
    a: &[&[f32]; M],
    b: &[&[B]; N],
    sums: &mut [[[L::Vector; V]; N]; M],
) {
    let mut factors = [[lanes.splat(0.0); V]; N];
    for n in 0..N {
        for v in 0..V {
            factors[n][v] = B::load(lanes, &b[n][v * L::COUNT..]);
        }
    }
    for m in 0..M {
        for v in 0..V {
            let a = lanes.load(&a[m][v * L::COUNT..]);
            for n in 0..N {
                sums[m][n][v] = lanes.multiply_add(a, factors[n][v], sums[m][n][v]);
            }
        }
    }
}

/// The sum of 16 numbers: halves onto each other until one is left.
#[inline(always)]
fn total<L: Lanes, const V: usize>(lanes: L, sums: [L::Vector; V]) -> f32 {
    let mut numbers = [0.0_f32; SUMS];
    for (sum, numbers) in sums.into_iter().zip(numbers.chunks_exact_mut(L::COUNT)) {
        lanes.store(sum, numbers);
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            numbers[i] += numbers[i + half];
        }
    }
    numbers[0]
}
