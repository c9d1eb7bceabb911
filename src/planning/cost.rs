//! Time and memory of a run, from what pieces of it take on this machine.

use formats::container::TensorSpec;
use model::graph::StageInput;
use model::linear::Linear;
use model::{Layer, Model, Stage};
use serde::Serialize;

use super::clock::Cost;
use super::probe::{self, Rates, area};
use crate::error::Error;
use crate::gradients;
use crate::job::QuantizeJob;
use crate::memory;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::stored::StoredModel;

/// Passes that a backward pass through a layer is worth: forwards again, and the two products of each.
const BACKWARD: f64 = 3.0;
/// Bytes of the program with a tokenizer, before any work.
const PROGRAM: u64 = 60 << 20;

/// Seconds on the clock, by phase.
#[derive(Clone, Debug, Serialize)]
pub struct Time {
    /// In the order of the work.
    pub phases: Vec<Seconds>,
    /// Their sum.
    pub seconds: f64,
    /// The same in seconds of processors: divided by the threads, what it would be were the machine idle and all work parallel.
    pub cpu_seconds: f64,
    /// What is done beside and not predicted.
    pub without: Vec<String>,
    /// Threads that the pieces were timed with.
    pub threads: usize,
}

/// Predicted seconds of a phase.
#[derive(Clone, Debug, Serialize)]
pub struct Seconds {
    /// What is done.
    pub name: &'static str,
    /// How long it takes.
    pub seconds: f64,
    /// The same in seconds of processors.
    pub cpu_seconds: f64,
}

/// How much text a job takes.
struct Amount {
    context: usize,
    calibration: f64,
    probed: f64,
    evaluation: f64,
    evaluation_context: usize,
}

impl Amount {
    fn of(source: &StoredModel, plan: &Plan, job: &QuantizeJob) -> Self {
        let most = source.model.hyperparameters.context;
        let asked = job.calibration_windows;
        let context = asked.context.min(most);
        let gathers = plan.needs_calibration() && job.imatrix.is_none();
        let windows = if gathers { asked.samples } else { 0 };
        let weighs_tokens = !plan.weighs_tokens(&source.model).is_empty();
        let couples = plan.couples_rows().next().is_some();
        let probed = match (weighs_tokens, couples) {
            (true, _) => windows,
            (_, true) => windows.min(gradients::PROBED),
            _ => 0,
        };
        let (evaluation, evaluation_context) = job.evaluation.as_ref().map_or((0, 0), |(_, request)| {
            let context = request.context.min(most);
            (request.samples * context, context)
        });
        Self {
            context,
            calibration: (windows * context) as f64,
            probed: (probed * context) as f64,
            evaluation: evaluation as f64,
            evaluation_context,
        }
    }

    /// Batches of windows that gradients go back through, and windows of a batch.
    fn batches(&self, model: &Model) -> Option<(usize, usize)> {
        let windows = (self.probed / self.context.max(1) as f64) as usize;
        let together = (windows > 0).then(|| gradients::batch(model, windows, self.context))?;
        Some((windows.div_ceil(together), together))
    }
}

/// Predicts how long `quantize` takes.
pub(super) fn time(
    source: &StoredModel,
    plan: &Plan,
    job: &QuantizeJob,
    progress: &dyn Progress,
) -> Result<Time, Error> {
    let amount = Amount::of(source, plan, job);
    let model = &source.model;
    let mut kinds: Vec<(&Layer, f64, Rates)> = Vec::new();
    for (layer, count) in probe::kinds(model) {
        let rates = probe::rates(source, plan, layer, amount.context.max(2), progress)?;
        kinds.push((layer, count as f64, rates));
    }
    let over_layers = |of: &dyn Fn(&Layer, &Rates) -> Cost| {
        kinds.iter().map(|(l, count, r)| of(l, r) * *count).sum::<Cost>()
    };
    let product = kinds.first().map(|(.., rates)| rates.product()).unwrap_or_default();
    let numbers = &model.hyperparameters;
    let head = (numbers.vocabulary * numbers.hidden_size) as f64;
    let read = over_layers(&|_, rates| rates.read());

    let calibrating = over_layers(&|layer, rates| rates.token(layer, model, amount.context)[1]);
    // What is read forwards is read backwards again, for each batch of windows.
    let weighing = calibrating * (amount.probed * (1.0 + BACKWARD))
        + product * (amount.probed * (3.0 * head + moments(plan)))
        + read * amount.batches(model).map_or(0.0, |(batches, _)| 2.0 * batches as f64);
    let streams = streams(plan);
    let quantizing = over_layers(&|layer, rates| {
        rates.quantizing(layer, model, amount.calibration, amount.context, streams)
    });
    let measured = over_layers(&|layer, rates| rates.token(layer, model, amount.evaluation_context)[0]);
    let measuring = match job.evaluation {
        None => Cost::default(),
        Some(_) => (measured * 2.0 + probe::scoring(source)?) * amount.evaluation + read * 2.0,
    };
    let mut without = vec!["verifying".to_owned()];
    if job.recipe.own_text() > 0 {
        without.push("the text that the model writes".to_owned());
    }
    if job.recipe.scale_passes() > 0 {
        without.push("scales that learn".to_owned());
    }
    if job.budget.is_some() {
        without.push("weighing widths".to_owned());
    }
    if !plan.transforms.is_empty() {
        without.push("transforms".to_owned());
    }
    let phases = [("weighing outputs", weighing), ("quantizing", quantizing), ("measuring", measuring)];
    let phases = phases.into_iter().filter(|(_, cost)| cost.wall > 0.0);
    let phases: Vec<Seconds> =
        phases.map(|(name, cost)| Seconds { name, seconds: cost.wall, cpu_seconds: cost.cpu }).collect();
    Ok(Time {
        seconds: phases.iter().map(|phase| phase.seconds).sum(),
        cpu_seconds: phases.iter().map(|phase| phase.cpu_seconds).sum(),
        phases,
        without,
        threads: rayon::current_num_threads(),
    })
}

/// Whether a layer has experts.
pub(super) fn is_mixture(model: &Model) -> bool {
    model.layers.iter().any(|layer| layer.experts() > 0)
}

/// Hidden states of all windows that are held: those of the quantized model and, where errors are made up for, the original's.
fn streams(plan: &Plan) -> f64 {
    1.0 + f64::from(u8::from(plan.propagates_errors()))
}

/// Multiplications for a token in the second moments of output gradients.
fn moments(plan: &Plan) -> f64 {
    plan.couples_rows()
        .map(|l| (l.out_features * l.out_features.min(quantizer::output::MOST_ROWS)) as f64 / 2.0)
        .sum()
}

/// Predicts the peak of memory: hidden states of all windows, one layer or what of it is no expert's and one expert, moments of outputs, a pass
/// backwards.
pub(super) fn memory(source: &StoredModel, plan: &Plan, job: &QuantizeJob) -> u64 {
    let amount = Amount::of(source, plan, job);
    let model = &source.model;
    let state = 4.0 * model.layers.iter().map(state).max().unwrap_or(0) as f64;
    let held = |linear: &&Linear| linear.id.part.expert().is_none_or(|expert| expert == 0);
    let layer = |layer: &Layer| layer.linears().filter(held).map(area).sum::<usize>();
    let layer = model.layers.iter().map(layer).max().unwrap_or(0);
    let waiting: u64 =
        if job.recipe.scale_passes() > 0 { plan.quantized().map(|(l, _)| area(l) as u64).sum() } else { 0 };
    let quantizing = memory::solving(model, plan, amount.context, amount.calibration as u64);
    let measuring = 2.0 * amount.evaluation * state + 4.0 * 2.0 * layer as f64;
    let largest = plan.carried.iter().map(TensorSpec::bytes).max().unwrap_or(0);
    let weighing = amount.batches(model);
    let weighing =
        weighing.map_or(0, |(_, together)| memory::weighing(model, plan, amount.context, together));
    let needed = waiting + quantizing.max(measuring as u64).max(weighing).max(largest);
    // States beyond a budget go to disk.
    PROGRAM + job.memory.map_or(needed, |budget| needed.min(budget))
}

/// Numbers of a token's state in a layer: the residual stream and, between two stages, the input of the second; with experts what they are given
/// as well, but not what one of them makes of the tokens that are sent to it.
fn state(layer: &Layer) -> usize {
    let residual = layer.stages.first().map_or(0, |stage| stage.linears[0].in_features);
    let waits = |stage: &&Stage| {
        let made = matches!(stage.input, StageInput::AttentionOutput | StageInput::MlpOutput);
        made && stage.part().expert().is_none()
    };
    let widest = |stage: &Stage| stage.linears.first().map_or(0, |linear| linear.in_features);
    let waiting = layer.stages.iter().filter(waits).map(widest).max().unwrap_or(0);
    let given = if layer.experts() > 0 { residual } else { 0 };
    residual + waiting + given
}
