//! Pieces of the work, timed on this machine: a layer of the model with its own weights, on windows of tokens that nobody wrote. Of a layer with
//! experts one expert, on as many tokens of each window as a router that sends to all alike would give it.
//!
//! Large linears are cut to [`MOST_FEATURES`] rows and columns, and what they took is scaled by the terms that their work grows with.

use std::hint::black_box;
use std::ops::ControlFlow;

use calibration::evaluation;
use calibration::forward::{Forward, WindowState};
use calibration::weights::{LayerWeights, Pass};
use kernels::bf16::Precision;
use kernels::random::SplitMix;
use kernels::stripes::Shelf;
use model::graph::StageInput;
use model::linear::{Linear, Part, Role, Slot};
use model::{Layer, Model, Stage};
use ndarray::{Array2, ArrayView2, s};
use quantizer::guard::Unsolved;
use quantizer::output::{OutputHessian, OutputHessianAccumulator};
use quantizer::solver::Problem;
use rayon::prelude::*;

use super::clock::Cost;
use crate::error::Error;
use crate::experts;
use crate::plan::Plan;
use crate::precision;
use crate::progress::{Progress, go_on};
use crate::resources::Stopwatch;
use crate::solving::{dense, solver};
use crate::statistics::{Among, Gathered, LEAST_HELD_OUT, Sent};
use crate::stored::StoredModel;
use crate::streams::{See, Seen};

/// Rows and columns of a linear that is timed, at most.
const MOST_FEATURES: usize = 1024;
/// Multiplications of heads that are timed in a window, about.
const SCORED_PRODUCTS: usize = 1 << 31;
/// Tokens of a window that is timed, at most.
const TOKENS: usize = 256;
/// Windows that statistics are gathered on, the fewer and the more: two points of a line.
const WINDOWS: [usize; 2] = [4, 12];

/// What pieces of the work take in one kind of layer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    /// What every token passes.
    pub(super) main: PartRates,
    /// One expert.
    pub(super) expert: PartRates,
    /// How many there are.
    pub(super) experts: f64,
    /// How many of them a token passes.
    pub(super) chosen: f64,
}

/// What one part of a layer takes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PartRates {
    /// Reading its weights.
    pub(super) read: Cost,
    /// A token through it, when it is measured and when it calibrates, and the numbers that are multiplied for it.
    pub(super) token: Cost,
    pub(super) calibrating_token: Cost,
    pub(super) token_products: f64,
    /// Its statistics: for a token, and apart from that.
    pub(super) gather_token: Cost,
    pub(super) gather: Cost,
    /// Its linears.
    pub(super) solve: Cost,
}

/// The first layer of each kind, without experts and with, and how many there are of it.
pub(super) fn kinds(model: &Model) -> Vec<(&Layer, usize)> {
    let of_kind = |mixture: bool| {
        let mut layers = model.layers.iter().filter(move |layer| (layer.experts() > 0) == mixture);
        let first = layers.next()?;
        Some((first, 1 + layers.count()))
    };
    [false, true].into_iter().filter_map(of_kind).collect()
}

/// Times a layer.
pub(super) fn rates(
    source: &StoredModel,
    plan: &Plan,
    layer: &Layer,
    context: usize,
    progress: &dyn Progress,
) -> Result<Rates, Error> {
    let model = &source.model;
    let tokens = context.min(TOKENS);
    let stages = layer.stages.iter().filter(|stage| stage.part().expert().is_none_or(|expert| expert == 0));
    progress.phase("timing", 2 + stages.count());
    let watch = Stopwatch::start();
    let mut weights = source.layer_weights(layer)?;
    let mut rates = Rates::default();
    rates.main.read = Cost::since(&watch);
    progress.step("");

    let mut random = SplitMix::new(1);
    let vocabulary = model.hyperparameters.vocabulary;
    let mut window = || -> Vec<u32> { (0..tokens).map(|_| random.below(vocabulary) as u32).collect() };
    let windows: Vec<Vec<u32>> =
        (0..WINDOWS[1].max(2 * rayon::current_num_threads())).map(|_| window()).collect();
    let forward = Forward::new(model, tokens);
    let embed = |tokens: &Vec<u32>| forward.embed(source, tokens, 0).map_err(Error::from_source);
    let start = windows.iter().map(embed).collect::<Result<Vec<_>, Error>>()?;
    // Experts lie behind all that every token passes.
    let main = layer.stages.iter().take_while(|stage| stage.part().expert().is_none()).count();
    let advance = |weights: &LayerWeights, state: &mut WindowState| {
        (0..main).for_each(|place| forward.advance(layer, place, weights, state));
    };
    let mut states = start.clone();
    // The first pass is for caches and threads.
    states.par_iter_mut().for_each(|state| advance(&weights, state));
    let precision = precision::settle(std::slice::from_ref(plan));
    let timed = |weights: &LayerWeights| {
        let mut states = start.clone();
        let watch = Stopwatch::start();
        states.par_iter_mut().for_each(|state| advance(weights, state));
        Cost::since(&watch) / (windows.len() * tokens) as f64
    };
    rates.main.token = timed(&weights);
    rates.main.calibrating_token = match precision {
        Precision::Single => rates.main.token,
        Precision::Bf16 => timed(&weights.clone().at(precision, Pass::Forward)),
    };
    rates.main.token_products = products(layer, model, tokens);
    progress.step("");

    let mut states = start;
    for (place, stage) in layer.stages.iter().enumerate().take(main) {
        go_on(progress)?;
        let seen = |state: &WindowState| {
            let input = forward.stage_input(layer, place, &weights, state).into_owned();
            (input, Some(state.hidden().to_owned()))
        };
        let at = At { weights: &weights, states: &states, seen: &seen, precision };
        at.time(stage, plan, &mut rates.main)?;
        states.par_iter_mut().for_each(|state| forward.advance(layer, place, &weights, state));
        progress.step("");
    }
    if let Some(router) = &layer.router {
        let routing = router.routing;
        (rates.experts, rates.chosen) = (routing.experts as f64, routing.chosen as f64);
        let part = Part::Expert(0);
        let watch = Stopwatch::start();
        weights.fetch(layer, part, source).map_err(Error::from_source)?;
        rates.expert.read = Cost::since(&watch);
        let expert = Expert { forward: &forward, layer, part, precision };
        let sent = (tokens * routing.chosen).div_ceil(routing.experts).min(tokens);
        expert.time(&weights, &states, sent, plan, &mut rates.expert, progress)?;
    }
    progress.finish();
    Ok(rates)
}

/// What scoring a token takes behind the layers where a model is measured beside another: both heads, and what is made of their logits.
pub(super) fn scoring(source: &StoredModel) -> Result<Cost, Error> {
    let mut without_layers = source.model.clone();
    without_layers.layers.clear();
    let numbers = &without_layers.hyperparameters;
    let tokens = SCORED_PRODUCTS / (numbers.vocabulary * numbers.hidden_size).max(1);
    let tokens = tokens.clamp(8, TOKENS).min(numbers.context.max(2));
    let mut random = SplitMix::new(3);
    let mut windows: Vec<Vec<u32>> = Vec::new();
    for _ in 0..2 * rayon::current_num_threads() {
        windows.push((0..tokens).map(|_| random.below(numbers.vocabulary) as u32).collect());
    }
    let watch = Stopwatch::start();
    let mut step = || ControlFlow::Continue(());
    evaluation::evaluate(&without_layers, source, Some(source), (&windows, usize::MAX), &mut step)?;
    Ok(Cost::since(&watch) / (windows.len() * tokens) as f64)
}

/// Multiplications for a token in a layer but for its experts, attention over half the window included.
pub(super) fn products(layer: &Layer, model: &Model, context: usize) -> f64 {
    let main = layer.linears().filter(|linear| linear.id.part.expert().is_none());
    let numbers = &model.hyperparameters;
    main.map(area).sum::<usize>() as f64 + (numbers.heads * numbers.head_dim * context) as f64
}

pub(super) fn area(linear: &Linear) -> usize {
    linear.out_features * linear.in_features
}

/// One expert of a layer.
struct Expert<'a> {
    forward: &'a Forward<'a>,
    layer: &'a Layer,
    part: Part,
    precision: Precision,
}

impl Expert<'_> {
    /// Times it on `sent` tokens of each window, in `states` whose attention was run.
    fn time(
        &self,
        weights: &LayerWeights,
        states: &[WindowState],
        sent: usize,
        plan: &Plan,
        rates: &mut PartRates,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let Self { forward, layer, part, precision } = *self;
        let given = |state: &WindowState, most: usize| -> Array2<f32> {
            let some =
                |inputs: ArrayView2<'_, f32>| inputs.slice(s![..most.min(inputs.nrows()), ..]).to_owned();
            state.expert_inputs().map(some).unwrap_or_default()
        };
        let timed = |weights: &LayerWeights| {
            let watch = Stopwatch::start();
            states.par_iter().for_each(|state| {
                let inner = forward.inner(weights, part, given(state, sent).view());
                black_box(weights.linear(Slot { part, role: Role::Down }).apply(inner.view()));
            });
            Cost::since(&watch) / (states.len() * sent.max(1)) as f64
        };
        // The first pass is for caches and threads.
        timed(weights);
        rates.token = timed(weights);
        rates.calibrating_token = match precision {
            Precision::Single => rates.token,
            Precision::Bf16 => timed(&weights.clone().at(precision, Pass::Forward)),
        };
        rates.token_products = layer.linears_of(part).map(area).sum::<usize>() as f64;
        // With fewer, held-out windows would judge nothing.
        let gathered = sent.max(LEAST_HELD_OUT as usize);
        for stage in layer.stages.iter().filter(|stage| stage.part() == part) {
            go_on(progress)?;
            let seen = |state: &WindowState| {
                let input = given(state, gathered);
                let input = match stage.input {
                    StageInput::MlpOutput => forward.inner(weights, part, input.view()),
                    _ => input,
                };
                (input, None)
            };
            At { weights, states, seen: &seen, precision }.time(stage, plan, rates)?;
            progress.step("");
        }
        Ok(())
    }
}

/// A stage's input of a window and, of what every token passes, the residual stream beside it.
type StageSeen<'a> = dyn Fn(&WindowState) -> (Array2<f32>, Option<Array2<f32>>) + 'a;

/// A stage of a layer with what flows into it.
struct At<'a> {
    weights: &'a LayerWeights,
    states: &'a [WindowState],
    seen: &'a StageSeen<'a>,
    precision: Precision,
}

impl At<'_> {
    /// Adds what a stage takes.
    fn time(&self, stage: &Stage, plan: &Plan, rates: &mut PartRates) -> Result<(), Error> {
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
        let unsolved = || {
            weights.iter().zip(&schemes).map(|(w, &scheme)| Unsolved { weight: w.view(), scheme }).collect()
        };
        let rows = of_cut[0].out_features;
        let sent = || stage.part().expert().map(|_| Sent::default());
        let gather = |windows: usize| {
            let watch = Stopwatch::start();
            let seen = Gathered::gather(
                &cut,
                &settings,
                unsolved(),
                windows,
                sent(),
                (self.precision, &Shelf::memory(), Among::alone()),
                |_, see: &mut See<'_>| {
                    for state in &self.states[..windows] {
                        let (input, residual) = (self.seen)(state);
                        let input = input.slice(s![.., ..columns]);
                        // An expert's input has none beside it.
                        let beside = residual.as_ref().map_or(input, |residual| residual.view());
                        let residual_cut = beside.slice(s![.., ..rows.min(beside.ncols())]);
                        // Both streams the same: what is lacked is zero, which takes as long.
                        let runs_beside = residual.is_some() && plan.propagates_errors();
                        let original = runs_beside.then_some((input, residual_cut));
                        see(&[Seen { input, residual: residual_cut, original, lacks: None }])?;
                    }
                    Ok(())
                },
            )?
            .prepare()?;
            Ok::<_, Error>((Cost::since(&watch), seen))
        };
        let tokens = self.states.first().map_or(1, |state| (self.seen)(state).0.nrows()).max(1) as f64;
        let (few, _) = gather(WINDOWS[0])?;
        let (more, seen) = gather(WINDOWS[1])?;
        let token = ((more - few) / ((WINDOWS[1] - WINDOWS[0]) as f64 * tokens)).or_nothing();
        rates.gather_token += token * width.powi(2);
        let fixed = (few - token * (WINDOWS[0] as f64 * tokens)).or_nothing();
        rates.gather += fixed * width.powi(3);
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
            let watch = Stopwatch::start();
            let solution = solver(treatment)?.solve(&problem, &treatment.settings).map_err(fail)?;
            match seen.held_out(&treatment.settings).filter(|_| hessian.is_some()) {
                Some(held_out) => {
                    black_box(held_out.judge(&problem, solution, &treatment.settings).map_err(fail)?);
                }
                None => drop(black_box(solution)),
            }
            let rows = quantized[number].out_features as f64 / linear.out_features as f64;
            rates.solve += Cost::since(&watch) * (rows * width.powi(2));
        }
        Ok(())
    }
}

impl Rates {
    /// Reading all weights of a layer.
    pub(super) fn read(&self) -> Cost {
        self.main.read + self.expert.read * self.experts
    }

    /// A multiplication in what every token passes, when it is measured.
    pub(super) fn product(&self) -> Cost {
        self.main.token / self.main.token_products
    }

    /// A token through a layer in windows of `context`, when it is measured and when it calibrates.
    pub(super) fn token(&self, layer: &Layer, model: &Model, context: usize) -> [Cost; 2] {
        // Attention grows with the window.
        let longer = products(layer, model, context) / self.main.token_products;
        [
            self.main.token * longer + self.expert.token * self.chosen,
            self.main.calibrating_token * longer + self.expert.calibrating_token * self.chosen,
        ]
    }

    /// Quantizing a layer on so many tokens of `context` each window, where so many streams run beside each other.
    pub(super) fn quantizing(
        &self,
        layer: &Layer,
        model: &Model,
        tokens: f64,
        context: usize,
        streams: f64,
    ) -> Cost {
        let [_, token] = self.token(layer, model, context);
        let gathered = self.main.gather_token + self.expert.gather_token * self.chosen;
        let apart = |part: &PartRates| part.read + part.gather + part.solve;
        // A second moment of the layer's tokens stands in for those that an expert lacks.
        let sent = tokens * self.chosen / self.experts.max(1.0);
        let pooled = (self.expert.gather_token + self.expert.token) * tokens.min(experts::POOLED as f64);
        let pooled = if sent < experts::COLD as f64 { pooled } else { Cost::default() };
        apart(&self.main)
            + (token * streams + gathered) * tokens
            + (apart(&self.expert) + pooled) * self.experts
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
