//! `evaluate`: how well a model predicts text, and how far it is from another.

use std::ops::ControlFlow;

use calibration::CalibrationError;
use calibration::evaluation::{self, Estimate, Evaluation, Score};
use calibration::weights::WeightSource;
use model::rope::{Rope, RopeScaling};

use crate::adapted::AdaptedModel;
use crate::choices::{ChoicesReport, Questions};
use crate::corpora;
use crate::error::Error;
use crate::export::ExportFile;
use crate::job::EvaluateJob;
use crate::memory::Memory;
use crate::progress::Progress;
use crate::report::{EvaluateReport, EvaluationReport, Perplexity, QuantizedQuality, TextSummary};
use crate::resources::Stopwatch;
use crate::stored::StoredModel;

/// Measures a model on a text, against a reference where one is given.
///
/// # Errors
/// A model, reference or text that cannot be used.
pub fn evaluate(job: &EvaluateJob, progress: &dyn Progress) -> Result<EvaluateReport, Error> {
    let watch = Stopwatch::start();
    let logits =
        job.export_logits.as_deref().map(|path| ExportFile::create("--export-logits", path)).transpose()?;
    let model = StoredModel::find(&job.model, progress)?.with_activations(job.activations);
    let reference = job.reference.as_deref().map(|path| StoredModel::find(path, progress)).transpose()?;
    if let Some(reference) = &reference {
        demand_same_shape(&model, reference)?;
    }
    let memory = Memory::demand_measuring(job.memory, &model.model, job.windows.context)?;
    memory.hold();
    let tokenizer = model.tokenizer()?;
    let questions = job.choices.as_deref();
    let questions =
        questions.map(|path| Questions::read(path, &model.model, tokenizer.as_ref())).transpose()?;
    let text = corpora::read(&job.text, job.windows, &model.model, tokenizer.as_ref(), progress)?;
    let adapted =
        job.adapter.as_deref().map(|directory| AdaptedModel::open(&model, directory)).transpose()?;
    if let Some(file) = logits {
        let source: &dyn WeightSource = adapted.as_ref().map_or(&model, |adapted| adapted);
        export_logits(&model, source, &text.windows.tokens, file)?;
    }
    let models = Models { measured: &model, adapted: adapted.as_ref(), reference: reference.as_ref() };
    let evaluation = measure(models, &text.windows.tokens, text.summary, memory, progress)?;
    let choices = questions.as_ref().map(|questions| choose(questions, models, progress)).transpose()?;
    let mut notes = text.notes;
    let unrounded = [Some(&model), reference.as_ref()].into_iter().flatten();
    notes.extend(unrounded.filter_map(StoredModel::unrounded_inputs));
    notes.extend(questions.as_ref().and_then(Questions::note));
    Ok(EvaluateReport {
        version: env!("CARGO_PKG_VERSION"),
        model: model.summary()?,
        evaluation,
        choices,
        notes,
        resources: watch.read(),
    })
}

/// What is measured.
#[derive(Clone, Copy)]
pub(crate) struct Models<'m> {
    pub(crate) measured: &'m StoredModel,
    /// The same with an adapter.
    pub(crate) adapted: Option<&'m AdaptedModel<'m>>,
    /// What divergences are from.
    pub(crate) reference: Option<&'m StoredModel>,
}

/// Lets every model answer the questions.
fn choose(
    questions: &Questions,
    models: Models<'_>,
    progress: &dyn Progress,
) -> Result<ChoicesReport, Error> {
    let Models { measured, adapted, reference } = models;
    let model = &measured.model;
    let count = 1 + usize::from(adapted.is_some()) + usize::from(reference.is_some());
    progress.phase("answering", questions.steps(model, count));
    let answers = questions.answer(model, measured, progress)?;
    let adapted = adapted.map(|adapted| questions.answer(model, adapted, progress)).transpose()?;
    let reference = reference.map(|reference| questions.answer(model, reference, progress)).transpose()?;
    progress.finish();
    Ok(questions.report(answers, adapted.as_deref(), reference.as_deref()))
}

/// Scores the measured model, without its adapter and with it, and its divergence from the reference, on the windows of `text`.
pub(crate) fn measure(
    models: Models<'_>,
    windows: &[Vec<u32>],
    text: TextSummary,
    memory: Memory,
    progress: &dyn Progress,
) -> Result<EvaluationReport, Error> {
    let Models { measured, adapted, reference } = models;
    if let Some(reference) = reference {
        demand_same_shape(measured, reference)?;
    }
    let together = memory.measured_tokens();
    let spans: Vec<usize> = evaluation::batches(windows, together).map(<[Vec<u32>]>::len).collect();
    let source = reference.map(|reference| reference as &dyn WeightSource);
    let order = Order { layers: measured.model.layers.len(), spans, compares: reference.is_some() };
    progress.phase("measuring", order.steps() * (1 + usize::from(adapted.is_some())));
    let mut done = 0;
    progress.at(&order.place(done));
    let mut step = || {
        progress.step("");
        done += 1;
        progress.at(&order.place(done));
        if progress.interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let mut run = |model: &dyn WeightSource| match evaluation::evaluate(
        &measured.model,
        model,
        source,
        (windows, together),
        &mut step,
    ) {
        Err(CalibrationError::Interrupted) => Err(Error::Interrupted),
        found => Ok(found?),
    };
    let found = run(measured)?;
    let adapted = adapted.map(|adapted| run(adapted)).transpose()?;
    progress.finish();

    let is_original = measured.format.is_none() && reference.is_none();
    let original = if is_original { Some(&found.measured) } else { found.reference.as_ref() };
    Ok(EvaluationReport {
        text: text.text,
        windows: text.windows,
        context: text.context,
        tokens: text.tokens,
        requested: text.requested,
        fingerprint: text.fingerprint,
        original: original.map(perplexity),
        quantized: (!is_original).then(|| quality(&found)),
        adapted: adapted.as_ref().map(quality),
        window_nll: found.measured.window_nll,
    })
}

/// How the steps of measuring follow each other: batches of so many windows, the layers of each, in which two models take turns where it
/// compares, and then its scores.
struct Order {
    layers: usize,
    spans: Vec<usize>,
    compares: bool,
}

impl Order {
    /// What the step after so many works on; nothing where there is none.
    fn place(&self, done: usize) -> String {
        let (batch, step) = (done / self.of_batch(), done % self.of_batch());
        // With an adapter the whole of it comes twice.
        let batch = batch % self.spans.len().max(1);
        let Some(&windows) = self.spans.get(batch) else { return String::new() };
        let first: usize = self.spans[..batch].iter().sum();
        let seen = format!("windows {} to {}", first + 1, first + windows);
        match (step / self.models(), step % self.models()) {
            (layer, _) if layer == self.layers => format!("scores, {seen}"),
            (layer, 0) => format!("layer {layer}, {seen}"),
            (layer, _) => format!("layer {layer}, {seen}, reference"),
        }
    }

    fn steps(&self) -> usize {
        self.of_batch() * self.spans.len()
    }

    /// Steps of a batch.
    fn of_batch(&self) -> usize {
        self.layers * self.models() + 1
    }

    fn models(&self) -> usize {
        1 + usize::from(self.compares)
    }
}

fn quality(found: &Evaluation) -> QuantizedQuality {
    let divergence = found.divergence;
    QuantizedQuality {
        perplexity: found.measured.perplexity.value,
        perplexity_stderr: found.measured.perplexity.stderr,
        kl_mean: divergence.map(|d| d.mean.value),
        kl_stderr: divergence.map(|d| d.mean.stderr),
        kl_p99: divergence.map(|d| d.p99.value),
        kl_p99_stderr: divergence.map(|d| d.p99.stderr),
        top1_agreement: divergence.map(|d| d.top1_agreement),
    }
}

fn perplexity(score: &Score) -> Perplexity {
    let Estimate { value, stderr } = score.perplexity;
    Perplexity { perplexity: value, perplexity_stderr: stderr }
}

/// The rotation but for what GGUF cannot say: whether the ends of YaRN's ramp are whole features.
fn comparable(rope: &Rope) -> Rope {
    let mut rope = rope.clone();
    if let RopeScaling::Yarn { truncate, .. } = &mut rope.scaling {
        *truncate = true;
    }
    rope
}

/// A divergence needs the same vocabulary; the layers are run by one description, so they have to be the same too.
fn demand_same_shape(measured: &StoredModel, reference: &StoredModel) -> Result<(), Error> {
    let (ours, theirs) = (&measured.model, &reference.model);
    let (here, there) = (&ours.hyperparameters, &theirs.hyperparameters);
    // GGUF has single precision, and other ways to say the same.
    let ((turns, factor), (turns_there, factor_there)) =
        (comparable(&here.rope).frequencies(0), comparable(&there.rope).frequencies(0));
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs();
    let turns_alike = turns.len() == turns_there.len()
        && turns.iter().zip(&turns_there).all(|(a, b)| near(*a, *b))
        && near(factor, factor_there);
    let same = (ours.architecture == theirs.architecture
        || ours.architecture.llama_cpp.is_some_and(|there| theirs.architecture.llama_cpp == Some(there)))
        && ours.linears().eq(theirs.linears())
        && here.vocabulary == there.vocabulary
        && turns_alike
        && here.heads == there.heads
        && near(here.norm_eps, there.norm_eps);
    if same {
        return Ok(());
    }
    Err(Error::NotSuitable {
        path: reference.path.clone(),
        problem: format!("its shape is not that of {}", measured.path.display()),
        hint: "a divergence compares a model with the original it was made from",
    })
}

/// Writes the f32 tensor `logits` `[windows, tokens, vocabulary]`, window by window, and the i64 tensor `lengths` `[windows]`; rows behind
/// the end of a window that is shorter than the longest are zero.
fn export_logits(
    model: &StoredModel,
    source: &dyn WeightSource,
    windows: &[Vec<u32>],
    mut file: ExportFile,
) -> Result<(), Error> {
    let context = windows.iter().map(Vec::len).max().unwrap_or(0);
    let vocabulary = model.model.hyperparameters.vocabulary;
    let (count, window) = (windows.len(), 4 * context * vocabulary);
    let end = count * window;
    let header = serde_json::json!({
        "logits": {"dtype": "F32", "shape": [count, context, vocabulary], "data_offsets": [0, end]},
        "lengths": {"dtype": "I64", "shape": [count], "data_offsets": [end, end + 8 * count]}
    });
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    let mut written = Ok(());
    calibration::evaluation::visit_logits(&model.model, source, windows, &mut |logits| {
        if written.is_ok() {
            let mut bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
            bytes.resize(window, 0);
            written = file.write(&bytes);
        }
    })?;
    written?;
    for tokens in windows {
        file.write(&(tokens.len() as i64).to_le_bytes())?;
    }
    file.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_measuring_has_its_layer_windows_and_model() {
        let order = Order { layers: 3, spans: vec![4, 2], compares: true };
        let places: Vec<String> = [0, 1, 4, 6, 7, 12, 13, 14].map(|done| order.place(done)).into();
        let expected = [
            "layer 0, windows 1 to 4",
            "layer 0, windows 1 to 4, reference",
            "layer 2, windows 1 to 4",
            "scores, windows 1 to 4",
            "layer 0, windows 5 to 6",
            "layer 2, windows 5 to 6, reference",
            "scores, windows 5 to 6",
            "layer 0, windows 1 to 4",
        ];
        assert_eq!((order.steps(), places), (14, expected.map(str::to_owned).to_vec()));
        let alone = Order { layers: 3, spans: vec![4, 2], compares: false };
        assert_eq!((alone.steps(), alone.place(5)), (8, "layer 1, windows 5 to 6".to_owned()));
    }
}
