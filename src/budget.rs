//! Widths under a budget: which each stage could have, what they cost, and which is chosen.
//!
//! A stage is what runtimes fuse, so its linears get one width. Costs are exact: the bytes of the format's own layout, scales and zero points
//! included. What a width does to the model is [`crate::sensitivity`]'s to say, the choice [`quantizer::allocate`]'s to make.

use calibration::activations::History;
use calibration::weights::WeightSource;
use formats::container::TensorSpec;
use formats::target::PlannedLinear;
use model::Model;
use model::linear::LinearId;
use quantizer::allocate::{Choice, allocate};
use quantizer::scheme::{BitWidth, Scheme};

use crate::error::Error;
use crate::job::{Budget, QuantizeJob};
use crate::journal::Journal;
use crate::memory::Memory;
use crate::plan::{Plan, Widths};
use crate::progress::Progress;
use crate::render::text::bytes;
use crate::report::{Allocation, StageWidth, WidthChoice};
use crate::sensitivity;
use crate::stored::StoredModel;

/// Everything that could be chosen.
pub(crate) struct Options {
    target: Budget,
    /// Stages that have a choice, in forward order.
    stages: Vec<StageOptions>,
    /// Bytes of tensors that the stages may have together.
    budget: u64,
    /// Tensor bytes of everything else.
    others: u64,
    /// Weights of the original.
    parameters: u64,
    /// The widest output is within the budget.
    pub(crate) note: Option<String>,
}

/// One stage that has a choice.
pub(crate) struct StageOptions {
    /// Its linears that are quantized.
    pub(crate) linears: Vec<LinearId>,
    names: Vec<String>,
    /// The narrowest first.
    pub(crate) widths: Vec<Width>,
}

/// What a stage could have.
pub(crate) struct Width {
    bits: BitWidth,
    bytes: u64,
    /// The grid of each linear.
    pub(crate) schemes: Vec<Scheme>,
}

impl Options {
    /// What `plan` leaves open, or why nothing fits `target`.
    pub(crate) fn find(
        source: &StoredModel,
        plan: &Plan,
        job: &QuantizeJob,
        target: Budget,
    ) -> Result<Self, Error> {
        let flag = flag(target);
        let widths = plan.format.mixed_widths();
        if widths.len() < 2 {
            let problem = format!(
                "format {} holds one width a checkpoint, so there is nothing to choose; use --bits, or another format",
                plan.format.id()
            );
            return Err(Error::Argument { flag, problem });
        }
        let mut stages = Vec::new();
        for stage in plan.linears.chunk_by(|a, b| a.fused_group == b.fused_group) {
            // Of embedding and head the job says the width.
            let is_fixed =
                |planned: &PlannedLinear| planned.linear.is_outer() || job.recipe.fixes_bits(&planned.linear);
            if stage.iter().all(|planned| planned.scheme.is_none()) || stage.iter().any(is_fixed) {
                continue;
            }
            let widths: Vec<Width> = widths
                .iter()
                .filter_map(|&bits| BitWidth::new(bits).ok())
                .filter_map(|bits| Width::of(plan, stage, bits))
                .collect();
            let quantized = || stage.iter().filter(|planned| planned.scheme.is_some());
            stages.push(StageOptions {
                linears: quantized().map(|planned| planned.linear.id).collect(),
                names: quantized().map(|planned| planned.linear.name.clone()).collect(),
                widths,
            });
        }
        if stages.iter().all(|stage| stage.widths.len() < 2) {
            let problem = "the recipe's rules say the width of every linear, so none is left to choose";
            return Err(Error::Argument { flag, problem: problem.to_owned() });
        }
        Self::within(source, plan, job, target, stages)
    }

    /// Every stage with the one width that `plan` gives it.
    pub(crate) fn as_planned(plan: &Plan) -> Vec<StageOptions> {
        let stages = plan.linears.chunk_by(|a, b| a.fused_group == b.fused_group);
        let options = stages.filter_map(|stage| {
            let quantized: Vec<_> =
                stage.iter().filter_map(|planned| Some((&planned.linear, planned.scheme?))).collect();
            let (_, first) = quantized.first()?;
            let schemes = quantized.iter().map(|(_, scheme)| *scheme).collect();
            Some(StageOptions {
                linears: quantized.iter().map(|(linear, _)| linear.id).collect(),
                names: quantized.iter().map(|(linear, _)| linear.name.clone()).collect(),
                widths: vec![Width { bits: first.bits, bytes: 0, schemes }],
            })
        });
        options.collect()
    }

    /// Compares the target with what can be reached.
    fn within(
        source: &StoredModel,
        plan: &Plan,
        job: &QuantizeJob,
        target: Budget,
        stages: Vec<StageOptions>,
    ) -> Result<Self, Error> {
        let parameters = source.summary()?.parameters;
        let sum = |pick: fn(&StageOptions) -> Option<&Width>| -> (Widths, u64) {
            let picked = stages.iter().filter_map(|stage| Some((stage, pick(stage)?)));
            let bytes = picked.clone().map(|(_, width)| width.bytes).sum();
            (picked.flat_map(|(stage, width)| stage.chosen(width)).collect(), bytes)
        };
        let (_, least) = sum(|stage| stage.widths.first());
        let (widest, most) = sum(|stage| stage.widths.last());
        let tensors = plan.clone().with_widths(&widest)?.tensors();
        let all: u64 = tensors.iter().map(TensorSpec::bytes).sum();
        let others = all - most;
        // Headers of the widest output: offsets of no other have more digits.
        let headers = plan.format.weights_bytes(&tensors, job.max_shard_size) - all;
        let bits = |tensor_bytes: u64| tensor_bytes as f64 * 8.0 / parameters as f64;
        let (tensor_budget, asked, range) = match target {
            Budget::MeanBits(mean) => (
                (mean * parameters as f64 / 8.0) as u64,
                format!("{mean} bits a weight"),
                format!("{:.2} to {:.2}", (bits(others + least) * 100.0).ceil() / 100.0, bits(all)),
            ),
            Budget::Bytes(size) => (
                size.saturating_sub(headers),
                bytes(size),
                format!(
                    "{} to {} ({} bytes at least)",
                    bytes(others + least + headers),
                    bytes(all + headers),
                    others + least + headers
                ),
            ),
        };
        if tensor_budget < others + least {
            let rest = bits(others) / bits(others + least) * 100.0;
            let problem = format!(
                "{asked} cannot be reached, expected {range} for this model, format and recipe (what no width is chosen for, as the embedding, is {rest:.0} % of the smallest)"
            );
            return Err(Error::Argument { flag: flag(target), problem });
        }
        let note = (tensor_budget >= all).then(|| {
            format!("{asked} is more than the largest output has ({range}): every stage has its widest grid")
        });
        Ok(Self { target, stages, budget: tensor_budget - others, others, parameters, note })
    }

    /// Weighs every width of every stage of `model`, whose weights `source` gives, on `windows` and chooses.
    pub(crate) fn choose(
        &self,
        model: &Model,
        source: &dyn WeightSource,
        plan: &Plan,
        windows: &[Vec<u32>],
        mut journal: Option<(&mut Journal, Memory)>,
        progress: &dyn Progress,
    ) -> Result<(Widths, Allocation), Error> {
        let known = journal.as_ref().map(|(journal, _)| journal.damages()).transpose()?.flatten();
        let damages = match known {
            Some(damages) => damages,
            None => {
                let history = match &journal {
                    None => History::new(None),
                    Some((journal, memory)) => memory.history(journal)?,
                };
                let damages =
                    sensitivity::weigh(model, source, plan, &self.stages, windows, history, progress)?;
                if let Some((journal, _)) = &mut journal {
                    journal.keep_damages(&damages)?;
                }
                damages
            }
        };
        let choices: Vec<Vec<Choice>> = self
            .stages
            .iter()
            .zip(&damages)
            .map(|(stage, damages)| {
                let pairs = stage.widths.iter().zip(damages);
                pairs.map(|(width, &damage)| Choice { bytes: width.bytes, damage }).collect()
            })
            .collect();
        let chosen = allocate(&choices, self.budget)
            .ok_or_else(|| Error::Internal("a budget that was found reachable is not".to_owned()))?;
        let mut widths = Widths::new();
        let mut rows = Vec::new();
        for ((stage, choices), &index) in self.stages.iter().zip(&choices).zip(&chosen) {
            widths.extend(stage.chosen(&stage.widths[index]));
            let row = |(width, choice): (&Width, &Choice)| WidthChoice {
                bits: width.bits.get(),
                bytes: choice.bytes,
                predicted_kl: choice.damage,
            };
            rows.push(StageWidth {
                layer: stage.linears[0].layer,
                linears: stage.names.clone(),
                bits: stage.widths[index].bits.get(),
                predicted_kl: choices[index].damage,
                choices: stage.widths.iter().zip(choices).map(row).collect(),
            });
        }
        let spent: u64 = choices.iter().zip(&chosen).map(|(choices, &index)| choices[index].bytes).sum();
        let allocation = Allocation {
            target: self.target,
            bits_per_weight: (self.others + spent) as f64 * 8.0 / self.parameters as f64,
            predicted_kl: rows.iter().map(|row| row.predicted_kl).sum(),
            stages: rows,
        };
        Ok((widths, allocation))
    }
}

impl StageOptions {
    fn chosen(&self, width: &Width) -> impl Iterator<Item = (LinearId, BitWidth)> + '_ {
        let bits = width.bits;
        self.linears.iter().map(move |&id| (id, bits))
    }
}

impl Width {
    /// The stage at this width; none where the format has no place for it.
    fn of(plan: &Plan, stage: &[PlannedLinear], bits: BitWidth) -> Option<Self> {
        let mut stage = stage.to_vec();
        for scheme in stage.iter_mut().filter_map(|planned| planned.scheme.as_mut()) {
            scheme.bits = bits;
        }
        let asked = stage.clone();
        plan.format.settle(&mut stage).ok().filter(|_| stage == asked)?;
        let quantized: Vec<_> = stage
            .iter()
            .filter_map(|planned| planned.scheme.map(|scheme| (&planned.linear, scheme)))
            .collect();
        let specs = quantized.iter().flat_map(|(linear, scheme)| plan.format.layout(linear, *scheme));
        let bytes = specs.map(|spec| spec.bytes()).sum();
        Some(Self { bits, bytes, schemes: quantized.iter().map(|(_, scheme)| *scheme).collect() })
    }
}

fn flag(target: Budget) -> &'static str {
    match target {
        Budget::MeanBits(_) => "--target-bits",
        Budget::Bytes(_) => "--target-size",
    }
}
