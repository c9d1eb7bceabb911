//! What is different about experts: how they are solved, what cannot be asked for with them, and how many tokens each of them saw.
//!
//! An expert sees the tokens that the quantized model's router sends to it, of all windows. It is solved as linears are, one expert at a time,
//! but for three things. Errors of earlier layers are not made up for: the original may send other tokens. Outputs and tokens are not weighed:
//! the gradients of all experts at once would be many times a dense layer's. And an expert that saw few tokens leans on the layer's: where `n` is
//! less than `COLD`, its second moment is shrunk towards the one that its input has over all tokens of the layer, sent to it or not,
//!
//! ```text
//! H = (n H_expert + (COLD - n) H_pooled) / COLD
//! ```
//!
//! in which the pooled moment of the down projection is taken of the expert's own features. So none is ever left unsolved.

use calibration::forward::{Forward, WindowState};
use calibration::weights::LayerWeights;
use model::graph::StageInput;
use model::linear::{Linear, Part};
use model::{Model, Stage};
use ndarray::{Array2, Axis};
use quantizer::accumulator::HessianAccumulator;
use quantizer::hessian::HessianError;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::job::{Calibration, QuantizeJob};
use crate::plan::Plan;
use crate::recipe::{Recipe, Treatment};
use crate::statistics::Sent;
use crate::stored::StoredModel;
use crate::streams::Streams;

/// Tokens that an expert needs to be solved on its own.
pub(crate) const COLD: usize = 128;
/// Tokens of a layer that the pooled second moments are taken over, spread evenly.
pub(crate) const POOLED: usize = 2048;
/// Experts that a note names.
const NAMED: usize = 16;

/// What an expert was solved on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExpertCoverage {
    /// Its decoder layer.
    pub layer: usize,
    /// Its number there.
    pub expert: usize,
    /// Calibration tokens that were sent to it.
    pub tokens: usize,
    /// Share of the layer's pooled second moment in its own, 0 to 1.
    pub pooled_share: f64,
}

/// How an expert is solved where the recipe says `treatment`.
pub(crate) fn treatment(linear: &Linear, mut treatment: Treatment) -> Treatment {
    let settings = &mut treatment.settings;
    match linear.id.part {
        Part::Main => {}
        // What it adds to the residual stream may be weighted by a gate.
        Part::Shared => settings.beta = 0.0,
        Part::Expert(_) => {
            (settings.alpha, settings.beta) = (0.0, 0.0);
            (settings.coupled_sweeps, settings.weigh_tokens) = (0, false);
        }
    }
    treatment
}

/// What has to be said about that.
pub(crate) fn note(model: &Model, recipe: &Recipe) -> Option<String> {
    let linear = model.linears().find(|linear| linear.id.part.expert().is_some())?;
    let asked = recipe.treatment(linear);
    let differs = treatment(linear, asked.clone()) != asked || recipe.scale_passes() > 0;
    differs.then(|| {
        "experts are solved on the tokens that are sent to them: no error of earlier layers is made up for, no output or token is weighed, and their scales do not learn"
            .to_owned()
    })
}

/// What cannot be asked for with experts.
pub(crate) fn demand_known(source: &StoredModel, job: &QuantizeJob) -> Result<(), Error> {
    let refuse = |flag, problem: &str| Err(Error::Argument { flag, problem: problem.to_owned() });
    if source.model.layers.iter().all(|layer| layer.experts() == 0) {
        return match job.min_expert_tokens {
            Some(_) => refuse("--min-expert-tokens", "the model has no experts"),
            None => Ok(()),
        };
    }
    if !job.recipe.transforms().is_empty() {
        let problem = "transforms know no experts".to_owned();
        return Err(Error::Recipe { path: job.recipe.name.clone(), problem });
    }
    if job.budget.is_some() {
        return refuse("--target-bits", "widths of experts are not chosen; give --bits, or a recipe's rules");
    }
    if job.adapter_rank.is_some() {
        return refuse("--adapter-rank", "an adapter has no place for experts");
    }
    if job.imatrix.is_some() {
        return refuse("--imatrix", "importance matrices of experts are not read");
    }
    if job.export_imatrix.is_some() {
        return refuse("--export-imatrix", "importance matrices of experts are not written");
    }
    if job.min_expert_tokens.is_some() && job.calibration == Calibration::Own {
        return refuse("--min-expert-tokens", "draws more of a text, and the model writes it");
    }
    Ok(())
}

/// The experts of one layer in one track, as they are solved.
#[derive(Default)]
pub(crate) struct LayerExperts {
    /// Inputs of some of the layer's tokens, `[tokens, hidden]`, once one expert lacks its own.
    pooled: Option<Array2<f32>>,
}

impl LayerExperts {
    /// What a stage of an expert sees; none where the stage is no expert's, or nothing of it is solved with data. Nothing stands in for tokens where this
    /// rank does not read it.
    pub(crate) fn sent(
        &mut self,
        streams: &Streams<'_>,
        plan: &Plan,
        track: usize,
        (stage, weights): (&Stage, &LayerWeights),
        reads: bool,
    ) -> Result<Option<(Sent, ExpertCoverage)>, Error> {
        let Part::Expert(expert) = stage.part() else { return Ok(None) };
        let Some(first) = stage.linears.iter().find(|linear| plan.solved_with_data(linear)) else {
            return Ok(None);
        };
        let tokens = streams.sent_to(track, expert)?;
        let missing = COLD.saturating_sub(tokens);
        let pooled_share = missing as f64 / COLD as f64;
        let coverage = ExpertCoverage { layer: first.id.layer, expert, tokens, pooled_share };
        if missing == 0 {
            return Ok(Some((Sent::default(), coverage)));
        }
        // Every rank has a part of it.
        if self.pooled.is_none() {
            self.pooled = Some(streams.pooled_inputs(track, POOLED)?);
        }
        if !reads {
            return Ok(Some((Sent::default(), coverage)));
        }
        let inputs = self.pooled.get_or_insert_default();
        let name = first.name.clone();
        let sent = stand_in(streams.forward(), weights, stage, missing, inputs);
        Ok(Some((sent.map_err(|source| Error::Statistics { linear: name, source })?, coverage)))
    }
}

/// What stands in for the `missing` tokens of an expert's stage: the second moment that its input has over the layer's `inputs`,
/// `[tokens, hidden]`.
pub(crate) fn stand_in(
    forward: &Forward<'_>,
    weights: &LayerWeights,
    stage: &Stage,
    missing: usize,
    inputs: &Array2<f32>,
) -> Result<Sent, HessianError> {
    let features = match stage.input {
        StageInput::MlpOutput => &forward.inner(weights, stage.part(), inputs.view()),
        _ => inputs,
    };
    let mut accumulator = HessianAccumulator::new(features.ncols());
    accumulator.observe(features.view())?;
    Ok(Sent { pooled: Some(accumulator.finish()?.counting_as(missing as u64)) })
}

/// Inputs of tokens of a layer with experts, spread evenly over its windows.
pub(crate) struct Spread {
    /// Every so many tokens one is taken.
    step: usize,
    /// The next window's first that is.
    first: usize,
    parts: Vec<Array2<f32>>,
}

impl Spread {
    /// At most `most` of so many `tokens`.
    pub(crate) fn over(tokens: usize, most: usize) -> Self {
        Self { step: tokens.div_ceil(most).max(1), first: 0, parts: Vec::new() }
    }

    /// What is taken of the next window, of so many `tokens`.
    pub(crate) fn next(&mut self, tokens: usize) -> Taken {
        let taken = (self.first..tokens).step_by(self.step).collect();
        self.first = (self.first + self.step - tokens % self.step) % self.step;
        Taken(taken)
    }

    /// Keeps it.
    pub(crate) fn keep(&mut self, inputs: Array2<f32>) {
        // One whose attention was not run has none.
        if inputs.ncols() > 0 {
            self.parts.push(inputs);
        }
    }

    /// `[tokens, hidden]`.
    pub(crate) fn finish(self) -> Array2<f32> {
        let parts: Vec<_> = self.parts.iter().map(|part| part.view()).collect();
        ndarray::concatenate(Axis(0), &parts).unwrap_or_default()
    }
}

/// Tokens of a window that are taken.
pub(crate) struct Taken(Vec<usize>);

impl Taken {
    /// Their inputs, `[tokens, hidden]`, in a window whose attention was run.
    pub(crate) fn of(&self, state: &WindowState) -> Array2<f32> {
        state.expert_inputs().map(|inputs| inputs.select(Axis(0), &self.0)).unwrap_or_default()
    }
}

/// A line for each layer in which experts saw few tokens, naming them.
pub(crate) fn notes(coverage: &[ExpertCoverage], least: usize) -> Vec<String> {
    let layers = coverage.chunk_by(|a, b| a.layer == b.layer);
    let lines = layers.filter_map(|layer| {
        let cold: Vec<&ExpertCoverage> = layer.iter().filter(|expert| expert.tokens < least).collect();
        let first = cold.first()?;
        let mut named: Vec<String> =
            cold.iter().take(NAMED).map(|expert| format!("{} ({})", expert.expert, expert.tokens)).collect();
        if cold.len() > NAMED {
            named.push(format!("{} more, which the JSON report names", cold.len() - NAMED));
        }
        Some(format!(
            "layer {}: {} of {} experts saw fewer than {least} tokens, and lean on the layer's pooled second moment below {COLD}: {}",
            first.layer,
            cold.len(),
            layer.len(),
            named.join(", ")
        ))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cold_expert_is_named() {
        let expert = |layer, expert, tokens| ExpertCoverage { layer, expert, tokens, pooled_share: 0.0 };
        let found = notes(&[expert(0, 0, 500), expert(0, 1, 3), expert(1, 0, 900), expert(2, 1, 0)], 128);
        assert_eq!(found.len(), 2);
        assert!(found[0].contains("layer 0: 1 of 2 experts") && found[0].contains("1 (3)"), "{}", found[0]);
        assert!(found[1].contains("1 (0)"));
    }
}
