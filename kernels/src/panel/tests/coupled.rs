//! Coupled descent against its definition in double precision.

use super::*;

/// A problem and the matrix that couples its rows.
struct Coupled {
    problem: Problem,
    outer: Array2<f64>,
}

impl Coupled {
    fn new(rows: usize, n: usize) -> Self {
        Self::of(Problem::new(rows, n))
    }

    fn of(problem: Problem) -> Self {
        let (rows, n) = problem.weights.dim();
        let outer = Sample::new((rows * 77 + n) as u64).hessian(rows);
        Self { problem, outer }
    }

    fn descend_on(&self, unit: Unit, start: &Array2<u8>, sweeps: usize) -> (Array2<u8>, u64) {
        let mut codes = start.clone();
        let [outer, inner] = [&self.outer, &self.problem.hessian].map(|matrix| matrix.mapv(|x| x as f32));
        let mut slopes = self.slopes(start);
        let (grid, outer, inner) = (self.problem.grid(), outer.view(), inner.view());
        let changes =
            coupled_descent_on(unit, outer, inner, &grid, codes.view_mut(), slopes.view_mut(), sweeps);
        let exact = self.slopes(&codes);
        let scale = exact.iter().fold(0.0_f32, |most, slope| most.max(slope.abs()));
        let off = slopes.iter().zip(&exact).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off <= 1e-4 * scale, "slopes are off by {off} of {scale}");
        (codes, changes)
    }

    /// `A (Q - W) H`.
    fn slopes(&self, codes: &Array2<u8>) -> Array2<f32> {
        self.outer.dot(&self.errors(codes)).dot(&self.problem.hessian).mapv(|slope| -slope as f32)
    }

    /// `D = W - Q`.
    fn errors(&self, codes: &Array2<u8>) -> Array2<f64> {
        let rows: Vec<_> = codes
            .rows()
            .into_iter()
            .enumerate()
            .map(|(row, codes)| self.problem.errors(row, codes))
            .collect();
        let views: Vec<_> = rows.iter().map(|row| row.view()).collect();
        ndarray::stack(Axis(0), &views).unwrap()
    }

    /// `tr(A D H Dᵀ)`.
    fn loss(&self, codes: &Array2<u8>) -> f64 {
        let errors = self.errors(codes);
        (self.outer.dot(&errors).dot(&self.problem.hessian) * &errors).sum()
    }
}

#[test]
fn it_is_the_same_to_the_bit_on_every_vector_unit() {
    for (problem, rows, n) in awkward() {
        let coupled = Coupled::of(problem);
        let start = coupled.problem.nearest_codes();
        let expected = coupled.descend_on(Unit::all()[0], &start, 3);
        for unit in Unit::all() {
            assert_eq!(coupled.descend_on(unit, &start, 3), expected, "[{rows}, {n}] on {unit:?}");
        }
    }
}

#[test]
fn it_does_not_depend_on_the_number_of_threads() {
    let coupled = Coupled::new(131, 300);
    let start = coupled.problem.nearest_codes();
    let found = in_pools(|| coupled.descend_on(Unit::widest(), &start, 2));
    assert!(found.iter().all(|result| *result == found[0]));
}

#[test]
fn it_lowers_the_loss_of_the_best_rows() {
    for (problem, rows, n) in awkward() {
        let coupled = Coupled::of(problem);
        let alone = coupled.problem.descend_on(Unit::widest(), &coupled.problem.round().0, 8).0;
        let (together, changes) = coupled.descend_on(Unit::widest(), &alone, 4);
        let (before, after) = (coupled.loss(&alone), coupled.loss(&together));
        assert!(after <= before * (1.0 + 1e-6), "[{rows}, {n}]: {after} {before}");
        assert!(rows < 33 || n < 33 || after < 0.9 * before, "[{rows}, {n}]: {after} {before}");
        assert_eq!(changes == 0, alone == together);
    }
}

#[test]
fn rows_that_do_not_see_each_other_are_improved_alone() {
    let mut coupled = Coupled::new(40, 172);
    coupled.outer = Array2::from_diag(&Array1::from_shape_fn(40, |row| 0.1 + row as f64));
    let start = coupled.problem.nearest_codes();
    let found = coupled.descend_on(Unit::widest(), &start, 50).0;
    let alone = coupled.problem.descend_on(Unit::widest(), &start, 100).0;
    let differences = share_of_differences(&found, &alone);
    assert!(differences <= 0.02, "{differences}");
}

#[test]
fn it_ends_where_no_single_step_lowers_the_loss() {
    let coupled = Coupled::new(24, 140);
    let (codes, _) = coupled.descend_on(Unit::widest(), &coupled.problem.nearest_codes(), 200);
    let errors = coupled.errors(&codes);
    let slopes = coupled.outer.dot(&errors).dot(&coupled.problem.hessian);
    let loss = (&slopes * &errors).sum();
    for ((row, k), &code) in codes.indexed_iter() {
        for other in [code.saturating_sub(1), (code + 1).min(coupled.problem.levels.max_code())] {
            let problem = &coupled.problem;
            let change = problem.value(row, k, code) - problem.value(row, k, other);
            let curvature = coupled.outer[[row, row]] * problem.hessian[[k, k]];
            let rise = change * (2.0 * slopes[[row, k]] + change * curvature);
            assert!(rise >= -1e-4 * loss, "{row} {k}: {rise} of {loss}");
        }
    }
}

#[test]
fn outputs_that_cost_nothing_keep_their_codes() {
    let mut coupled = Coupled::new(20, 64);
    coupled.outer.row_mut(3).fill(0.0);
    coupled.outer.column_mut(3).fill(0.0);
    let start = coupled.problem.nearest_codes();
    let found = coupled.descend_on(Unit::widest(), &start, 3).0;
    assert_eq!(found.row(3), start.row(3));
    assert_ne!(found, start);
}
