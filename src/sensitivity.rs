//! What each width of each stage would do to the model: one pass forward and one back through the original over a few windows.
//!
//! The equations are [`quantizer::allocate`]'s. A stage's linears are solved at every width, without the refinements of the recipe, which lower
//! all losses by similar shares; the solutions' errors are projected on the gradients of windows that were not solved on, since a solution's
//! error on its own tokens is too small where tokens are few. Residual streams of all layers are kept for as many tokens as [`MOST_TOKENS`].
//! An expert is a stage of the tokens that are sent to it, and one is in memory at a time; one that is sent few is solved as it would be, on some
//! of the layer's ([`experts`]).

use std::collections::BTreeMap;

use calibration::CalibrationError;
use calibration::activations::History;
use calibration::backward::{Backward, Head, Visit};
use calibration::forward::{Forward, WindowState};
use calibration::weights::{LayerWeights, LinearOperator, WeightSource};
use kernels::bf16::Precision;
use kernels::stripes::Shelf;
use model::graph::StageInput;
use model::linear::{Linear, LinearId, Part, Slot};
use model::{Layer, Model, Stage};
use ndarray::{Array2, ArrayView2};
use quantizer::allocate::{add_projected_errors, damage};
use quantizer::solver::Problem;
use rayon::prelude::*;

use crate::budget::StageOptions;
use crate::error::Error;
use crate::experts::{self, Spread};

use crate::plan::Plan;
use crate::progress::{Progress, go_on};
use crate::recipe::Treatment;
use crate::solving::{dense, solver};
use crate::statistics::{Among, Gathered, Sent};
use crate::streams::{See, Seen, Wanted};

/// Tokens that are looked at, but for the rest of a window.
pub(crate) const MOST_TOKENS: usize = 8192;
/// Every so many windows one is projected on, and the others are solved on.
const PROJECTED: usize = 4;
/// Rows of the head in one slice.
const HEAD_ROWS: usize = 8192;

/// The damage of each width of each of `stages`, nats of divergence a token. `inputs` takes the residual stream before each layer, of each window.
pub(crate) fn weigh(
    model: &Model,
    source: &dyn WeightSource,
    plan: &Plan,
    stages: &[StageOptions],
    windows: &[Vec<u32>],
    mut inputs: History,
    progress: &dyn Progress,
) -> Result<Vec<Vec<f64>>, Error> {
    let windows = some_of(windows);
    let longest = windows.iter().map(|window| window.len()).max().unwrap_or(0);
    let forward = Forward::new(model, longest);
    let layers = &model.layers;
    progress.phase("weighing widths", 2 * layers.len());

    let embed = |tokens: &&Vec<u32>| forward.embed(source, tokens, 0).map_err(Error::from_source);
    let mut states = windows.par_iter().map(embed).collect::<Result<Vec<_>, Error>>()?;
    for layer in layers {
        go_on(progress)?;
        progress.at(&format!("layer {}, forwards", layer.index));
        inputs.push(states.iter().map(WindowState::hidden))?;
        forward.advance_windows(layer, source, &mut states).map_err(Error::from_source)?;
        if let Some(window) = states.iter().position(|state| !state.is_finite()) {
            let place = format!("layer {}", layer.index);
            return Err(CalibrationError::NotFinite { window, place }.into());
        }
        progress.step("");
    }

    let period = windows.len().min(PROJECTED);
    let projected: Vec<usize> = (0..windows.len()).filter(|window| (window + 1) % period == 0).collect();
    let mut gradients = head_gradients(source, &forward, &projected, &states)?;
    drop(states);
    let options: BTreeMap<LinearId, usize> = stages
        .iter()
        .enumerate()
        .flat_map(|(index, options)| options.linears.iter().map(move |&linear| (linear, index)))
        .collect();
    let backward = Backward::new(&forward);
    let mut damages: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for layer in layers.iter().rev() {
        go_on(progress)?;
        progress.at(&format!("layer {}, back", layer.index));
        let (passing, solved_on) = parted(inputs.pop()?, &projected);
        let mut passed: Vec<Passed> = passing.iter().map(|input| Passed::of(input.nrows())).collect();
        gradients = backward
            .windows_vjp(layer, source, &passing, &gradients, &mut passed, &Passed::keep)
            .map_err(Error::from_source)?;
        drop(passing);
        let mut solving = LayerSolving {
            forward: &forward,
            layer,
            weights: source.layer(layer).map_err(Error::from_source)?,
            states: solved_on.into_iter().map(WindowState::new).collect(),
            pooled: None,
        };
        for (place, stage) in layer.stages.iter().enumerate() {
            let options = stage.linears.iter().find_map(|linear| options.get(&linear.id));
            let met = passed.iter().any(|passed| passed.meets(stage.part()));
            solving.fetch(stage.part(), met, source)?;
            if let Some(&index) = options {
                // An expert that none of the projected tokens is sent to does them nothing.
                let found = if met {
                    solving.weigh(plan, place, &stages[index], &passed)?
                } else {
                    vec![0.0; stages[index].widths.len()]
                };
                damages.insert(index, found);
            }
            solving.advance(place);
        }
        progress.step("");
    }
    progress.finish();
    Ok(damages.into_values().collect())
}

/// The windows that are `projected` on, and those that are solved on: the others, or the only one.
fn parted(inputs: Vec<Array2<f32>>, projected: &[usize]) -> (Vec<Array2<f32>>, Vec<Array2<f32>>) {
    if inputs.len() == 1 {
        return (inputs.clone(), inputs);
    }
    let (passing, solved_on): (Vec<_>, Vec<_>) =
        inputs.into_iter().enumerate().partition(|(window, _)| projected.contains(window));
    let inputs = |windows: Vec<(usize, _)>| windows.into_iter().map(|(_, input)| input).collect();
    (inputs(passing), inputs(solved_on))
}

/// Evenly spread windows, of about [`MOST_TOKENS`] tokens, and two at least where there are two.
fn some_of(windows: &[Vec<u32>]) -> Vec<&Vec<u32>> {
    let tokens: usize = windows.iter().map(Vec::len).sum();
    let mean = (tokens / windows.len().max(1)).max(1);
    let count = MOST_TOKENS.div_ceil(mean).max(2).min(windows.len());
    (0..count).map(|k| &windows[k * windows.len() / count]).collect()
}

/// The gradients of the residual streams after the last layer, whose covariance is the Fisher information.
fn head_gradients(
    source: &dyn WeightSource,
    forward: &Forward<'_>,
    projected: &[usize],
    states: &[WindowState],
) -> Result<Vec<Array2<f32>>, Error> {
    let vocabulary = forward.model().hyperparameters.vocabulary;
    let outer = source.outer().map_err(Error::from_source)?;
    let slices = (0..vocabulary).step_by(HEAD_ROWS);
    let slices = slices.map(|first| source.head_rows(first..(first + HEAD_ROWS).min(vocabulary)));
    let slices: Vec<LinearOperator> = slices.collect::<Result<_, _>>().map_err(Error::from_source)?;
    let head = Head { outer: &outer, slices: &slices };
    let backward = Backward::new(forward);
    let gradients = projected.par_iter().map(|&window| {
        let hidden = states[window].hidden();
        let gradient = backward.fisher_probe(head, hidden, window as u64);
        if gradient.iter().all(|value| value.is_finite()) {
            Ok(gradient)
        } else {
            Err(CalibrationError::NotFinite { window, place: "logits".to_owned() }.into())
        }
    });
    gradients.collect()
}

/// What passed through a layer's linears in one window: input and gradient of the output; of an expert's, of the tokens that are sent to it.
struct Passed {
    tokens: usize,
    linears: BTreeMap<Slot, (Array2<f32>, Array2<f32>)>,
}

impl Passed {
    /// Nothing yet, of a window of so many tokens.
    fn of(tokens: usize) -> Self {
        Self { tokens, linears: BTreeMap::new() }
    }

    fn keep(&mut self, visit: Visit<'_>) {
        if let Visit::Linear(linear) = visit {
            self.linears.insert(linear.slot, (linear.input.to_owned(), linear.output_gradient.to_owned()));
        }
    }

    /// Whether a token went through a part.
    fn meets(&self, part: Part) -> bool {
        self.linears.iter().any(|(slot, (input, _))| slot.part == part && input.nrows() > 0)
    }
}

/// One layer whose stages are solved at every width, on the states of windows before it.
struct LayerSolving<'s> {
    forward: &'s Forward<'s>,
    layer: &'s Layer,
    weights: LayerWeights,
    states: Vec<WindowState>,
    /// Inputs of some of the layer's tokens, `[tokens, hidden]`, once an expert lacks its own.
    pooled: Option<Array2<f32>>,
}

impl LayerSolving<'_> {
    /// Has an expert in memory where a token is sent to it, here or of those that are projected on.
    fn fetch(&mut self, part: Part, met: bool, source: &dyn WeightSource) -> Result<(), Error> {
        if met || self.sent_to(part) > 0 {
            self.weights.fetch(self.layer, part, source).map_err(Error::from_source)?;
        }
        Ok(())
    }

    fn sent_to(&self, part: Part) -> usize {
        part.expert().map_or(0, |expert| self.states.iter().map(|state| state.sent_to(expert)).sum())
    }

    fn advance(&mut self, place: usize) {
        let Self { forward, layer, weights, .. } = self;
        self.states.par_iter_mut().for_each(|state| forward.advance(layer, place, weights, state));
        let stage = &layer.stages[place];
        if stage.part().expert().is_some() && stage.input == StageInput::MlpOutput {
            weights.release(stage.part());
        }
    }

    /// What stands in for the tokens that an expert lacks; none for what all tokens pass.
    fn sent(&mut self, stage: &Stage) -> Result<Option<Sent>, Error> {
        if stage.part().expert().is_none() {
            return Ok(None);
        }
        let missing = experts::COLD.saturating_sub(self.sent_to(stage.part()));
        if missing == 0 {
            return Ok(Some(Sent::default()));
        }
        let states = &self.states;
        let inputs = self.pooled.get_or_insert_with(|| {
            let tokens = states.iter().map(|state| state.hidden().nrows()).sum();
            let mut spread = Spread::over(tokens, experts::POOLED);
            for state in states {
                let taken = spread.next(state.hidden().nrows());
                spread.keep(taken.of(state));
            }
            spread.finish()
        });
        let fail = |source| Error::Statistics { linear: stage.linears[0].name.clone(), source };
        experts::stand_in(self.forward, &self.weights, stage, missing, inputs).map(Some).map_err(fail)
    }

    /// The damage of each width of a stage.
    fn weigh(
        &mut self,
        plan: &Plan,
        place: usize,
        options: &StageOptions,
        passed: &[Passed],
    ) -> Result<Vec<f64>, Error> {
        let stage = &self.layer.stages[place];
        let sent = self.sent(stage)?;
        let Self { forward, layer, weights, states, .. } = &*self;
        let linears: Vec<&Linear> =
            stage.linears.iter().filter(|linear| options.linears.contains(&linear.id)).collect();
        let treatments: Vec<Treatment> = linears.iter().map(|linear| plain(plan.treatment(linear))).collect();
        // No window is held out here, so there is nobody to tell the schemes.
        let pairs: Vec<(&Linear, &Treatment)> = linears.iter().copied().zip(&treatments).collect();
        let visit = |_: Wanted<'_>, see: &mut See<'_>| {
            states.iter().try_for_each(|state| {
                let input = forward.stage_input(layer, place, weights, state);
                see(&[Seen { input: input.view(), residual: state.hidden(), original: None, lacks: None }])
            })
        };
        let windows = states.len();
        let kept = (Precision::Single, &Shelf::memory(), Among::alone());
        let seen = Gathered::gather(stage, &pairs, Vec::new(), windows, sent, kept, visit)?.prepare()?;
        let weights = linears.iter().map(|linear| dense(weights, linear)).collect::<Result<Vec<_>, _>>()?;
        let mut damages = Vec::with_capacity(options.widths.len());
        for width in &options.widths {
            let mut projected: Vec<Vec<f64>> = vec![Vec::new(); passed.len()];
            for (index, &(linear, treatment)) in pairs.iter().enumerate() {
                let weight: ArrayView2<'_, f32> = weights[index];
                let hessian = seen.prepared(&treatment.settings);
                let problem = Problem { weight, hessian, output: None, scheme: width.schemes[index] };
                let solution = solver(treatment)?
                    .solve(&problem, &treatment.settings)
                    .map_err(|source| Error::Solve { linear: linear.name.clone(), source })?;
                let errors = &weight - &solution.tensor.dequantize();
                for (projected, passed) in projected.iter_mut().zip(passed) {
                    let Some((input, gradient)) = passed.linears.get(&linear.id.slot()) else { continue };
                    projected.resize(input.nrows(), 0.0);
                    add_projected_errors(errors.view(), input.view(), gradient.view(), projected);
                }
            }
            // Tokens that are sent elsewhere take no harm.
            projected.iter_mut().zip(passed).for_each(|(sums, passed)| sums.resize(passed.tokens, 0.0));
            damages.push(damage(&projected.concat()));
        }
        Ok(damages)
    }
}

/// The treatment without refinements and guard, and without errors of earlier layers, of which there are none here.
fn plain(treatment: &Treatment) -> Treatment {
    let mut plain = treatment.clone();
    let settings = &mut plain.settings;
    (settings.refits, settings.sweeps, settings.coupled_sweeps) = (0, 0, 0);
    (settings.alpha, settings.beta, settings.guard) = (0.0, 0.0, false);
    plain
}
