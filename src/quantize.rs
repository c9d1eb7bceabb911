//! `quantize`: plan, solve, write, verify, put in place, measure.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use calibration::transforms::Transformed;
use calibration::weights::WeightSource;
use formats::output::OutputDirectory;
use formats::side_files::REPORT;
use kernels::account;
use kernels::ranks::{Alone, Ranks};
use model::Model;

use crate::budget::Options;
use crate::card::{Card, Origin};
use crate::error::Error;
use crate::exchange;
use crate::experts;
use crate::hub;
use crate::importance::{ImportanceFile, ImportanceGatherer, MeanSquares};
use crate::job::{Budget, Calibration, QuantizeJob, Text};
use crate::journal::{self, Fingerprint, Journal};
use crate::memory::{self, Memory};
use crate::outputs::{FinishedOutput, OpenOutput, replace};
use crate::pipeline::{self, Inputs, Track};
use crate::plan::{Plan, demand_as_asked, quantized_source};
use crate::precision;
use crate::progress::Progress;
use crate::render::overview;
use crate::report::{Phase, Report};
use crate::requirements;
use crate::resources::{self, Resources, Stopwatch};
use crate::showing::Look;
use crate::space;
use crate::stored::StoredModel;
use crate::texts::Texts;
use crate::transformed;
use crate::work;

/// Quantizes a checkpoint: everything the command does, without a terminal. One report for each target, in their order.
///
/// Targets whose linears have the same grids share one solve; every further grid is another track with a quantized stream of its own. Text,
/// gradients and the original's stream are shared by all. What is done is in a journal beside the output, from which the same job goes on.
///
/// # Errors
/// Whatever keeps the job from being done; nothing half-written stays but the journal. Outputs that were written and verified stay even if
/// measuring them fails.
pub fn quantize(job: &QuantizeJob, progress: &dyn Progress) -> Result<Vec<Report>, Error> {
    quantize_among(job, &Alone::ranks(), progress)
}

/// The same by several ranks, each of which calls it with the same job. What is written, told and reported is rank 0's; the others have no report. Bytes
/// are those of one process.
///
/// # Errors
/// As [`quantize`]; a rank that does not do what rank 0 does, and what keeps ranks from telling each other.
pub fn quantize_among(
    job: &QuantizeJob,
    ranks: &Arc<dyn Ranks>,
    progress: &dyn Progress,
) -> Result<Vec<Report>, Error> {
    demand_wanted(job)?;
    // Nothing is measured but by rank 0.
    let evaluation = job.evaluation.clone().filter(|_| ranks.is_first());
    let job = &QuantizeJob { evaluation, ..job.clone() };
    let mut journal = Journal::claim_among(job, &**ranks)?;
    match quantize_from(job, &mut journal, ranks, progress) {
        Err(Error::Interrupted) if journal.holds_anything() => {
            Err(Error::InterruptedWithJournal { path: journal.place().to_owned() })
        }
        Ok(reports) => {
            journal.remove()?;
            Ok(reports)
        }
        Err(error) => {
            if error.is_of_the_job() && journal.layers() == 0 {
                // The same command would fail again, and another one is not to be told of this one.
                journal.forget();
            }
            Err(error)
        }
    }
}

/// Goes on from the journal.
fn quantize_from(
    job: &QuantizeJob,
    journal: &mut Journal,
    ranks: &Arc<dyn Ranks>,
    progress: &dyn Progress,
) -> Result<Vec<Report>, Error> {
    account::start(resources::now);
    let watch = Stopwatch::start();
    let mut phases = Phases::start();
    let places = job.places();
    let first = ranks.is_first();
    let mut importance = None;
    if first {
        demand_places(job, &places, journal)?;
        demand_apart(job)?;
        let create = |path| ImportanceFile::create(path, &job.output);
        importance = job.export_imatrix.as_deref().map(create).transpose()?;
    }
    let directory = exchange::first(&**ranks, || hub::model_directory(&job.model, progress))?;
    let source = StoredModel::open_source(&directory)?;
    quantized_source(&source).iter().for_each(|note| progress.warn(note));
    let read = journal::files_read(&source)?.into_iter().map(|(_, path)| path);
    journal.watch(source.checkpoint.stamp()?.with_files(read)?);
    let plans = job.targets.iter().map(|target| Plan::make(&source, job, target));
    let mut plans = plans.collect::<Result<Vec<_>, Error>>()?;
    requirements::demand_known(job, &plans)?;
    plans.iter().try_for_each(|plan| requirements::demand(job, plan, &source.model))?;
    demand_own_inputs(job)?;
    plans.iter().flat_map(|plan| &plan.downgrades).for_each(|note| progress.warn(note));
    let solved: Vec<&Plan> = groups(&plans).iter().map(|group| &plans[group[0]]).collect();
    let memory = Memory::demand(job, &source.model, &solved)?;
    memory.hold();
    if first {
        demand_space(job, &source.model, &plans, (journal, memory))?;
    }
    let options = job.budget.map(|budget| Options::find(&source, &plans[0], job, budget)).transpose()?;
    // It must have what each of them asks for; the one that asks for most has all.
    let read = |path: &Path| {
        let mut read = plans.iter().map(|plan| Ok((plan, MeanSquares::read(path, plan, &source.model)?)));
        let all = read.by_ref().collect::<Result<Vec<_>, Error>>()?;
        Ok::<_, Error>(
            all.into_iter().max_by_key(|(plan, _)| plan.quantized().count()).map(|(_, known)| known),
        )
    };
    let known = job.imatrix.as_deref().map(read).transpose()?.flatten();
    let fingerprint = exchange::first(&**ranks, || Fingerprint::of(job, &source, progress))?;
    exchange::demand_same(&**ranks, &fingerprint)?;
    journal.agree(&fingerprint)?;
    if journal.holds_anything() {
        let (layers, of, path) = (journal.layers(), source.model.layers.len(), journal.place().display());
        progress.note(&format!("going on from {path}: {layers} of {of} layers are done"));
    }
    // Text is read first: an hour of work must not end at a misspelled file name.
    let gathers = options.is_some() || job.export_imatrix.is_some();
    let known_inputs = known.as_ref();
    let told = (&mut phases, progress);
    let reading = account::section("reading text");
    let texts = Texts::read(job, &source, &plans, known_inputs, gathers, journal, told)?;
    drop(reading);

    let transformed = transformed::of(&source, &plans[0], &texts.windows, progress)?;
    let model = transformed.as_ref().map_or(&source.model, Transformed::model);
    let weights: &dyn WeightSource = transformed.as_ref().map_or(&source, |transformed| transformed);
    let mut notes = texts.notes;
    notes.extend(options.as_ref().and_then(|options| options.note.clone()));
    let allocation = match options {
        None => None,
        Some(options) => {
            let kept = Some((&mut *journal, memory));
            let (widths, allocation) =
                options.choose(model, weights, &plans[0], &texts.windows, kept, progress)?;
            let told = plans[0].downgrades.len();
            plans[0] = plans[0].clone().with_widths(&widths)?;
            plans[0].downgrades.iter().skip(told).for_each(|note| progress.warn(note));
            // Other widths may be none of a runtime's that was asked for.
            requirements::demand(job, &plans[0], &source.model)?;
            phases.end("weighing widths");
            Some(allocation)
        }
    };

    // None for those that an earlier process put in their places, or that another rank writes.
    let opened = plans.iter().zip(&places).map(|(plan, place)| match journal.placed(place) {
        Some(_) => Ok(None),
        None if !first => Ok(None),
        None => OpenOutput::begin(&source, transformed.as_ref(), plan, job, place).map(Some),
    });
    let mut outputs = opened.collect::<Result<Vec<_>, Error>>()?;
    let groups = groups(&plans);
    // An adapter corrects what the solver left.
    let scale_passes = if job.adapter_rank.is_none() { job.recipe.scale_passes() } else { 0 };
    let corrected = job.adapter_rank.is_some();
    let mut tracks: Vec<Track<'_>> =
        groups.iter().map(|group| Track::new(&plans[group[0]], scale_passes, first, corrected)).collect();
    for (number, output) in outputs.iter_mut().enumerate() {
        let track = groups.iter().position(|group| group.contains(&number)).unwrap_or(0);
        if let Some((writer, adapters)) = output.as_mut().map(OpenOutput::sinks) {
            tracks[track].writers.push(writer);
            tracks[track].adapters = adapters;
        }
    }
    let mut gathered = job.export_imatrix.as_ref().map(|_| ImportanceGatherer::default());
    let precision = precision::settle(&plans);
    let inputs = known.as_ref().map_or(Inputs::Windows(&texts.windows, precision), Inputs::MeanSquares);
    let count = |windows: &[Vec<u32>]| windows.iter().map(Vec::len).sum();
    let tokens = work::Tokens {
        calibration: if known.is_some() { 0 } else { count(&texts.windows) },
        windows: texts.windows.len(),
        evaluation: texts.evaluation.as_ref().map_or(0, |text| count(&text.windows.tokens)),
    };
    let left = model.layers.len().saturating_sub(journal.layers());
    let solved: Vec<&Plan> = groups.iter().map(|group| &plans[group[0]]).collect();
    progress.expect(&work::phases(job, model, &solved, plans.len(), tokens, precision, left));
    let kept = (&mut *journal, memory, ranks);
    let outcomes =
        pipeline::quantize_layers(model, weights, &mut tracks, inputs, gathered.as_mut(), kept, progress)?;
    drop(tracks);
    drop(texts.windows);
    let costs = exchange::costs(&**ranks, watch.read())?;
    if !first {
        return Ok(Vec::new());
    }
    for outcome in &outcomes {
        let leaning = experts::notes(&outcome.coverage, experts::COLD);
        demand_as_asked(job.strict, &leaning)?;
        leaning.iter().for_each(|note| progress.warn(note));
    }
    let outcome_of = |number: usize| {
        let track = groups.iter().position(|group| group.contains(&number)).unwrap_or(0);
        &outcomes[track]
    };
    let card_of = |plan: &Plan| {
        let texts = texts.calibration.iter().chain(&texts.own).filter(|_| plan.solves_with_data());
        let origin = Origin::Quantized { recipe: &job.recipe.name, texts: texts.collect() };
        Card::new(&source, &source.path, plan.format.id(), &origin, &plan.linears, &plan.runtimes)
    };
    let closed = outputs.into_iter().zip(&plans).enumerate().map(|(number, (output, plan))| {
        output.map(|output| output.finish(outcome_of(number), job.budget, card_of(plan))).transpose()
    });
    let closed = closed.collect::<Result<Vec<_>, Error>>()?;
    journal.demand_unchanged()?;
    phases.end("quantizing");
    // One after the other: what is verified stands in its place, whatever becomes of the next.
    let mut finished = Vec::with_capacity(closed.len());
    for ((output, plan), place) in closed.into_iter().zip(&plans).zip(&places) {
        finished.push(match (output, journal.placed(place)) {
            (Some(output), _) => output.verify(progress)?.commit_noted(journal)?,
            (None, Some(placed)) => FinishedOutput::standing(place, placed, card_of(plan), progress)?,
            (None, None) => return Err(Error::Internal(format!("{} is gone", place.display()))),
        });
    }
    if let (Some(file), Some(gathered), Some(text)) = (importance, gathered, &texts.calibration) {
        file.write(gathered, &text.with(texts.own.as_ref()))?;
    }
    phases.end("verifying");

    let measuring = account::section("measuring");
    let mut evaluations = Vec::with_capacity(finished.len());
    for output in &finished {
        let measured = texts.evaluation.as_ref().map(|text| output.measure(&source, text, memory, progress));
        evaluations.push(measured.transpose()?);
    }
    phases.end("measuring");
    let windows = texts.evaluation.as_ref().map(|text| text.windows.tokens.as_slice());
    let interrupted = |error| match error {
        Error::Interrupted => Error::InterruptedMeasuring { path: job.output.clone() },
        error => error,
    };
    let look =
        Look::at_original(&job.command, &source, windows, finished.len(), progress).map_err(interrupted)?;
    drop(measuring);
    let spent: Vec<Phase> = account::finish().into_iter().map(Phase::from).collect();
    let names: Vec<String> = finished.iter().map(|output| output.place.display().to_string()).collect();
    let resources = watch.read();
    let summary = source.summary()?;
    let reports = finished.into_iter().zip(evaluations).zip(plans).enumerate();
    let reports = reports
        .map(|(number, ((output, evaluation), plan))| {
            let outcome = outcome_of(number);
            let with = groups.iter().find(|group| group.contains(&number)).into_iter().flatten();
            let cold = experts::notes(&outcome.coverage, job.min_expert_tokens.unwrap_or(experts::COLD));
            let solved_worse = outcome.rows.iter().filter_map(|row| row.downgrade.as_ref());
            let leaning = experts::notes(&outcome.coverage, experts::COLD);
            let downgrades = plan.downgrades.iter().chain(solved_worse).chain(&leaning).cloned().collect();
            let all_notes = notes.iter().chain(&plan.notes).chain(&outcome.notes).chain(&cold);
            let report = Report {
                version: env!("CARGO_PKG_VERSION"),
                model: summary.clone(),
                output: names[number].clone(),
                format: plan.format.id().to_owned(),
                solved_with: with
                    .filter(|&&other| other != number)
                    .map(|&other| names[other].clone())
                    .collect(),
                recipe: job.recipe.name.clone(),
                transforms: plan.transforms.clone(),
                size: output.size(&source, &plan, outcome)?,
                calibration: texts.calibration.clone(),
                own_text: texts.own.clone(),
                products: texts.calibration.is_some().then(|| precision::name(precision)),
                imatrix: known
                    .as_ref()
                    .map(|known| known.summary.clone())
                    .filter(|_| plan.solves_with_data()),
                allocation: allocation.clone(),
                adapter: output.adapter,
                learned_scales: outcome.learned,
                linears: outcome.rows.clone(),
                experts: outcome.coverage.clone(),
                notes: all_notes.cloned().collect(),
                downgrades,
                kept: plan.kept,
                unknown_tensors: plan.unknown_tensors,
                runtimes: plan.runtimes,
                verification: output.verification.clone(),
                evaluation,
                resources,
                ranks: costs.clone(),
                phases: phases.done.clone(),
                account: spent.clone(),
            };
            output.publish(&report, &look).map_err(interrupted)?;
            Ok(report)
        })
        .collect::<Result<Vec<_>, Error>>()?;
    if windows.is_some() {
        progress.finish();
    }
    if reports.len() > 1 {
        replace(&job.output.join(REPORT), overview::page(&reports).as_bytes())?;
    }
    Ok(reports)
}

/// Plans whose solutions are the same, by number, in order.
fn groups(plans: &[Plan]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (number, plan) in plans.iter().enumerate() {
        match groups.iter_mut().find(|group| plans[group[0]].solves_alike(plan)) {
            Some(group) => group.push(number),
            None => groups.push(vec![number]),
        }
    }
    groups
}

/// Outputs must be where they may be, unless this run put them there itself.
fn demand_places(job: &QuantizeJob, places: &[PathBuf], journal: &Journal) -> Result<(), Error> {
    let mut others = places.iter().filter(|place| journal.placed(place).is_none());
    Ok(others.try_for_each(|place| OutputDirectory::check(place, job.force))?)
}

/// Outputs must be wanted, and each once.
fn demand_wanted(job: &QuantizeJob) -> Result<(), Error> {
    let refuse = |flag, problem: &str| Err(Error::Argument { flag, problem: problem.to_owned() });
    let places = job.places();
    if places.is_empty() {
        return refuse("--to", "expected a format, found none");
    }
    for (number, place) in places.iter().enumerate() {
        if places[..number].contains(place) {
            return refuse("--to", &format!("{} would be written twice", place.display()));
        }
    }
    if places.len() > 1 {
        // Each of these is one target's: a bound on its size, what its solution lacks.
        if job.budget.is_some() {
            return refuse("--target-bits", "bounds one output, and several are asked for");
        }
        if job.adapter_rank.is_some() {
            return refuse("--adapter-rank", "corrects one output, and several are asked for");
        }
        // A directory of outputs is no output itself, nor anything else.
        if job.output.join(crate::record::RECORD_FILE).exists() || job.output.is_file() {
            let problem = "is an output or a file, and several outputs would be written into it".to_owned();
            let hint = "choose another directory";
            return Err(Error::NotSuitable { path: job.output.clone(), problem, hint });
        }
    }
    Ok(())
}

/// Outputs are large, and the journal beside them: a disk that is too small is known before hours of work.
fn demand_space(
    job: &QuantizeJob,
    model: &Model,
    plans: &[Plan],
    (journal, memory): (&Journal, Memory),
) -> Result<(), Error> {
    // What widths are still to be chosen for is no larger than this.
    let bytes = plans.iter().map(|plan| plan.format.weights_bytes(&plan.tensors(), job.max_shard_size));
    let bytes = match job.budget {
        Some(Budget::Bytes(most)) => bytes.sum::<u64>().min(most),
        _ => bytes.sum(),
    };
    let solved: Vec<&Plan> = groups(plans).iter().map(|group| &plans[group[0]]).collect();
    // What a run before has written of it takes no more room.
    let beside = if journal.holds_anything() { 0 } else { memory::journal(job, model, &solved) };
    let beside = beside + memory.on_disk();
    let what = if beside > 0 { "the output with its journal" } else { "the output" };
    space::demand(&job.output, bytes + beside, what, "make room, or write to another disk with -o")
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
    demand_outside(&job.output, files.chain(&job.imatrix).chain([&job.model]))
}

/// Fails for a file or directory that is in the output, and would go with what the output replaces.
pub(crate) fn demand_outside<'a>(
    output: &Path,
    mut inputs: impl Iterator<Item = &'a PathBuf>,
) -> Result<(), Error> {
    let place = resolved(output);
    match inputs.find(|path| resolved(path).starts_with(&place)) {
        None => Ok(()),
        Some(path) => Err(Error::NotSuitable {
            path: output.to_owned(),
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

/// Times the phases of a run.
pub(crate) struct Phases {
    watch: Stopwatch,
    before: Resources,
    done: Vec<Phase>,
}

impl Phases {
    fn start() -> Self {
        Self { watch: Stopwatch::start(), before: Resources::default(), done: Vec::new() }
    }

    pub(crate) fn end(&mut self, name: &'static str) {
        let now = self.watch.read();
        self.done.push(Phase {
            name,
            wall_seconds: now.wall_seconds - self.before.wall_seconds,
            cpu_seconds: now.cpu_seconds - self.before.cpu_seconds,
        });
        self.before = now;
    }
}
