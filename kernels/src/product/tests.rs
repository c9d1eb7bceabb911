use ndarray::{Array2, s};

use super::*;
use crate::arch::lanes::Unit;
use crate::sample::{AWKWARD, Sample, assert_close, in_pools, naive_product};

/// Of errors.
const UNIT: f64 = 1e-6;

#[test]
fn products_agree_with_double_precision() {
    for (m, k, n) in AWKWARD {
        let mut sample = Sample::new((m * n + k) as u64);
        let (a, b) = (sample.matrix(m, k), sample.matrix(k, n));
        let (a_columns, b_columns) =
            (a.t().as_standard_layout().into_owned(), b.t().as_standard_layout().into_owned());
        let expected = naive_product(a.view(), b.view());
        let what = format!("[{m}, {k}] [{k}, {n}]");
        let mut out = Array2::from_elem((m, n), f32::NAN);
        product_nn(a.view(), b.view(), out.view_mut());
        assert_close(&out, &expected, UNIT, k, &what);
        out.fill(f32::NAN);
        product_nt(a.view(), b_columns.view(), out.view_mut());
        assert_close(&out, &expected, UNIT, k, &what);
        out.fill(f32::NAN);
        product_tn(a_columns.view(), b.view(), out.view_mut());
        assert_close(&out, &expected, UNIT, k, &what);
    }
}

#[test]
fn any_strides_will_do() {
    for (m, k, n) in AWKWARD {
        let mut sample = Sample::new((m + n * k) as u64);
        let (a, b) = (sample.matrix(2 * m, 3 * k), sample.matrix(2 * n, k + 3));
        let (a, b) = (a.slice(s![..;-2, ..;3]), b.slice(s![..;2, 2..k + 2]));
        let expected = naive_product(a, b.t());
        let mut out = Array2::from_elem((2 * n, m + 1), f32::NAN);
        product_nt(a, b, out.slice_mut(s![..;2, 1..]).reversed_axes());
        let found = out.slice(s![..;2, 1..]).t().to_owned();
        assert_close(&found, &expected, UNIT, k, &format!("[{m}, {k}] [{k}, {n}]"));
        assert!(out.slice(s![1..;2, ..]).iter().all(|value| value.is_nan()));
    }
}

#[test]
fn the_gram_matrix_agrees_with_double_precision_below_the_diagonal_and_is_untouched_above() {
    for (t, n) in [(1, 1), (7, 33), (172, 7), (1, 576), (40, 576), (33, 1000), (1000, 172), (3, 1100)] {
        let x = Sample::new((t * n) as u64).matrix(t, n);
        let columns = x.t().as_standard_layout().into_owned();
        let expected = naive_product(x.t(), x.view());
        for x in [x.view(), columns.t()] {
            let mut out = Array2::from_elem((n, n), 7.0);
            gram(x, out.view_mut());
            let lower =
                Array2::from_shape_fn((n, n), |(i, j)| if i >= j { out[[i, j]] } else { out[[j, i]] });
            assert_close(&lower, &expected, UNIT, t, &format!("{t} rows of {n}"));
            assert!(out.indexed_iter().all(|((i, j), &value)| i >= j || value == 7.0));
        }
    }
}

#[test]
fn sums_over_nothing_are_zero() {
    let mut out = Array2::from_elem((3, 3), 7.0);
    product_nn(Array2::zeros((3, 0)).view(), Array2::zeros((0, 3)).view(), out.view_mut());
    assert_eq!(out, Array2::<f32>::zeros((3, 3)));
    out.fill(7.0);
    gram(Array2::zeros((0, 3)).view(), out.view_mut());
    assert_eq!(out, ndarray::array![[0.0, 7.0, 7.0], [0.0, 0.0, 7.0], [0.0, 0.0, 0.0]]);
    product_nn(Array2::zeros((0, 4)).view(), Array2::zeros((4, 2)).view(), Array2::zeros((0, 2)).view_mut());
    gram(Array2::zeros((5, 0)).view(), Array2::zeros((0, 0)).view_mut());
}

#[test]
fn no_product_depends_on_the_number_of_threads() {
    for (m, k, n) in [(700, 300, 1100), (1, 1000, 2000), (6, 500, 3000)] {
        let mut sample = Sample::new(3);
        let (x, w) = (sample.matrix(m, k), sample.matrix(n, k));
        let results = in_pools(|| {
            let mut out = Array2::zeros((m, n));
            product_nt(x.view(), w.view(), out.view_mut());
            let mut moment = Array2::zeros((k, k));
            gram(w.view(), moment.view_mut());
            (out, moment)
        });
        assert!(results.iter().all(|result| *result == results[0]), "[{m}, {k}] [{n}, {k}]");
    }
}

#[test]
#[should_panic(expected = "inner dimensions")]
fn inner_dimensions_must_agree() {
    product_nn(Array2::zeros((3, 4)).view(), Array2::zeros((3, 4)).view(), Array2::zeros((3, 4)).view_mut());
}

#[test]
#[should_panic(expected = "shape of a product")]
fn outputs_must_fit() {
    product_nt(Array2::zeros((3, 4)).view(), Array2::zeros((2, 4)).view(), Array2::zeros((2, 3)).view_mut());
}

#[test]
fn products_of_few_rows_are_the_same_to_the_bit_on_every_vector_unit() {
    for (m, k, n) in [(1, 128, 1), (1, 1000, 33), (4, 172, 7), (5, 576, 9), (8, 1000, 300), (16, 129, 513)] {
        let mut sample = Sample::new((m + n * k) as u64);
        let (few, many) = (sample.matrix(m, k), sample.matrix(n, k));
        let on = |unit| {
            let mut out = Array2::zeros((m, n));
            assert!(thin::product_on(unit, few.view(), many.view(), &mut out.view_mut()));
            out
        };
        let expected = on(Unit::all()[0]);
        assert_close(
            &expected,
            &naive_product(few.view(), many.t()),
            UNIT,
            k,
            &format!("[{m}, {k}] [{n}, {k}]"),
        );
        for unit in Unit::all() {
            assert_eq!(on(unit), expected, "[{m}, {k}] [{n}, {k}] on {unit:?}");
        }
    }
}
