//! Time and memory of a run, from what pieces of it take on this machine.

use formats::container::TensorSpec;
use model::Model;
use model::linear::Part;
use serde::Serialize;

use super::probe::{self, Rates, area};
use crate::error::Error;
use crate::job::QuantizeJob;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::resources::Stopwatch;
use crate::stored::StoredModel;

/// Windows that a backward pass is made of where only outputs are weighed; as in the gradients themselves.
const PROBED_WINDOWS: usize = 32;
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
    /// The same in seconds of processors: what it would be, divided by the threads, were the machine idle and all work parallel.
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
            (_, true) => windows.min(PROBED_WINDOWS),
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
}

/// Predicts how long `quantize` takes; none for mixtures of experts.
pub(super) fn time(
    source: &StoredModel,
    plan: &Plan,
    job: &QuantizeJob,
    progress: &dyn Progress,
) -> Result<Option<Time>, Error> {
    if is_mixture(&source.model) {
        return Ok(None);
    }
    let amount = Amount::of(source, plan, job);
    let watch = Stopwatch::start();
    let rates = probe::rates(source, plan, amount.context.max(2), progress)?;
    let cost = watch.read();
    let busy = cost.cpu_seconds / cost.wall_seconds.max(1e-9);
    let model = &source.model;
    let layers = model.layers.len() as f64;
    let numbers = &model.hyperparameters;
    let head = (numbers.vocabulary * numbers.hidden_size) as f64;
    let product = rates.token / rates.token_products;
    let products_at = |context: usize| probe::products(&model.layers[0], model, context);
    let token_at = |context: usize| product * products_at(context);
    let calibrating = rates.calibrating_token / rates.token_products;
    let calibrating_token = calibrating * products_at(amount.context);

    let weighing = layers * amount.probed * calibrating_token * (1.0 + BACKWARD)
        + amount.probed * head * calibrating * 3.0
        + moments(plan) * amount.probed * calibrating;
    let streams = 1.0 + f64::from(u8::from(plan.propagates_errors()));
    let quantizing = quantizing(&rates, layers, streams, amount.calibration, calibrating_token);
    let measuring = 2.0 * amount.evaluation * (layers * token_at(amount.evaluation_context) + head * product)
        + 2.0 * layers * rates.read_layer;
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
    let phases = phases.into_iter().filter(|(_, seconds)| *seconds > 0.0);
    let phases: Vec<Seconds> = phases.map(|(name, seconds)| Seconds { name, seconds }).collect();
    let seconds = phases.iter().map(|phase| phase.seconds).sum();
    Ok(Some(Time {
        seconds,
        cpu_seconds: busy * seconds,
        phases,
        without,
        threads: rayon::current_num_threads(),
    }))
}

/// Whether a layer has experts: what tokens they get decides what they cost.
pub(super) fn is_mixture(model: &Model) -> bool {
    model.layers.iter().flat_map(|layer| &layer.stages).any(|stage| stage.part() != Part::Main)
}

fn quantizing(rates: &Rates, layers: f64, streams: f64, tokens: f64, token: f64) -> f64 {
    let with_text = tokens * (streams * token + rates.gather_token);
    layers * (rates.read_layer + with_text + rates.gather + rates.solve)
}

/// Multiplications for a token in the second moments of output gradients.
fn moments(plan: &Plan) -> f64 {
    plan.couples_rows()
        .map(|l| (l.out_features * l.out_features.min(quantizer::output::MOST_ROWS)) as f64 / 2.0)
        .sum()
}

/// Predicts the peak of memory: hidden states of all windows, one layer, moments of outputs; none for mixtures of experts.
pub(super) fn memory(source: &StoredModel, plan: &Plan, job: &QuantizeJob) -> Option<u64> {
    if is_mixture(&source.model) {
        return None;
    }
    let amount = Amount::of(source, plan, job);
    let numbers = &source.model.hyperparameters;
    // A state holds the residual stream and, between two stages, the input of the second.
    let state = 4.0 * (numbers.hidden_size + numbers.intermediate_size) as f64;
    let streams = 1.0 + f64::from(u8::from(plan.propagates_errors()));
    let layer: usize = source.model.layers[0].stages.iter().flat_map(|stage| &stage.linears).map(area).sum();
    let moments = 4.0 * moments(plan);
    let widest = source.model.linears().map(|linear| linear.in_features).max().unwrap_or(0) as f64;
    // Second moments in double precision, with what is held out, what is lacked, and a factor.
    let hessians = if amount.calibration > 0.0 { 8.0 * widest * widest * 3.0 * streams } else { 0.0 };
    let waiting: u64 =
        if job.recipe.scale_passes() > 0 { plan.quantized().map(|(l, _)| area(l) as u64).sum() } else { 0 };
    let quantizing = streams * amount.calibration * state + 4.0 * 3.0 * layer as f64 + moments + hessians;
    let measuring = 2.0 * amount.evaluation * state + 4.0 * 2.0 * layer as f64;
    let largest = plan.carried.iter().map(TensorSpec::bytes).max().unwrap_or(0);
    Some(PROGRAM + waiting + (quantizing.max(measuring) as u64).max(largest))
}
