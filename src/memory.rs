//! `--memory`: what the large pieces of a run take together, and how much of the budget they leave to hidden states.
//!
//! A phase of the work needs some pieces whatever happens: a layer's weights, its Hessians, what a solver and a few windows in work take. The
//! largest such sum is the least budget that a job can be done with, which is known, and refused, before any work. What a phase leaves of the budget
//! holds hidden states; those beyond it are on disk ([`calibration::activations`]) or, where a model is only measured, come later. Where
//! they are changes no bit.
//!
//! Second moments of a stage and their factors are in memory together where they fit; else in stripes on disk, of which some are in memory at a time
//! (`kernels::stripes`). What was gathered across the two models, and what refinement reads, stays in memory.
//!
//! The sums are of arrays whose shapes are known; code, allocator and files' names are not in them.

mod need;
mod shape;

use std::sync::Arc;

use calibration::activations::{History, Room, Space};
use kernels::stripes::Shelf;
use model::Model;
use model::linear::Linear;
use quantizer::output::MOST_ROWS;
use quantizer::scheme::Scheme;

use crate::error::Error;
use crate::job::{Calibration, QuantizeJob};
use crate::journal::Journal;
use crate::plan::Plan;
use crate::render::text::bytes;
use need::Need;
use shape::Shape;

/// Bytes of a number.
const F32: u64 = 4;
const F64: u64 = 8;
/// Stripes that are in memory at a time: those that a factorization cannot do without, and those beyond which it reads its own work seldom enough.
const STRIPES: (u64, u64) = (3, 24);

/// A budget, and what of it is spoken for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    budget: Option<u64>,
    /// What the layer loop takes beside the states, and a token's states in it.
    solving: u64,
    /// What of it second moments may take.
    moments: u64,
    /// Which tokens are sent to which experts.
    sent: u64,
    of_token: u64,
    /// What gradients take beside the windows, and a window of a batch.
    gradients: u64,
    of_window: u64,
    /// What measuring takes beside the states, and a token's states in it.
    measuring: u64,
    of_measured: u64,
    /// What the layer loop puts on disk instead.
    on_disk: u64,
}

impl Memory {
    /// What `job` takes, whose outputs have so many different solutions as there are `plans`.
    pub(crate) fn demand(job: &QuantizeJob, model: &Model, plans: &[&Plan]) -> Result<Self, Error> {
        let Some(budget) = job.memory else { return Ok(Self::default()) };
        let shape = Shape::of(model, job.calibration_windows.context);
        let windows =
            (job.calibration_windows.samples as u64).saturating_mul(1 + job.recipe.own_text() as u64);
        let beside = job.export_imatrix.is_some() || plans.iter().any(|plan| plan.propagates_errors());
        let streams = plans.len() as u64 + u64::from(beside);
        let mut found = Self {
            budget: Some(budget),
            of_token: streams * F32 * (shape.hidden + shape.waiting),
            gradients: shape.gradients(model, plans, windows),
            of_window: shape.tokens * F32 * (4 * shape.hidden + shape.outputs),
            ..Self::default()
        };
        let data = job.imatrix.is_none() && plans.iter().any(|plan| plan.needs_calibration());
        // What experts are given waits with its window; where tokens are sent is always in memory.
        let mut states = 0;
        if let Some(experts) = &model.hyperparameters.experts {
            found.of_token += streams * F32 * shape.hidden;
            let entries = experts.routing.chosen as u64 * size_of::<(usize, f32)>() as u64;
            found.sent = windows.saturating_mul(shape.tokens).saturating_mul(streams * entries);
            states = found.sent;
        }
        states += shape.tokens.saturating_mul(found.of_token);
        // In memory where they fit beside the fewest states, or else as little of them as will do.
        let most = found.moments_within(budget.saturating_sub(states), &shape, model, plans);
        found.moments = most;
        found.solving = shape.solving(model, plans, most);
        let tokens = windows.saturating_mul(shape.tokens);
        let here = budget.saturating_sub(found.solving + found.sent) / found.of_token.max(1);
        // The residual stream is in both files.
        let away = found.of_token + streams * F32 * shape.hidden;
        found.on_disk = tokens.saturating_sub(here).saturating_mul(away) + most_on_disk(model, plans, most);
        let mut phases = vec![("solving", found.solving + states)];
        let weighs =
            |plan: &&Plan| plan.couples_rows().next().is_some() || !plan.weighs_tokens(model).is_empty();
        if data && plans.iter().any(weighs) {
            phases.push(("weighing outputs", found.gradients + found.of_window));
        }
        if data && (job.recipe.own_text() > 0 || job.calibration == Calibration::Own) {
            phases.push(("writing text", shape.writing(model, windows)));
        }
        if data && job.recipe.scale_passes() > 0 && job.adapter_rank.is_none() {
            phases.push(("learning scales", shape.learning(model, plans, windows)));
        }
        if job.budget.is_some() {
            phases.push(("weighing widths", shape.weighing(model)));
        }
        if let Some((_, request)) = &job.evaluation {
            let measured = Self::measuring(budget, model, request.context);
            (found.measuring, found.of_measured) = (measured.measuring, measured.of_measured);
            let tokens = request.context.min(model.hyperparameters.context) as u64;
            phases.push(("measuring", found.measuring + tokens * found.of_measured));
        }
        demand_least(budget, &phases)?;
        Ok(found)
    }

    /// Has the allocator keep to it.
    pub(crate) fn hold(self) {
        if self.budget.is_some() {
            kernels::allocation::give_freed_memory_back();
        }
    }

    /// What measuring a model of this shape takes, beside a reference.
    pub(crate) fn demand_measuring(
        budget: Option<u64>,
        model: &Model,
        context: usize,
    ) -> Result<Self, Error> {
        let Some(budget) = budget else { return Ok(Self::default()) };
        let found = Self::measuring(budget, model, context);
        let tokens = context.min(model.hyperparameters.context) as u64;
        demand_least(budget, &[("measuring", found.measuring + tokens * found.of_measured)])?;
        Ok(found)
    }

    /// What comparing models takes, of each of which one window at least is in memory together.
    pub(crate) fn demand_comparing(
        budget: Option<u64>,
        models: &[&Model],
        context: usize,
    ) -> Result<Self, Error> {
        let Some(budget) = budget else { return Ok(Self::default()) };
        let shapes = models.iter().map(|model| Shape::of(model, context));
        let mut found = Self { budget: Some(budget), ..Self::default() };
        let mut tokens = 0;
        for shape in shapes {
            found.measuring = found.measuring.max(shape.measuring());
            found.of_measured += F32 * (shape.hidden + shape.waiting) + 32;
            tokens = tokens.max(shape.tokens);
        }
        demand_least(budget, &[("comparing", found.measuring + tokens * found.of_measured)])?;
        Ok(found)
    }

    /// What second moments may take, so that solving takes at most `budget` where it can be.
    fn moments_within(self, budget: u64, shape: &Shape, model: &Model, plans: &[&Plan]) -> u64 {
        let needs = model.layers.iter().flat_map(|layer| &layer.stages).map(|stage| Need::of(plans, stage));
        let needs: Vec<Need> = needs.collect();
        // All in memory, or all but the largest, and so on; of what is not, as many stripes as help.
        let mut candidates: Vec<u64> = needs.iter().map(Need::together).collect();
        candidates.extend(needs.iter().map(|need| need.in_stripes(STRIPES.1)));
        candidates.extend(needs.iter().map(|need| need.in_stripes(STRIPES.0)));
        candidates.sort_unstable();
        candidates.dedup();
        let fits = |&&most: &&u64| shape.solving(model, plans, most) <= budget;
        candidates.iter().rev().find(fits).or(candidates.first()).copied().unwrap_or(0)
    }

    /// Where the second moments of a stage lie that tracks of these plans solve.
    pub(crate) fn shelf(
        &self,
        plans: &[&Plan],
        stage: &model::Stage,
        journal: &Journal,
    ) -> Result<Arc<Shelf>, Error> {
        let need = Need::of(plans, stage);
        if self.budget.is_none() || need.together() <= self.moments {
            return Ok(Shelf::memory());
        }
        let working = self.moments.saturating_sub(need.in_stripes(0)).max(STRIPES.0 * need.stripe);
        Ok(Shelf::of_store(journal.store()?, working))
    }

    /// What verifying a model takes, whose linears for which `packed` holds are decoded one after the other: codes, values and packed words of one,
    /// and a piece of a tensor.
    pub(crate) fn demand_verifying(
        budget: u64,
        model: &Model,
        packed: impl Fn(&Linear) -> bool,
    ) -> Result<(), Error> {
        let outer = model.outer_linears();
        let largest = model.linears().cloned().chain(outer).filter(packed).map(|l| weights(&l)).max();
        demand_least(budget, &[("verifying", largest.unwrap_or(0) * (2 * F32 + 4) + (64 << 20))])
    }

    fn measuring(budget: u64, model: &Model, context: usize) -> Self {
        let shape = Shape::of(model, context);
        let (measuring, of_measured) = (shape.measuring(), 2 * F32 * (shape.hidden + shape.waiting) + 64);
        Self { budget: Some(budget), measuring, of_measured, ..Self::default() }
    }

    /// Bytes that lie on disk while the work is on, because memory has no room for them.
    pub(crate) fn on_disk(&self) -> u64 {
        self.on_disk
    }

    /// Where the layer loop's states are.
    pub(crate) fn space(&self, journal: &Journal) -> Result<Space, Error> {
        let Some(budget) = self.budget else { return Ok(Space::unbounded()) };
        let tokens = budget.saturating_sub(self.solving + self.sent) / self.of_token.max(1);
        Ok(Space {
            tokens_in_memory: usize::try_from(tokens).unwrap_or(usize::MAX),
            together: rayon::current_num_threads(),
            elsewhere: Some([journal.scratch()?, journal.scratch()?]),
        })
    }

    /// Where residual streams wait for the pass backwards.
    pub(crate) fn history(&self, journal: &Journal) -> Result<History, Error> {
        let room: Option<Arc<dyn Room>> = self.budget.map(|_| journal.scratch()).transpose()?;
        Ok(History::new(room))
    }

    /// Windows that gradients go back through together, at most `most`.
    pub(crate) fn gradient_windows(&self, most: usize) -> usize {
        let Some(budget) = self.budget else { return most };
        let windows = budget.saturating_sub(self.gradients) / self.of_window.max(1);
        usize::try_from(windows).unwrap_or(usize::MAX).clamp(1, most.max(1))
    }

    /// Tokens that are measured together.
    pub(crate) fn measured_tokens(&self) -> usize {
        let Some(budget) = self.budget else { return usize::MAX };
        let tokens = budget.saturating_sub(self.measuring) / self.of_measured.max(1);
        usize::try_from(tokens).unwrap_or(usize::MAX)
    }
}

/// What a pass backwards of so many windows together takes, and the residual streams that it needs, where nothing is bounded.
pub(crate) fn weighing(model: &Model, plan: &Plan, context: usize, windows: usize) -> u64 {
    let shape = Shape::of(model, context);
    let before = model.layers.len() as u64 * shape.tokens * F32 * shape.hidden;
    let of_window = shape.tokens * F32 * (4 * shape.hidden + shape.outputs);
    shape.gradients(model, &[plan], windows as u64) + windows as u64 * (of_window + before)
}

fn demand_least(budget: u64, phases: &[(&str, u64)]) -> Result<(), Error> {
    match phases.iter().max_by_key(|(_, least)| least) {
        Some((phase, least)) if *least > budget => {
            let problem = format!(
                "{} is too little for this job, expected {} or more ({least} bytes), which {phase} takes in any case",
                bytes(budget),
                bytes(*least)
            );
            Err(Error::Argument { flag: "--memory", problem })
        }
        _ => Ok(()),
    }
}

/// What the layer loop of one track takes over so many `tokens` in windows of `context`, where nothing is bounded.
pub(crate) fn solving(model: &Model, plan: &Plan, context: usize, tokens: u64) -> u64 {
    let shape = Shape::of(model, context);
    let streams = 1 + u64::from(plan.propagates_errors());
    let given = if model.hyperparameters.experts.is_some() { shape.hidden } else { 0 };
    let states = streams * F32 * (shape.hidden + shape.waiting + given);
    shape.solving(model, &[plan], u64::MAX) + tokens.saturating_mul(states)
}

/// What second moments of a stage take on disk at most, where those that take more than `most` in memory lie there.
fn most_on_disk(model: &Model, plans: &[&Plan], most: u64) -> u64 {
    let needs = model.layers.iter().flat_map(|layer| &layer.stages).map(|stage| Need::of(plans, stage));
    let away = needs.filter(|need| need.together() > most);
    away.map(|need| need.kept.anywhere + need.gathered.anywhere).max().unwrap_or(0)
}

/// Second moments of the outputs of a layer's linears that are solved with them.
fn moments(layer: &model::Layer, plans: &[&Plan]) -> u64 {
    let linears = layer.stages.iter().flat_map(|stage| &stage.linears);
    let coupled =
        linears.filter(|linear| plans.iter().any(|plan| plan.couples_rows().any(|l| l.id == linear.id)));
    let of_linear = |linear: &Linear| {
        let most = (MOST_ROWS as u64).min(linear.out_features as u64);
        F32 * linear.out_features as u64 * (most + 1) / 2
    };
    coupled.map(of_linear).sum()
}

/// Bytes of the journal of a run with a track for each of `plans`: packed weights, gradients, and the residual streams behind two layers.
pub(crate) fn journal(job: &QuantizeJob, model: &Model, plans: &[&Plan]) -> u64 {
    let of_linear = |(linear, scheme): (&Linear, Scheme)| {
        let (rows, groups) = scheme.granularity.scale_shape(linear.out_features, linear.in_features);
        (weights(linear) * u64::from(scheme.bits.get())).div_ceil(8) + F32 * (rows * groups) as u64
    };
    let written: u64 = plans.iter().flat_map(|plan| plan.quantized()).map(of_linear).sum();
    let gathers = job.imatrix.is_none() && plans.iter().any(|plan| plan.needs_calibration());
    if !gathers {
        return written;
    }
    let numbers = &model.hyperparameters;
    let context = job.calibration_windows.context.min(numbers.context) as u64;
    let windows = (job.calibration_windows.samples as u64).saturating_mul(1 + job.recipe.own_text() as u64);
    let tokens = windows.saturating_mul(context);
    let beside = job.export_imatrix.is_some() || plans.iter().any(|plan| plan.propagates_errors());
    let streams = plans.len() as u64 + u64::from(beside);
    let mut weighed: Vec<_> = plans.iter().flat_map(|plan| plan.weighs_tokens(model)).collect();
    weighed.sort_unstable();
    weighed.dedup();
    let states = 2 * streams * numbers.hidden_size as u64 + weighed.len() as u64;
    let gradients: u64 = model.layers.iter().map(|layer| moments(layer, plans)).sum();
    written + gradients + tokens.saturating_mul(F32 * states)
}

fn weights(linear: &Linear) -> u64 {
    linear.out_features as u64 * linear.in_features as u64
}
