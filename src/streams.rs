//! The hidden states of all calibration windows: of the model as each track quantizes it and, where errors are propagated, of the original,
//! which the tracks share.

use std::borrow::Cow;
use std::sync::Arc;

use calibration::CalibrationError;
use calibration::activations::{Activations, ExpertStage, Room};
use calibration::forward::{Forward, WindowState};
use calibration::weights::{LayerWeights, OuterWeights, WeightSource};
use kernels::account::section;
use kernels::bf16::Precision;
use model::graph::StageInput;
use model::linear::Part;
use model::{Layer, Model, Stage};
use ndarray::{Array2, ArrayView1, ArrayView2, Axis, CowArray, Ix2};
use rayon::prelude::*;

use crate::error::Error;
use crate::experts::Spread;
use crate::journal::{Journal, StateFile, StreamSums};
use crate::memory::Memory;
use crate::plan::Plan;

/// Where every window is.
pub(crate) struct Streams<'m> {
    forward: Forward<'m>,
    /// By track.
    quantized: Vec<Activations>,
    original: Option<Activations>,
    /// Files that the states behind the layer are written to, by stream, the original's last.
    kept: Vec<Option<Arc<StateFile>>>,
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
    /// The windows for a track of each plan: embedded, or as they are behind the last whole layer of the journal. The original runs beside where its
    /// errors are made up for, or where it is `shown`.
    pub(crate) fn start(
        model: &'m Model,
        source: &dyn WeightSource,
        plans: &[&Plan],
        windows: &[Vec<u32>],
        shown: bool,
        precision: Precision,
        (journal, memory): (&Journal, Memory),
    ) -> Result<Self, Error> {
        let _section = section("embedding");
        let lengths: Vec<usize> = windows.iter().map(Vec::len).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let forward = Forward::new(model, longest).with_precision(precision);
        let beside = shown || plans.iter().any(|plan| plan.propagates_errors());
        let count = plans.len() + usize::from(beside);
        let mut streams: Vec<Activations> = match journal.layers().checked_sub(1) {
            None => {
                let embed = |window: usize| forward.embed(source, &windows[window], 0);
                let start =
                    |_| Activations::start(&lengths, memory.space(journal)?, embed).map_err(from_room);
                (0..count).map(start).collect::<Result<_, Error>>()?
            }
            Some(layer) => {
                let hidden = model.hyperparameters.hidden_size;
                let restore = |file: StateFile| {
                    let room: Arc<dyn Room> = Arc::new(file);
                    Activations::restore(&lengths, hidden, memory.space(journal)?, &room).map_err(from_room)
                };
                journal.states_behind(layer, count)?.into_iter().map(restore).collect::<Result<_, Error>>()?
            }
        };
        let original = if beside { streams.pop() } else { None };
        let kept = vec![None; count];
        Ok(Self { forward, quantized: streams, original, kept, precision })
    }

    /// Of products with linears and of moments.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// How many there are.
    pub(crate) fn windows(&self) -> usize {
        self.quantized.first().map_or(0, Activations::len)
    }

    /// What runs them.
    pub(crate) fn forward(&self) -> &Forward<'m> {
        &self.forward
    }

    /// Tokens of a track that are sent to an expert of the layer whose attention was run last.
    pub(crate) fn sent_to(&self, track: usize, expert: usize) -> usize {
        self.quantized[track].sent_to(expert)
    }

    /// The MLP's inputs of at most `most` tokens of a track, spread evenly, in a layer whose attention was run, `[tokens, hidden]`.
    pub(crate) fn pooled_inputs(&self, track: usize, most: usize) -> Result<Array2<f32>, Error> {
        let stream = &self.quantized[track];
        let mut spread = Spread::over(stream.tokens(), most);
        for window in 0..stream.len() {
            spread.take(&*stream.window(window).map_err(from_room)?);
        }
        Ok(spread.finish())
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
        let _section = section("inputs of stages");
        let expert = expert_stage(layer, stage);
        let windows: Vec<usize> = (0..self.windows()).collect();
        // Some windows are made ready while none is shown; `--memory` counts them with the windows in work.
        for together in windows.chunks(rayon::current_num_threads()) {
            let state = |&window: &usize| {
                let own = look(&self.quantized[track], window, expert)?;
                let original = self.original.as_ref().map(|original| look(original, window, expert));
                Ok::<_, Error>((own, original.transpose()?))
            };
            let states = together.par_iter().map(state).collect::<Result<Vec<_>, Error>>()?;
            let ready = states.par_iter().zip(together).map(|((own, original), &window)| {
                let roots = roots.map(|roots| roots[window].as_slice());
                let ready = |state| self.ready((layer, stage, weights), state, roots);
                (ready(own), original.as_deref().map(ready))
            });
            for ((input, residual), original) in ready.collect::<Vec<_>>() {
                let original = original.as_ref().map(|(input, residual)| (input.view(), residual.view()));
                see(Seen { input: input.view(), residual: residual.view(), original })?;
            }
        }
        Ok(())
    }

    /// The input of a stage and the residual stream beside it, of one window; with `roots`, each token times its root.
    fn ready<'s>(
        &self,
        (layer, stage, weights): (&Layer, usize, &LayerWeights),
        state: &'s WindowState,
        roots: Option<&[f32]>,
    ) -> (CowArray<'s, f32, Ix2>, CowArray<'s, f32, Ix2>) {
        let input = self.forward.stage_input(layer, stage, weights, state);
        match roots {
            None => (input, state.hidden().into()),
            Some(roots) => {
                let roots = ArrayView1::from(roots).insert_axis(Axis(1));
                ((&input * &roots).into(), (&state.hidden() * &roots).into())
            }
        }
    }

    /// Shows the input of a stage in the original, `[tokens, in_features]`, windows in order.
    pub(crate) fn see_original_input(
        &self,
        layer: &Layer,
        stage: usize,
        weights: &LayerWeights,
        see: &mut dyn FnMut(ArrayView2<'_, f32>),
    ) -> Result<(), Error> {
        let Some(original) = &self.original else { return Ok(()) };
        for index in 0..original.len() {
            let state = original.window(index).map_err(from_room)?;
            see(self.forward.stage_input(layer, stage, weights, &state).view());
        }
        Ok(())
    }

    /// Shows what the head multiplies with in a track, `[tokens, embedding_size]`, windows in order, once all layers are done.
    pub(crate) fn see_head_input(
        &self,
        track: usize,
        outer: &OuterWeights,
        see: &mut dyn FnMut(ArrayView2<'_, f32>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let stream = &self.quantized[track];
        (0..stream.len()).try_for_each(|window| {
            let state = stream.window(window).map_err(from_room)?;
            see(self.forward.head_input(outer, state.hidden()).view())
        })
    }

    /// Applies the stage's original linears to the original stream; behind a layer's last stage the journal keeps it.
    pub(crate) fn advance_original(
        &mut self,
        layer: &Layer,
        stage: usize,
        weights: &LayerWeights,
        journal: &Journal,
    ) -> Result<(), Error> {
        let _section = section("forward, original");
        let number = self.quantized.len();
        match &mut self.original {
            None => Ok(()),
            Some(stream) => {
                let weights = weights.of_stage(&layer.stages[stage], self.precision);
                let kept = advance(&self.forward, stream, layer, stage, &weights, (journal, number))?;
                self.kept[number] = kept;
                Ok(())
            }
        }
    }

    /// Applies the stage's linears as a track quantized them to its stream; behind a layer's last stage the journal keeps it.
    pub(crate) fn advance_quantized(
        &mut self,
        track: usize,
        layer: &Layer,
        stage: usize,
        weights: &LayerWeights,
        journal: &Journal,
    ) -> Result<(), Error> {
        let _section = section("forward, quantized");
        let weights = weights.of_stage(&layer.stages[stage], self.precision);
        let stream = &mut self.quantized[track];
        self.kept[track] = advance(&self.forward, stream, layer, stage, &weights, (journal, track))?;
        Ok(())
    }

    /// Makes what the journal keeps of the streams durable; gives its checksums.
    pub(crate) fn sync(&mut self) -> Result<Vec<StreamSums>, Error> {
        let _section = section("journal");
        self.kept.iter_mut().filter_map(Option::take).map(|file| file.sync()).collect()
    }
}

/// Advances a stream, and gives the file that it was kept in.
fn advance(
    forward: &Forward<'_>,
    stream: &mut Activations,
    layer: &Layer,
    stage: usize,
    weights: &LayerWeights,
    (journal, number): (&Journal, usize),
) -> Result<Option<Arc<StateFile>>, Error> {
    let ends = stage + 1 == layer.stages.len();
    let file = ends.then(|| journal.states(layer.index, number)).transpose()?;
    let room = file.clone().map(|file| file as Arc<dyn Room>);
    // Only what writes to the residual stream can spoil it; of many experts the last one's look is for all.
    let Stage { input, .. } = layer.stages[stage];
    let expert = layer.stages[stage].part() != Part::Main && !ends;
    let looks = !expert && !matches!(input, StageInput::AttentionInput | StageInput::MlpInput);
    let place = looks.then(|| format!("layer {}", layer.index));
    let step = |state: &mut _| forward.advance(layer, stage, weights, state);
    let partly = expert_stage(layer, stage).filter(|_| !ends);
    stream.advance(place.as_deref(), room.as_ref(), partly, step).map_err(from_room)?;
    Ok(file)
}

/// A window, or what an expert's stage sees of it.
fn look(
    stream: &Activations,
    window: usize,
    expert: Option<ExpertStage>,
) -> Result<Cow<'_, WindowState>, Error> {
    match expert {
        Some(expert) => stream.window_for(window, expert),
        None => stream.window(window),
    }
    .map_err(from_room)
}

/// The stage as an expert's, where it is one.
fn expert_stage(layer: &Layer, stage: usize) -> Option<ExpertStage> {
    let stage = &layer.stages[stage];
    let expert = stage.part().expert()?;
    Some(ExpertStage { expert, writes_residual: stage.input == StageInput::MlpOutput })
}

/// The room's own error, where it is one of ours.
fn from_room(error: CalibrationError) -> Error {
    match error {
        CalibrationError::Source(source) => Error::from_source(source),
        other => other.into(),
    }
}
