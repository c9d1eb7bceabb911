//! The hidden states of all calibration windows: of the model as each track quantizes it and, where errors are propagated, of the original,
//! which the tracks share. Of several ranks each has the windows that are dealt to it in turn; what is seen is of all, in order.

mod through;
mod told;

use std::borrow::Cow;
use std::sync::Arc;

use calibration::CalibrationError;
use calibration::activations::{Activations, ExpertStage, Room};
use calibration::forward::{Forward, WindowState};
use calibration::weights::{LayerWeights, OuterWeights, WeightSource};
use kernels::account::section;
use kernels::bf16::Precision;
use kernels::ranks::{Ranks, put, take};
use model::graph::StageInput;
use model::linear::Part;
use model::{Layer, Model, Stage};
use ndarray::{Array2, ArrayView1, ArrayView2, Axis, CowArray, Ix2};
use quantizer::accumulator::CHUNK_TOKENS;
use rayon::prelude::*;

use crate::error::Error;
use crate::experts::Spread;
use crate::journal::{Journal, StateFile, StreamSums};
use crate::memory::Memory;
use crate::plan::Plan;
pub(crate) use through::Through;

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
    /// Tokens of all windows, those of other ranks too.
    lengths: Vec<usize>,
    ranks: Arc<dyn Ranks>,
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
    /// Of another rank's window there is, instead of these three, what of their differences is wanted.
    pub(crate) lacks: Option<Lacks<'a>>,
}

/// What the quantized stream has less than the original, as far as it is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lacks<'a> {
    /// `[tokens, in_features]`
    pub(crate) input: Option<ArrayView2<'a, f32>>,
    /// `[tokens, hidden]`
    pub(crate) residual: Option<ArrayView2<'a, f32>>,
}

/// What of it is needed beside the input, and by whom.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'w> {
    /// What the input lacks.
    pub(crate) input: bool,
    /// What the residual stream lacks.
    pub(crate) residual: bool,
    /// The linear, where what its output lacks for want of input is part of that.
    pub(crate) through: Option<&'w Through<'w>>,
    /// The ranks, from the first on, that add up any of it. The others are shown how many tokens there are.
    pub(crate) sharers: usize,
}

/// Told what is at a stage, some windows at a time, in order.
pub(crate) type See<'s> = dyn FnMut(&[Seen<'_>]) -> Result<(), Error> + 's;

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
        (journal, memory, ranks): (&Journal, Memory, &Arc<dyn Ranks>),
    ) -> Result<Self, Error> {
        let _section = section("embedding");
        let lengths: Vec<usize> = windows.iter().map(Vec::len).collect();
        let own: Vec<usize> = (0..windows.len()).filter(|&window| ranks.owns(window)).collect();
        let own_lengths: Vec<usize> = own.iter().map(|&window| lengths[window]).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let forward = Forward::new(model, longest).with_precision(precision);
        let beside = shown || plans.iter().any(|plan| plan.propagates_errors());
        let count = plans.len() + usize::from(beside);
        let mut streams: Vec<Activations> = match journal.layers().checked_sub(1) {
            None => {
                let embed = |window: usize| forward.embed(source, &windows[own[window]], 0);
                let start =
                    |_| Activations::start(&own_lengths, memory.space(journal)?, embed).map_err(from_room);
                (0..count).map(start).collect::<Result<_, Error>>()?
            }
            Some(layer) => {
                let hidden = model.hyperparameters.hidden_size;
                let restore = |file: StateFile| {
                    let room: Arc<dyn Room> = Arc::new(file);
                    Activations::restore(&own_lengths, hidden, memory.space(journal)?, &room)
                        .map_err(from_room)
                };
                journal.states_behind(layer, count)?.into_iter().map(restore).collect::<Result<_, Error>>()?
            }
        };
        let original = if beside { streams.pop() } else { None };
        let kept = vec![None; count];
        let ranks = ranks.clone();
        Ok(Self { forward, quantized: streams, original, kept, precision, lengths, ranks })
    }

    /// Of products with linears and of moments.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// How many there are.
    pub(crate) fn windows(&self) -> usize {
        self.lengths.len()
    }

    /// Whose they are.
    pub(crate) fn ranks(&self) -> &Arc<dyn Ranks> {
        &self.ranks
    }

    /// What runs them.
    pub(crate) fn forward(&self) -> &Forward<'m> {
        &self.forward
    }

    /// Tokens of a track that are sent to an expert of the layer whose attention was run last.
    pub(crate) fn sent_to(&self, track: usize, expert: usize) -> Result<usize, Error> {
        let own = self.quantized[track].sent_to(expert) as u64;
        let tokens = (0..self.ranks.size()).map(|rank| {
            let message = self.ranks.broadcast(rank, own.to_le_bytes().to_vec())?;
            let wrong = |_| Error::Internal(format!("rank {rank} sent no number"));
            message.try_into().map(u64::from_le_bytes).map_err(wrong)
        });
        Ok(tokens.sum::<Result<u64, Error>>()? as usize)
    }

    /// The MLP's inputs of at most `most` tokens of a track, spread evenly, in a layer whose attention was run, `[tokens, hidden]`.
    pub(crate) fn pooled_inputs(&self, track: usize, most: usize) -> Result<Array2<f32>, Error> {
        let stream = &self.quantized[track];
        let mut spread = Spread::over(self.lengths.iter().sum(), most);
        let everyone: Vec<usize> = (0..self.ranks.size()).collect();
        for (window, &tokens) in self.lengths.iter().enumerate() {
            let taken = spread.next(tokens);
            let inputs = |own| Ok(taken.of(&*stream.window(own).map_err(from_room)?));
            let inputs = self.tell(window, &everyone, inputs)?;
            spread.keep(inputs.unwrap_or_default());
        }
        Ok(spread.finish())
    }

    /// Gives `readers` what this rank makes of the window of a number, if that is its own, by its number there; nothing to others.
    fn tell(
        &self,
        window: usize,
        readers: &[usize],
        make: impl FnOnce(usize) -> Result<Array2<f32>, Error>,
    ) -> Result<Option<Array2<f32>>, Error> {
        let (ranks, owner) = (&*self.ranks, window % self.ranks.size());
        let own = ranks.owns(window).then(|| make(window / ranks.size())).transpose()?;
        let reads = readers.contains(&ranks.rank());
        if readers == [owner] {
            return Ok(own);
        }
        let mut message = Vec::new();
        if let Some(own) = &own {
            put(&mut message, own.view());
        }
        let message = kernels::ranks::tell(ranks, owner, readers, message)?;
        match own {
            _ if !reads => Ok(None),
            None => Ok(Some(take(&mut &message[..])?)),
            own => Ok(own),
        }
    }

    /// Shows the input of a stage in a track, windows in order; with `roots`, by window, each token times its root. Of other ranks' windows
    /// there is what is `wanted`.
    #[expect(clippy::too_many_arguments, reason = "where, of what, and to whom")]
    pub(crate) fn see_stage_input(
        &self,
        track: usize,
        layer: &Layer,
        stage: usize,
        weights: &LayerWeights,
        roots: Option<&[Vec<f32>]>,
        wanted: Wanted<'_>,
        see: &mut See<'_>,
    ) -> Result<(), Error> {
        let _section = section("inputs of stages");
        let expert = expert_stage(layer, stage);
        let (ranks, size) = (&self.ranks, self.ranks.size());
        let windows: Vec<usize> = (0..self.windows()).collect();
        let longest = self.lengths.iter().copied().max().unwrap_or(1);
        // Of several ranks all have to take the same number.
        let of_rank = if ranks.is_alone() { shown_together(longest) } else { filling(longest) };
        for together in windows.chunks(of_rank * size) {
            let own: Vec<usize> = together.iter().copied().filter(|&window| ranks.owns(window)).collect();
            let state = |&window: &usize| {
                let own = look(&self.quantized[track], window / size, expert)?;
                let original = self.original.as_ref().map(|original| look(original, window / size, expert));
                Ok::<_, Error>((own, original.transpose()?))
            };
            let states = own.par_iter().map(state).collect::<Result<Vec<_>, Error>>()?;
            let ready = states.par_iter().zip(&own).map(|((own, original), &window)| {
                let roots = roots.map(|roots| roots[window].as_slice());
                let ready = |state| self.ready((layer, stage, weights), state, roots);
                (ready(own), original.as_deref().map(ready))
            });
            let ready = ready.collect::<Vec<_>>();
            let own = ready.iter().map(|((input, residual), original)| Seen {
                input: input.view(),
                residual: residual.view(),
                original: original.as_ref().map(|(input, residual)| (input.view(), residual.view())),
                lacks: None,
            });
            let own: Vec<Seen<'_>> = own.collect();
            if ranks.is_alone() {
                see(&own)?;
                continue;
            }
            let mut others = Vec::with_capacity(size);
            for owner in 0..size {
                others.push(told::tell(&**ranks, owner, &own, wanted, self.precision)?);
            }
            let mut others: Vec<&[u8]> = others.iter().map(Vec::as_slice).collect();
            let mut own = own.chunks(1);
            for &window in together {
                match ranks.owns(window) {
                    true => own.next().map_or(Ok(()), &mut *see)?,
                    false => told::see(&**ranks, &mut others[window % size], wanted, self.precision, see)?,
                }
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

    /// Shows rank 0 the input of a stage in the original, `[tokens, in_features]`, windows in order.
    pub(crate) fn see_original_input(
        &self,
        layer: &Layer,
        stage: usize,
        weights: &LayerWeights,
        see: &mut dyn FnMut(ArrayView2<'_, f32>),
    ) -> Result<(), Error> {
        let Some(original) = &self.original else { return Ok(()) };
        for window in 0..self.windows() {
            let input = |own| {
                let state = original.window(own).map_err(from_room)?;
                Ok(self.forward.stage_input(layer, stage, weights, &state).into_owned())
            };
            if let Some(input) = self.tell(window, &[0], input)? {
                see(input.view());
            }
        }
        Ok(())
    }

    /// Shows rank 0 what the head multiplies with in a track, `[tokens, embedding_size]`, windows in order, once all layers are done.
    pub(crate) fn see_head_input(
        &self,
        track: usize,
        outer: &OuterWeights,
        see: &mut dyn FnMut(ArrayView2<'_, f32>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let stream = &self.quantized[track];
        (0..self.windows()).try_for_each(|window| {
            let input = |own| {
                let state = stream.window(own).map_err(from_room)?;
                Ok(self.forward.head_input(outer, state.hidden()).to_owned())
            };
            self.tell(window, &[0], input)?.map_or(Ok(()), |input| see(input.view()))
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
                let kept =
                    advance(&self.forward, stream, layer, stage, &weights, (journal, number), &*self.ranks)?;
                if let Some(kept) = &kept {
                    // The disk can begin while others work.
                    kept.sync()?;
                }
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
        let kept = (journal, track);
        self.kept[track] = advance(&self.forward, stream, layer, stage, &weights, kept, &*self.ranks)?;
        Ok(())
    }

    /// Makes what the journal keeps of the streams durable; gives its checksums.
    pub(crate) fn sync(&mut self) -> Result<Vec<StreamSums>, Error> {
        let _section = section("journal");
        let files: Vec<_> = self.kept.iter_mut().filter_map(Option::take).collect();
        // They wait for the disk together.
        files.par_iter().map(|file| file.sync()).collect::<Vec<_>>().into_iter().collect()
    }
}

/// Windows of so many tokens that are made ready while none is shown: one for each thread, or those that fill a product.
pub(crate) fn shown_together(longest: usize) -> usize {
    rayon::current_num_threads().max(filling(longest))
}

fn filling(longest: usize) -> usize {
    (CHUNK_TOKENS / longest.max(1)).max(1)
}

/// Advances a stream, and gives the file that it was kept in.
fn advance(
    forward: &Forward<'_>,
    stream: &mut Activations,
    layer: &Layer,
    stage: usize,
    weights: &LayerWeights,
    (journal, number): (&Journal, usize),
    ranks: &dyn Ranks,
) -> Result<Option<Arc<StateFile>>, Error> {
    let ends = stage + 1 == layer.stages.len();
    let file = ends.then(|| journal.states(layer.index, number)).transpose()?.flatten();
    let room = file.clone().map(|file| file as Arc<dyn Room>);
    // Only what writes to the residual stream can spoil it; of many experts the last one's look is for all.
    let Stage { input, .. } = layer.stages[stage];
    let expert = layer.stages[stage].part() != Part::Main && !ends;
    let looks = !expert && !matches!(input, StageInput::AttentionInput | StageInput::MlpInput);
    let place = looks.then(|| format!("layer {}", layer.index));
    let step = |state: &mut _| forward.advance(layer, stage, weights, state);
    let partly = expert_stage(layer, stage).filter(|_| !ends);
    stream.advance(place.as_deref(), room.as_ref(), partly, step).map_err(|error| match error {
        // Among its own.
        CalibrationError::NotFinite { window, place } => {
            CalibrationError::NotFinite { window: window * ranks.size() + ranks.rank(), place }.into()
        }
        other => from_room(other),
    })?;
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
