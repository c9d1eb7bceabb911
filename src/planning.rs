//! `plan`: what quantizing would give and take, before the work; and for a bound on memory, which model of several at which width.

mod clock;
mod cost;
mod fit;
mod probe;

use calibration::activations::History;
use std::collections::BTreeMap;
use std::path::Path;

use formats::container::TensorSpec;
use quantizer::levels::Levels;
use quantizer::scheme::{Granularity, Scheme, Symmetry};
use serde::Serialize;

use crate::budget::Options;
use crate::error::Error;
use crate::hub;
use crate::job::QuantizeJob;
use crate::memory::{self, Memory};
use crate::plan::{Plan, Widths};
use crate::progress::Progress;
use crate::report::{Kept, ModelSummary, RuntimeRow, Size};
use crate::requirements;
use crate::resources::{Resources, Stopwatch};
use crate::space;
use crate::stored::StoredModel;
use crate::{corpora, evaluate, sensitivity};

pub use cost::{Seconds, Time};
pub use fit::{Candidate, Fit};

/// What is to be planned.
#[derive(Clone, Debug)]
pub struct PlanJob {
    /// One for each model: what `quantize` would be asked.
    pub jobs: Vec<QuantizeJob>,
    /// Whether loss is predicted and, for a bound on memory, perplexity measured, which takes a short calibration.
    pub calibrate: bool,
    /// Memory that a model may take when it runs.
    pub fit: Option<FitRequest>,
}

/// A bound on memory.
#[derive(Clone, Debug)]
pub struct FitRequest {
    /// Bytes for weights and keys and values.
    pub bytes: u64,
    /// Tokens whose keys and values are held.
    pub context: usize,
    /// Known perplexities of the originals, in the order of the models; none: measured, or no choice.
    pub perplexities: Vec<f64>,
}

/// The outcome of `plan`.
#[derive(Clone, Debug, Serialize)]
pub struct PlanReport {
    /// Version of this program.
    pub version: &'static str,
    /// One for each model.
    pub models: Vec<ModelPlan>,
    /// Which of them for the memory.
    pub fit: Option<Fit>,
    /// Cost of planning.
    pub resources: Resources,
}

/// What quantizing one model would give and take.
#[derive(Clone, Debug, Serialize)]
pub struct ModelPlan {
    /// The model in a few words.
    pub model: ModelSummary,
    /// Id of the format.
    pub format: String,
    /// Name of the recipe.
    pub recipe: String,
    /// Linears that are treated alike.
    pub linears: Vec<RolePlan>,
    /// Linears that stay as they are.
    pub kept: Vec<Kept>,
    /// Exact, if no width is still to be chosen.
    pub size: Size,
    /// Bytes on the disk at most while the work is on: the output and the journal, which goes when it is done.
    pub run_bytes: u64,
    /// Bytes that may still be written where the output goes.
    pub free_bytes: Option<u64>,
    /// Sum over stages of the divergence that each would cause alone, before refinements, nats a token; none without `--calibrate`.
    pub predicted_kl: Option<f64>,
    /// Time on this machine.
    pub time: Time,
    /// Peak memory, bytes.
    pub memory_bytes: u64,
    /// Which runtimes load the output.
    pub runtimes: Vec<RuntimeRow>,
    /// What has to be said.
    pub notes: Vec<String>,
}

/// Linears with the same role, shape, grid and solver.
#[derive(Clone, Debug, Serialize)]
pub struct RolePlan {
    /// Last part of their names.
    pub linear: String,
    /// How many.
    pub count: usize,
    /// `[out_features, in_features]`.
    pub shape: [usize; 2],
    /// The grid, in words; none: not quantized.
    pub scheme: Option<String>,
    /// How they are solved.
    pub solver: Option<String>,
    /// Bytes of all of them in the output.
    pub bytes: u64,
}

/// Plans without doing: opens the models, decides as `quantize` would, and times pieces of the work on this machine.
///
/// # Errors
/// Whatever would keep `quantize` from beginning.
pub fn plan(job: &PlanJob, progress: &dyn Progress) -> Result<PlanReport, Error> {
    let watch = Stopwatch::start();
    let mut models = Vec::with_capacity(job.jobs.len());
    let mut candidates = Vec::new();
    for (number, wanted) in job.jobs.iter().enumerate() {
        let source = StoredModel::open_source(&hub::model_directory(&wanted.model, progress)?)?;
        let target =
            wanted.targets.first().ok_or_else(|| Error::Internal("no format is planned".to_owned()))?;
        let made = Plan::make(&source, wanted, target)?;
        requirements::demand_known(wanted, std::slice::from_ref(&made))?;
        requirements::demand(wanted, &made, &source.model)?;
        models.push(model_plan(&source, made.clone(), wanted, job.calibrate, progress)?);
        if let Some(fit) = &job.fit {
            let perplexity = match fit.perplexities.get(number) {
                Some(&given) => Some(given),
                None if job.calibrate => Some(measured(&source, wanted, progress)?),
                None => None,
            };
            candidates.extend(fit::candidates(
                &source,
                &made,
                wanted,
                fit,
                perplexity,
                job.calibrate,
                progress,
            )?);
        }
    }
    let fit = job.fit.as_ref().map(|fit| Fit::choose(fit, candidates));
    Ok(PlanReport { version: env!("CARGO_PKG_VERSION"), models, fit, resources: watch.read() })
}

/// Perplexity of an original on the job's evaluation text.
fn measured(source: &StoredModel, job: &QuantizeJob, progress: &dyn Progress) -> Result<f64, Error> {
    let Some((text, request)) = &job.evaluation else {
        return Err(Error::Argument {
            flag: "--no-evaluate",
            problem: "leaves nothing to choose by".to_owned(),
        });
    };
    let text = corpora::read(text, *request, &source.model, source.tokenizer()?.as_ref(), progress)?;
    let models = evaluate::Models { measured: source, adapted: None, reference: None };
    let found = evaluate::measure(models, &text.windows.tokens, text.summary, Memory::default(), progress)?;
    found
        .original
        .map(|original| original.perplexity)
        .or(found.quantized.map(|quantized| quantized.perplexity))
        .ok_or_else(|| Error::Internal("nothing was measured".to_owned()))
}

fn model_plan(
    source: &StoredModel,
    mut made: Plan,
    job: &QuantizeJob,
    calibrate: bool,
    progress: &dyn Progress,
) -> Result<ModelPlan, Error> {
    let mut notes = Vec::new();
    if cost::is_mixture(&source.model) {
        notes.push("time is that of a router that sends as many tokens to each expert".to_owned());
    }
    let options = job.budget.map(|budget| Options::find(source, &made, job, budget)).transpose()?;
    let mut predicted_kl = None;
    if let Some(options) = options {
        notes.extend(options.note.clone());
        if calibrate {
            let windows = calibration_windows(source, job, progress)?;
            let (widths, allocation) =
                options.choose(&source.model, source, &made, &windows, None, progress)?;
            made = made.with_widths(&widths)?;
            predicted_kl = Some(allocation.predicted_kl);
        } else {
            notes.push(
                "widths are chosen by a calibration: the table shows the recipe's; --calibrate chooses them"
                    .to_owned(),
            );
        }
    } else if calibrate && made.quantized().next().is_some() {
        predicted_kl = Some(predict(source, &made, job, progress)?);
    }
    if made.transforms.iter().any(|_| calibrate) && predicted_kl.is_some() {
        notes.push("the recipe's transforms, which lower the loss, are not in the prediction".to_owned());
    }
    notes.extend(made.notes.iter().cloned());
    let time = cost::time(source, &made, job, progress)?;
    let size = size(source, &made, job)?;
    let free_bytes = space::free(&job.output);
    let memory = Memory::demand(job, &source.model, &[&made])?;
    let run_bytes = size.bytes + memory::journal(job, &source.model, &[&made]) + memory.on_disk();
    if free_bytes.is_some_and(|free| free < run_bytes) {
        notes.push(format!("{} has no room for the output with its journal", job.output.display()));
    }
    Ok(ModelPlan {
        model: source.summary()?,
        format: made.format.id().to_owned(),
        recipe: job.recipe.name.clone(),
        linears: roles(&made),
        size,
        run_bytes,
        free_bytes,
        predicted_kl,
        memory_bytes: cost::memory(source, &made, job),
        time,
        kept: made.kept,
        runtimes: made.runtimes,
        notes,
    })
}

/// Calibration text as `quantize` reads it.
fn calibration_windows(
    source: &StoredModel,
    job: &QuantizeJob,
    progress: &dyn Progress,
) -> Result<Vec<Vec<u32>>, Error> {
    let crate::job::Calibration::Text(text) = &job.calibration else {
        let problem = "self: a plan has the model write nothing; name a text".to_owned();
        return Err(Error::Argument { flag: "--calibration", problem });
    };
    let tokenizer = source.tokenizer()?;
    let read = corpora::read(text, job.calibration_windows, &source.model, tokenizer.as_ref(), progress)?;
    Ok(read.windows.tokens)
}

/// What the grids of `plan` would do to the model, before refinements.
fn predict(
    source: &StoredModel,
    plan: &Plan,
    job: &QuantizeJob,
    progress: &dyn Progress,
) -> Result<f64, Error> {
    let windows = calibration_windows(source, job, progress)?;
    let stages = Options::as_planned(plan);
    let damages =
        sensitivity::weigh(&source.model, source, plan, &stages, &windows, History::new(None), progress)?;
    Ok(damages.iter().flatten().sum())
}

/// Sizes as the writer would have them.
pub(super) fn size(source: &StoredModel, plan: &Plan, job: &QuantizeJob) -> Result<Size, Error> {
    let parameters = source.summary()?.parameters;
    let tensors = plan.tensors();
    let all: u64 = tensors.iter().map(TensorSpec::bytes).sum();
    let packed: u64 = plan
        .quantized()
        .flat_map(|(linear, scheme)| plan.format.layout(linear, scheme))
        .filter(|spec| !spec.name.ends_with("g_idx") && !spec.name.ends_with("_shape"))
        .map(|spec| spec.bytes())
        .sum();
    let weights: u64 = plan.quantized().map(|(l, _)| (l.out_features * l.in_features) as u64).sum();
    Ok(Size {
        bytes: plan.format.weights_bytes(&tensors, job.max_shard_size),
        original_bytes: source.checkpoint.file_bytes()?,
        bits_per_weight: all as f64 * 8.0 / parameters as f64,
        linear_bits_per_weight: if weights == 0 { 0.0 } else { packed as f64 * 8.0 / weights as f64 },
    })
}

/// Name, shape, grid and solver.
type Alike = (String, [usize; 2], Option<String>, Option<String>);

/// The linears by what they have in common, in forward order.
fn roles(plan: &Plan) -> Vec<RolePlan> {
    let mut order = Vec::new();
    let mut found: BTreeMap<Alike, (usize, u64)> = BTreeMap::new();
    for planned in &plan.linears {
        let linear = &planned.linear;
        let name = linear.name.rsplit('.').next().unwrap_or(&linear.name).to_owned();
        let solver = planned.scheme.map(|_| plan.treatment(linear).solver.to_owned());
        let key = (name, [linear.out_features, linear.in_features], planned.scheme.map(words), solver);
        let bytes = match planned.scheme {
            Some(scheme) => plan.format.layout(linear, scheme).iter().map(TensorSpec::bytes).sum(),
            None => {
                let own = plan.carried.iter().find(|spec| spec.name == linear.weight_name());
                own.map_or(0, TensorSpec::bytes)
            }
        };
        if !found.contains_key(&key) {
            order.push(key.clone());
        }
        let entry = found.entry(key).or_default();
        *entry = (entry.0 + 1, entry.1 + bytes);
    }
    let row = |key: Alike| {
        let (count, bytes) = found[&key];
        let (linear, shape, scheme, solver) = key;
        RolePlan { linear, count, shape, scheme, solver, bytes }
    };
    order.into_iter().map(row).collect()
}

/// A grid in words.
fn words(scheme: Scheme) -> String {
    let scales = match scheme.granularity {
        Granularity::PerTensor => "one scale".to_owned(),
        Granularity::PerChannel => "rows".to_owned(),
        Granularity::PerGroup(size) => format!("groups of {}", size.get()),
    };
    let symmetry = match scheme.symmetry {
        Symmetry::Symmetric => "",
        Symmetry::Asymmetric => ", zero points",
        Symmetry::Minimum => ", minimums",
    };
    match scheme.levels {
        Levels::Uniform => format!("{} bit, {scales}{symmetry}", scheme.bits.get()),
        table => format!("{}, {scales}", table.name()),
    }
}

/// A plan with all linears at one width, where the format has it.
pub(super) fn at_width(plan: &Plan, bits: quantizer::scheme::BitWidth) -> Option<Plan> {
    let widths: Widths = plan.quantized().map(|(linear, _)| (linear.id, bits)).collect();
    let asked = plan.clone().with_widths(&widths).ok()?;
    let same = asked.quantized().all(|(_, scheme)| scheme.bits == bits);
    same.then_some(asked)
}

/// Last part of a path, or the whole.
pub(super) fn short(path: &str) -> String {
    Path::new(path).file_name().map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}
