//! The fast paths against the portable one, bit for bit, and the portable one against textbook algorithms in double
//! precision.

mod coupled;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, s};

use super::*;
use crate::factor::cholesky_upper;
use crate::sample::{Sample, in_pools};

/// Levels of uneven steps.
const TABLE: [f32; 11] = [-7.0, -5.0, -3.5, -2.0, -1.0, -0.25, 0.0, 0.75, 2.0, 4.0, 8.0];

/// A matrix to round, in processing order, with a grid.
struct Problem {
    weights: Array2<f32>,
    hessian: Array2<f64>,
    scales: Array2<f32>,
    zero_points: Array2<f32>,
    group_of: Vec<u32>,
    levels: Levels<'static>,
}

impl Problem {
    /// 4 bits, groups of 32 columns that are not contiguous, scales of both signs, zero points around the middle.
    fn new(rows: usize, n: usize) -> Self {
        let mut sample = Sample::new((rows * 10_000 + n) as u64);
        let groups = n.div_ceil(32);
        let weights = sample.matrix(rows, n);
        let hessian = sample.hessian(n);
        let scales = sample.matrix(rows, groups).mapv(|x| (0.2 + 0.1 * x.abs()) * x.signum());
        let zero_points = sample.matrix(rows, groups).mapv(|x| (7.5 + x).round());
        let group_of = (0..n).map(|k| ((k * 7) % n / 32) as u32).collect();
        let levels = Levels::Uniform { max_code: 15 };
        Self { weights, hessian, scales, zero_points, group_of, levels }
    }

    /// The same on the levels of a table, zero at 0.
    fn on_codebook(rows: usize, n: usize) -> Self {
        let problem = Self::new(rows, n);
        let zero_points = Array2::zeros(problem.zero_points.dim());
        Self { zero_points, levels: Levels::Codebook(&TABLE), ..problem }
    }

    fn grid(&self) -> RowGrid<'_> {
        RowGrid {
            scales: self.scales.view(),
            zero_points: self.zero_points.view(),
            group_of: &self.group_of,
            levels: self.levels,
        }
    }

    fn factor(&self) -> FeedbackFactor {
        FeedbackFactor::new(&cholesky_upper(self.hessian.clone()).unwrap())
    }

    fn round_on(&self, unit: Unit) -> (Array2<u8>, Vec<f64>) {
        let mut codes = Array2::zeros(self.weights.dim());
        let factor = self.factor();
        let loss = successive_rounding_on(unit, self.weights.view(), &factor, &self.grid(), codes.view_mut());
        (codes, loss)
    }

    fn round(&self) -> (Array2<u8>, Vec<f64>) {
        self.round_on(Unit::widest())
    }

    fn descend_on(&self, unit: Unit, start: &Array2<u8>, sweeps: usize) -> (Array2<u8>, u64) {
        let mut codes = start.clone();
        let hessian = self.hessian.mapv(|x| x as f32);
        let (weights, grid) = (self.weights.view(), self.grid());
        let changed = coordinate_descent_on(unit, weights, hessian.view(), &grid, codes.view_mut(), sweeps);
        (codes, changed)
    }

    fn scale(&self, row: usize, k: usize) -> f64 {
        f64::from(self.scales[[row, self.group_of[k] as usize]])
    }

    fn zero_point(&self, row: usize, k: usize) -> f64 {
        f64::from(self.zero_points[[row, self.group_of[k] as usize]])
    }

    fn nearest(&self, row: usize, k: usize, target: f64) -> u8 {
        let steps = target / self.scale(row, k) + self.zero_point(row, k);
        match self.levels {
            Levels::Uniform { max_code } => steps.round_ties_even().clamp(0.0, f64::from(max_code)) as u8,
            Levels::Codebook(levels) => {
                let distance = |&code: &usize| (f64::from(levels[code]) - steps).abs();
                (0..levels.len()).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap() as u8
            }
        }
    }

    fn value(&self, row: usize, k: usize, code: u8) -> f64 {
        self.scale(row, k) * (f64::from(self.levels.level(code)) - self.zero_point(row, k))
    }

    fn nearest_codes(&self) -> Array2<u8> {
        let weight = |i| f64::from(self.weights[i]);
        Array2::from_shape_fn(self.weights.dim(), |(row, k)| self.nearest(row, k, weight([row, k])))
    }

    fn errors(&self, row: usize, codes: ArrayView1<'_, u8>) -> Array1<f64> {
        let error = |(k, &code)| f64::from(self.weights[[row, k]]) - self.value(row, k, code);
        codes.iter().enumerate().map(error).collect()
    }

    /// `(w - q) H (w - q)ᵀ` of each row.
    fn loss(&self, codes: &Array2<u8>) -> Vec<f64> {
        let loss = |(row, codes)| {
            let errors = self.errors(row, codes);
            errors.dot(&self.hessian.dot(&errors))
        };
        codes.rows().into_iter().enumerate().map(loss).collect()
    }

    /// GPTQ as published: the inverse, its upper Cholesky factor, and weights that change as columns are rounded.
    fn textbook(&self) -> Array2<u8> {
        let n = self.weights.ncols();
        let upper = lower_cholesky(inverse(&self.hessian)).reversed_axes();
        let mut codes = Array2::zeros(self.weights.dim());
        for row in 0..self.weights.nrows() {
            let mut w = self.weights.row(row).mapv(f64::from);
            for k in 0..n {
                codes[[row, k]] = self.nearest(row, k, w[k]);
                let error = (w[k] - self.value(row, k, codes[[row, k]])) / upper[[k, k]];
                w.slice_mut(s![k..]).scaled_add(-error, &upper.slice(s![k, k..]));
            }
        }
        codes
    }
}

fn lower_cholesky(mut a: Array2<f64>) -> Array2<f64> {
    let n = a.nrows();
    for j in 0..n {
        let (left, mut rest) = a.view_mut().split_at(Axis(1), j);
        let mut column = rest.slice_mut(s![j.., 0]);
        column -= &left.slice(s![j.., ..]).dot(&left.row(j));
        let pivot: f64 = f64::sqrt(column[0_usize]);
        column /= pivot;
        a.slice_mut(s![..j, j]).fill(0.0);
    }
    a
}

/// Gauss and Jordan, for a positive definite matrix.
fn inverse(a: &Array2<f64>) -> Array2<f64> {
    let n = a.nrows();
    let mut left = a.clone();
    let mut right = Array2::eye(n);
    for k in 0..n {
        let pivot = left[[k, k]];
        for matrix in [&mut left, &mut right] {
            matrix.row_mut(k).mapv_inplace(|x| x / pivot);
        }
        for i in (0..n).filter(|&i| i != k) {
            let factor = left[[i, k]];
            for matrix in [&mut left, &mut right] {
                let row = matrix.row(k).to_owned();
                matrix.row_mut(i).scaled_add(-factor, &row);
            }
        }
    }
    (&right + &right.t()) / 2.0
}

fn share_of_differences(a: &Array2<u8>, b: &Array2<u8>) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a != b).count() as f64 / a.len() as f64
}

fn total(losses: &[f64]) -> f64 {
    losses.iter().sum()
}

const AWKWARD: [(usize, usize); 7] = [(1, 1), (3, 7), (17, 33), (49, 172), (100, 129), (50, 576), (7, 1000)];

/// Awkward shapes on both kinds of grid.
fn awkward() -> impl Iterator<Item = (Problem, usize, usize)> {
    AWKWARD.into_iter().flat_map(|(rows, n)| {
        [Problem::new(rows, n), Problem::on_codebook(rows, n)].map(|problem| (problem, rows, n))
    })
}

#[test]
fn rounding_gives_the_codes_of_textbook_gptq() {
    for (rows, n) in [(5, 7), (12, 64), (20, 172), (9, 300)] {
        let problem = Problem::new(rows, n);
        let (codes, loss) = problem.round();
        let textbook = problem.textbook();
        // One sum rounded to single precision may tip a code, and with it the rest of its row.
        let differences = share_of_differences(&codes, &textbook);
        assert!(differences <= 0.01, "[{rows}, {n}]: {differences}");
        let expected = total(&problem.loss(&textbook));
        assert!((total(&loss) / expected - 1.0).abs() < 0.01, "[{rows}, {n}]: {} {expected}", total(&loss));
    }
}

#[test]
fn the_returned_loss_is_the_quadratic_form_of_the_error() {
    for (problem, rows, n) in awkward() {
        let (codes, loss) = problem.round();
        for (row, (found, expected)) in loss.iter().zip(problem.loss(&codes)).enumerate() {
            assert!((found - expected).abs() <= 1e-4 * expected, "[{rows}, {n}] {row}: {found} {expected}");
        }
    }
}

#[test]
fn rounding_is_the_same_to_the_bit_on_every_vector_unit() {
    for (problem, rows, n) in awkward() {
        let expected = problem.round_on(Unit::all()[0]);
        for unit in Unit::all() {
            assert_eq!(problem.round_on(unit), expected, "[{rows}, {n}] on {unit:?}");
        }
    }
}

#[test]
fn descent_is_the_same_to_the_bit_on_every_vector_unit() {
    for (problem, rows, n) in awkward() {
        let start = problem.nearest_codes();
        let expected = problem.descend_on(Unit::all()[0], &start, 3);
        for unit in Unit::all() {
            assert_eq!(problem.descend_on(unit, &start, 3), expected, "[{rows}, {n}] on {unit:?}");
        }
    }
}

#[test]
fn no_result_depends_on_the_number_of_threads() {
    let problem = Problem::new(131, 300);
    let rounded = in_pools(|| problem.round());
    let start = problem.nearest_codes();
    let descended = in_pools(|| problem.descend_on(Unit::widest(), &start, 2));
    assert!(rounded.iter().all(|result| *result == rounded[0]));
    assert!(descended.iter().all(|result| *result == descended[0]));
}

#[test]
fn rows_rounded_together_equal_rows_rounded_alone() {
    let problem = Problem::new(70, 172);
    let (codes, loss) = problem.round();
    for row in [0, 1, 15, 16, 47, 48, 69] {
        let mut alone = Problem::new(70, 172);
        for matrix in [&mut alone.weights, &mut alone.scales, &mut alone.zero_points] {
            *matrix = matrix.slice(s![row..=row, ..]).to_owned();
        }
        let (codes_alone, loss_alone) = alone.round();
        assert_eq!(codes_alone.row(0), codes.row(row));
        assert_eq!(loss_alone[0], loss[row]);
    }
}

#[test]
fn without_feedback_rounding_is_round_to_nearest() {
    let mut problem = Problem::new(33, 172);
    problem.hessian = Array2::eye(172);
    let (codes, loss) = problem.round();
    let expected = Array2::from_shape_fn(codes.dim(), |(row, k)| {
        let group = problem.group_of[k] as usize;
        let steps =
            problem.weights[[row, k]] / problem.scales[[row, group]] + problem.zero_points[[row, group]];
        steps.round_ties_even().clamp(0.0, 15.0) as u8
    });
    assert_eq!(codes, expected);
    assert!((total(&loss) / total(&problem.loss(&codes)) - 1.0).abs() < 1e-5);
}

#[test]
fn halves_go_to_the_even_code() {
    let problem = Problem {
        weights: ndarray::array![[0.5, 1.5, 2.5, 3.5, -0.5, 14.5, 15.5]],
        hessian: Array2::eye(7),
        scales: ndarray::array![[1.0]],
        zero_points: ndarray::array![[0.0]],
        group_of: vec![0; 7],
        levels: Levels::Uniform { max_code: 15 },
    };
    for unit in Unit::all() {
        assert_eq!(problem.round_on(unit).0, ndarray::array![[0, 2, 2, 4, 0, 14, 15]], "{unit:?}");
    }
}

#[test]
fn numbers_without_a_nearest_code_still_get_one() {
    let mut problem = Problem::new(4, 40);
    problem.weights[[0, 3]] = f32::NAN;
    problem.weights[[1, 5]] = f32::INFINITY;
    problem.scales[[2, 0]] = 0.0;
    let expected = problem.round_on(Unit::all()[0]).0;
    for unit in Unit::all() {
        let (codes, _) = problem.round_on(unit);
        assert_eq!(codes, expected, "{unit:?}");
        assert!(codes.iter().all(|&code| code <= 15));
    }
    assert_eq!(expected.row(3), Problem::new(4, 40).round().0.row(3));
}

#[test]
fn any_strides_will_do() {
    let problem = Problem::new(20, 140);
    let (expected, loss) = problem.round();
    let factor = problem.factor();
    let columns_first = problem.weights.t().as_standard_layout().into_owned();
    let scales = problem.scales.t().as_standard_layout().into_owned();
    let grid = RowGrid { scales: scales.t(), ..problem.grid() };
    let mut wide = Array2::from_elem((40, 280), 99);
    let codes = wide.slice_mut(s![..;2, ..;2]);
    assert_eq!(successive_rounding(columns_first.t(), &factor, &grid, codes), loss);
    assert_eq!(wide.slice(s![..;2, ..;2]), expected);
    assert!(wide.slice(s![1..;2, ..]).iter().all(|&code| code == 99));
}

#[test]
fn rounding_with_feedback_beats_round_to_nearest() {
    let problem = Problem::new(24, 256);
    let (_, loss) = problem.round();
    let nearest = problem.loss(&problem.nearest_codes());
    assert!(total(&loss) < 0.6 * total(&nearest), "{} {}", total(&loss), total(&nearest));
}

#[test]
fn descent_never_raises_a_loss_and_lowers_the_total() {
    for (problem, rows, n) in awkward() {
        for start in [problem.nearest_codes(), problem.round().0] {
            let mut before = problem.loss(&start);
            let mut codes = start;
            for _ in 0..3 {
                let (better, changed) = problem.descend_on(Unit::widest(), &codes, 1);
                let after = problem.loss(&better);
                for (after, before) in after.iter().zip(&before) {
                    assert!(*after <= before * (1.0 + 1e-6), "[{rows}, {n}]: {after} {before}");
                }
                assert_eq!(changed == 0, codes == better);
                assert!(changed == 0 || total(&after) < total(&before));
                (codes, before) = (better, after);
            }
        }
    }
}

#[test]
fn descent_takes_the_steps_of_its_definition() {
    for (rows, n) in [(6, 33), (10, 172)] {
        let problem = Problem::new(rows, n);
        let start = problem.nearest_codes();
        let (found, _) = problem.descend_on(Unit::widest(), &start, 2);
        let mut expected = start;
        for (row, mut codes) in expected.rows_mut().into_iter().enumerate() {
            for k in (0..n).chain(0..n) {
                // d = q - w; the errors are w - q.
                let slope = -problem.hessian.row(k).dot(&problem.errors(row, codes.view()));
                let target = problem.value(row, k, codes[k]) - slope / problem.hessian[[k, k]];
                codes[k] = problem.nearest(row, k, target);
            }
        }
        let differences = share_of_differences(&found, &expected);
        assert!(differences <= 0.02, "[{rows}, {n}]: {differences}");
    }
}

#[test]
fn descent_ends_where_no_single_step_lowers_the_loss() {
    let problem = Problem::new(8, 140);
    let (codes, _) = problem.descend_on(Unit::widest(), &problem.nearest_codes(), 100);
    assert_eq!(problem.descend_on(Unit::widest(), &codes, 1), (codes.clone(), 0));
    for (row, codes) in codes.rows().into_iter().enumerate() {
        let errors = problem.errors(row, codes);
        let slopes = problem.hessian.dot(&errors);
        let loss = errors.dot(&slopes);
        for (k, &code) in codes.iter().enumerate() {
            for other in [code.saturating_sub(1), (code + 1).min(problem.levels.max_code())] {
                let change = problem.value(row, k, code) - problem.value(row, k, other);
                let rise = change * (2.0 * slopes[k] + change * problem.hessian[[k, k]]);
                assert!(rise >= -1e-4 * loss, "{row} {k}: {rise} of {loss}");
            }
        }
    }
}

#[test]
fn an_empty_matrix_has_no_codes() {
    let problem = Problem::new(0, 40);
    assert_eq!(problem.round(), (Array2::zeros((0, 40)), vec![]));
    assert_eq!(problem.descend_on(Unit::widest(), &Array2::zeros((0, 40)), 2).1, 0);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let problem = Problem::new(3, 40);
    let factor = problem.factor();
    let refused = |grid: RowGrid<'_>, codes: (usize, usize), weights: ArrayView2<'_, f32>| {
        let mut codes = Array2::zeros(codes);
        let call = || successive_rounding(weights, &factor, &grid, codes.view_mut());
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err()
    };
    let weights = problem.weights.view();
    assert!(!refused(problem.grid(), (3, 40), weights));
    assert!(refused(problem.grid(), (3, 39), weights));
    assert!(refused(problem.grid(), (2, 40), weights.slice(s![..2, ..])));
    assert!(refused(RowGrid { group_of: &[0; 39], ..problem.grid() }, (3, 40), weights));
    assert!(refused(RowGrid { group_of: &[2; 40], ..problem.grid() }, (3, 40), weights));
}
