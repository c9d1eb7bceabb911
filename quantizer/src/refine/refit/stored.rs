//! The best scales and minimums of a row that can be stored, near the ideal ones.
//!
//! Where each is a number of its own, that is rounding. Products of a coarse and a fine number are tried with new coarse numbers and with the
//! old ones; then single fine numbers move by one while that lowers the loss, all others held.

use ndarray::Array2;

use super::{Change, inner, middle_level};
use crate::grid::Grid;
use crate::scheme::Symmetry;
use crate::storage::{Coarse, Storage, StoredRow};

/// `loss(x) = loss(0) - 2 bᵀx + xᵀAx`.
pub(super) struct Quadratic {
    pub(super) a: Array2<f64>,
    pub(super) b: Vec<f64>,
}

impl Quadratic {
    /// By how much the loss falls from 0 to `x`.
    fn gain(&self, x: &[f64]) -> f64 {
        let linear: f64 = x.iter().zip(&self.b).map(|(x, b)| x * b).sum();
        let quadratic: f64 = x.iter().zip(self.a.rows()).map(|(m, row)| m * inner(row, x)).sum();
        2.0 * linear - quadratic
    }
}

/// What to store of a row whose unknowns should change by `ideal`.
pub(super) fn closest(quadratic: &Quadratic, ideal: &[f64], row: usize, grid: &Grid) -> Change {
    let before = grid.row(row);
    let unknowns = Unknowns::new(grid);
    let groups = before.scales.len();
    let (scales, minimums) = unknowns.apply(&before, ideal);
    let weights: Vec<f64> = (0..groups).map(|group| quadratic.a[[group, group]]).collect();
    let storage = grid.storage();
    if !grid.scheme().scale_dtype.is_product() {
        let mut stored = storage.row(&scales, &minimums, &weights, Coarse::As(&before));
        if grid.scheme().symmetry == Symmetry::Asymmetric {
            // A scale whose zero point stays must not turn around.
            for ((stored, &ideal), &before) in stored.scales.iter_mut().zip(&scales).zip(&before.scales) {
                if ideal < 0.0 {
                    *stored = before;
                }
            }
        }
        let gain = quadratic.gain(&unknowns.change(&before, &stored));
        return Change { stored, gain };
    }
    let mut options = vec![storage.row(&scales, &minimums, &weights, Coarse::As(&before))];
    if storage.scale_integers().is_some() {
        options.push(storage.row(&scales, &minimums, &weights, Coarse::Free(&[])));
    }
    let judged = options.into_iter().map(|stored| {
        let gain = quadratic.gain(&unknowns.change(&before, &stored));
        Change { stored, gain }
    });
    let best = judged.reduce(|best, other| if other.gain > best.gain { other } else { best });
    let Some(mut best) = best else { return Change { stored: before, gain: 0.0 } };
    step(quadratic, &unknowns, storage, &before, &mut best);
    best
}

/// Passes over the fine numbers.
const PASSES: usize = 2;

/// Moves single integers by one while the loss falls.
fn step(quadratic: &Quadratic, unknowns: &Unknowns, storage: Storage, before: &StoredRow, best: &mut Change) {
    let groups = before.scales.len();
    let mut x = unknowns.change(before, &best.stored);
    let mut slope: Vec<f64> =
        quadratic.a.rows().into_iter().zip(&quadratic.b).map(|(row, b)| b - inner(row, &x)).collect();
    let kinds = [storage.scale_integers(), storage.minimum_integers().filter(|_| unknowns.minimums)];
    for _ in 0..PASSES {
        let mut moved = false;
        for group in 0..groups {
            for (kind, integers) in kinds.iter().enumerate() {
                let parts = if kind == 0 { &best.stored.scale_parts } else { &best.stored.minimum_parts };
                let (Some(integers), Some(parts)) = (integers, parts) else { continue };
                let (coarse, fine) = (parts.coarse[storage.coarse_of(group)], parts.fine[group]);
                // From 1 down is to -1 where there is no 0.
                let steps = [integers.nearest(fine + 1.0), integers.nearest(fine - 1.0)];
                for to in steps.into_iter().filter(|&to| to != fine) {
                    let change = f64::from(coarse * to) - f64::from(coarse * fine);
                    let direction = unknowns.direction(kind, group, change);
                    let linear: f64 = direction.iter().map(|&(at, by)| by * slope[at]).sum();
                    let quadratic_part: f64 = direction
                        .iter()
                        .flat_map(|&(i, p)| direction.iter().map(move |&(j, q)| (i, j, p * q)))
                        .map(|(i, j, pq)| quadratic.a[[i, j]] * pq)
                        .sum();
                    let gain = 2.0 * linear - quadratic_part;
                    if gain > LEAST_GAIN * best.gain.abs() {
                        let parts = if kind == 0 {
                            &mut best.stored.scale_parts
                        } else {
                            &mut best.stored.minimum_parts
                        };
                        if let Some(parts) = parts {
                            parts.fine[group] = to;
                        }
                        for &(at, by) in &direction {
                            x[at] += by;
                            for (slope, a) in slope.iter_mut().zip(quadratic.a.row(at)) {
                                *slope -= by * a;
                            }
                        }
                        moved = true;
                        break;
                    }
                }
            }
        }
        if !moved {
            break;
        }
    }
    storage.multiply(&mut best.stored);
    best.gain = quadratic.gain(&unknowns.change(before, &best.stored));
}

/// A move must gain this much over all that is gained, or it is a rounding error's.
const LEAST_GAIN: f64 = 1e-9;

/// Between scales and minimums, and the directions of the equations.
struct Unknowns {
    groups: usize,
    /// Whether there are minimums; scales then turn about this level.
    minimums: bool,
    middle: f64,
}

impl Unknowns {
    fn new(grid: &Grid) -> Self {
        let minimums = grid.minimums().is_some();
        let middle = if minimums { f64::from(middle_level(grid.scheme())) } else { 0.0 };
        Self { groups: grid.scales().ncols(), minimums, middle }
    }

    /// The scales and minimums that `x` leads to from a row; without minimums, zeros.
    fn apply(&self, from: &StoredRow, x: &[f64]) -> (Vec<f32>, Vec<f32>) {
        let groups = self.groups;
        let scales = from.scales.iter().zip(x).map(|(&scale, x)| (f64::from(scale) + x) as f32).collect();
        let minimums = match &from.minimums {
            None => vec![0.0; groups],
            Some(minimums) => (0..groups)
                .map(|group| (f64::from(minimums[group]) + x[groups + group] - self.middle * x[group]) as f32)
                .collect(),
        };
        (scales, minimums)
    }

    /// The `x` that leads from one row to another.
    fn change(&self, from: &StoredRow, to: &StoredRow) -> Vec<f64> {
        let difference = |to: &[f32], from: &[f32]| -> Vec<f64> {
            to.iter().zip(from).map(|(to, from)| f64::from(*to) - f64::from(*from)).collect()
        };
        let mut x = difference(&to.scales, &from.scales);
        if let (Some(to), Some(from)) = (&to.minimums, &from.minimums) {
            x.extend(difference(to, from));
            for group in 0..self.groups {
                x[self.groups + group] += self.middle * x[group];
            }
        }
        x
    }

    /// What changing the product of one group by `change` is in the unknowns: the scale (kind 0), or the depth of the minimum.
    fn direction(&self, kind: usize, group: usize, change: f64) -> Vec<(usize, f64)> {
        match (kind, self.minimums) {
            (0, false) => vec![(group, change)],
            (0, true) => vec![(group, change), (self.groups + group, self.middle * change)],
            _ => vec![(self.groups + group, -change)],
        }
    }
}
