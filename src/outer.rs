//! Embedding and head below 16 bit: what is asked for, and the solving. Both are matrices of as many rows as the vocabulary, so they are solved
//! some rows at a time; only codes of a whole one are ever held.
//!
//! The head has its own Hessian: of its input after the last layer and norm, as the quantized layers leave it. The embedding multiplies nothing:
//! every row is rounded to the nearest values of the range that is best for it. A tied embedding is the head too, and rounded the same way.

use calibration::weights::{LinearWeights, WeightSource};
use formats::Dtype;
use formats::target::{PlannedLinear, TargetFormat};
use model::Model;
use model::linear::{Linear, Role};
use ndarray::Array2;
use quantizer::accumulator::HessianAccumulator;
use quantizer::levels::Levels;
use quantizer::prepared::PreparedHessian;
use quantizer::scheme::{Granularity, Scheme};
use quantizer::solver::{Problem, Solution, find};
use quantizer::tensor::QuantizedTensor;

use crate::error::Error;
use crate::job::QuantizeJob;
use crate::plan::Plan;
use crate::progress::{Progress, go_on};
use crate::recipe::{Recipe, Treatment};
use crate::solving::solver;
use crate::streams::Streams;

/// Rows that are solved at a time.
const ROWS: usize = 4096;

/// Grid and solver of the embedding and the head of `written`, where the job has them below 16 bit; or why the format cannot.
pub(crate) fn planned(
    job: &QuantizeJob,
    written: &Model,
    format: &dyn TargetFormat,
    recipe: &Recipe,
    runtime: Dtype,
    first_group: usize,
) -> Result<Vec<(PlannedLinear, Treatment)>, Error> {
    let tied = written.hyperparameters.tied_head;
    let asked = [
        ("--embedding-bits", job.embedding_bits, written.embedding_linear()),
        ("--head-bits", job.head_bits, written.head_linear()),
    ];
    let mut found = Vec::new();
    for (number, (flag, bits, linear)) in asked.into_iter().enumerate() {
        let Some(bits) = bits else { continue };
        if tied && linear.id.role == Role::Head {
            let problem = format!(
                "the head is tied to `{}`: --embedding-bits rounds both, --untie gives the head a tensor of its own",
                written.embedding()
            );
            return Err(Error::Argument { flag, problem });
        }
        let mut treatment = recipe.treatment(&linear);
        treatment.bits = bits;
        treatment.keep = false;
        let settings = &mut treatment.settings;
        (settings.coupled_sweeps, settings.weigh_tokens) = (0, false);
        (settings.alpha, settings.beta) = (0.0, 0.0);
        if linear.id.role == Role::Embedding
            && let Some(nearest) = quantizer::solver::ALL.iter().find(|solver| !solver.needs_hessian())
        {
            treatment.solver = nearest.name();
        }
        let granularity = match treatment.granularity {
            Granularity::PerTensor => Granularity::PerChannel,
            other => other,
        };
        let asked = Scheme {
            bits,
            levels: Levels::Uniform,
            granularity,
            symmetry: treatment.symmetry,
            scale_dtype: format.scale_dtype(runtime),
        };
        let scheme = format.outer_grid(&linear, tied, asked).map_err(|reason| {
            let problem =
                format!("{} has no place for `{}` below 16 bit: {reason}", format.id(), linear.name);
            Error::Argument { flag, problem }
        })?;
        let fused_group = first_group + number;
        found.push((PlannedLinear { linear, fused_group, scheme: Some(scheme) }, treatment));
    }
    Ok(found)
}

/// Whether the head is solved by what flows into it.
pub(crate) fn sees_head_input(plan: &Plan, model: &Model) -> bool {
    let head = model.head_linear();
    plan.scheme(&head).is_some()
        && find(plan.treatment(&head).solver).is_some_and(quantizer::solver::Solver::needs_hessian)
}

/// The embedding's or the head's solution in the track of this number; none where it stays in 16 bit, or where rank 0 solves it.
pub(crate) fn solve(
    linear: &Linear,
    plan: &Plan,
    model: &Model,
    source: &dyn WeightSource,
    streams: Option<(&Streams<'_>, usize)>,
    progress: &dyn Progress,
) -> Result<Option<Solution>, Error> {
    let Some(scheme) = plan.scheme(linear) else { return Ok(None) };
    let treatment = plan.treatment(linear);
    let hessian = match streams.filter(|_| linear.id.role == Role::Head && sees_head_input(plan, model)) {
        None => None,
        Some((streams, track)) => match head_hessian(linear, source, treatment, streams, track)? {
            None => return Ok(None),
            seen => seen,
        },
    };
    let fail = |source| Error::Solve { linear: linear.name.clone(), source };
    let (mut parts, mut losses): (Vec<QuantizedTensor>, Losses) = (Vec::new(), Losses::default());
    let mut report = None;
    progress.phase(
        if linear.id.role == Role::Head { "head" } else { "embedding" },
        linear.out_features.div_ceil(ROWS),
    );
    for first in (0..linear.out_features).step_by(ROWS) {
        go_on(progress)?;
        let end = (first + ROWS).min(linear.out_features);
        progress.at(&format!("rows {} to {end} of {}", first + 1, linear.out_features));
        let weight = rows(linear, source, first..end)?;
        let problem = Problem { weight: weight.view(), hessian: hessian.as_ref(), output: None, scheme };
        let solution = solver(treatment)?.solve(&problem, &treatment.settings).map_err(fail)?;
        losses.add(&solution);
        parts.push(solution.tensor);
        report = report.or(Some(solution.report));
        progress.step("");
    }
    progress.finish();
    let tensor = QuantizedTensor::stacked(&parts)
        .map_err(|e| Error::Internal(format!("`{}` cannot be put together: {e}", linear.name)))?;
    let report = report.ok_or_else(|| Error::Internal(format!("`{}` has no rows", linear.name)))?;
    let relative = |loss: f64| if losses.all > 0.0 { loss / losses.all } else { 0.0 };
    let report = quantizer::solver::SolveReport {
        loss: losses.left,
        relative_loss: relative(losses.left),
        relative_loss_unrefined: relative(losses.unrefined),
        ..report
    };
    Ok(Some(Solution { tensor, report }))
}

/// Sums over the parts.
#[derive(Default)]
struct Losses {
    left: f64,
    unrefined: f64,
    all: f64,
}

impl Losses {
    fn add(&mut self, part: &Solution) {
        let report = &part.report;
        let all = if report.relative_loss > 0.0 { report.loss / report.relative_loss } else { 0.0 };
        self.left += report.loss;
        self.unrefined += report.relative_loss_unrefined * all;
        self.all += all;
    }
}

fn rows(
    linear: &Linear,
    source: &dyn WeightSource,
    rows: std::ops::Range<usize>,
) -> Result<Array2<f32>, Error> {
    if linear.id.role == Role::Embedding {
        let tokens: Vec<u32> = rows.map(|row| row as u32).collect();
        return source.embed(&tokens).map_err(Error::from_source);
    }
    match source.head_rows(rows).map_err(Error::from_source)?.weights {
        LinearWeights::Dense(weight) => Ok(weight),
        _ => Err(Error::Internal(format!("`{}` is packed or rounded before it is solved", linear.name))),
    }
}

/// Of the head's input over all windows, on rank 0.
fn head_hessian(
    linear: &Linear,
    source: &dyn WeightSource,
    treatment: &Treatment,
    streams: &Streams<'_>,
    track: usize,
) -> Result<Option<PreparedHessian>, Error> {
    let fail = |source| Error::Statistics { linear: linear.name.clone(), source };
    let outer = source.outer().map_err(Error::from_source)?;
    let mut accumulator = HessianAccumulator::new(linear.in_features);
    streams.see_head_input(track, &outer, &mut |input| accumulator.observe(input).map_err(fail))?;
    if !streams.ranks().is_first() {
        return Ok(None);
    }
    let hessian = accumulator.finish().map_err(fail)?;
    hessian.prepare(&treatment.settings, None).map(Some).map_err(fail)
}
