//! The hidden states of all calibration windows: of the model as each track quantizes it and, where errors are propagated, of the original,
//! which the tracks share.

use calibration::forward::{Forward, WindowState};
use calibration::weights::{LayerWeights, OuterWeights, WeightSource};
use kernels::bf16::Precision;
use model::graph::StageInput;
use model::linear::Part;
use model::{Layer, Model, Stage};
use ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use rayon::prelude::*;

use crate::error::Error;
use crate::plan::Plan;

/// Where every window is.
#[derive(Debug)]
pub(crate) struct Streams<'m> {
    forward: Forward<'m>,
    /// By track.
    quantized: Vec<Vec<WindowState>>,
    original: Option<Vec<WindowState>>,
    /// Of the products with linears.
    precision: Precision,
}

/// What both models have at a stage, for one window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    /// The stage's input as the quantized linears before it left it, `[tokens, in_features]`.
    pub(crate) input: ArrayView2<'a, f32>,
    /// The residual stream beside it, `[tokens, hidden]`.
    pub(crate) residual: ArrayView2<'a, f32>,
    /// Both in the original, where that runs beside.
    pub(crate) original: Option<(ArrayView2<'a, f32>, ArrayView2<'a, f32>)>,
}

/// Told what is at a stage, window by window.
pub(crate) type See<'s> = dyn FnMut(Seen<'_>) -> Result<(), Error> + 's;

impl<'m> Streams<'m> {
    /// Embeds the windows for a track of each plan. The original runs beside where its errors are made up for, or where it is `shown`.
    pub(crate) fn start(
        model: &'m Model,
        source: &dyn WeightSource,
        plans: &[&Plan],
        windows: &[Vec<u32>],
        shown: bool,
        precision: Precision,
    ) -> Result<Self, Error> {
        let tokens = windows.iter().map(Vec::len).max().unwrap_or(0);
        let forward = Forward::new(model, tokens);
        let embed = |tokens: &Vec<u32>| forward.embed(source, tokens, 0).map_err(Error::from_source);
        let embedded = windows.par_iter().map(embed).collect::<Result<Vec<_>, Error>>()?;
        let beside = shown || plans.iter().any(|plan| plan.propagates_errors());
        let original = beside.then(|| embedded.clone());
        let quantized = vec![embedded; plans.len()];
        Ok(Self { forward, quantized, original, precision })
    }

    /// Of products with linears and of moments.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// How many there are.
    pub(crate) fn windows(&self) -> usize {
        self.quantized.first().map_or(0, Vec::len)
    }

    /// What runs them.
    pub(crate) fn forward(&self) -> &Forward<'m> {
        &self.forward
    }

    /// Tokens of a track that are sent to an expert of the layer whose attention was run last.
    pub(crate) fn sent_to(&self, track: usize, expert: usize) -> usize {
        self.quantized[track].iter().map(|state| state.sent_to(expert)).sum()
    }

    /// The MLP's inputs of at most `most` tokens of a track, spread evenly, in a layer whose attention was run, `[tokens, hidden]`.
    pub(crate) fn pooled_inputs(&self, track: usize, most: usize) -> Array2<f32> {
        let states = &self.quantized[track];
        let tokens: usize = states.iter().map(|state| state.hidden().nrows()).sum();
        let step = tokens.div_ceil(most).max(1);
        let mut first = 0;
        let mut parts = Vec::new();
        for input in states.iter().filter_map(WindowState::expert_inputs) {
            let taken: Vec<usize> = (first..input.nrows()).step_by(step).collect();
            parts.push(input.select(Axis(0), &taken));
            first = (first + step - input.nrows() % step) % step;
        }
        let parts: Vec<_> = parts.iter().map(|part| part.view()).collect();
        ndarray::concatenate(Axis(0), &parts).unwrap_or_default()
    }

    /// Shows the input of a stage in a track, windows in order; with `roots`, by window, each token times its root.
    pub(crate) fn see_stage_input(
        &self,
        track: usize,
        layer: &Layer,
        stage: usize,
        weights: &LayerWeights,
        roots: Option<&[Vec<f32>]>,
        see: &mut See<'_>,
    ) -> Result<(), Error> {
        for (index, state) in self.quantized[track].iter().enumerate() {
            let input = self.forward.stage_input(layer, stage, weights, state);
            let original = self.original.as_ref().map(|states| {
                (self.forward.stage_input(layer, stage, weights, &states[index]), states[index].hidden())
            });
            let Some(roots) = roots else {
                let original = original.as_ref().map(|(input, residual)| (input.view(), *residual));
                see(Seen { input: input.view(), residual: state.hidden(), original })?;
                continue;
            };
            let roots = ArrayView1::from(&roots[index]).insert_axis(Axis(1));
            let (input, residual) = (&input * &roots, &state.hidden() * &roots);
            let original = original.map(|(input, residual)| (&input * &roots, &residual * &roots));
            let original = original.as_ref().map(|(input, residual)| (input.view(), residual.view()));
            see(Seen { input: input.view(), residual: residual.view(), original })?;
        }
        Ok(())
    }

    /// Shows the input of a stage in the original, `[tokens, in_features]`, windows in order.
    pub(crate) fn see_original_input(
        &self,
        layer: &Layer,
        stage: usize,
        weights: &LayerWeights,
        see: &mut dyn FnMut(ArrayView2<'_, f32>),
    ) {
        for state in self.original.iter().flatten() {
            see(self.forward.stage_input(layer, stage, weights, state).view());
        }
    }

    /// Shows what the head multiplies with in a track, `[tokens, embedding_size]`, windows in order, once all layers are done.
    pub(crate) fn see_head_input(
        &self,
        track: usize,
        outer: &OuterWeights,
        see: &mut dyn FnMut(ArrayView2<'_, f32>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.quantized[track]
            .iter()
            .try_for_each(|state| see(self.forward.head_input(outer, state.hidden()).view()))
    }

    /// Applies the stage's original linears to the original stream.
    pub(crate) fn advance_original(
        &mut self,
        layer: &Layer,
        stage: usize,
        weights: &LayerWeights,
    ) -> Result<(), Error> {
        match &mut self.original {
            None => Ok(()),
            Some(states) => {
                let weights = weights.of_stage(&layer.stages[stage], self.precision);
                advance(&self.forward, states, layer, stage, &weights)
            }
        }
    }

    /// Applies the stage's linears as a track quantized them to its stream.
    pub(crate) fn advance_quantized(
        &mut self,
        track: usize,
        layer: &Layer,
        stage: usize,
        weights: &LayerWeights,
    ) -> Result<(), Error> {
        let weights = weights.of_stage(&layer.stages[stage], self.precision);
        advance(&self.forward, &mut self.quantized[track], layer, stage, &weights)
    }
}

fn advance(
    forward: &Forward<'_>,
    states: &mut [WindowState],
    layer: &Layer,
    stage: usize,
    weights: &LayerWeights,
) -> Result<(), Error> {
    states.par_iter_mut().for_each(|state| forward.advance(layer, stage, weights, state));
    // Only what writes to the residual stream can spoil it; of many experts the last one's look is for all.
    let Stage { input, .. } = layer.stages[stage];
    let expert = layer.stages[stage].part() != Part::Main && stage + 1 < layer.stages.len();
    if expert || matches!(input, StageInput::AttentionInput | StageInput::MlpInput) {
        return Ok(());
    }
    match states.par_iter().position_first(|state| !state.is_finite()) {
        None => Ok(()),
        Some(window) => {
            let place = format!("layer {}", layer.index);
            Err(calibration::CalibrationError::NotFinite { window, place }.into())
        }
    }
}
