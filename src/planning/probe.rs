//! Pieces of the work, timed on this machine: the first layer of the model with its own weights, on windows of tokens that nobody wrote.
//!
//! Large linears are cut to [`MOST_FEATURES`] rows and columns, and what they took is scaled by the terms that their work grows with.

use std::hint::black_box;
use std::time::Instant;

use calibration::forward::{Forward, WindowState};
use calibration::weights::{LayerWeights, Pass, WeightSource};
use kernels::bf16::Precision;
use kernels::random::SplitMix;
use model::linear::Linear;
use model::{Layer, Stage};
use ndarray::{Array2, s};
use quantizer::guard::Unsolved;
use quantizer::output::{OutputHessian, OutputHessianAccumulator};
use quantizer::solver::Problem;
use rayon::prelude::*;

use crate::error::Error;
use crate::pipeline::{dense, solver};
use crate::plan::Plan;
use crate::precision;
use crate::progress::{Progress, go_on};
use crate::statistics::StageStatistics;
use crate::stored::StoredModel;
use crate::streams::{See, Seen};

/// Rows and columns of a linear that is timed, at most.
const MOST_FEATURES: usize = 1024;
/// Tokens of a window that is timed, at most.
const TOKENS: usize = 256;
/// Windows that statistics are gathered on, the fewer and the more: two points of a line.
const WINDOWS: [usize; 2] = [4, 12];

/// What pieces of the work take, seconds on the clock with all threads.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    /// Reading a layer's weights.
    pub(super) read_layer: f64,
    /// A token through a layer, when it is measured and when it calibrates, and the numbers that are multiplied for it.
    pub(super) token: f64,
    pub(super) calibrating_token: f64,
    pub(super) token_products: f64,
    /// A layer's statistics: for a token, and apart from that.
    pub(super) gather_token: f64,
    pub(super) gather: f64,
    /// A layer's linears.
    pub(super) solve: f64,
}

/// Times the first layer.
pub(super) fn rates(
    source: &StoredModel,
    plan: &Plan,
    context: usize,
    progress: &dyn Progress,
) -> Result<Rates, Error> {
    let model = &source.model;
    let layer = model.layers.first().ok_or_else(|| Error::Internal("a model without layers".to_owned()))?;
    let tokens = context.min(TOKENS);
    progress.phase("timing", 2 + layer.stages.len());
    let clock = Instant::now();
    let weights = source.layer(layer).map_err(Error::from_source)?;
    let mut rates = Rates { read_layer: clock.elapsed().as_secs_f64(), ..Rates::default() };
    progress.step("");

    let mut random = SplitMix::new(1);
    let vocabulary = model.hyperparameters.vocabulary;
    let mut window = || -> Vec<u32> { (0..tokens).map(|_| random.below(vocabulary) as u32).collect() };
    let windows: Vec<Vec<u32>> =
        (0..WINDOWS[1].max(2 * rayon::current_num_threads())).map(|_| window()).collect();
    let embed = |tokens: &Vec<u32>| source.embed(tokens).map(WindowState::new).map_err(Error::from_source);
    let start = windows.iter().map(embed).collect::<Result<Vec<_>, Error>>()?;
    let forward = Forward::new(model, tokens);
    let mut states = start.clone();
    // The first pass is for caches and threads.
    states.par_iter_mut().for_each(|state| forward.advance_layer(layer, &weights, state));
    let precision = precision::settle(std::slice::from_ref(plan));
    let timed = |weights: &LayerWeights| {
        let mut states = start.clone();
        let clock = Instant::now();
        states.par_iter_mut().for_each(|state| forward.advance_layer(layer, weights, state));
        clock.elapsed().as_secs_f64() / (windows.len() * tokens) as f64
    };
    rates.token = timed(&weights);
    rates.calibrating_token = match precision {
        Precision::Single => rates.token,
        Precision::Bf16 => timed(&weights.clone().at(precision, Pass::Forward)),
    };
    rates.token_products = products(layer, model, tokens);
    progress.step("");

    let mut states = start;
    for (place, stage) in layer.stages.iter().enumerate() {
        go_on(progress)?;
        let at = At { forward: &forward, layer, place, weights: &weights, states: &states, precision };
        at.time(stage, plan, &mut rates)?;
        states.par_iter_mut().for_each(|state| forward.advance(layer, place, &weights, state));
        progress.step("");
    }
    progress.finish();
    Ok(rates)
}

/// Multiplications for a token in a layer, attention over half the window included.
pub(super) fn products(layer: &Layer, model: &model::Model, context: usize) -> f64 {
    let linears: usize = layer.stages.iter().flat_map(|stage| &stage.linears).map(area).sum();
    let numbers = &model.hyperparameters;
    linears as f64 + (numbers.heads * numbers.head_dim * context) as f64
}

pub(super) fn area(linear: &Linear) -> usize {
    linear.out_features * linear.in_features
}

/// A stage of the first layer with what flows into it.
struct At<'a> {
    forward: &'a Forward<'a>,
    layer: &'a Layer,
    place: usize,
    weights: &'a LayerWeights,
    states: &'a [WindowState],
    precision: Precision,
}

impl At<'_> {
    /// Adds what a stage takes.
    fn time(&self, stage: &Stage, plan: &Plan, rates: &mut Rates) -> Result<(), Error> {
        let quantized: Vec<&Linear> = stage.linears.iter().filter(|l| plan.scheme(l).is_some()).collect();
        let Some(first) = quantized.first() else { return Ok(()) };
        let columns = first.in_features.min(MOST_FEATURES);
        let width = first.in_features as f64 / columns as f64;
        let mut cut = stage.clone();
        for linear in &mut cut.linears {
            linear.in_features = columns;
            linear.out_features = linear.out_features.min(MOST_FEATURES);
        }
        let of_cut: Vec<&Linear> = cut.linears.iter().filter(|l| plan.scheme(l).is_some()).collect();
        let dense_of = |linear: &Linear, cut: &Linear| {
            let weight = dense(self.weights, linear)?;
            Ok::<_, Error>(weight.slice(s![..cut.out_features, ..cut.in_features]).to_owned())
        };
        let weights =
            quantized.iter().zip(&of_cut).map(|(l, c)| dense_of(l, c)).collect::<Result<Vec<_>, _>>()?;
        let settings: Vec<_> = of_cut.iter().map(|&linear| (linear, plan.treatment(linear))).collect();
        let schemes: Vec<_> = of_cut.iter().filter_map(|linear| plan.scheme(linear)).collect();
        let unsolved: Vec<_> =
            weights.iter().zip(&schemes).map(|(w, &scheme)| Unsolved { weight: w.view(), scheme }).collect();
        let rows = of_cut[0].out_features;
        let gather = |windows: usize| {
            let clock = Instant::now();
            let seen = StageStatistics::gather(
                &cut,
                &settings,
                &unsolved,
                windows,
                None,
                self.precision,
                |see: &mut See<'_>| {
                    for state in &self.states[..windows] {
                        let input = self.forward.stage_input(self.layer, self.place, self.weights, state);
                        let input = input.slice(s![.., ..columns]);
                        let hidden = state.hidden();
                        let residual = hidden.slice(s![.., ..rows.min(hidden.ncols())]);
                        // Both streams the same: what is lacked is zero, which takes as long.
                        let original = plan.propagates_errors().then_some((input, residual));
                        see(Seen { input, residual, original })?;
                    }
                    Ok(())
                },
            )?;
            Ok::<_, Error>((clock.elapsed().as_secs_f64(), seen))
        };
        let tokens = self.states.first().map_or(1, |state| state.hidden().nrows()).max(1) as f64;
        let (few, _) = gather(WINDOWS[0])?;
        let (more, seen) = gather(WINDOWS[1])?;
        let token = ((more - few) / ((WINDOWS[1] - WINDOWS[0]) as f64 * tokens)).max(0.0);
        rates.gather_token += token * width * width;
        let fixed = (few - token * WINDOWS[0] as f64 * tokens).max(0.0);
        rates.gather += fixed * width * width * width;
        for (number, linear) in of_cut.iter().enumerate() {
            let treatment = plan.treatment(linear);
            let output = output_hessian(linear, treatment.settings.coupled_sweeps > 0)?;
            let hessian = seen.prepared(&treatment.settings);
            let problem = Problem {
                weight: weights[number].view(),
                hessian,
                output: output.as_ref(),
                scheme: schemes[number],
            };
            let fail = |source| Error::Solve { linear: linear.name.clone(), source };
            let clock = Instant::now();
            let solution = solver(treatment)?.solve(&problem, &treatment.settings).map_err(fail)?;
            match seen.held_out(&treatment.settings).filter(|_| hessian.is_some()) {
                Some(held_out) => {
                    black_box(held_out.judge(&problem, solution, &treatment.settings).map_err(fail)?);
                }
                None => drop(black_box(solution)),
            }
            let rows = quantized[number].out_features as f64 / linear.out_features as f64;
            rates.solve += clock.elapsed().as_secs_f64() * rows * width * width;
        }
        Ok(())
    }
}

/// One of gradients that nobody had, where the solver asks for one.
fn output_hessian(linear: &Linear, wanted: bool) -> Result<Option<OutputHessian>, Error> {
    if !wanted {
        return Ok(None);
    }
    let mut random = SplitMix::new(2);
    let mut number = |_| random.below(2001) as f32 / 1000.0 - 1.0;
    let gradients = Array2::from_shape_fn((128, linear.out_features), &mut number);
    let fail = |source| Error::Statistics { linear: linear.name.clone(), source };
    let mut moments = OutputHessianAccumulator::new(linear.out_features);
    moments.observe(gradients.view()).map_err(fail)?;
    Ok(Some(moments.finish().map_err(fail)?))
}
