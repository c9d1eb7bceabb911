//! Choosing scales, once, from the original weights.
//!
//! The extremes of a group give its full range; the search tries shares `c` of it, from 0.4 to 1.2, and keeps the one with the least
//! error in the metric of [`Range`]. Clipping a few weights to round the others more finely pays, the more so the fewer the bits.
//! On symmetric grids `c = 1` puts the weight of largest magnitude on the outermost code of the longer side, and both signs are tried,
//! besides the scale that clips nothing; on asymmetric ones, the zero point beside the nearest on either side; where minimums are
//! stored, the lower end, the middle and the upper end of the full range.
//!
//! | metric | error of a candidate, `δ` = rounding errors of the group's columns |
//! |---|---|
//! | plain | `Σ δ_j²` (`mse` of the original GPTQ code, arXiv 2210.17323) |
//! | diagonal | `Σ H_jj δ_j²` (imatrix weighting) |
//! | pivots | `Σ R_jj² δ_j²`: how a column's error counts in the solver's loss `Σ R_jj² (w'_j - q_j)²` |
//! | conditional | `δ R_gg R_ggᵀ δᵀ` after the solver's own recursion within the group, `R_gg` = the group's rows and columns of `R` |
//!
//! Not here: scales from weights that a solver has already compensated (they drift at low widths), and scales for given codes
//! (`refine/refit.rs`).

use kernels::candidates::{CandidateGrid, rounding_errors};
use kernels::panel::{FeedbackFactor, RowGrid, successive_rounding};
use ndarray::parallel::prelude::*;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};

use crate::grid::Grid;
use crate::prepared::PreparedHessian;
use crate::scheme::{Granularity, Scheme, Symmetry};
use crate::settings::{Range, SolverSettings};

/// The grid for `weights`, `[out_features, in_features]`, all finite, of a scheme whose groups divide the columns.
#[must_use]
pub fn choose(
    weights: ArrayView2<'_, f32>,
    scheme: Scheme,
    settings: &SolverSettings,
    hessian: Option<&PreparedHessian>,
) -> Grid {
    let (rows, columns) = weights.dim();
    let size = scheme.granularity.columns_per_scale(columns).max(1);
    let importance = importance(columns, settings.range, hessian);
    let search = Search { scheme, shares: shares(settings), kept: kept(settings.range, hessian) };
    let mut scales = Array2::zeros((rows, columns.div_ceil(size)));
    let mut zero_points = Array2::zeros(scales.dim());
    for (group, first) in (0..columns).step_by(size).enumerate() {
        let weights = weights.slice_axis(Axis(1), (first..first + size).into());
        let finalists = search.finalists(weights, &importance[first..first + size]);
        let chosen = match hessian.filter(|_| search.kept > 1) {
            Some(hessian) => least_conditional_loss(weights, first, &finalists, scheme, hessian),
            None => finalists.iter().map(|candidates| candidates[0]).collect(),
        };
        for row in 0..rows {
            let candidate = chosen[row.min(chosen.len() - 1)];
            scales[[row, group]] = candidate.scale;
            zero_points[[row, group]] = candidate.zero_point;
        }
    }
    let weights: Vec<f64> =
        importance.chunks(size).map(|group| group.iter().map(|&x| f64::from(x)).sum()).collect();
    Grid::new(scheme, columns, scales, zero_points, &weights)
}

/// A scale, exact in its stored type, and a zero point.
type Candidate = CandidateGrid;

struct Search {
    scheme: Scheme,
    /// Shares of the full range, the whole of it first; none without a search.
    shares: Vec<f32>,
    /// How many of the best candidates survive.
    kept: usize,
}

impl Search {
    /// The best candidates of each row (of the whole matrix: one entry) for one group of columns, the best first.
    fn finalists(&self, weights: ArrayView2<'_, f32>, importance: &[f32]) -> Vec<Vec<Candidate>> {
        let rows = weights.axis_iter(Axis(0)).into_par_iter();
        let most = importance.iter().fold(f32::MIN_POSITIVE, |most, &x| most.max(x));
        let importance: Vec<f32> = importance.iter().map(|x| x / most).collect();
        let alone = |weights: ArrayView1<'_, f32>| {
            let extent = self.extent(weights);
            let candidates = self.candidates(extent);
            let errors = self.errors(weights, &importance, extent, &candidates);
            self.best(candidates, &errors)
        };
        match self.scheme.granularity {
            Granularity::PerChannel | Granularity::PerGroup(_) => rows.map(alone).collect(),
            Granularity::PerTensor => {
                let extents: Vec<Extent> = rows.clone().map(|weights| self.extent(weights)).collect();
                let extent = extents.into_iter().reduce(Extent::union).unwrap_or_default();
                let candidates = self.candidates(extent);
                let errors: Vec<Vec<f32>> =
                    rows.map(|weights| self.errors(weights, &importance, extent, &candidates)).collect();
                let total = (0..candidates.len())
                    .map(|k| errors.iter().map(|row| f64::from(row[k])).sum::<f64>() as f32)
                    .collect::<Vec<_>>();
                vec![self.best(candidates, &total)]
            }
        }
    }

    /// What a group's full range is. Zero is in it, unless the lowest value is stored and may be any.
    fn extent(&self, weights: ArrayView1<'_, f32>) -> Extent {
        let free = self.scheme.symmetry == Symmetry::Minimum && !self.scheme.scale_dtype.is_product();
        match weights.first() {
            Some(&first) if free => Extent::of(weights, Extent { low: first, high: first }),
            _ => Extent::of(weights, Extent::default()),
        }
    }

    fn candidates(&self, extent: Extent) -> Vec<Candidate> {
        match self.scheme.symmetry {
            Symmetry::Symmetric => self.symmetric(extent),
            Symmetry::Asymmetric => self.asymmetric(extent),
            Symmetry::Minimum => self.with_minimums(extent),
        }
    }

    fn symmetric(&self, extent: Extent) -> Vec<Candidate> {
        let round = |scale: f32| self.scheme.scale_dtype.round(scale);
        let middle = self.scheme.middle();
        let (low, high) = self.scheme.kernel_levels().ends();
        let (below, above) = (middle - low, high - middle);
        let unclipped = extent.magnitude() / above.min(below);
        let longer_side = if below >= above { -extent.furthest() / below } else { extent.furthest() / above };
        let signs: &[f32] = if self.scheme.scale_dtype.has_signs() { &[1.0, -1.0] } else { &[1.0] };
        let signed = self.shares.iter().flat_map(|share| {
            let scale = round(share * longer_side);
            signs.iter().map(move |sign| sign * scale)
        });
        let scales = std::iter::once(round(unclipped)).chain(signed);
        scales.map(|scale| Candidate { scale, zero_point: middle }).collect()
    }

    fn asymmetric(&self, extent: Extent) -> Vec<Candidate> {
        let round = |scale: f32| self.scheme.scale_dtype.round(scale);
        let max_code = f32::from(self.scheme.max_code());
        // Halves first: the difference of two finite extremes may overflow.
        let full = (extent.high / max_code) - (extent.low / max_code);
        let zero = (-extent.low / round(full)).round_ties_even().clamp(0.0, max_code);
        if self.shares.is_empty() {
            return vec![Candidate { scale: round(full), zero_point: zero }];
        }
        let zeros = [zero, zero - 1.0, zero + 1.0].into_iter().filter(|zero| (0.0..=max_code).contains(zero));
        let pairs = self.shares.iter().flat_map(|share| zeros.clone().map(move |zero| (share * full, zero)));
        pairs.map(|(scale, zero_point)| Candidate { scale: round(scale), zero_point }).collect()
    }

    fn with_minimums(&self, extent: Extent) -> Vec<Candidate> {
        let dtype = self.scheme.scale_dtype;
        let max_code = f32::from(self.scheme.max_code());
        let full = (extent.high / max_code) - (extent.low / max_code);
        // A group of equal weights still has a step that its minimum can be divided by.
        let full = full.max(LEAST_STEP * extent.magnitude());
        let candidate = |share: f32, place: f32| {
            let scale = dtype.round(share * full).abs();
            let minimum = dtype.round_minimum(extent.low + place * (1.0 - share) * full * max_code);
            Candidate { scale, zero_point: -minimum / scale }
        };
        if self.shares.is_empty() {
            return vec![candidate(1.0, 0.0)];
        }
        let places = |share: f32| if share < 1.0 { &[0.0, 0.5, 1.0][..] } else { &[0.5][..] };
        let pairs =
            self.shares.iter().flat_map(|&share| places(share).iter().map(move |&place| (share, place)));
        pairs.map(|(share, place)| candidate(share, place)).collect()
    }

    /// The weighted square error of each candidate, in units of the group's extent (and the largest importance, which is 1 here): that
    /// keeps the squares of tiny weights from vanishing.
    fn errors(
        &self,
        weights: ArrayView1<'_, f32>,
        importance: &[f32],
        extent: Extent,
        candidates: &[Candidate],
    ) -> Vec<f32> {
        if candidates.len() == 1 {
            return vec![0.0];
        }
        let unit = extent.magnitude().max(f32::MIN_POSITIVE);
        let relative: Vec<f32> = weights.iter().map(|weight| weight / unit).collect();
        let in_units = |c: &Candidate| Candidate { scale: c.scale / unit, ..*c };
        let candidates: Vec<Candidate> = candidates.iter().map(in_units).collect();
        rounding_errors(&relative, importance, &candidates, self.scheme.kernel_levels())
    }

    /// The `kept` candidates of least error, the best first; the earlier one where errors are equal.
    fn best(&self, candidates: Vec<Candidate>, errors: &[f32]) -> Vec<Candidate> {
        let mut ranked: Vec<(f32, Candidate)> = errors.iter().copied().zip(candidates).collect();
        if self.kept == 1 {
            let best =
                ranked.iter().copied().reduce(|best, other| if other.0 < best.0 { other } else { best });
            return best.into_iter().map(|(_, candidate)| candidate).collect();
        }
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        ranked.truncate(self.kept);
        ranked.into_iter().map(|(_, candidate)| candidate).collect()
    }
}

/// The step of a group of equal weights, over their magnitude.
const LEAST_STEP: f32 = 1e-5;

/// The smallest interval that holds some weights, and 0 or not.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    low: f32,
    high: f32,
}

impl Extent {
    fn of(weights: ArrayView1<'_, f32>, least: Self) -> Self {
        let widen =
            |extent: Self, &weight: &f32| Self { low: extent.low.min(weight), high: extent.high.max(weight) };
        weights.iter().fold(least, widen)
    }

    fn union(self, other: Self) -> Self {
        Self { low: self.low.min(other.low), high: self.high.max(other.high) }
    }

    fn magnitude(self) -> f32 {
        self.high.abs().max(self.low.abs())
    }

    /// The end of larger magnitude, with its sign.
    fn furthest(self) -> f32 {
        if self.high > -self.low { self.high } else { self.low }
    }
}

/// Candidates that the conditional metric judges.
const FINALISTS: usize = 6;

fn kept(range: Range, hessian: Option<&PreparedHessian>) -> usize {
    if range == Range::Conditional && hessian.is_some() { FINALISTS } else { 1 }
}

fn shares(settings: &SolverSettings) -> Vec<f32> {
    if settings.range == Range::MinMax {
        return Vec::new();
    }
    let (least, most, last) = (0.4, 1.2, settings.range_candidates - 1);
    let mut shares: Vec<f32> = vec![1.0];
    shares.extend((0..=last).map(|k| least + (most - least) * k as f32 / last as f32));
    shares
}

/// The weight of each column's square error.
fn importance(columns: usize, range: Range, hessian: Option<&PreparedHessian>) -> Vec<f32> {
    match (range, hessian) {
        (Range::MinMax | Range::Plain, _) | (_, None) => vec![1.0; columns],
        (Range::Diagonal, Some(hessian)) => hessian.diagonal().to_vec(),
        (Range::Pivots | Range::Conditional, Some(hessian)) => hessian.pivots().to_vec(),
    }
}

/// The finalist of each row (of the whole matrix: of one entry) with the least loss of successive rounding within the group.
fn least_conditional_loss(
    weights: ArrayView2<'_, f32>,
    first: usize,
    finalists: &[Vec<Candidate>],
    scheme: Scheme,
    hessian: &PreparedHessian,
) -> Vec<Candidate> {
    let (rows, size) = weights.dim();
    let members = first..first + size;
    let positions: Vec<usize> =
        (0..hessian.in_features()).filter(|&k| members.contains(&hessian.order().columns()[k])).collect();
    let within = |(i, j): (usize, usize)| match i <= j {
        true => f64::from(hessian.feedback().entry(positions[i], positions[j])),
        false => 0.0,
    };
    let within = Array2::from_shape_fn((size, size), within);
    let factor = FeedbackFactor::new(&within);
    let ordered = Array2::from_shape_fn((rows, size), |(row, k)| {
        weights[[row, hessian.order().columns()[positions[k]] - first]]
    });
    let group_of = vec![0; size];
    let mut codes = Array2::zeros((rows, size));
    let mut best: Vec<(f64, Candidate)> =
        finalists.iter().map(|finalists| (f64::INFINITY, finalists[0])).collect();
    for k in 0..finalists.iter().map(Vec::len).max().unwrap_or(0) {
        let candidate = |row: usize| {
            let finalists = &finalists[row.min(finalists.len() - 1)];
            finalists[k.min(finalists.len() - 1)]
        };
        let scales = Array1::from_shape_fn(rows, |row| candidate(row).scale).insert_axis(Axis(1));
        let zero_points = Array1::from_shape_fn(rows, |row| candidate(row).zero_point).insert_axis(Axis(1));
        let grid = RowGrid {
            scales: scales.view(),
            zero_points: zero_points.view(),
            group_of: &group_of,
            levels: scheme.kernel_levels(),
        };
        let mut losses = successive_rounding(ordered.view(), &factor, &grid, codes.view_mut());
        if best.len() == 1 {
            losses = vec![losses.iter().sum()];
        }
        for (row, (&loss, best)) in losses.iter().zip(&mut best).enumerate() {
            if loss < best.0 {
                *best = (loss, candidate(row));
            }
        }
    }
    best.into_iter().map(|(_, candidate)| candidate).collect()
}
