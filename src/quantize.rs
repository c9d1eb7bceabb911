//! `quantize`: plan, solve, write, verify, put in place, measure.

use std::path::{Path, PathBuf};

use calibration::transforms::Transformed;
use calibration::weights::WeightSource;
use formats::adapter::DIRECTORY;
use formats::output::OutputDirectory;

use crate::adapted::{AdaptedModel, AdapterWriter};
use crate::budget::Options;
use crate::carry::carry_over;
use crate::corpora;
use crate::error::Error;
use crate::evaluate::{Models, measure};
use crate::importance::{ImportanceFile, ImportanceGatherer, MeanSquares};
use crate::job::{Calibration, QuantizeJob, Text, WindowRequest};
use crate::own_text;
use crate::pipeline::{self, Inputs, Outcome, Outputs};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::record::{Record, file_records};
use crate::report::{Phase, Report, Size};
use crate::resources::{Resources, Stopwatch};
use crate::stored::StoredModel;
use crate::transformed;
use crate::verify;

/// Share of the evaluation text that may be in the calibration text, as licences and headlines are.
const MOST_OVERLAP: f64 = 0.01;

/// Quantizes a checkpoint: everything the command does, without a terminal.
///
/// # Errors
/// Whatever keeps the job from being done; nothing half-written stays. An output that was written and verified stays even if measuring
/// it fails.
pub fn quantize(job: &QuantizeJob, progress: &dyn Progress) -> Result<Report, Error> {
    let watch = Stopwatch::start();
    let mut phases = Phases::start();
    OutputDirectory::check(&job.output, job.force)?;
    demand_apart(job)?;
    let importance =
        job.export_imatrix.as_deref().map(|path| ImportanceFile::create(path, &job.output)).transpose()?;
    let source = StoredModel::open_original(&job.model)?;
    let mut plan = Plan::make(&source, job)?;
    demand_own_inputs(job)?;
    let options = job.budget.map(|budget| Options::find(&source, &plan, job, budget)).transpose()?;
    let tokenizer = source.tokenizer()?;
    let mut notes = plan.notes.clone();
    notes.extend(options.as_ref().and_then(|options| options.note.clone()));
    // Text is read first: an hour of work must not end at a misspelled file name.
    let evaluation = match &job.evaluation {
        None => None,
        Some((text, request)) => {
            let read = corpora::read(text, *request, &source.model, tokenizer.as_ref())?;
            notes.extend(read.notes.iter().cloned());
            Some(read)
        }
    };
    let known =
        job.imatrix.as_deref().map(|path| MeanSquares::read(path, &plan, &source.model)).transpose()?;
    let needs_text = known.is_none() && plan.needs_calibration() || options.is_some() || importance.is_some();
    if let (Some(known), false) = (&known, plan.solves_with_data()) {
        notes.push(format!(
            "{} was not used: recipe {} weighs no inputs",
            known.summary.path, job.recipe.name
        ));
    }
    let mut own = None;
    let (windows, calibration) = if needs_text {
        let (request, tokenizer) = (job.calibration_windows, tokenizer.as_ref());
        let read = match &job.calibration {
            Calibration::Text(text) => corpora::read(text, request, &source.model, tokenizer)?,
            // All of it in one draw: a second one would repeat the first.
            Calibration::Own => {
                phases.end("reading");
                let samples = request.samples.saturating_mul(1 + job.recipe.own_text());
                own_text::write(&source, tokenizer, WindowRequest { samples, ..request }, progress)?
            }
        };
        notes.extend(read.notes);
        let mut windows = read.windows.tokens;
        if job.recipe.own_text() > 0 && job.calibration != Calibration::Own {
            let more = WindowRequest { samples: windows.len() * job.recipe.own_text(), ..request };
            phases.end("reading");
            let read = own_text::write(&source, tokenizer, more, progress)?;
            windows.extend(read.windows.tokens);
            own = Some(read.summary);
        }
        (windows, Some(read.summary))
    } else {
        let recipe = &job.recipe.name;
        match &job.calibration {
            Calibration::Text(Text::File(path)) if known.is_none() => {
                let path = path.display();
                notes.push(format!("{path} was not read: recipe {recipe} needs no calibration text"));
            }
            Calibration::Own => {
                notes.push(format!("the model wrote no text: recipe {recipe} needs no calibration text"));
            }
            Calibration::Text(_) if known.is_none() && job.recipe.own_text() > 0 => {
                notes.push(format!("the model wrote no text: recipe {recipe} needs none"));
            }
            Calibration::Text(_) => {}
        }
        (Vec::new(), None)
    };
    if known.is_some() && plan.propagates_errors() {
        notes.push(
            "an importance matrix has no correlations of inputs: no weight makes up for another's error, nor for earlier layers'"
                .to_owned(),
        );
    }
    if known.is_some() && (plan.couples_rows().next().is_some() || job.recipe.own_text() > 0) {
        notes.push(format!(
            "with an importance matrix no text is read or written: recipe {} weighs no outputs or tokens",
            job.recipe.name
        ));
    }
    if job.adapter_rank.is_some() && job.recipe.scale_passes() > 0 {
        notes.push("scales do not learn beside an adapter, which corrects what the solver left".to_owned());
    }
    if windows.len() == 1 && plan.propagates_errors() {
        notes.push(
            "one calibration window leaves none to hold out: no error of earlier layers is made up for"
                .to_owned(),
        );
    }
    if let Some(read) = &evaluation {
        let shared = corpora::overlap(&windows, &read.windows.tokens);
        if shared >= MOST_OVERLAP {
            let percent = 100.0 * shared;
            let note = format!(
                "{percent:.0} % of the evaluation text is in the calibration text: the figures flatter the result"
            );
            progress.warn(&note);
            notes.push(note);
        }
    }
    let writes = needs_text && (job.calibration == Calibration::Own || own.is_some());
    phases.end(if writes { "writing text" } else { "reading" });

    let transformed = transformed::of(&source, &plan, &windows, progress)?;
    let model = transformed.as_ref().map_or(&source.model, Transformed::model);
    let weights: &dyn WeightSource = transformed.as_ref().map_or(&source, |transformed| transformed);
    let allocation = match options {
        None => None,
        Some(options) => {
            let (widths, allocation) = options.choose(model, weights, &plan, &windows, progress)?;
            plan = plan.with_widths(&widths)?;
            phases.end("weighing widths");
            Some(allocation)
        }
    };

    let output = OutputDirectory::create(&job.output, job.force)?;
    let mut writer = plan.format.begin(output.path(), &plan.contents(&source, job))?;
    let tensors = carry_over(&source, transformed.as_ref(), &plan.carried, writer.as_mut())?;
    let adapters = job.adapter_rank.map(|rank| AdapterWriter::create(output.path(), &plan, rank));
    let mut adapters = adapters.transpose()?;
    let mut gathered = importance.as_ref().map(|_| ImportanceGatherer::default());
    let inputs = known.as_ref().map_or(Inputs::Windows(&windows), Inputs::MeanSquares);
    let outputs = Outputs {
        writer: writer.as_mut(),
        adapters: adapters.as_mut(),
        importance: gathered.as_mut(),
        scale_passes: if job.adapter_rank.is_none() { job.recipe.scale_passes() } else { 0 },
    };
    let outcome = pipeline::quantize_layers(model, weights, &plan, inputs, outputs, progress)?;
    drop(windows);
    let adapter = adapters.map(AdapterWriter::finish).transpose()?;
    let tensor_bytes = writer.tensor_bytes();
    writer.finish()?;
    phases.end("quantizing");

    let record = Record {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        format: plan.format.id().to_owned(),
        budget: job.budget,
        linears: outcome.records.iter().cloned().collect(),
        tensors,
        files: file_records(output.path())?,
    };
    record.write(output.path())?;
    let verification = verify::verify(output.path(), progress)?;
    if !verification.problems.is_empty() {
        return Err(Error::Verification(Box::new(verification)));
    }
    output.commit()?;
    if let (Some(file), Some(gathered), Some(text)) = (importance, gathered, &calibration) {
        file.write(gathered, &text.with(own.as_ref()))?;
    }
    phases.end("verifying");

    let written = StoredModel::open(&job.output)?;
    let evaluation = match evaluation {
        None => None,
        Some(read) => {
            let adapted = adapter.map(|_| AdaptedModel::open(&written, &job.output.join(DIRECTORY)));
            let adapted = adapted.transpose()?;
            let models = Models { measured: &written, adapted: adapted.as_ref(), reference: Some(&source) };
            let found = measure(models, &read.windows.tokens, read.summary, progress);
            Some(found.map_err(|error| match error {
                Error::Interrupted => Error::InterruptedMeasuring { path: job.output.clone() },
                error => error,
            })?)
        }
    };
    phases.end("measuring");
    notes.extend(outcome.notes.iter().cloned());
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        model: source.summary()?,
        output: job.output.display().to_string(),
        format: plan.format.id().to_owned(),
        recipe: job.recipe.name.clone(),
        transforms: plan.transforms.clone(),
        size: size(&source, &written, &plan, &outcome, tensor_bytes)?,
        calibration,
        own_text: own,
        imatrix: known.map(|known| known.summary).filter(|_| plan.solves_with_data()),
        allocation,
        adapter,
        learned_scales: outcome.learned,
        linears: outcome.rows,
        kept: plan.kept,
        unknown_tensors: plan.unknown_tensors,
        notes,
        runtimes: plan.runtimes,
        verification,
        evaluation,
        resources: watch.read(),
        phases: phases.done,
    })
}

/// Transformed weights have other inputs than an importance matrix of the original.
fn demand_own_inputs(job: &QuantizeJob) -> Result<(), Error> {
    let flags = [("--imatrix", &job.imatrix), ("--export-imatrix", &job.export_imatrix)];
    match flags.into_iter().find(|(_, path)| path.is_some() && !job.recipe.transforms().is_empty()) {
        None => Ok(()),
        Some((flag, _)) => {
            let problem = format!(
                "recipe {} transforms the weights, whose inputs are then not those of the original's matrix",
                job.recipe.name
            );
            Err(Error::Argument { flag, problem })
        }
    }
}

/// Putting the output in its place must not take the job's own files with it.
fn demand_apart(job: &QuantizeJob) -> Result<(), Error> {
    let calibration = match &job.calibration {
        Calibration::Text(text) => Some(text),
        Calibration::Own => None,
    };
    let texts = [calibration, job.evaluation.as_ref().map(|(text, _)| text)];
    let files = texts.into_iter().flatten().filter_map(|text| match text {
        Text::File(path) => Some(path),
        _ => None,
    });
    let output = resolved(&job.output);
    match files.chain(&job.imatrix).chain([&job.model]).find(|path| resolved(path).starts_with(&output)) {
        None => Ok(()),
        Some(path) => Err(Error::NotSuitable {
            path: job.output.clone(),
            problem: format!("would be replaced, and {} is in it", path.display()),
            hint: "choose another output",
        }),
    }
}

/// A path without links, also one that does not exist yet.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new(".")).canonicalize();
        match (parent, path.file_name()) {
            (Ok(parent), Some(name)) => parent.join(name),
            _ => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
        }
    })
}

fn size(
    source: &StoredModel,
    written: &StoredModel,
    plan: &Plan,
    outcome: &Outcome,
    tensor_bytes: u64,
) -> Result<Size, Error> {
    let parameters = source.summary()?.parameters;
    let packed: u64 = plan
        .quantized()
        .flat_map(|(linear, scheme)| plan.format.layout(linear, scheme))
        .filter(|spec| !spec.name.ends_with("g_idx") && !spec.name.ends_with("_shape"))
        .map(|spec| spec.bytes())
        .sum();
    let quantized: u64 = outcome.rows.iter().map(|row| (row.shape[0] * row.shape[1]) as u64).sum();
    Ok(Size {
        bytes: written.checkpoint.file_bytes()?,
        original_bytes: source.checkpoint.file_bytes()?,
        bits_per_weight: tensor_bytes as f64 * 8.0 / parameters as f64,
        linear_bits_per_weight: if quantized == 0 { 0.0 } else { packed as f64 * 8.0 / quantized as f64 },
    })
}

/// Times the phases of a run.
struct Phases {
    watch: Stopwatch,
    before: Resources,
    done: Vec<Phase>,
}

impl Phases {
    fn start() -> Self {
        Self { watch: Stopwatch::start(), before: Resources::default(), done: Vec::new() }
    }

    fn end(&mut self, name: &'static str) {
        let now = self.watch.read();
        self.done.push(Phase {
            name,
            wall_seconds: now.wall_seconds - self.before.wall_seconds,
            cpu_seconds: now.cpu_seconds - self.before.cpu_seconds,
        });
        self.before = now;
    }
}
