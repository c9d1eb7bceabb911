//! What the linears of a stage are solved with: what is seen of their inputs, the solver, and the held-out windows' word on it.

use std::sync::Arc;

use calibration::weights::{LayerWeights, LinearWeights};
use kernels::account::section;
use kernels::ranks::Ranks;
use kernels::stripes::Shelf;
use model::linear::Linear;
use model::{Layer, Stage};
use ndarray::ArrayView2;
use quantizer::adapter::{Adapter, best_adapter};
use quantizer::guard::Unsolved;
use quantizer::loss::total_loss;
use quantizer::output::OutputHessian;
use quantizer::scheme::Scheme;
use quantizer::solver::{Problem, Solution, Solver};
use rayon::prelude::*;

use crate::adapted::AdapterWriter;
use crate::error::Error;
use crate::exchange;
use crate::gradients::LayerGradients;
use crate::plan::Plan;
use crate::recipe::Treatment;
use crate::statistics::{Among, Gathered, Sent, StageStatistics};
use crate::streams::Streams;
use crate::work::{FACTORIZATIONS, REFINED};

/// Weights of a stage, those of all tracks together, up to which its linears are solved side by side.
pub(crate) const TOGETHER: usize = 1 << 22;

/// A stage of a layer in one track.
#[derive(Clone, Copy)]
pub(crate) struct Place<'p> {
    pub(crate) layer: &'p Layer,
    pub(crate) stage: usize,
    pub(crate) track: usize,
}

/// Which rank solves which linear.
pub(crate) struct Deal {
    /// By rank, of all stages so far.
    work: Vec<f64>,
}

impl Deal {
    /// Among so many ranks.
    pub(crate) fn among(ranks: usize) -> Self {
        Self { work: vec![0.0; ranks] }
    }

    /// The solvers of a stage's linears, by track. The largest are dealt first, each to the rank that is then done first, and of several to the
    /// one that has done least in stages before; whoever solves any of a track factors that track's Hessian.
    pub(crate) fn stage(&mut self, tracks: &[Vec<(&Linear, Scheme)>]) -> Vec<Vec<usize>> {
        let mut busy = vec![0.0; self.work.len()];
        let mut solvers = Vec::with_capacity(tracks.len());
        for linears in tracks {
            let mut factored = vec![false; busy.len()];
            let mut order: Vec<usize> = (0..linears.len()).collect();
            order.sort_by_key(|&place| std::cmp::Reverse(linears[place].0.out_features));
            let mut of_track = vec![0; linears.len()];
            for place in order {
                let (rows, columns) =
                    (linears[place].0.out_features as f64, linears[place].0.in_features as f64);
                let done = |rank: usize| {
                    let factoring = if factored[rank] { 0.0 } else { FACTORIZATIONS * columns.powi(3) };
                    busy[rank] + factoring + REFINED * rows * columns.powi(2)
                };
                let key = |&rank: &usize| (done(rank), self.work[rank]);
                let sooner = |a: &usize, b: &usize| {
                    let (a, b) = (key(a), key(b));
                    a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
                };
                let rank = (0..busy.len()).min_by(sooner).unwrap_or(0);
                (busy[rank], factored[rank], of_track[place]) = (done(rank), true, rank);
            }
            solvers.push(of_track);
        }
        self.work.iter_mut().zip(busy).for_each(|(work, busy)| *work += busy);
        solvers
    }
}

/// What is gathered of a stage's input for its solvers.
#[expect(clippy::too_many_arguments, reason = "what is solved, what flows into it, and where it is kept")]
pub(crate) fn observe<'s>(
    plan: &'s Plan,
    grids: &[(&'s Linear, Scheme)],
    Place { layer, stage: place, track }: Place<'_>,
    weights: &'s LayerWeights,
    streams: &Streams<'_>,
    gradients: &LayerGradients,
    sent: Option<Sent>,
    (shelf, solvers): (&Arc<Shelf>, Vec<usize>),
) -> Result<Gathered<'s>, Error> {
    let stage: &Stage = &layer.stages[place];
    let settings: Vec<_> = grids.iter().map(|&(linear, _)| (linear, plan.treatment(linear))).collect();
    let unsolved = grids
        .iter()
        .map(|&(linear, scheme)| dense(weights, linear).map(|weight| Unsolved { weight, scheme }));
    let unsolved = unsolved.collect::<Result<Vec<_>, _>>()?;
    let among = Among { ranks: streams.ranks().clone(), solvers };
    let (windows, kept) = (streams.windows(), (streams.precision(), shelf, among));
    Gathered::gather(stage, &settings, unsolved, windows, sent, kept, |wanted, see| {
        streams.see_stage_input(track, layer, place, weights, gradients.token_roots(place), wanted, see)
    })
}

/// A linear in one track, and what its solver knows.
pub(crate) struct Task<'t> {
    plan: &'t Plan,
    linear: &'t Linear,
    scheme: Scheme,
    weights: &'t LayerWeights,
    seen: &'t StageStatistics,
    output: Option<&'t OutputHessian>,
}

impl<'t> Task<'t> {
    /// With what its layer and its stage have for it.
    pub(crate) fn new(
        plan: &'t Plan,
        (linear, scheme): (&'t Linear, Scheme),
        weights: &'t LayerWeights,
        seen: &'t StageStatistics,
        gradients: &'t LayerGradients,
    ) -> Self {
        Self { plan, linear, scheme, weights, seen, output: gradients.output_hessian(linear) }
    }

    /// The solution, or what held-out windows put in its place.
    pub(crate) fn solve(&self) -> Result<Solution, Error> {
        let &Self { plan, linear, scheme, weights, seen, output } = self;
        let treatment = plan.treatment(linear);
        let hessian = seen.prepared(&treatment.settings);
        let problem = Problem { weight: dense(weights, linear)?, hessian, output, scheme };
        let fail = |source| Error::Solve { linear: linear.name.clone(), source };
        let solution = solver(treatment)?.solve(&problem, &treatment.settings).map_err(fail)?;
        match seen.held_out(&treatment.settings).filter(|_| hessian.is_some()) {
            None => Ok(solution),
            Some(held_out) => held_out.judge(&problem, solution, &treatment.settings).map_err(fail),
        }
    }
}

/// Whether linears, by track, are solved side by side.
pub(crate) fn are_small(tracks: &[Vec<(&Linear, Scheme)>]) -> bool {
    let weights = tracks.iter().flatten().map(|(linear, _)| linear.out_features * linear.in_features);
    weights.sum::<usize>() <= TOGETHER
}

/// The linears of a stage in all tracks, which are solved once it is known what with.
pub(crate) struct Unprepared<'t> {
    /// By track.
    pub(crate) plans: Vec<&'t Plan>,
    pub(crate) linears: &'t [Vec<(&'t Linear, Scheme)>],
    pub(crate) weights: &'t [LayerWeights],
    pub(crate) seen: Vec<Observed<'t>>,
    pub(crate) gradients: &'t LayerGradients,
}

impl Unprepared<'_> {
    /// Prepares what the linears are solved with, by track, and advances; gives the solutions, too, of linears that are small. These are solved side by
    /// side and beside `advance`, since one alone leaves processors idle. Large ones keep all of them busy and need room: nothing is solved then,
    /// and each waits for its turn. Of several ranks each solves what `solvers` has its number for, and all are given all.
    pub(crate) fn ahead(
        self,
        (solvers, ranks): (&[usize], &dyn Ranks),
        advance: impl FnOnce() -> Result<(), Error> + Send,
    ) -> Result<(Vec<StageStatistics>, Vec<Solution>), Error> {
        let Self { plans, linears, weights, seen, gradients } = self;
        let small = are_small(linears);
        let prepare = || seen.into_iter().map(Observed::prepare).collect::<Result<Vec<_>, _>>();
        let solve = |seen: &[StageStatistics]| -> Result<Vec<Solution>, Error> {
            let tracks = plans.iter().zip(linears).zip(weights.iter().zip(seen));
            let tasks = tracks.flat_map(|((plan, linears), (weights, seen))| {
                linears.iter().map(move |&grid| Task::new(plan, grid, weights, seen, gradients))
            });
            let own = tasks.zip(solvers).filter(|&(_, &solver)| solver == ranks.rank());
            let own: Vec<Task<'_>> = own.map(|(task, _)| task).collect();
            if small {
                return own.par_iter().map(Task::solve).collect::<Vec<_>>().into_iter().collect();
            }
            own.iter().map(Task::solve).collect()
        };
        let (seen, solved) = if small {
            let solving = || {
                let seen = prepare()?;
                let solved = solve(&seen)?;
                Ok::<_, Error>((seen, solved))
            };
            // What this thread does not solve meanwhile is charged to the pass.
            let passing = section("forward, original");
            let (solved, advanced) = rayon::join(solving, advance);
            drop(passing);
            advanced?;
            solved?
        } else {
            let seen = prepare()?;
            advance()?;
            let solved = if ranks.is_alone() { Vec::new() } else { solve(&seen)? };
            (seen, solved)
        };
        if ranks.is_alone() {
            return Ok((seen, solved));
        }
        let mut solved = solved.into_iter();
        let own = |solver: usize| if solver == ranks.rank() { solved.next() } else { None };
        let own: Vec<Option<Solution>> = solvers.iter().copied().map(own).collect();
        let all = solvers.iter().zip(own).map(|(&solver, own)| exchange::solution(ranks, solver, own));
        let all = all.collect::<Result<_, _>>()?;
        Ok((seen, all))
    }
}

/// What is known of a stage's input.
#[expect(clippy::large_enum_variant, reason = "there is one for each track")]
pub(crate) enum Observed<'s> {
    /// What calibration text gave.
    Gathered(Gathered<'s>),
    /// What somebody else's calibration did.
    Known(StageStatistics),
}

impl Observed<'_> {
    fn prepare(self) -> Result<StageStatistics, Error> {
        match self {
            Self::Gathered(gathered) => gathered.prepare(),
            Self::Known(known) => Ok(known),
        }
    }
}

/// Writes the best correction of what the solution lacks; returns it as stored, and the relative loss that is left with it. Nothing else
/// sees it: the output stands without the adapter.
pub(crate) fn recover(
    plan: &Plan,
    linear: &Linear,
    solution: &Solution,
    weights: &LayerWeights,
    seen: &StageStatistics,
    adapters: &mut AdapterWriter,
) -> Result<(Adapter, f64), Error> {
    let hessian = seen.prepared(&plan.treatment(linear).settings);
    let weight = dense(weights, linear)?;
    let target = hessian.map_or_else(|| weight.to_owned(), |hessian| hessian.target(weight));
    let errors = &target - &solution.tensor.dequantize();
    let adapter = best_adapter(errors.view(), hessian, adapters.rank())
        .map_err(|source| Error::Adapter { linear: linear.name.clone(), source })?;
    let adapter = adapters.put(linear, &adapter)?;
    let left = total_loss((errors - adapter.product()).view(), hessian);
    let whole = total_loss(target.view(), hessian);
    Ok((adapter, if whole > 0.0 { left / whole } else { 0.0 }))
}

/// The solver of a treatment.
pub(crate) fn solver(treatment: &Treatment) -> Result<&'static dyn Solver, Error> {
    quantizer::solver::find(treatment.solver)
        .ok_or_else(|| Error::Internal(format!("no solver is called {}", treatment.solver)))
}

/// The weight of a linear that is not packed, `[out_features, in_features]`.
pub(crate) fn dense<'w>(weights: &'w LayerWeights, linear: &Linear) -> Result<ArrayView2<'w, f32>, Error> {
    match &weights.linear(linear.id.slot()).weights {
        LinearWeights::Dense(weight) => Ok(weight.view()),
        _ => Err(Error::Internal(format!("`{}` is packed or rounded before it is solved", linear.name))),
    }
}
