//! How much work the phases of a job are, so that what is left of the whole run can be told from how fast its first part went.
//!
//! Counted in multiplications, from shapes. They are not all equally fast, and some costs do not grow with them: a phase's count is compared
//! with those of its own pace alone.

use kernels::bf16::Precision;
use model::Model;
use model::linear::{Linear, Part};

use crate::gradients::PROBED;
use crate::job::QuantizeJob;
use crate::plan::Plan;
use crate::progress::{Pace, Work};
use crate::{scales, showing};

/// Passes that one backwards is worth: forwards again, and the two products of each.
const BACKWARD: f64 = 3.0;
/// Factorizations of a Hessian, one for each damping that is tried, of a third of a cube each.
pub(crate) const FACTORIZATIONS: f64 = 5.0 / 3.0;
/// What range search, refits and descent make of a plain solve.
pub(crate) const REFINED: f64 = 3.0;
/// What a pass in single precision takes over one in bfloat16.
const SINGLE: f64 = 1.5;
/// Tokens of a pass that take as long as one that is written alone, which has to wait for all weights.
const ONE_BY_ONE: f64 = 8.0;

/// Tokens of a job's texts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tokens {
    /// In all windows.
    pub(crate) calibration: usize,
    pub(crate) windows: usize,
    pub(crate) evaluation: usize,
}

/// The phases from the first look at gradients on, in their order; `plans` is one for each set of grids, `precision` that of calibration, `left` the
/// layers that are not yet solved.
pub(crate) fn phases(
    job: &QuantizeJob,
    model: &Model,
    plans: &[&Plan],
    outputs: usize,
    tokens: Tokens,
    precision: Precision,
    left: usize,
) -> Vec<Work> {
    let of_token: f64 = model.linears().map(|linear| area(linear) * met(model, linear)).sum();
    let layers = model.layers.len().max(1) as f64;
    let numbers = &model.hyperparameters;
    let head = (numbers.vocabulary * numbers.hidden_size) as f64;
    let calibration = tokens.calibration as f64;
    let weighs_tokens = plans.iter().any(|plan| !plan.weighs_tokens(model).is_empty());
    let couples = plans.iter().any(|plan| plan.couples_rows().next().is_some());
    let windows = tokens.windows.max(1) as f64;
    let probed = match (weighs_tokens, couples) {
        (true, _) => 1.0,
        (_, true) => (PROBED as f64 / windows).min(1.0),
        _ => 0.0,
    };
    let share = left as f64 / layers;
    let beside = f64::from(u8::from(plans.iter().any(|plan| plan.propagates_errors())));
    let solving: f64 = plans.iter().map(|plan| solving(model, plan, calibration)).sum();
    let forward = (plans.len() as f64 + beside) * calibration * of_token;
    let mut phases = vec![
        ("weighing outputs", Pace::Passes, probed * calibration * (of_token + head) * (1.0 + BACKWARD)),
        ("quantizing", Pace::Solving, share * (solving + forward)),
    ];
    if job.recipe.scale_passes() > 0 && job.adapter_rank.is_none() {
        let learned = calibration * (scales::WINDOWS as f64 / windows).min(1.0);
        let passes = (1 + job.recipe.scale_passes()) as f64;
        let learning = passes * learned * (of_token + head) * (1.0 + BACKWARD);
        phases.push(("learning scales", Pace::Passes, learning));
    }
    let weights: f64 = model.linears().map(area).sum();
    phases.extend((0..outputs).map(|_| ("verifying", Pace::Reading, 16.0 * weights)));
    // Measuring does not round its factors, and waits the longer for products.
    let single = if precision == Precision::Bf16 { SINGLE } else { 1.0 };
    let measuring = single * 2.0 * tokens.evaluation as f64 * (of_token + head);
    phases.extend((0..outputs).map(|_| ("measuring", Pace::Passes, measuring)));
    if tokens.evaluation > 0 {
        let written = ((1 + outputs) * showing::SAMPLE_TOKENS) as f64;
        phases.push(("writing samples", Pace::Passes, ONE_BY_ONE * written * (of_token + head)));
    }
    phases
        .into_iter()
        .filter(|(_, _, work)| *work > 0.0)
        .map(|(phase, pace, work)| Work { phase: phase.to_owned(), work, pace })
        .collect()
}

/// The share of tokens that meet a linear.
fn met(model: &Model, linear: &Linear) -> f64 {
    match (&model.hyperparameters.experts, linear.id.part) {
        (Some(experts), Part::Expert(_)) => {
            experts.routing.chosen as f64 / experts.routing.experts.max(1) as f64
        }
        _ => 1.0,
    }
}

/// Second moments, factorizations and solves of every layer.
fn solving(model: &Model, plan: &Plan, tokens: f64) -> f64 {
    let stages = model.layers.iter().flat_map(|layer| &layer.stages);
    let of_stage = |stage: &model::Stage| {
        let solved = || stage.linears.iter().filter(|linear| plan.solved_with_data(linear));
        let Some(first) = solved().next() else { return 0.0 };
        let columns = first.in_features as f64;
        let across = if plan.treatment(first).settings.propagates() { 2.0 } else { 0.5 };
        let moments = tokens * met(model, first) * columns * columns * across;
        let solves: f64 = solved()
            .map(|linear| {
                let settings = &plan.treatment(linear).settings;
                let refined = settings.refits + settings.sweeps + settings.coupled_sweeps > 0;
                area(linear) * columns * if refined { REFINED } else { 1.0 }
            })
            .sum();
        moments + FACTORIZATIONS * columns.powi(3) + solves
    };
    stages.map(of_stage).sum()
}

fn area(linear: &Linear) -> f64 {
    (linear.out_features * linear.in_features) as f64
}
