//! The method, on one page: staged execution of the calibration windows, one solve for each linear, packed tensors written as they come.

use std::sync::Arc;

use formats::model_writer::ModelWriter;
use kernels::account::section;
use kernels::bf16::Precision;
use kernels::ranks::Ranks;
use model::graph::StageInput;
use model::linear::{Linear, Part};
use model::{Layer, Model, Stage};
use quantizer::prepared::Rung;
use quantizer::scheme::{Granularity, Symmetry};
use quantizer::solver::Solution;
use quantizer::tensor::QuantizedTensor;

use calibration::weights::{LayerWeights, WeightSource};

use crate::adapted::AdapterWriter;
use crate::error::Error;
use crate::experts::{ExpertCoverage, LayerExperts};
use crate::gradients::{self, LayerGradients};
use crate::grids;
use crate::importance::{ImportanceGatherer, MeanSquares};
use crate::journal::{Journal, LayerEntry, Restored};
use crate::memory::Memory;
use crate::outer;
use crate::plan::{Plan, demand_as_asked};
use crate::progress::{Progress, go_on};
use crate::record::{LinearRecord, solution_digest};
use crate::report::LinearRow;
use crate::scales::{self, LearnedScales, Solved};
use crate::solving::{self, Deal, Observed, Place, Task, Unprepared, observe, recover};
use crate::statistics::StageStatistics;
use crate::streams::Streams;

/// What the layer loop leaves behind.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// One row for each linear.
    pub(crate) rows: Vec<LinearRow>,
    /// Digest of each solution, by module path.
    pub(crate) records: Vec<(String, LinearRecord)>,
    /// Downgrades that happened while solving.
    pub(crate) notes: Vec<String>,
    /// What came of letting scales learn.
    pub(crate) learned: Option<LearnedScales>,
    /// What each expert was solved on, in forward order.
    pub(crate) coverage: Vec<ExpertCoverage>,
}

/// What solvers know inputs by.
#[derive(Clone, Copy)]
pub(crate) enum Inputs<'i> {
    /// Calibration text, and what products with it are computed in.
    Windows(&'i [Vec<u32>], Precision),
    /// Somebody else's calibration.
    MeanSquares(&'i MeanSquares),
}

/// One way of quantizing the model: outputs whose grids are the same share it.
pub(crate) struct Track<'t> {
    /// Of all of them.
    pub(crate) plan: &'t Plan,
    /// Where the solutions go.
    pub(crate) writers: Vec<&'t mut dyn ModelWriter>,
    pub(crate) adapters: Option<&'t mut AdapterWriter>,
    /// Passes in which scales learn; nothing is written before they have.
    pub(crate) scale_passes: usize,
    /// Solutions that wait for that.
    waiting: Vec<Solved>,
    /// Whether what is written is another rank's.
    elsewhere: bool,
    /// Whether rank 0 writes adapters.
    corrected: bool,
}

/// Quantizes every layer of `model`, whose weights `source` gives, once for each track, and hands the solutions to its writers. Layers that
/// `journal` has are not solved again. Of several ranks rank 0 alone has writers, and all return with the same outcomes but for what is learned and
/// written.
pub(crate) fn quantize_layers(
    model: &Model,
    source: &dyn WeightSource,
    tracks: &mut [Track<'_>],
    inputs: Inputs<'_>,
    mut importance: Option<&mut ImportanceGatherer>,
    (journal, memory, ranks): (&mut Journal, Memory, &Arc<dyn Ranks>),
    progress: &dyn Progress,
) -> Result<Vec<Outcome>, Error> {
    let plans: Vec<&Plan> = tracks.iter().map(|track| track.plan).collect();
    let mut outcomes: Vec<Outcome> = tracks.iter().map(|_| Outcome::default()).collect();
    // Rounded again where a run goes on: that is soon done.
    for (track, outcome) in tracks.iter_mut().zip(&mut outcomes) {
        track.quantize_outer(&model.embedding_linear(), model, source, None, outcome, progress)?;
    }
    restore(model, tracks, &mut outcomes, importance.as_deref_mut(), journal, progress)?;
    let left = &model.layers[journal.layers()..];
    let sees_head_input = plans.iter().any(|plan| outer::sees_head_input(plan, model));
    // Without text there is no gradient either.
    let (mut gradients, mut streams) = (None, None);
    if let Inputs::Windows(windows, precision) = inputs {
        if !left.is_empty() {
            let kept = (&mut *journal, memory, &**ranks);
            gradients = Some(gradients::gather(model, source, &plans, windows, precision, kept, progress)?);
        }
        if !left.is_empty() || sees_head_input {
            let shown = importance.is_some();
            let kept = (&*journal, memory, ranks);
            streams = Some(Streams::start(model, source, &plans, windows, shown, precision, kept)?);
        }
    }
    let tokens = match inputs {
        Inputs::Windows(windows, _) => windows.iter().map(Vec::len).sum(),
        Inputs::MeanSquares(_) => 0,
    };
    let mut deal = Deal::among(ranks.size());
    progress.phase("quantizing", left.len());
    for layer in left {
        let mut entry = journal.begin_layer(layer, tracks.len())?;
        let gradients = gradients.as_ref().map(|kept| LayerGradients::read(kept, layer)).transpose()?;
        let gradients = gradients.unwrap_or_default();
        let reading = section("reading weights");
        let mut quantized = vec![source.layer(layer).map_err(Error::from_source)?; tracks.len()];
        drop(reading);
        let mut experts: Vec<LayerExperts> = tracks.iter().map(|_| LayerExperts::default()).collect();
        for (place, stage) in layer.stages.iter().enumerate() {
            progress.at(&place_of(layer, stage, tokens));
            // One expert is in memory at a time.
            let reading = section("reading weights");
            for weights in &mut quantized {
                weights.fetch(layer, stage.part(), source).map_err(Error::from_source)?;
            }
            drop(reading);
            // Nothing is behind the last stage that its output would be seen by.
            let last =
                layer.index + 1 == model.layers.len() && place + 1 == layer.stages.len() && !sees_head_input;
            // Until a track solves this stage, its linears are the original's.
            let original = &quantized[0];
            if let (Some(streams), Some(importance)) = (&streams, &mut importance) {
                importance.gather(streams, layer, place, original)?;
            }
            let grids = tracks.iter().zip(&quantized);
            let grids = grids.map(|(track, weights)| grids::of_stage(track.plan, stage, weights));
            let grids = grids.collect::<Result<Vec<_>, Error>>()?;
            let solvers = deal.stage(&grids);
            let shelf = memory.shelf(&plans, stage, journal)?;
            // Of several tracks one's moments are there at a time.
            let beside = tracks.len() == 1 && solving::are_small(&grids);
            let mut all_seen = Vec::with_capacity(tracks.len());
            for (number, track) in tracks.iter().enumerate() {
                go_on(progress)?;
                all_seen.push(match (&streams, inputs) {
                    (Some(streams), _) => {
                        let readers = track.readers(&solvers[number]);
                        let (reads, part) = (readers.contains(&ranks.rank()), (stage, &quantized[number]));
                        let sent = experts[number].sent(streams, track.plan, number, part, reads)?;
                        let (sent, coverage) = sent.unzip();
                        outcomes[number].cover(coverage);
                        let place = Place { layer, stage: place, track: number };
                        let gathered = observe(
                            track.plan,
                            &grids[number],
                            place,
                            original,
                            streams,
                            &gradients,
                            sent,
                            (&shelf, readers),
                        )?;
                        if beside {
                            Observed::Gathered(gathered)
                        } else {
                            Observed::Known(gathered.prepare()?)
                        }
                    }
                    (None, Inputs::MeanSquares(known)) => Observed::Known(known.of_stage(track.plan, stage)?),
                    (None, Inputs::Windows(..)) => {
                        return Err(Error::Internal("no stream was started".to_owned()));
                    }
                });
            }
            let unprepared = Unprepared {
                plans: tracks.iter().map(|track| track.plan).collect(),
                linears: &grids,
                weights: &quantized,
                seen: all_seen,
                gradients: &gradients,
            };
            let advance = || match streams.as_mut().filter(|_| !last) {
                Some(streams) => streams.advance_original(layer, place, original, journal),
                None => Ok(()),
            };
            let (all_seen, solved) = unprepared.ahead((&solvers.concat(), &**ranks), advance)?;
            let mut ahead = solved.into_iter();
            for (number, (track, seen)) in tracks.iter_mut().zip(&all_seen).enumerate() {
                let weights = &mut quantized[number];
                for &grid in &grids[number] {
                    go_on(progress)?;
                    let solution = match ahead.next() {
                        Some(solution) => solution,
                        None => Task::new(track.plan, grid, weights, seen, &gradients).solve()?,
                    };
                    let (outcome, entry) = (&mut outcomes[number], (&mut entry, number));
                    track.take((grid.0, solution), weights, seen, outcome, entry, progress)?;
                    progress.so_far(&outcomes[number].last_loss());
                }
                if let Some(streams) = streams.as_mut().filter(|_| !last) {
                    streams.advance_quantized(number, layer, place, weights, journal)?;
                }
            }
            if let (Part::Expert(_), StageInput::MlpOutput) = (stage.part(), stage.input) {
                quantized.iter_mut().for_each(|weights| weights.release(stage.part()));
            }
        }
        if let Some(importance) = &importance {
            entry.importance(importance.of_layer(layer));
        }
        for (number, outcome) in outcomes.iter().enumerate() {
            let first = outcome.coverage.partition_point(|expert| expert.layer < layer.index);
            entry.experts(number, &outcome.coverage[first..]);
        }
        let states = streams.as_mut().map(Streams::sync).transpose()?.unwrap_or_default();
        let journaling = section("journal");
        journal.end_layer(entry, states)?;
        drop(journaling);
        progress.step(&outcomes.last().map_or_else(String::new, Outcome::last_loss));
    }
    progress.finish();
    for (number, (track, outcome)) in tracks.iter_mut().zip(&mut outcomes).enumerate() {
        let streams = streams.as_ref().map(|streams| (streams, number));
        track.quantize_outer(&model.head_linear(), model, source, streams, outcome, progress)?;
    }
    drop(streams);
    if !ranks.is_first() {
        return Ok(outcomes);
    }
    for (number, (track, outcome)) in tracks.iter_mut().zip(&mut outcomes).enumerate() {
        if let Inputs::Windows(windows, precision) = inputs {
            let waiting = &mut track.waiting;
            let journal = (&mut *journal, memory, number);
            outcome.learned = scales::learn(
                model,
                source,
                (windows, precision),
                track.scale_passes,
                waiting,
                journal,
                progress,
            )?;
        }
        for Solved { linear, tensor } in std::mem::take(&mut track.waiting) {
            track.write(&linear, &tensor, outcome)?;
        }
    }
    Ok(outcomes)
}

/// Takes over the layers that the journal has.
fn restore(
    model: &Model,
    tracks: &mut [Track<'_>],
    outcomes: &mut [Outcome],
    mut importance: Option<&mut ImportanceGatherer>,
    journal: &Journal,
    progress: &dyn Progress,
) -> Result<(), Error> {
    journal.demand_at_most(model.layers.len())?;
    for layer in &model.layers[..journal.layers()] {
        let restored = journal.layer(model, layer.index, tracks.len(), importance.as_deref_mut())?;
        for ((track, outcome), restored) in tracks.iter_mut().zip(outcomes.iter_mut()).zip(restored) {
            let Restored { solutions, adapters, rows, notes, experts } = restored;
            let linears = || layer.stages.iter().flat_map(|stage| &stage.linears);
            let find = |name: &str| {
                let known = linears().find(|linear| linear.name == name);
                known.ok_or_else(|| Error::Internal(format!("the journal has `{name}`, the layer does not")))
            };
            for (name, tensor) in solutions {
                track.keep_or_write(find(&name)?, tensor, outcome)?;
            }
            for (name, adapter) in adapters {
                if let Some(writer) = &mut track.adapters {
                    writer.put(find(&name)?, &adapter)?;
                }
            }
            let downgrades: Vec<String> = rows.iter().filter_map(|row| row.downgrade.clone()).collect();
            demand_as_asked(track.plan.strict, &downgrades)?;
            downgrades.iter().for_each(|note| progress.warn(note));
            outcome.rows.extend(rows);
            outcome.coverage.extend(experts);
            outcome.notes.extend(notes);
        }
    }
    Ok(())
}

impl<'t> Track<'t> {
    /// Without outputs so far; of several ranks whether this is the one that has them, and whether adapters are written.
    pub(crate) fn new(plan: &'t Plan, scale_passes: usize, first: bool, corrected: bool) -> Self {
        let (writers, waiting) = (Vec::new(), Vec::new());
        Self { plan, writers, adapters: None, scale_passes, waiting, elsewhere: !first, corrected }
    }

    /// The ranks that look at what is gathered of a stage whose linears these solve.
    fn readers(&self, solvers: &[usize]) -> Vec<usize> {
        let mut readers = solvers.to_vec();
        readers.extend(self.corrected.then_some(0));
        readers.sort_unstable();
        readers.dedup();
        readers
    }

    /// Writes the solution of a linear, and puts its values in the weight's place.
    fn take(
        &mut self,
        (linear, solution): (&Linear, Solution),
        weights: &mut LayerWeights,
        seen: &StageStatistics,
        outcome: &mut Outcome,
        (entry, number): (&mut LayerEntry, usize),
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let left = match &mut self.adapters {
            None => None,
            Some(adapters) => {
                let (adapter, left) = recover(self.plan, linear, &solution, weights, seen, adapters)?;
                entry.adapter(number, &linear.name, &adapter)?;
                Some(left)
            }
        };
        let told = outcome.notes.len();
        outcome.add(self.plan, linear, &solution, left, progress);
        let downgrade = outcome.rows.last().and_then(|row| row.downgrade.clone());
        demand_as_asked(self.plan.strict, downgrade.as_slice())?;
        {
            let _section = section("journal");
            entry.solution(number, &linear.name, &solution.tensor)?;
            entry.told(number, outcome.rows.last(), &outcome.notes[told..]);
        }
        weights.replace(linear.id.slot(), solution.tensor.dequantize());
        self.keep_or_write(linear, solution.tensor, outcome)
    }

    /// Writes a solution, unless its scales are still to learn.
    fn keep_or_write(
        &mut self,
        linear: &Linear,
        tensor: QuantizedTensor,
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        if self.elsewhere {
            Ok(())
        } else if self.scale_passes > 0 {
            self.waiting.push(Solved { linear: linear.clone(), tensor });
            Ok(())
        } else {
            self.write(linear, &tensor, outcome)
        }
    }

    /// Solves and writes the embedding or the head, where the plan has it below 16 bit.
    fn quantize_outer(
        &mut self,
        linear: &Linear,
        model: &Model,
        source: &dyn WeightSource,
        streams: Option<(&Streams<'_>, usize)>,
        outcome: &mut Outcome,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        if self.elsewhere && !(streams.is_some() && outer::sees_head_input(self.plan, model)) {
            return Ok(());
        }
        match outer::solve(linear, self.plan, model, source, streams, progress)? {
            None => Ok(()),
            Some(solution) => {
                outcome.add(self.plan, linear, &solution, None, progress);
                self.write(linear, &solution.tensor, outcome)
            }
        }
    }

    /// Writes what stands, and its digest to the record.
    fn write(
        &mut self,
        linear: &Linear,
        tensor: &QuantizedTensor,
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        let writing = section("packing and writing");
        for writer in &mut self.writers {
            writer.put(linear, tensor)?;
        }
        drop(writing);
        let _section = section("hashing");
        let record = LinearRecord { scheme: tensor.scheme(), digest: solution_digest(tensor) };
        outcome.records.push((linear.name.clone(), record));
        Ok(())
    }
}

/// What people call a stage, and how many tokens it is solved on.
fn place_of(layer: &Layer, stage: &Stage, tokens: usize) -> String {
    let names = stage.linears.iter().map(|linear| linear.name.rsplit('.').next().unwrap_or(&linear.name));
    let names = names.collect::<Vec<_>>().join(" ");
    let tokens = if tokens > 0 { format!(", {tokens} tokens") } else { String::new() };
    format!("layer {}, {names}{tokens}", layer.index)
}

impl Outcome {
    /// Keeps what an expert was solved on, once for its stages.
    fn cover(&mut self, coverage: Option<ExpertCoverage>) {
        let known = self.coverage.last().map(|last| (last.layer, last.expert));
        self.coverage.extend(coverage.filter(|found| known != Some((found.layer, found.expert))));
    }

    fn add(
        &mut self,
        plan: &Plan,
        linear: &Linear,
        solution: &Solution,
        adapted_relative_loss: Option<f64>,
        progress: &dyn Progress,
    ) {
        let treatment = plan.treatment(linear);
        let scheme = solution.tensor.scheme();
        let report = &solution.report;
        let damping = report.damping;
        let mut worse = Vec::new();
        if let Some(found) = damping
            && found.rung != Rung::AsAsked
        {
            worse.push(format!(
                "{} (damping {}, asked for {})",
                explanation(found.rung),
                found.damping,
                treatment.settings.damping
            ));
        }
        if damping.is_some_and(|found| found.dead_inputs == linear.in_features) {
            worse.push(
                "calibration saw nothing but zeros at its inputs, so its weights were rounded without data"
                    .to_owned(),
            );
        }
        if report.held_out.is_some_and(|found| found.fell_back) {
            worse.push(
                "on held-out windows the solution was worse than rounding to nearest, which stands instead"
                    .to_owned(),
            );
        }
        let downgrade = (!worse.is_empty()).then(|| format!("`{}`: {}", linear.name, worse.join("; ")));
        if let Some(note) = &downgrade {
            // Otherwise it is the error.
            if !plan.strict {
                progress.warn(note);
            }
            self.notes.push(note.clone());
        }
        let (granularity, group_size) = match scheme.granularity {
            Granularity::PerTensor => ("tensor", None),
            Granularity::PerChannel => ("channel", None),
            Granularity::PerGroup(size) => ("group", Some(size.get())),
        };
        self.rows.push(LinearRow {
            name: linear.name.clone(),
            shape: [linear.out_features, linear.in_features],
            bits: scheme.bits.get(),
            group_size,
            granularity: granularity.to_owned(),
            symmetric: scheme.symmetry == Symmetry::Symmetric,
            solver: treatment.solver.to_owned(),
            relative_loss: report.relative_loss,
            relative_loss_unrefined: report.relative_loss_unrefined,
            coupled_loss: report.coupled.map(|coupled| coupled.after),
            loss: report.loss,
            held_out: report.held_out,
            adapted_relative_loss,
            damping: damping.map_or(0.0, |found| found.damping),
            made_up_for: damping.and_then(|found| found.made_up_for),
            rung: damping.map_or("no data", |found| name(found.rung)).to_owned(),
            dead_inputs: damping.map_or(0, |found| found.dead_inputs),
            downgrade,
        });
    }

    fn last_loss(&self) -> String {
        self.rows.last().map_or_else(String::new, |row| format!("relative loss {:.1e}", row.relative_loss))
    }
}

/// What the report calls a rung of the damping ladder.
fn name(rung: Rung) -> &'static str {
    match rung {
        Rung::AsAsked => "cholesky",
        Rung::Raised => "raised damping",
        Rung::Diagonal => "diagonal",
    }
}

/// Why the report mentions it.
fn explanation(rung: Rung) -> &'static str {
    match rung {
        Rung::AsAsked => "solved as asked",
        Rung::Raised => "the Hessian is not positive definite, damping was raised",
        Rung::Diagonal => "the Hessian has no factor at any damping, its diagonal was used",
    }
}
