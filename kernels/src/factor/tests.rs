//! Both back ends run these.

use ndarray::{Array2, ArrayView2, ShapeBuilder, s};

use super::*;
use crate::sample::{Sample, in_pools};
use crate::stripes::Triangle;

const AWKWARD: [usize; 8] = [1, 2, 7, 33, 172, 257, 576, 1000];

/// `B (R Rᵀ)⁻¹`.
fn solve_right(r: &Array2<f64>, mut b: Array2<f64>) -> Array2<f64> {
    Triangle::of_symmetric(r.t()).solve_right(b.view_mut()).unwrap();
    b
}

fn hessian(n: usize) -> Array2<f64> {
    Sample::new(n as u64).hessian(n)
}

/// The largest difference of two matrices, relative to the largest entry of the second.
fn distance(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    let largest = |m: &Array2<f64>| m.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    largest(&(a - b)) / largest(b)
}

/// Pivoted Cholesky from the back as its definition says it: the least diagonal entry, its Schur complement, and so on.
fn naive_order(h: ArrayView2<'_, f64>) -> Vec<usize> {
    let mut rest = h.to_owned();
    let mut columns: Vec<usize> = (0..h.nrows()).collect();
    let mut order = Vec::new();
    while !columns.is_empty() {
        let least = |&&a: &&usize, &&b: &&usize| rest[[a, a]].total_cmp(&rest[[b, b]]);
        let &last = columns.iter().min_by(least).unwrap();
        columns.retain(|&column| column != last);
        let eliminated = rest.column(last).to_owned();
        for &i in &columns {
            for &j in &columns {
                rest[[i, j]] -= eliminated[i] * eliminated[j] / eliminated[last];
            }
        }
        order.insert(0, last);
    }
    order
}

#[test]
fn the_factor_is_upper_triangular_and_gives_the_matrix_back() {
    for n in AWKWARD {
        let h = hessian(n);
        let r = cholesky_upper(h.clone()).unwrap();
        assert!(r.indexed_iter().all(|((i, j), &value)| if i > j {
            value == 0.0
        } else {
            value.is_finite()
        }));
        assert!(r.diag().iter().all(|&value| value > 0.0));
        let distance = distance(&r.dot(&r.t()), &h);
        assert!(distance < 1e-13, "{n}: {distance}");
    }
}

#[test]
fn only_the_lower_triangle_is_read_in_either_memory_order() {
    let h = hessian(300);
    let expected = cholesky_upper(h.clone()).unwrap();
    let mut lower = h.clone();
    lower.indexed_iter_mut().filter(|((i, j), _)| i < j).for_each(|(_, value)| *value = f64::NAN);
    let mut columns_first = Array2::zeros((300, 300).f());
    columns_first.assign(&lower);
    assert_eq!(cholesky_upper(lower.clone()).unwrap(), expected);
    assert_eq!(cholesky_upper(columns_first).unwrap(), expected);
    assert_eq!(min_pivot_order(lower.view()), min_pivot_order(h.view()));
}

#[test]
fn columns_of_the_factor_are_contiguous() {
    let r = cholesky_upper(hessian(40)).unwrap();
    assert!(r.t().is_standard_layout());
}

#[test]
fn the_inverse_factor_is_the_factor_of_the_inverse() {
    let r = cholesky_upper(hessian(60)).unwrap();
    // inv(R) is upper triangular with a positive diagonal, and inv(R)ᵀ inv(R) = inv(H): what textbook GPTQ computes.
    let inverse = solve_right(&r, Array2::eye(60));
    let upper = solve_right(&r, r.t().to_owned());
    assert!(upper.indexed_iter().all(|((i, j), value)| i <= j || value.abs() < 1e-12));
    assert!(distance(&upper.t().dot(&upper), &inverse) < 1e-12);
}

#[test]
fn the_failed_pivot_is_reported_with_its_value() {
    // What is left of column k after columns k + 1.. is exactly the chosen value.
    for (n, k) in [(1, 0), (5, 4), (33, 2), (300, 0), (300, 255), (300, 299), (600, 70)] {
        let mut r = cholesky_upper(hessian(n)).unwrap();
        r[[k, k]] = 0.0;
        let mut h = r.dot(&r.t());
        h[[k, k]] -= 0.25;
        let error = cholesky_upper(h).unwrap_err();
        assert_eq!(error.pivot, k, "{n}");
        assert!((error.value + 0.25).abs() < 1e-9, "{n} {k}: {}", error.value);
    }
}

#[test]
fn what_is_not_finite_is_not_positive() {
    for n in [40, 600] {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut h = hessian(n);
            h[[17, 17]] = value;
            let error = cholesky_upper(h).unwrap_err();
            assert_eq!(error.pivot, 17, "{n} {value}");
            assert_eq!(error.value.to_bits() << 1, value.to_bits() << 1, "{n} {value}: {}", error.value);
            assert!(error.to_string().contains("column 17"));
            // Beside the diagonal it spoils the pivot of its row, the first one of the two that is reached last.
            let mut h = hessian(n);
            h[[30, 17]] = value;
            assert_eq!(cholesky_upper(h).unwrap_err().pivot, 17, "{n} {value}");
        }
    }
}

#[test]
fn of_two_failed_pivots_the_last_column_is_reported() {
    for value in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
        let mut h = Array2::eye(600);
        h[[3, 3]] = -1.0;
        h[[400, 400]] = value;
        assert_eq!(cholesky_upper(h).unwrap_err().pivot, 400, "{value}");
    }
}

#[test]
fn an_empty_matrix_has_an_empty_factor() {
    let r = cholesky_upper(Array2::zeros((0, 0))).unwrap();
    assert_eq!(r.dim(), (0, 0));
    assert_eq!(solve_right(&r, Array2::zeros((3, 0))).dim(), (3, 0));
    assert!(min_pivot_order(Array2::zeros((0, 0)).view()).is_empty());
}

#[test]
fn a_right_hand_solve_undoes_the_product() {
    for (m, n) in [(1, 1), (3, 7), (200, 33), (5, 172), (129, 576), (0, 20)] {
        let h = hessian(n);
        let x = Sample::new(5).matrix(m, n).mapv(f64::from);
        let b = x.dot(&h);
        let r = cholesky_upper(h).unwrap();
        let mut columns_first = Array2::zeros((m, n).f());
        columns_first.assign(&b);
        for b in [b, columns_first] {
            let found = solve_right(&r, b);
            assert!(m == 0 || distance(&found, &x) < 1e-9, "[{m}, {n}]");
        }
    }
}

#[test]
fn a_diagonal_factor_in_either_memory_order_divides() {
    let roots = ndarray::Array1::from_shape_fn(300, |i| 1.0 + i as f64);
    let b = Sample::new(3).matrix(4, 300).mapv(f64::from);
    let rows_first = Array2::from_diag(&roots);
    let columns_first = rows_first.clone().reversed_axes();
    let expected = &b / &(&roots * &roots);
    for r in [rows_first, columns_first] {
        assert!(distance(&solve_right(&r, b.clone()), &expected) < 1e-15);
    }
}

#[test]
fn a_factor_with_a_zero_pivot_has_no_finite_solution() {
    let mut r = cholesky_upper(hessian(20)).unwrap();
    r[[9, 9]] = 0.0;
    let solved = solve_right(&r, Array2::ones((2, 20)));
    assert!(solved.rows().into_iter().all(|row| row.iter().any(|x| !x.is_finite())));
}

#[test]
fn the_order_is_that_of_the_definition() {
    for n in [1, 2, 7, 33, 64, 65, 172, 200] {
        let h = hessian(n);
        assert_eq!(min_pivot_order(h.view()), naive_order(h.view()), "{n}");
    }
}

#[test]
fn each_column_in_order_had_the_least_pivot_left() {
    let n = 700;
    let h = hessian(n);
    let order = min_pivot_order(h.view());
    let ordered = Array2::from_shape_fn((n, n), |(i, j)| h[[order[i], order[j]]]);
    let r = cholesky_upper(ordered.clone()).unwrap();
    for last in [n - 1, n - 2, 640, 636, 500, 100, 10] {
        // The Schur complement of everything behind `last` is R Rᵀ of the leading part.
        for k in 0..last {
            let left = r.slice(s![k, k..=last]).dot(&r.slice(s![k, k..=last]));
            assert!(left >= r[[last, last]].powi(2) * (1.0 - 1e-9), "{last} {k}");
        }
    }
}

#[test]
fn of_equal_pivots_the_lowest_column_is_eliminated_first() {
    assert_eq!(min_pivot_order(Array2::eye(70).view()), (0..70).rev().collect::<Vec<_>>());
}

#[test]
fn the_order_of_an_indefinite_matrix_is_still_a_permutation() {
    for value in [0.0, -1.0, f64::NAN] {
        let mut order = min_pivot_order(Array2::from_elem((80, 80), value).view());
        order.sort_unstable();
        assert_eq!(order, (0..80).collect::<Vec<_>>());
    }
}

#[test]
fn no_factor_depends_on_the_number_of_threads() {
    let h = hessian(1100);
    let b = Sample::new(9).matrix(300, 1100).mapv(f64::from);
    let results = in_pools(|| {
        let r = cholesky_upper(h.clone()).unwrap();
        let solved = solve_right(&r, b.clone());
        (r, solved, min_pivot_order(h.view()))
    });
    assert!(results.iter().all(|result| *result == results[0]));
}
