//! Hessians and cross moments: gathering, damping, factoring.

mod support;

use ndarray::{Array2, Axis, array};
use quantizer::accumulator::{CHUNK_TOKENS, Streams};
use quantizer::order::{Order, Permutation};
use quantizer::prepared::Rung;
use quantizer::{Hessian, HessianAccumulator, HessianError, Shares, Shortfall, SolverSettings};
use support::{Random, hessian, inputs};

#[test]
fn splitting_the_batches_changes_no_bit() {
    let (tokens, columns) = (2 * CHUNK_TOKENS + 777, 24);
    let x = inputs(1, tokens, columns);
    let original = &x + &(Random(2).matrix(tokens, columns) * 0.1);
    let gathered = |sizes: &[usize]| {
        let mut moments = HessianAccumulator::new(columns).with_cross_moment(columns);
        let (mut first, mut turn) = (0, 0);
        while first < tokens {
            let last = (first + sizes[turn % sizes.len()]).min(tokens);
            let rows = x.slice_axis(Axis(0), (first..last).into());
            let original = original.slice_axis(Axis(0), (first..last).into());
            moments.observe_beside(rows, &[Streams { original, quantized: rows }]).unwrap();
            (first, turn) = (last, turn + 1);
        }
        let (hessian, crosses) = moments.finish_all().unwrap();
        assert_eq!(hessian.tokens(), tokens as u64);
        (hessian.matrix().unwrap(), crosses[0].matrix().to_owned())
    };
    let whole = gathered(&[tokens]);
    for sizes in [&[1][..], &[CHUNK_TOKENS], &[256], &[100, 1, 3000, 77]] {
        assert_eq!(gathered(sizes), whole, "{sizes:?}");
    }
}

#[test]
fn moments_are_means_of_products() {
    let x = inputs(3, 3000, 20);
    let original = &x + &(Random(4).matrix(3000, 20) * 0.2);
    let cross = support::cross_of(original.view(), x.view(), x.view());
    let (x, difference) = (x.mapv(f64::from), (&original - &x).mapv(f64::from));
    let expected_cross = difference.t().dot(&x) / 3000.0;
    let expected = x.t().dot(&x) / 3000.0;
    assert_near(support::hessian_of(inputs(3, 3000, 20).view()).matrix().unwrap().view(), expected.view());
    assert_near(cross.matrix(), expected_cross.view());
}

#[test]
fn several_cross_moments_come_in_the_order_in_which_they_were_asked_for() {
    let (x, stream, other) = (inputs(5, 2100, 20), inputs(6, 2100, 7), inputs(7, 2100, 7));
    let mut moments = HessianAccumulator::new(20).with_cross_moment(20).with_cross_moment(7);
    let twice = &x * 2.0;
    let streams = [
        Streams { original: twice.view(), quantized: x.view() },
        Streams { original: other.view(), quantized: stream.view() },
    ];
    moments.observe_beside(x.view(), &streams).unwrap();
    let (hessian, crosses) = moments.finish_all().unwrap();
    assert_near(crosses[0].matrix(), hessian.matrix().unwrap().view());
    let alone = support::cross_of(other.view(), stream.view(), x.view());
    assert_eq!(crosses[1].matrix(), alone.matrix());
}

#[test]
fn an_activation_that_is_not_finite_is_named() {
    let mut accumulator = HessianAccumulator::new(8);
    accumulator.observe(Array2::ones((10, 8)).view()).unwrap();
    let mut x = Array2::ones((5, 8));
    x[[3, 6]] = f32::NAN;
    let error = accumulator.observe(x.view()).unwrap_err();
    assert!(matches!(error, HessianError::NonFiniteActivation { column: 6, token: 13, .. }), "{error}");
    assert_eq!(error.to_string(), "the activation in column 6 of token 13 is NaN, expected a finite number");
    let (mut original, quantized) = (Array2::ones((5, 8)), Array2::ones((5, 8)));
    original[[2, 1]] = f32::INFINITY;
    let streams = Streams { original: original.view(), quantized: quantized.view() };
    let mut moments = HessianAccumulator::new(8).with_cross_moment(8);
    let error = moments.observe_beside(quantized.view(), &[streams]).unwrap_err();
    let expected = HessianError::NonFiniteActivation { column: 1, token: 2, found: f32::INFINITY };
    assert_eq!(error, expected);
}

#[test]
fn statistics_that_do_not_fit_are_refused() {
    let mut accumulator = HessianAccumulator::new(8);
    let width = accumulator.observe(Array2::ones((5, 7)).view()).unwrap_err();
    assert_eq!(width, HessianError::Width { expected: 8, found: 7 });
    assert_eq!(accumulator.finish().unwrap_err(), HessianError::NoTokens);
    let (four, five) = (Array2::ones((4, 8)), Array2::ones((5, 8)));
    let streams = Streams { original: five.view(), quantized: four.view() };
    let count =
        HessianAccumulator::new(8).with_cross_moment(8).observe_beside(four.view(), &[streams]).unwrap_err();
    assert_eq!(count, HessianError::TokenCount { original: 5, quantized: 4 });
    assert!(Hessian::from_lower(Array2::zeros((3, 4)), 1).is_err());
    assert!(Hessian::from_lower(array![[1.0, 0.0], [f64::NAN, 1.0]], 1).is_err());
    assert!(Hessian::from_lower(array![[1.0, 0.0], [0.0, -1.0]], 1).is_err());
    let nothing = Array2::zeros((5, 8));
    let cross = support::cross_of(five.view(), nothing.view(), nothing.view());
    let prepared = hessian(5, 16).prepare(
        &SolverSettings::default(),
        Some((
            Shortfall { input: Some(cross), residual: None },
            Shares { alpha: 0.5, beta: 0.0, damping: 0.01 },
        )),
    );
    assert_eq!(prepared.err(), Some(HessianError::CrossWidth { expected: 16, found: 8 }));
}

#[test]
fn only_the_lower_triangle_is_read() {
    let upper = array![[2.0, 9.0, 9.0], [0.5, 3.0, 9.0], [0.25, 0.125, 4.0]];
    let hessian = Hessian::from_lower(upper, 1).unwrap();
    assert_eq!(hessian.matrix().unwrap(), array![[2.0, 0.5, 0.25], [0.5, 3.0, 0.125], [0.25, 0.125, 4.0]]);
}

#[test]
fn the_factor_gives_back_the_damped_hessian_in_every_order() {
    for order in [Order::Natural, Order::Activation, Order::Pivot] {
        let damped = hessian(6, 48).damp(0.01);
        let order = damped.permutation(order).unwrap();
        let factor = damped.factor(&order).unwrap();
        let r = factor.r().unwrap();
        let product = r.dot(&r.t());
        let matrix = damped.matrix().unwrap();
        let expected =
            Array2::from_shape_fn((48, 48), |(i, j)| matrix[[order.columns()[i], order.columns()[j]]]);
        assert_near(product.view(), expected.view());
    }
}

#[test]
fn the_ladder_reports_its_rung() {
    let prepare = |matrix: Array2<f64>, damping: f64| {
        let settings = SolverSettings { damping, ..SolverSettings::default() };
        Hessian::from_lower(matrix, 10).unwrap().prepare(&settings, None).unwrap().damping()
    };
    let fine = prepare(Array2::eye(4), 0.01);
    assert_eq!((fine.damping, fine.rung, fine.dead_inputs), (0.01, Rung::AsAsked, 0));
    // Rank one, undamped.
    let raised = prepare(Array2::ones((4, 4)), 0.0);
    assert!(raised.damping > 0.0 && raised.damping < 1e-3 && raised.rung == Rung::Raised, "{raised:?}");
    // Not a Gram matrix of anything.
    let mut impossible = Array2::from_elem((4, 4), 100.0);
    impossible.diag_mut().fill(1.0);
    let fallen = prepare(impossible, 0.01);
    assert_eq!((fallen.damping, fallen.rung), (1.0, Rung::Diagonal));
}

#[test]
fn dead_inputs_are_kept_apart() {
    let mut x = inputs(7, 200, 16);
    for column in [0, 9, 15] {
        x.column_mut(column).fill(0.0);
    }
    let hessian = support::hessian_of(x.view());
    assert_eq!(hessian.dead_inputs(), [0, 9, 15]);
    let mean = hessian.mean_diagonal();
    let prepared = hessian.prepare(&SolverSettings::default(), None).unwrap();
    let damped = prepared.damped().unwrap();
    assert_eq!(prepared.damping().dead_inputs, 3);
    assert!((f64::from(damped[[9, 9]]) / mean - 1.01).abs() < 1e-6);
    assert!(damped.row(9).iter().filter(|&&x| x != 0.0).count() == 1);
    let target = prepared.target(Array2::ones((2, 16)).view());
    assert_eq!(target.row(0).iter().filter(|&&x| x == 0.0).count(), 3);
}

#[test]
fn settings_out_of_range_are_refused() {
    let bad = [
        SolverSettings { damping: -1.0, ..SolverSettings::default() },
        SolverSettings { damping: f64::NAN, ..SolverSettings::default() },
        SolverSettings { alpha: 1.5, ..SolverSettings::default() },
        SolverSettings { beta: -0.1, ..SolverSettings::default() },
        SolverSettings { range_candidates: 1, ..SolverSettings::default() },
    ];
    for settings in bad {
        assert!(hessian(8, 16).prepare(&settings, None).is_err(), "{settings:?}");
    }
}

#[test]
fn an_order_and_its_inverse_cancel() {
    let order = hessian(9, 32).damp(0.01).permutation(Order::Activation).unwrap();
    let both: Vec<usize> =
        order.inverse().columns().iter().map(|&position| order.columns()[position]).collect();
    assert_eq!(both, Permutation::natural(32).columns());
}

fn assert_near(ours: ndarray::ArrayView2<'_, f64>, expected: ndarray::ArrayView2<'_, f64>) {
    let largest = expected.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
    for (ours, expected) in ours.iter().zip(expected) {
        assert!((ours - expected).abs() < 2e-6 * largest, "{ours}, expected {expected}");
    }
}
