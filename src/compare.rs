//! `compare`: several models side by side on the same text, in differences that are paired, so that small ones show.

mod pairs;
mod places;
mod speed;

use std::ops::ControlFlow;
use std::path::PathBuf;

use calibration::CalibrationError;
use calibration::evaluation;
use calibration::evaluation::comparison::{self, Compared, Contender, Event};
use model::Model;
use serde::Serialize;

use crate::corpora::{self, ReadText};
use crate::error::Error;
use crate::job::{Text, WindowRequest};
use crate::memory::Memory;
use crate::progress::Progress;
use crate::quantize::resolved;
use crate::report::{ModelSummary, TextSummary};
use crate::resources::{Resources, Stopwatch};
use crate::stored::StoredModel;

pub use pairs::{Difference, Measured, Pair};
pub use places::{Guess, Passage, TokenDifference};
pub use speed::Speed;

/// Models to compare.
#[derive(Clone, Debug)]
pub struct CompareJob {
    /// Originals or outputs, in any format that is read.
    pub models: Vec<PathBuf>,
    /// The model that divergences are from; none: the first one.
    pub reference: Option<PathBuf>,
    /// Text to measure on.
    pub text: Text,
    /// How much of it.
    pub windows: WindowRequest,
    /// Bytes for weights in work and hidden states; windows that they do not hold are measured after others. None: all together.
    pub memory: Option<u64>,
}

/// The outcome of `compare`.
#[derive(Clone, Debug, Serialize)]
pub struct CompareReport {
    /// Version of this program.
    pub version: &'static str,
    /// What was measured on.
    pub text: TextSummary,
    /// The models; the first is the reference.
    pub models: Vec<ModelFigures>,
    /// Each model against each one before it.
    pub pairs: Vec<Pair>,
    /// What was not done as asked, and what limits the comparison.
    pub notes: Vec<String>,
    /// Cost of the whole run.
    pub resources: Resources,
}

/// What one model scored.
#[derive(Clone, Debug, Serialize)]
pub struct ModelFigures {
    /// What tables call it: A is the reference.
    pub letter: String,
    /// The model in a few words.
    pub model: ModelSummary,
    /// All files of weights.
    pub bytes: u64,
    /// Bits of all tensors divided by the weights.
    pub bits_per_weight: f64,
    /// exp of the mean negative log-likelihood.
    pub perplexity: Measured,
    /// Mean KL divergence of the reference to this model, nats a token; none for the reference.
    pub kl_mean: Option<Measured>,
    /// 99th percentile of the divergence over tokens, nats.
    pub kl_p99: Option<Measured>,
    /// Share of tokens where both rank the same token first.
    pub top1_agreement: Option<Measured>,
    /// How fast it ran here.
    pub speed: Speed,
    /// Mean over tokens of the relative distance of the residual stream from the reference's, after each layer.
    pub layers: Option<Vec<Measured>>,
    /// Tokens that the reference and this model disagree about most.
    pub tokens: Vec<TokenDifference>,
    /// Stretches of text on which they are farthest apart.
    pub passages: Vec<Passage>,
    /// Mean negative log-likelihood of each window, nats a token.
    pub window_nll: Vec<f64>,
}

/// Compares models on a text.
///
/// ```
/// use quantc::compare::CompareJob;
/// use quantc::job::{Text, WindowRequest};
///
/// let windows = WindowRequest { samples: 2, context: 32, seed: None };
/// let job = CompareJob {
///     models: vec!["demo/model".into(), "demo/model".into()],
///     reference: None,
///     text: Text::BuiltInEvaluation,
///     windows,
///     memory: None,
/// };
/// let found = quantc::compare(&job, &quantc::progress::Silent)?;
/// assert_eq!(found.pairs[0].verdict, "no difference shown between B and A");
/// # Ok::<(), quantc::error::Error>(())
/// ```
///
/// # Errors
/// Fewer than two models, one that cannot be used, or one whose vocabulary or tokenizer is not the reference's.
pub fn compare(job: &CompareJob, progress: &dyn Progress) -> Result<CompareReport, Error> {
    let watch = Stopwatch::start();
    let paths = in_order(job)?;
    let models = paths.iter().map(|path| StoredModel::find(path, progress)).collect::<Result<Vec<_>, _>>()?;
    let (text, mut notes) = read_text(job, &models, progress)?;
    notes.extend(models.iter().filter_map(StoredModel::unrounded_inputs));
    let windows = &text.windows.tokens;
    let described: Vec<&Model> = models.iter().map(|stored| &stored.model).collect();
    let memory = Memory::demand_comparing(job.memory, &described, text.summary.context)?;
    memory.hold();
    let together = memory.measured_tokens();

    let contenders: Vec<Contender<'_>> =
        models.iter().map(|stored| Contender { model: &stored.model, source: stored }).collect();
    let steps: usize = models.iter().map(|stored| stored.model.layers.len() + 1).sum();
    progress.phase("comparing", steps * evaluation::batches(windows, together).count());
    let mut clock = speed::LayerClock::new(models.len());
    let mut current = 0;
    let mut see = |event| {
        match event {
            Event::Layer(number) => {
                current = number;
                clock.begin();
            }
            Event::LayerDone(number) => {
                clock.end(number);
                progress.step(&letter(number));
            }
            Event::Logits(number) => {
                current = number;
                progress.step("logits");
            }
        }
        if progress.interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let compared = comparison::compare(&contenders, (windows, together), &mut see);
    progress.finish();
    let compared = compared.map_err(|error| match error {
        CalibrationError::Interrupted => Error::Interrupted,
        error @ CalibrationError::NotFinite { .. } => {
            Error::Mismatch { path: paths[current].clone(), problem: error.to_string() }
        }
        error => error.into(),
    })?;

    let tokenizer = models.iter().find_map(|stored| stored.tokenizer().transpose()).transpose()?;
    progress.phase("timing", models.len());
    let mut figures = Vec::with_capacity(models.len());
    for (number, (stored, found)) in models.iter().zip(&compared).enumerate() {
        let speed = Speed {
            read_tokens_per_second: clock.rate(number, text.summary.tokens),
            written_tokens_per_second: speed::written(stored, windows, progress)?,
        };
        let places = places::Places::new(windows, &compared[0], found, tokenizer.as_ref());
        figures.push(model_figures(number, stored, found, speed, &places)?);
        progress.step(&letter(number));
    }
    progress.finish();
    if windows.len() < FEW_WINDOWS {
        notes.push(format!(
            "{} few: tokens are taken for independent of each other, which makes errors look smaller than they are",
            if windows.len() == 1 { "1 window is".to_owned() } else { format!("{} windows are", windows.len()) }
        ));
    }
    Ok(CompareReport {
        version: env!("CARGO_PKG_VERSION"),
        pairs: pairs::all(&compared),
        models: figures,
        text: text.summary,
        notes,
        resources: watch.read(),
    })
}

/// As in `calibration`'s statistics.
const FEW_WINDOWS: usize = 8;

/// The reference first, then the others as they were named.
fn in_order(job: &CompareJob) -> Result<Vec<PathBuf>, Error> {
    let mut paths = job.models.clone();
    if let Some(reference) = &job.reference {
        // It may be one of those that are compared anyway.
        paths.retain(|path| resolved(path) != resolved(reference));
        paths.insert(0, reference.clone());
    }
    if paths.len() < 2 {
        let problem = format!("expected two models, found {}", paths.len());
        return Err(Error::Argument { flag: "MODELS", problem });
    }
    Ok(paths)
}

/// The text in the reference's tokens, which must be everybody's.
fn read_text(
    job: &CompareJob,
    models: &[StoredModel],
    progress: &dyn Progress,
) -> Result<(ReadText, Vec<String>), Error> {
    let reference = &models[0];
    let vocabulary = reference.model.hyperparameters.vocabulary;
    // No window may be longer than the least of them attends.
    let context = models.iter().map(|stored| stored.model.hyperparameters.context).min().unwrap_or(0);
    let request = WindowRequest { context: job.windows.context.min(context), ..job.windows };
    let mut read: Option<(ReadText, &StoredModel)> = None;
    let mut notes: Vec<String> = corpora::shortened(job.windows, context).into_iter().collect();
    notes.iter().for_each(|note| progress.warn(note));
    for stored in models {
        let unlike = |problem: String| Error::NotSuitable {
            path: stored.path.clone(),
            problem,
            hint: "models are compared token by token, so they need the same vocabulary and tokenizer",
        };
        let found = stored.model.hyperparameters.vocabulary;
        if found != vocabulary {
            let of = reference.path.display();
            return Err(unlike(format!(
                "its vocabulary has {found} tokens, expected {vocabulary} as in {of}"
            )));
        }
        let tokenizer = stored.tokenizer()?;
        if tokenizer.is_none() {
            notes.push(format!(
                "{} has no tokenizer.json; it was taken for the others'",
                stored.path.display()
            ));
            continue;
        }
        let own = corpora::read(&job.text, request, &stored.model, tokenizer.as_ref(), progress)?;
        match &read {
            Some((first, of)) if first.summary.fingerprint != own.summary.fingerprint => {
                let of = of.path.display();
                return Err(unlike(format!(
                    "its tokenizer cuts {} otherwise than that of {of}",
                    own.summary.text
                )));
            }
            Some(_) => {}
            None => read = Some((own, stored)),
        }
    }
    match read {
        Some((text, _)) => {
            notes.extend(text.notes.iter().cloned());
            Ok((text, notes))
        }
        // Windows of token ids need none.
        None => Ok((corpora::read(&job.text, request, &reference.model, None, progress)?, notes)),
    }
}

fn model_figures(
    number: usize,
    stored: &StoredModel,
    found: &Compared,
    speed: Speed,
    places: &places::Places<'_>,
) -> Result<ModelFigures, Error> {
    let model = stored.summary()?;
    let bytes = stored.checkpoint.file_bytes()?;
    let distance = found.distance.as_ref();
    let mean = |window: &Vec<f64>| window.iter().sum::<f64>() / window.len().max(1) as f64;
    let layers = distance.and_then(|distance| distance.layers.as_ref());
    Ok(ModelFigures {
        letter: letter(number),
        bits_per_weight: stored.checkpoint.tensor_bytes() as f64 * 8.0 / model.parameters.max(1) as f64,
        model,
        bytes,
        perplexity: found.perplexity().into(),
        kl_mean: distance.map(|distance| distance.mean().into()),
        kl_p99: distance.map(|distance| distance.p99().into()),
        top1_agreement: distance.map(|distance| distance.top1_agreement().into()),
        speed,
        layers: layers.map(|layers| layers.iter().map(|&layer| layer.into()).collect()),
        tokens: places.tokens()?,
        passages: places.passages()?,
        window_nll: found.nll.iter().map(mean).collect(),
    })
}

/// A, B, ..., Z, A1, B1, ...
pub(crate) fn letter(number: usize) -> String {
    let letter = char::from(b'A' + (number % 26) as u8);
    if number < 26 { letter.to_string() } else { format!("{letter}{}", number / 26) }
}
