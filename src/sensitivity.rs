//! What each width of each stage would do to the model: one pass forward and one back through the original over a few windows.
//!
//! The equations are [`quantizer::allocate`]'s. A stage's linears are solved at every width, without the refinements of the recipe, which lower
//! all losses by similar shares; the solutions' errors are projected on the gradients of windows that were not solved on, since a solution's
//! error on its own tokens is too small where tokens are few. Residual streams of all layers are kept for as many tokens as [`MOST_TOKENS`].

use std::collections::BTreeMap;

use calibration::CalibrationError;
use calibration::activations::History;
use calibration::backward::{Backward, Head, Visit};
use calibration::forward::{Forward, WindowState};
use calibration::weights::{LayerWeights, LinearOperator, WeightSource};
use kernels::bf16::Precision;
use kernels::stripes::Shelf;
use model::linear::{Linear, Slot};
use model::{Layer, Model, Stage};
use ndarray::{Array2, ArrayView2};
use quantizer::allocate::{add_projected_errors, damage};
use quantizer::solver::Problem;
use rayon::prelude::*;

use crate::budget::StageOptions;
use crate::error::Error;
use crate::plan::Plan;
use crate::progress::{Progress, go_on};
use crate::recipe::Treatment;
use crate::solving::{dense, solver};
use crate::statistics::StageStatistics;
use crate::streams::Seen;

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
    let mut damages: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for layer in layers.iter().rev() {
        go_on(progress)?;
        progress.at(&format!("layer {}, back", layer.index));
        let weights = source.layer(layer).map_err(Error::from_source)?;
        let inputs = inputs.pop()?;
        let passed: Vec<Passed> = projected
            .par_iter()
            .zip(&mut gradients)
            .map(|(&window, gradient)| Passed::back(&forward, layer, &weights, &inputs[window], gradient))
            .collect();
        let solved_on = inputs.into_iter().enumerate();
        let mut states: Vec<WindowState> = solved_on
            .filter(|(window, _)| period == 1 || !projected.contains(window))
            .map(|(_, input)| WindowState::new(input))
            .collect();
        for (place, stage) in layer.stages.iter().enumerate() {
            let options = stages
                .iter()
                .position(|options| stage.linears.iter().any(|linear| options.linears.contains(&linear.id)));
            if let Some(index) = options {
                let visit = |see: &mut crate::streams::See<'_>| {
                    states.iter().try_for_each(|state| {
                        let input = forward.stage_input(layer, place, &weights, state);
                        see(Seen { input: input.view(), residual: state.hidden(), original: None })
                    })
                };
                let found = weigh_stage(plan, stage, &stages[index], &weights, &passed, states.len(), visit)?;
                damages.insert(index, found);
            }
            states.par_iter_mut().for_each(|state| forward.advance(layer, place, &weights, state));
        }
        progress.step("");
    }
    progress.finish();
    Ok(damages.into_values().collect())
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

/// What passed through a layer's linears in one window: input and gradient of the output.
struct Passed(BTreeMap<Slot, (Array2<f32>, Array2<f32>)>);

impl Passed {
    /// Takes `gradient` from behind the layer to before it.
    fn back(
        forward: &Forward<'_>,
        layer: &Layer,
        weights: &LayerWeights,
        input: &Array2<f32>,
        gradient: &mut Array2<f32>,
    ) -> Self {
        let mut passed = BTreeMap::new();
        let mut see = |visit: Visit<'_>| {
            if let Visit::Linear(linear) = visit {
                let both = (linear.input.to_owned(), linear.output_gradient.to_owned());
                passed.insert(linear.slot, both);
            }
        };
        let backward = Backward::new(forward);
        *gradient = backward.layer_vjp(layer, weights, input.view(), gradient.view(), &mut see);
        Self(passed)
    }
}

fn weigh_stage(
    plan: &Plan,
    stage: &Stage,
    options: &StageOptions,
    weights: &LayerWeights,
    passed: &[Passed],
    windows: usize,
    visit: impl FnOnce(&mut crate::streams::See<'_>) -> Result<(), Error>,
) -> Result<Vec<f64>, Error> {
    let linears: Vec<&Linear> =
        stage.linears.iter().filter(|linear| options.linears.contains(&linear.id)).collect();
    let treatments: Vec<Treatment> = linears.iter().map(|linear| plain(plan.treatment(linear))).collect();
    let weights = linears.iter().map(|linear| dense(weights, linear)).collect::<Result<Vec<_>, _>>()?;
    // No window is held out here, so there is nobody to tell the schemes.
    let pairs: Vec<(&Linear, &Treatment)> = linears.iter().copied().zip(&treatments).collect();
    let kept = (Precision::Single, &Shelf::memory());
    let seen = StageStatistics::gather(stage, &pairs, &[], windows, None, kept, visit)?;
    let mut damages = Vec::with_capacity(options.widths.len());
    for width in &options.widths {
        let mut projected: Vec<Vec<f64>> = Vec::new();
        for (index, &(linear, treatment)) in pairs.iter().enumerate() {
            let weight: ArrayView2<'_, f32> = weights[index];
            let hessian = seen.prepared(&treatment.settings);
            let problem = Problem { weight, hessian, output: None, scheme: width.schemes[index] };
            let solution = solver(treatment)?
                .solve(&problem, &treatment.settings)
                .map_err(|source| Error::Solve { linear: linear.name.clone(), source })?;
            let errors = &weight - &solution.tensor.dequantize();
            projected.resize_with(passed.len(), Vec::new);
            for (projected, Passed(passed)) in projected.iter_mut().zip(passed) {
                let Some((input, gradient)) = passed.get(&linear.id.slot()) else { continue };
                projected.resize(input.nrows(), 0.0);
                add_projected_errors(errors.view(), input.view(), gradient.view(), projected);
            }
        }
        damages.push(damage(&projected.concat()));
    }
    Ok(damages)
}

/// The treatment without refinements and guard, and without errors of earlier layers, of which there are none here.
fn plain(treatment: &Treatment) -> Treatment {
    let mut plain = treatment.clone();
    let settings = &mut plain.settings;
    (settings.refits, settings.sweeps, settings.coupled_sweeps) = (0, 0, 0);
    (settings.alpha, settings.beta, settings.guard) = (0.0, 0.0, false);
    plain
}
