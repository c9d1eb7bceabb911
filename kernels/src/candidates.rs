//! The search for a scale: one group of weights rounded to many candidate grids.
//!
//! There is one candidate in each SIMD lane, and the weights pass through one after the other, so a candidate's sum is the same on every
//! vector unit: ascending over runs of 64 weights, one fused multiply-add each, and then over the runs.

use crate::arch::lanes::{Lanes, Task, Unit};
use crate::panel::{Codebook, Levels};

/// A grid that may be chosen: code `c` stands for `scale (level(c) - zero_point)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CandidateGrid {
    /// Of either sign. Where it is 0 every weight is its own error.
    pub scale: f32,
    /// In the levels' unit; on uniform levels usually an integer.
    pub zero_point: f32,
}

/// `Σ importance (weight - value of the nearest code)²` on each of the candidates. Of two codes equally near the even multiple of the
/// scale is taken, or the even code where a zero point is no integer, or the lower level of a codebook.
///
/// Shapes: `weights` and `importance` `[columns]`; the result has one error for each candidate.
///
/// # Panics
/// When there are not as many importances as weights.
#[must_use]
pub fn rounding_errors(
    weights: &[f32],
    importance: &[f32],
    candidates: &[CandidateGrid],
    levels: Levels<'_>,
) -> Vec<f32> {
    rounding_errors_on(Unit::widest(), weights, importance, candidates, levels)
}

fn rounding_errors_on(
    unit: Unit,
    weights: &[f32],
    importance: &[f32],
    candidates: &[CandidateGrid],
    levels: Levels<'_>,
) -> Vec<f32> {
    assert_eq!(importance.len(), weights.len(), "importances of {} weights", weights.len());
    let mut found = vec![0.0; candidates.len()];
    let errors = &mut found;
    match levels {
        Levels::Uniform { max_code } => {
            let max_code = f32::from(max_code);
            if candidates.iter().all(|candidate| candidate.zero_point.fract() == 0.0) {
                unit.run(Errors { weights, importance, candidates, rule: Multiples { max_code }, errors });
            } else {
                unit.run(Errors { weights, importance, candidates, rule: Steps { max_code }, errors });
            }
        }
        Levels::Codebook(levels) => {
            unit.run(Errors { weights, importance, candidates, rule: Codebook { levels }, errors });
        }
    }
    found
}

/// How a weight, in multiples of the scale, is rounded: to a level less the zero point.
trait Nearest: Copy {
    fn nearest_multiple<L: Lanes>(self, lanes: L, multiple: L::Vector, zero_point: L::Vector) -> L::Vector;
}

/// Uniform levels with integer zero points: every value is a whole multiple of the scale.
#[derive(Clone, Copy)]
struct Multiples {
    max_code: f32,
}

impl Nearest for Multiples {
    #[inline(always)]
    fn nearest_multiple<L: Lanes>(self, lanes: L, multiple: L::Vector, zero_point: L::Vector) -> L::Vector {
        let low = lanes.subtract(lanes.splat(0.0), zero_point);
        let high = lanes.subtract(lanes.splat(self.max_code), zero_point);
        // A weight of 0 on a scale of 0 is not a number here, and goes to the lowest code.
        lanes.round_half_even(lanes.minimum(lanes.maximum(multiple, low), high))
    }
}

/// Uniform levels with any zero point.
#[derive(Clone, Copy)]
struct Steps {
    max_code: f32,
}

impl Nearest for Steps {
    #[inline(always)]
    fn nearest_multiple<L: Lanes>(self, lanes: L, multiple: L::Vector, zero_point: L::Vector) -> L::Vector {
        let steps = lanes.maximum(lanes.add(multiple, zero_point), lanes.splat(0.0));
        let code = lanes.round_half_even(lanes.minimum(steps, lanes.splat(self.max_code)));
        lanes.subtract(code, zero_point)
    }
}

impl Nearest for Codebook<'_> {
    #[inline(always)]
    fn nearest_multiple<L: Lanes>(self, lanes: L, multiple: L::Vector, zero_point: L::Vector) -> L::Vector {
        let (_, level) = self.nearest(lanes, lanes.add(multiple, zero_point));
        lanes.subtract(level, zero_point)
    }
}

/// Weights whose errors are added before a sum goes on.
const RUN: usize = 64;
/// Candidates that are in registers at the same time, at most.
const MOST: usize = 32;

struct Errors<'a, N> {
    weights: &'a [f32],
    importance: &'a [f32],
    candidates: &'a [CandidateGrid],
    rule: N,
    errors: &'a mut [f32],
}

impl<N: Nearest> Task for Errors<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        let candidates = self.candidates;
        let mut first = 0;
        // Two vectors hide the latency of the sums; the rest is not padded to as many.
        while candidates.len() - first > L::COUNT {
            let last = candidates.len().min(first + 2 * L::COUNT);
            self.part::<L, 2>(lanes, first..last);
            first = last;
        }
        if first < candidates.len() {
            self.part::<L, 1>(lanes, first..candidates.len());
        }
    }
}

impl<N: Nearest> Errors<'_, N> {
    /// At most `V` vectors of candidates.
    #[inline(always)]
    fn part<L: Lanes, const V: usize>(&mut self, lanes: L, part: std::ops::Range<usize>) {
        let mut scales = [1.0_f32; MOST];
        let mut inverses = [1.0_f32; MOST];
        let mut zero_points = [0.0_f32; MOST];
        for (lane, candidate) in self.candidates[part.clone()].iter().enumerate() {
            scales[lane] = -candidate.scale;
            inverses[lane] = 1.0 / candidate.scale;
            zero_points[lane] = candidate.zero_point;
        }
        let zero = lanes.splat(0.0);
        let load = |from: &[f32; MOST]| {
            let mut vectors = [zero; V];
            for (v, vector) in vectors.iter_mut().enumerate() {
                *vector = lanes.load(&from[v * L::COUNT..]);
            }
            vectors
        };
        let (scales, inverses, zero_points) = (load(&scales), load(&inverses), load(&zero_points));
        let mut totals = [zero; V];
        for (weights, importance) in self.weights.chunks(RUN).zip(self.importance.chunks(RUN)) {
            let mut sums = [zero; V];
            for (&weight, &importance) in weights.iter().zip(importance) {
                let (weight, importance) = (lanes.splat(weight), lanes.splat(importance));
                for v in 0..V {
                    let multiple = lanes.multiply(weight, inverses[v]);
                    let nearest = self.rule.nearest_multiple(lanes, multiple, zero_points[v]);
                    let error = lanes.multiply_add(nearest, scales[v], weight);
                    sums[v] = lanes.multiply_add(lanes.multiply(importance, error), error, sums[v]);
                }
            }
            for v in 0..V {
                totals[v] = lanes.add(totals[v], sums[v]);
            }
        }
        let mut errors = [0.0_f32; MOST];
        for (v, &total) in totals.iter().enumerate() {
            lanes.store(total, &mut errors[v * L::COUNT..]);
        }
        let count = part.len();
        self.errors[part].copy_from_slice(&errors[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    const UNIFORM: Levels<'_> = Levels::Uniform { max_code: 15 };
    const CODEBOOK: Levels<'_> = Levels::Codebook(&[-7.0, -4.5, -2.0, -1.0, 0.0, 0.5, 1.5, 3.0, 6.5]);

    fn problem(columns: usize, candidates: usize) -> (Vec<f32>, Vec<f32>, Vec<CandidateGrid>) {
        let mut sample = Sample::new((columns * 1000 + candidates) as u64);
        let weights = (0..columns).map(|_| sample.normal() as f32).collect();
        let importance = (0..columns).map(|_| sample.even() as f32).collect();
        let grid = |k: usize| CandidateGrid {
            scale: (0.1 + 0.2 * sample.even() as f32) * if k.is_multiple_of(3) { -1.0 } else { 1.0 },
            zero_point: (k % 16) as f32,
        };
        (weights, importance, (0..candidates).map(grid).collect())
    }

    #[test]
    fn every_unit_gives_the_same_bits() {
        for columns in [1, 7, 33, 64, 172, 576, 1000] {
            for candidates in [1, 2, 8, 15, 16, 17, 33, 69, 207] {
                let (weights, importance, grids) = problem(columns, candidates);
                for (grids, levels) in kinds(grids) {
                    let on = |unit| rounding_errors_on(unit, &weights, &importance, &grids, levels);
                    let portable = on(Unit::all()[0]);
                    for unit in Unit::all() {
                        assert_eq!(
                            on(unit),
                            portable,
                            "{unit:?}, {columns} columns, {candidates} candidates"
                        );
                    }
                }
            }
        }
    }

    /// The same candidates on uniform levels with whole and other zero points, and on a codebook.
    fn kinds(grids: Vec<CandidateGrid>) -> [(Vec<CandidateGrid>, Levels<'static>); 3] {
        let moved = |by: f32| -> Vec<_> {
            grids.iter().map(|grid| CandidateGrid { zero_point: grid.zero_point + by, ..*grid }).collect()
        };
        let centered = grids.iter().map(|grid| CandidateGrid { zero_point: 0.25, ..*grid }).collect();
        [(moved(0.0), UNIFORM), (moved(0.375), UNIFORM), (centered, CODEBOOK)]
    }

    #[test]
    fn errors_are_those_of_the_definition() {
        for columns in [1, 7, 33, 172, 576, 1000] {
            let (weights, importance, grids) = problem(columns, 21);
            for (grids, levels) in kinds(grids) {
                let found = rounding_errors(&weights, &importance, &grids, levels);
                for (found, grid) in found.into_iter().zip(&grids) {
                    let (scale, zero) = (f64::from(grid.scale), f64::from(grid.zero_point));
                    let error = |weight: f32| {
                        let value = |code| scale * (f64::from(levels.level(code)) - zero);
                        let squares =
                            (0..=levels.max_code()).map(|code| (f64::from(weight) - value(code)).powi(2));
                        squares.fold(f64::INFINITY, f64::min)
                    };
                    let terms = weights.iter().zip(&importance).map(|(&w, &i)| f64::from(i) * error(w));
                    let expected: f64 = terms.sum();
                    let close = (f64::from(found) - expected).abs() <= 1e-5 * expected + 1e-9;
                    assert!(close, "{columns} columns, {levels:?}, {grid:?}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn a_scale_of_zero_leaves_the_weights_as_errors() {
        let grids = [CandidateGrid { scale: 0.0, zero_point: 8.0 }];
        for levels in [UNIFORM, CODEBOOK] {
            assert_eq!(rounding_errors(&[0.0, 2.0, -1.0], &[1.0, 1.0, 2.0], &grids, levels), [6.0]);
            assert_eq!(rounding_errors(&[], &[], &grids, levels), [0.0]);
        }
    }
}
