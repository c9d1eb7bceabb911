//! Everything that is decided before any work: each linear's scheme and solver, each tensor's place in the output, and who will load it.

use std::collections::{BTreeMap, BTreeSet};

use calibration::transforms::Transform;
use formats::container::TensorSpec;
use formats::model_writer::Contents;
use formats::target::{self, PlannedLinear, TargetFormat};
use formats::{Dtype, side_files};
use model::Model;
use model::linear::{Linear, LinearId};
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Scheme, Symmetry};

use crate::error::Error;
use crate::experts;
use crate::job::{Overrides, QuantizeJob, Target};
use crate::outer;
use crate::precision::Products;
use crate::recipe::Treatment;
use crate::report::{Kept, RuntimeRow};
use crate::stored::StoredModel;

/// Chosen widths of linears.
pub(crate) type Widths = BTreeMap<LinearId, BitWidth>;

/// The decisions of a job.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) format: &'static dyn TargetFormat,
    /// Every linear, in forward order.
    pub(crate) linears: Vec<PlannedLinear>,
    /// Where in `linears` each is.
    places: BTreeMap<LinearId, usize>,
    pub(crate) treatments: BTreeMap<LinearId, Treatment>,
    /// Tensors that are copied, with their type in the output.
    pub(crate) carried: Vec<TensorSpec>,
    pub(crate) unknown_tensors: Vec<String>,
    pub(crate) kept: Vec<Kept>,
    pub(crate) notes: Vec<String>,
    /// Those of the notes that say that linears get a coarser grid than was asked for.
    pub(crate) downgrades: Vec<String>,
    /// Whether that, and a linear solved worse than asked for, ends the job.
    pub(crate) strict: bool,
    pub(crate) runtimes: Vec<RuntimeRow>,
    /// How the weights are changed before they are rounded.
    pub(crate) transforms: Vec<Transform>,
    /// What calibration multiplies in, as the recipe has it.
    pub(crate) products: Products,
    /// Whether a head that was tied gets a tensor of its own.
    pub(crate) untie: bool,
    /// The type that runtimes multiply in.
    pub(crate) runtime: Dtype,
    /// The model as it is written.
    pub(crate) written: Model,
}

impl Plan {
    /// Decides, or says why the job cannot be done.
    pub(crate) fn make(source: &StoredModel, job: &QuantizeJob, target: &Target) -> Result<Self, Error> {
        let format = find_format(&target.format)?;
        let recipe = target.bits.map_or_else(|| job.recipe.clone(), |bits| job.recipe.with_bits(bits));
        side_files::check(&source.path)?;
        demand_matches(source, job)?;
        experts::demand_known(source, job)?;
        let mut notes: Vec<String> = quantized_source(source).into_iter().collect();
        let untie = settle_head(source, job, &mut notes)?;
        let runtime = runtime_dtype(source, &mut notes)?;
        if source.stores_tied_head() && !untie {
            let (head, embedding) = (source.model.untied_head(), source.model.embedding());
            notes.push(format!("`{head}` repeats `{embedding}`, to which it is tied; it is carried over, and counts in the size"));
        }
        let mut written = source.model.clone();
        written.hyperparameters.tied_head &= !untie;
        let chooses = |target: &Target| find_format(&target.format).is_ok_and(|found| !found.fixes_grid());
        let others_choose = job.targets.iter().any(chooses);
        let mut linears = Vec::new();
        let mut treatments = BTreeMap::new();
        let mut kept = Vec::new();
        let stages = source.model.layers.iter().flat_map(|layer| &layer.stages);
        for (fused_group, stage) in stages.enumerate() {
            for linear in &stage.linears {
                let treatment = experts::treatment(linear, recipe.treatment(linear));
                let excluded = job.exclude.iter().find(|pattern| pattern.is_match(&linear.name));
                let reason = match excluded {
                    Some(pattern) => Some(format!("excluded by `{pattern}`")),
                    None => treatment.keep.then(|| format!("kept by recipe {}", job.recipe.name)),
                };
                let asked = Scheme {
                    bits: treatment.bits,
                    levels: Levels::Uniform,
                    granularity: treatment.granularity,
                    symmetry: treatment.symmetry,
                    scale_dtype: format.scale_dtype(runtime),
                };
                let scheme = format.grid(linear, source.model.layers.len(), asked);
                // Beside outputs that have a choice, what is asked for is for those.
                if reason.is_none() && format.quantizes() && !(others_choose && format.fixes_grid()) {
                    demand_asked(format, linear, &treatment.asked, scheme)?;
                }
                let scheme = (reason.is_none() && format.quantizes()).then_some(scheme);
                kept.extend(reason.map(|reason| Kept { name: linear.name.clone(), reason }));
                linears.push(PlannedLinear { linear: linear.clone(), fused_group, scheme });
                treatments.insert(linear.id, treatment);
            }
        }
        demand_rank(job, &linears)?;
        if format.quantizes() && linears.iter().all(|planned| planned.scheme.is_none()) {
            return Err(Error::NotSuitable {
                path: job.model.clone(),
                problem: "no linear is left to quantize".to_owned(),
                hint: "loosen --exclude or the recipe's `keep`",
            });
        }
        for (planned, treatment) in outer::planned(job, &written, format, &recipe, runtime, linears.len())? {
            treatments.insert(planned.linear.id, treatment);
            linears.push(planned);
        }
        let downgrades = format.settle(&mut linears)?;
        demand_as_asked(job.strict, &downgrades)?;
        notes.extend(downgrades.iter().cloned());
        let runtimes = runtimes(format, &linears)?;
        // By the name of its weight, whether each linear is quantized.
        let by_name: BTreeMap<String, bool> =
            linears.iter().map(|planned| (planned.linear.weight_name(), planned.scheme.is_some())).collect();
        let unknown_tensors = source.unknown_tensors();
        let unknown: BTreeSet<&str> = unknown_tensors.iter().map(String::as_str).collect();
        let single = source.model.single_precision();
        let mut carried = Vec::new();
        for mut spec in source.dense_tensors(runtime)? {
            if by_name.get(&spec.name) == Some(&true) {
                continue;
            }
            // What is not known is not touched: whoever reads it may expect its type.
            let known = !unknown.contains(spec.name.as_str()) && !single.contains(&spec.name.as_str());
            let kept_linear = by_name.contains_key(&spec.name);
            if spec.dtype == Dtype::F32 && known && (kept_linear || source.dtype()? == Dtype::F32) {
                spec.dtype = runtime;
            }
            carried.push(spec);
        }
        let head = source.model.untied_head();
        if untie && !source.stores_tied_head() && by_name.get(&head) != Some(&true) {
            let numbers = &source.model.hyperparameters;
            let shape = vec![numbers.vocabulary, numbers.embedding_size];
            let dtype = if source.dtype()? == Dtype::F32 { runtime } else { source.dtype()? };
            carried.push(TensorSpec { name: head, dtype, shape });
        }
        let left_out = format.settle_carried(&written, &mut carried)?;
        if !left_out.is_empty() {
            notes.push(format!(
                "left out, since {} has no place for them: {}",
                format.id(),
                left_out.join(", ")
            ));
        }
        let transforms = job.recipe.transforms().to_vec();
        notes.extend(experts::note(&source.model, &recipe));
        let places = linears.iter().enumerate().map(|(place, planned)| (planned.linear.id, place)).collect();
        let mut plan = Self {
            format,
            linears,
            places,
            treatments,
            carried,
            unknown_tensors,
            kept,
            notes,
            downgrades,
            strict: job.strict,
            runtimes,
            transforms,
            products: job.recipe.products(),
            untie,
            runtime,
            written,
        };
        let found = format.check(&plan.contents(source, job))?;
        plan.notes.extend(found);
        Ok(plan)
    }

    /// What the output will hold.
    pub(crate) fn contents<'a>(&'a self, source: &'a StoredModel, job: &QuantizeJob) -> Contents<'a> {
        Contents {
            source: &source.path,
            config: &source.config,
            model: &self.written,
            linears: &self.linears,
            carried: &self.carried,
            runtime: self.runtime,
            untied: self.untie,
            max_shard_bytes: job.max_shard_size,
        }
    }

    /// The same with other widths for some linears.
    pub(crate) fn with_widths(mut self, widths: &Widths) -> Result<Self, Error> {
        for planned in &mut self.linears {
            let (Some(scheme), Some(&bits)) = (&mut planned.scheme, widths.get(&planned.linear.id)) else {
                continue;
            };
            scheme.bits = bits;
            if let Some(treatment) = self.treatments.get_mut(&planned.linear.id) {
                treatment.bits = bits;
            }
        }
        let downgrades = self.format.settle(&mut self.linears)?;
        demand_as_asked(self.strict, &downgrades)?;
        self.notes.extend(downgrades.iter().cloned());
        self.downgrades.extend(downgrades);
        self.runtimes = runtimes(self.format, &self.linears)?;
        Ok(self)
    }

    /// Whether another plan's solutions are this one's too.
    pub(crate) fn solves_alike(&self, other: &Self) -> bool {
        let schemes = |plan: &Self| -> Vec<_> { plan.linears.iter().map(|planned| planned.scheme).collect() };
        schemes(self) == schemes(other) && self.treatments == other.treatments
    }

    /// The grid of a linear; none: it stays in 16 bit.
    pub(crate) fn scheme(&self, linear: &Linear) -> Option<Scheme> {
        self.places.get(&linear.id).and_then(|&place| self.linears[place].scheme)
    }

    /// How a linear is solved.
    pub(crate) fn treatment(&self, linear: &Linear) -> &Treatment {
        &self.treatments[&linear.id]
    }

    /// Linears that are quantized.
    pub(crate) fn quantized(&self) -> impl Iterator<Item = (&Linear, Scheme)> {
        self.linears.iter().filter_map(|planned| planned.scheme.map(|scheme| (&planned.linear, scheme)))
    }

    /// Whether anything is decided by calibration data.
    pub(crate) fn needs_calibration(&self) -> bool {
        self.solves_with_data() || self.transforms.iter().any(|transform| transform.needs_data())
    }

    pub(crate) fn solves_with_data(&self) -> bool {
        self.quantized().any(|(linear, _)| self.solved_with_data(linear))
    }

    /// Whether a linear is quantized by what its input is.
    pub(crate) fn solved_with_data(&self, linear: &Linear) -> bool {
        self.scheme(linear).is_some()
            && quantizer::solver::find(self.treatment(linear).solver)
                .is_some_and(quantizer::solver::Solver::needs_hessian)
    }

    /// Linears that are solved with an output Hessian.
    pub(crate) fn couples_rows(&self) -> impl Iterator<Item = &Linear> {
        self.quantized().map(|(linear, _)| linear).filter(|linear| {
            let treatment = self.treatment(linear);
            let solver = quantizer::solver::find(treatment.solver);
            treatment.settings.coupled_sweeps > 0
                && solver.is_some_and(quantizer::solver::Solver::needs_hessian)
        })
    }

    /// Stages, by layer and place, in which a linear is solved with weighed tokens; the others of the stage share its Hessian.
    pub(crate) fn weighs_tokens(&self, model: &Model) -> Vec<(usize, usize)> {
        let weighs = |linear: &Linear| {
            let treatment = self.treatment(linear);
            let solver = quantizer::solver::find(treatment.solver);
            treatment.settings.weigh_tokens
                && self.scheme(linear).is_some()
                && solver.is_some_and(quantizer::solver::Solver::needs_hessian)
        };
        let stages = model.layers.iter().flat_map(|layer| {
            layer.stages.iter().enumerate().map(|(place, stage)| (layer.index, place, stage))
        });
        stages
            .filter(|(.., stage)| stage.linears.iter().any(weighs))
            .map(|(layer, place, _)| (layer, place))
            .collect()
    }

    /// Whether any linear makes up for earlier layers' errors, which needs the original's activations.
    pub(crate) fn propagates_errors(&self) -> bool {
        self.solves_with_data()
            && self.quantized().any(|(linear, _)| self.treatment(linear).settings.propagates())
    }

    /// Every tensor of the output: carried ones first, then the linears in forward order.
    pub(crate) fn tensors(&self) -> Vec<TensorSpec> {
        let packed = self.quantized().flat_map(|(linear, scheme)| self.format.layout(linear, scheme));
        self.carried.iter().cloned().chain(packed).collect()
    }
}

/// What has to be said of a source that was rounded before.
pub(crate) fn quantized_source(source: &StoredModel) -> Option<String> {
    let (format, bits) = source.quantized_as()?;
    let inputs = source.format.as_ref().is_some_and(|format| format.rounds_inputs());
    let inputs = if inputs { ", and its runtimes round inputs as well, which is not done here" } else { "" };
    let bits = (bits * 100.0).round() / 100.0;
    Some(format!(
        "the source was already quantized ({format}, {bits} bit a code): what it decodes to is the original here{inputs}"
    ))
}

/// Fails for the first of `downgrades` where none is to be.
pub(crate) fn demand_as_asked(strict: bool, downgrades: &[String]) -> Result<(), Error> {
    match downgrades.first().filter(|_| strict) {
        None => Ok(()),
        Some(first) => Err(Error::Downgraded { problem: first.clone() }),
    }
}

/// What somebody asked for must not be dropped because the format leaves no choice.
fn demand_asked(
    format: &dyn TargetFormat,
    linear: &Linear,
    asked: &Overrides,
    has: Scheme,
) -> Result<(), Error> {
    let bits = asked.bits.filter(|&bits| bits != has.bits);
    let granularity = asked.granularity.filter(|&granularity| granularity != has.granularity);
    // A stored minimum is what some formats have for a zero point.
    let same = |symmetry| {
        symmetry == has.symmetry || symmetry == Symmetry::Asymmetric && has.symmetry == Symmetry::Minimum
    };
    let symmetry = asked.symmetry.filter(|&symmetry| !same(symmetry));
    let (flag, problem) = match (bits, granularity, symmetry) {
        (Some(bits), ..) => {
            ("--bits", format!("gives `{}` {} bit, not {}", linear.name, has.bits.get(), bits.get()))
        }
        (_, Some(_), _) => {
            let columns = has.granularity.columns_per_scale(linear.in_features);
            ("--group-size", format!("lets {columns} columns of `{}` share a scale", linear.name))
        }
        (.., Some(Symmetry::Symmetric)) => ("--symmetric", "has no zero points in the middle".to_owned()),
        (.., Some(_)) => ("--asymmetric", "has no whole zero points".to_owned()),
        _ => return Ok(()),
    };
    let problem = format!("the format {} leaves no choice: it {problem}", format.id());
    Err(Error::Argument { flag, problem })
}

/// An adapter's rank is at most the smaller side of every weight.
fn demand_rank(job: &QuantizeJob, linears: &[PlannedLinear]) -> Result<(), Error> {
    let Some(rank) = job.adapter_rank else { return Ok(()) };
    let side = |linear: &Linear| linear.out_features.min(linear.in_features);
    let quantized = linears.iter().filter(|planned| planned.scheme.is_some()).map(|planned| &planned.linear);
    match quantized.min_by_key(|linear| side(linear)) {
        Some(least) if rank == 0 || rank > side(least) => {
            let problem =
                format!("expected 1 to {}, the smaller side of `{}`, found {rank}", side(least), least.name);
            Err(Error::Argument { flag: "--adapter-rank", problem })
        }
        _ => Ok(()),
    }
}

/// An exclusion or a rule that means no linear is a mistake, which would be found only after the work.
fn demand_matches(source: &StoredModel, job: &QuantizeJob) -> Result<(), Error> {
    let linears: Vec<&Linear> = source.model.linears().collect();
    let Some(first) = linears.first() else { return Ok(()) };
    if let Some(idle) = job.exclude.iter().find(|pattern| !linears.iter().any(|l| pattern.is_match(&l.name)))
    {
        let problem = format!("`{idle}` matches no linear; the first of them is called `{}`", first.name);
        return Err(Error::Argument { flag: "--exclude", problem });
    }
    if let Some(idle) = job.recipe.idle_rule(&linears) {
        let problem = format!(
            "rule {idle} matches no linear of the {} layers' {}",
            source.model.layers.len(),
            linears.len()
        );
        return Err(Error::Recipe { path: job.recipe.name.clone(), problem });
    }
    Ok(())
}

/// Whether the head gets a tensor of its own; fails where the transforms need that and nobody asked for it, or where they would break a
/// part of the checkpoint that is not known.
fn settle_head(source: &StoredModel, job: &QuantizeJob, notes: &mut Vec<String>) -> Result<bool, Error> {
    let tied = source.model.hyperparameters.tied_head;
    if job.untie && !tied {
        notes.push(format!("--untie: the head, `{}`, is not tied to the embedding", source.model.head()));
    }
    for transform in job.recipe.transforms() {
        transform.check(&source.model).map_err(|problem| Error::NotSuitable {
            path: source.path.clone(),
            problem,
            hint: "leave it out of the recipe",
        })?;
    }
    if job.recipe.transforms().contains(&Transform::RotateResidual) {
        if tied && !job.untie {
            let problem = format!(
                "rotate-residual needs a head of its own, and the head is tied to `{}` (tie_word_embeddings)",
                source.model.embedding()
            );
            let hint =
                "give --untie, which adds the head's bytes, or leave rotate-residual out of the recipe";
            return Err(Error::NotSuitable { path: source.path.clone(), problem, hint });
        }
        if let Some(unknown) = source.unknown_tensors().first() {
            let problem = format!(
                "rotate-residual turns everything that reads the residual stream, and nothing is known about `{unknown}`"
            );
            let hint = "leave rotate-residual out of the recipe";
            return Err(Error::NotSuitable { path: source.path.clone(), problem, hint });
        }
    }
    Ok(job.untie && tied)
}

pub(crate) fn find_format(id: &str) -> Result<&'static dyn TargetFormat, Error> {
    target::find(id).ok_or_else(|| Error::Unknown {
        kind: "format",
        found: id.to_owned(),
        known: target::all().map(TargetFormat::id).collect::<Vec<_>>().join(", "),
    })
}

/// The checkpoint's own 16-bit type; for one in f32 half precision, or bfloat16 where a value is too large for half.
fn runtime_dtype(source: &StoredModel, notes: &mut Vec<String>) -> Result<Dtype, Error> {
    let dtype = source.dtype()?;
    if dtype != Dtype::F32 {
        return Ok(dtype);
    }
    let mut fits = true;
    // Linears too: one that stays as it is is written in this type, and scales are bounded by it.
    for tensor in source.model.expected_tensors() {
        if source.checkpoint.info(&tensor.name).is_ok_and(|found| found.dtype == Dtype::F32) {
            let bytes = source.checkpoint.read(&tensor.name)?;
            let values = Dtype::F32.decode(&bytes).unwrap_or_default();
            fits &= values.iter().all(|value| value.abs() <= 65504.0 || !value.is_finite());
        }
    }
    let runtime = if fits { Dtype::F16 } else { Dtype::Bf16 };
    let name = runtime.torch_name().unwrap_or_default();
    notes
        .push(format!("the checkpoint is float32; its tensors that are not quantized are written in {name}"));
    Ok(runtime)
}

/// Who loads the linears; fails where nobody does.
pub(crate) fn runtimes(
    format: &dyn TargetFormat,
    linears: &[PlannedLinear],
) -> Result<Vec<RuntimeRow>, Error> {
    let verdicts: Vec<_> = format.loaders().iter().map(|rule| rule.check(linears)).collect();
    if verdicts.iter().all(|verdict| !verdict.loads) {
        let reasons: Vec<_> = verdicts.iter().map(|v| format!("{} {}", v.runtime, v.remark)).collect();
        return Err(Error::NoRuntime { reasons: reasons.join("; ") });
    }
    Ok(verdicts
        .into_iter()
        .map(|v| RuntimeRow { runtime: v.runtime.to_owned(), loads: v.loads, remark: v.remark })
        .collect())
}
