use ndarray::{Array2, s};

use super::*;
use crate::sample::{AWKWARD, Sample, assert_close, in_pools, naive_product};

/// Of errors: the instruction adds terms in an order of its own.
const UNIT: f64 = 4e-6;

/// The definition, and what this machine has beside it.
fn machines() -> Vec<Option<Machine>> {
    let mut machines = vec![None];
    machines.extend(Machine::best().map(Some));
    machines
}

fn product_tn_on(
    machine: Option<Machine>,
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    out: ArrayViewMut2<'_, f32>,
) {
    tile_tn(&Columns::on(machine, a), &Columns::on(machine, b), out);
}

/// The whole product as one tile.
fn tile_tn(a: &Columns<'_>, b: &Columns<'_>, mut out: ArrayViewMut2<'_, f32>) {
    let mut sums = Array2::zeros(out.dim());
    a.add_tile(b, (0, 0), sums.view_mut());
    out.assign(&sums.mapv(|sum| sum as f32));
}

#[test]
fn rounding_is_to_nearest_and_even() {
    for value in
        [0.0, -0.0, 1.0, 1.003_906_2, 1.011_718_8, -2.891_592_7, 1e-40, 3.4e38, f32::INFINITY, f32::MAX]
    {
        assert_eq!(rounded(value).to_bits(), half::bf16::from_f32(value).to_f32().to_bits(), "{value}");
    }
    assert!(rounded(f32::NAN).is_nan() && rounded(f32::from_bits(0x7f80_0001)).is_nan());
}

#[test]
fn products_agree_with_double_precision_on_rounded_entries() {
    for (m, k, n) in AWKWARD {
        let mut sample = Sample::new((m * n + k) as u64);
        let (a, b) = (sample.matrix(m, k), sample.matrix(k, n));
        let columns = |matrix: &Array2<f32>| matrix.t().as_standard_layout().into_owned();
        let (a_columns, b_columns) = (columns(&a), columns(&b));
        let expected = naive_product(a.mapv(rounded).view(), b.mapv(rounded).view());
        for machine in machines() {
            let what = format!("[{m}, {k}] [{k}, {n}] on {machine:?}");
            let mut out = Array2::from_elem((m, n), f32::NAN);
            for matrix in [b.view(), b_columns.t()] {
                let matrix = Bf16Matrix::on(machine, matrix);
                for x in [a.view(), a_columns.t()] {
                    out.fill(f32::NAN);
                    matrix.product(x, out.view_mut());
                    assert_close(&out, &expected, UNIT, k, &what);
                }
            }
            out.fill(f32::NAN);
            product_tn_on(machine, a_columns.view(), b.view(), out.view_mut());
            assert_close(&out, &expected, UNIT, k, &what);
            let mut wide = Array2::from_elem((2 * n, m + 1), f32::NAN);
            product_tn_on(machine, a.t(), b.view(), wide.slice_mut(s![..;2, 1..]).reversed_axes());
            assert_close(&wide.slice(s![..;2, 1..]).t().to_owned(), &expected, UNIT, k, &what);
            assert!(wide.slice(s![1..;2, ..]).iter().all(|value| value.is_nan()));
        }
    }
}

#[test]
fn parts_are_what_the_whole_is_there() {
    let mut sample = Sample::new(9);
    for (rows, columns, (row, column), (m, k, n)) in [
        (64, 96, (0, 32), (7, 64, 33)),
        (301, 64, (160, 0), (64, 128, 64)),
        (301, 12, (256, 0), (33, 45, 12)),
        (40, 40, (32, 32), (1, 1, 1)),
    ] {
        let matrix = sample.matrix(rows, columns);
        let x = sample.matrix(m, k);
        let part = matrix.slice(s![row..row + k, column..column + n]).mapv(rounded);
        let expected = naive_product(x.mapv(rounded).view(), part.view());
        for machine in machines() {
            for matrix in [matrix.view(), matrix.t().as_standard_layout().t()] {
                let mut out = Array2::from_elem((m, n), f32::NAN);
                Bf16Matrix::on(machine, matrix).part_product(x.view(), (row, column), out.view_mut());
                assert_close(&out, &expected, UNIT, k, &format!("[{m}, {k}, {n}] on {machine:?}"));
            }
        }
    }
}

#[test]
fn the_gram_matrix_is_untouched_above_the_diagonal() {
    for (t, n) in [(1, 1), (7, 33), (172, 7), (1, 576), (40, 576), (33, 1000), (1100, 172), (3, 1100)] {
        let x = Sample::new((t * n) as u64).matrix(t, n);
        let near = x.mapv(rounded);
        let expected = naive_product(near.t(), near.view());
        for machine in machines() {
            let mut out = Array2::from_elem((n, n), 7.0);
            Columns::on(machine, x.view()).gram(out.view_mut());
            let lower =
                Array2::from_shape_fn((n, n), |(i, j)| if i >= j { out[[i, j]] } else { out[[j, i]] });
            assert_close(&lower, &expected, UNIT, t, &format!("{t} rows of {n} on {machine:?}"));
            assert!(out.indexed_iter().all(|((i, j), &value)| i >= j || value == 7.0));
        }
    }
}

#[test]
fn columns_are_laid_out_once_for_products_of_either_precision() {
    let mut sample = Sample::new(5);
    let (x, y) = (sample.matrix(172, 33), sample.matrix(172, 7));
    for precision in [Precision::Single, Precision::Bf16] {
        let near = |matrix: &Array2<f32>| match precision {
            Precision::Single => matrix.clone(),
            Precision::Bf16 => matrix.mapv(rounded),
        };
        let (left, right) = (precision.columns(x.view()), precision.columns(y.view()));
        let mut out = Array2::from_elem((33, 7), f32::NAN);
        tile_tn(&left, &right, out.view_mut());
        let expected = naive_product(near(&x).t(), near(&y).view());
        assert_close(&out, &expected, UNIT, 172, &format!("{precision:?}"));
        assert_close(&left.product(&right), &expected, UNIT, 172, &format!("{precision:?}"));
        let mut moment = Array2::zeros((33, 33));
        left.gram(moment.view_mut());
        let expected = naive_product(near(&x).t(), near(&x).view());
        let whole = Array2::from_shape_fn((33, 33), |(i, j)| moment[[i.max(j), i.min(j)]]);
        assert_close(&whole, &expected, UNIT, 172, &format!("{precision:?}"));
    }
}

#[test]
fn tiles_are_added_to_what_is_there() {
    let mut sample = Sample::new(6);
    let (x, y) = (sample.matrix(50, 100), sample.matrix(50, 90));
    for precision in [Precision::Single, Precision::Bf16] {
        let (left, right) = (precision.columns(x.view()), precision.columns(y.view()));
        let mut whole = Array2::from_elem((100, 90), 2.0);
        left.add_tile(&right, (0, 0), whole.view_mut());
        let mut tiled = Array2::from_elem((100, 90), 2.0);
        for row in [0, 64] {
            for column in [0, 32] {
                let (last, end) = (100.min(row + 64), if column == 0 { 32 } else { 90 });
                left.add_tile(&right, (row, column), tiled.slice_mut(s![row..last, column..end]));
            }
        }
        let errors = (&tiled - &whole).mapv(f64::abs);
        assert!(errors.iter().all(|&error| error < 1e-4), "{precision:?}");
        assert!(whole.iter().any(|&x| (x - 2.0).abs() > 1.0));
    }
}

#[test]
fn sums_over_nothing_are_zero() {
    for machine in machines() {
        let mut out = Array2::from_elem((3, 300), 7.0);
        product_tn_on(machine, Array2::zeros((0, 3)).view(), Array2::zeros((0, 300)).view(), out.view_mut());
        assert_eq!(out, Array2::<f32>::zeros((3, 300)));
        let nothing = Bf16Matrix::on(machine, Array2::zeros((4, 0)).view());
        nothing.product(Array2::zeros((2, 4)).view(), Array2::zeros((2, 0)).view_mut());
    }
}

#[test]
fn no_product_depends_on_the_number_of_threads() {
    let mut sample = Sample::new(3);
    let (x, w) = (sample.matrix(700, 300), sample.matrix(1100, 300));
    let results = in_pools(|| {
        let mut out = Array2::zeros((700, 1100));
        Bf16Matrix::of_linear(w.view()).product(x.view(), out.view_mut());
        let mut moment = Array2::zeros((300, 300));
        Precision::Bf16.gram(w.view(), moment.view_mut());
        (out, moment)
    });
    assert!(results.iter().all(|result| *result == results[0]));
}
