//! What errors in each linear's output cost the model: one forward and one backward pass of the original over calibration windows.
//!
//! Of the gradients `ȳ` of a linear's output two things are kept: their second moment [`OutputHessian`], and, for stages whose recipe weighs
//! tokens, each token's weight `‖ȳ‖²`, by which its input counts in the Hessian (GuidedQuant, arXiv 2505.07004, section 3, with one group of
//! outputs): a token that the model hardly listens to, such as an attention sink with its massive activations, has little say. A few
//! tokens have gradients a hundred times as large as others, again sinks, whose inputs are unlike all others: for them the
//! independence behind the second moment fails, so gradients are cut to [`MOST_OVER_MEDIAN`] times the window's median
//! norm, and weights are over its square.
//!
//! Windows are taken in batches whose hidden states before every layer fit a budget; each batch reads the layers twice, forwards and
//! backwards. Of several ranks each takes the windows of a batch that are dealt to it in turn, and adds up the second moments of linears dealt in the same
//! way, whose gradients of all windows it is given. The gradients go through the experts of a layer, and none of theirs is kept. The gradients are those of random probes of the Fisher matrix ([`Backward::fisher_probe`]), so no label of the text is used.

mod moments;

use std::collections::{BTreeMap, BTreeSet};

use calibration::CalibrationError;
use calibration::activations::History;
use calibration::backward::{Backward, Head, Visit};
use calibration::forward::{Forward, WindowState};
use calibration::weights::{AtPrecision, LinearOperator, OuterWeights, Pass, WeightSource};
use kernels::account::section;
use kernels::bf16::Precision;
use kernels::elementwise::{all_finite, sum_of_squares};
use kernels::ranks::Ranks;
use model::linear::{Linear, LinearId, Slot};
use model::{Layer, Model, Stage};
use ndarray::{Array2, ArrayView1, ArrayView2};
use quantizer::output::OutputHessian;
use rayon::prelude::*;

use self::moments::{Moments, agreed, of_all_windows};
use crate::error::Error;
use crate::journal::{Journal, KeptGradients};
use crate::memory::Memory;
use crate::plan::Plan;
use crate::progress::{Progress, go_on};

/// Windows that are probed, spread evenly over the calibration text, where only output Hessians are asked for: those are small and heavily
/// damped. Where tokens are weighed, all are.
pub(crate) const PROBED: usize = 32;
/// Bytes of hidden states that a batch of windows may hold, unless fewer than [`LEAST_BATCH`] windows fit.
const STATES: usize = 128 << 20;
/// Windows of a batch at least: each batch reads all layers twice.
const LEAST_BATCH: usize = 8;
/// Numbers of the head's weight in a slice.
const HEAD_SLICE: usize = 1 << 22;

/// Largest norm of a gradient over the median of its linear and window.
const MOST_OVER_MEDIAN: f32 = 3.0;
/// Least weight of a token over the median token's: an input that no output follows from may matter on other text.
const LEAST_WEIGHT: f32 = 0.05;

/// What is known of the gradients of one layer.
#[derive(Debug, Default)]
pub(crate) struct LayerGradients {
    outputs: BTreeMap<LinearId, OutputHessian>,
    /// By place of the stage; then by window and token.
    tokens: BTreeMap<usize, Vec<Vec<f32>>>,
}

impl LayerGradients {
    /// What the journal has of a layer.
    pub(crate) fn read(kept: &KeptGradients, layer: &Layer) -> Result<Self, Error> {
        let mut found = Self::default();
        for (place, stage) in layer.stages.iter().enumerate() {
            if let Some(roots) = kept.tokens((layer.index, place))? {
                found.tokens.insert(place, roots);
            }
            for linear in &stage.linears {
                if let Some(hessian) = kept.output(linear)? {
                    found.outputs.insert(linear.id, hessian);
                }
            }
        }
        Ok(found)
    }

    /// Of a linear that is solved with it.
    pub(crate) fn output_hessian(&self, linear: &Linear) -> Option<&OutputHessian> {
        self.outputs.get(&linear.id)
    }

    /// The roots of the weights of all tokens, by window, where the stage's recipe weighs them.
    pub(crate) fn token_roots(&self, place: usize) -> Option<&[Vec<f32>]> {
        self.tokens.get(&place).map(Vec::as_slice)
    }
}

/// What was gathered of all layers.
#[derive(Default)]
struct Gathered {
    moments: Moments,
    /// By layer and place of the stage; then by window and token.
    tokens: BTreeMap<(usize, usize), Vec<Vec<f32>>>,
}

/// Has in the journal what any of `plans` asks for.
pub(crate) fn gather(
    model: &Model,
    source: &dyn WeightSource,
    plans: &[&Plan],
    windows: &[Vec<u32>],
    precision: Precision,
    (journal, memory, ranks): (&mut Journal, Memory, &dyn Ranks),
    progress: &dyn Progress,
) -> Result<KeptGradients, Error> {
    if let Some(kept) = journal.gradients()? {
        return Ok(kept);
    }
    let kept = (&*journal, memory, ranks);
    let Gathered { mut moments, tokens } =
        gather_all(model, source, plans, windows, precision, kept, progress)?;
    let outputs = model.linears().filter_map(|linear| moments.finish(linear, ranks).transpose());
    journal.keep_gradients(outputs, tokens.into_iter())?;
    journal.gradients()?.ok_or_else(|| Error::Internal("the journal lost the gradients".to_owned()))
}

/// Gathers what any of `plans` asks for.
fn gather_all(
    model: &Model,
    source: &dyn WeightSource,
    plans: &[&Plan],
    windows: &[Vec<u32>],
    precision: Precision,
    (journal, memory, ranks): (&Journal, Memory, &dyn Ranks),
    progress: &dyn Progress,
) -> Result<Gathered, Error> {
    let asked: BTreeMap<LinearId, &Linear> =
        plans.iter().flat_map(|plan| plan.couples_rows()).map(|linear| (linear.id, linear)).collect();
    let weighed: BTreeSet<(usize, usize)> = plans.iter().flat_map(|plan| plan.weighs_tokens(model)).collect();
    if (asked.is_empty() && weighed.is_empty()) || windows.is_empty() {
        return Ok(Gathered::default());
    }
    let count = if weighed.is_empty() { windows.len().min(PROBED) } else { windows.len() };
    let probed: Vec<&Vec<u32>> = (0..count).map(|k| &windows[k * windows.len() / count]).collect();
    let tokens = probed.iter().map(|window| window.len()).max().unwrap_or(0);
    let layers = model.layers.len();
    let batch = agreed(ranks, memory.gradient_windows(batch(model, count, tokens)))? * ranks.size();
    let batches = count.div_ceil(batch);
    let mut probe = Probe {
        model,
        source,
        forward: Forward::new(model, tokens).with_precision(precision),
        outer: source.outer().map_err(Error::from_source)?,
        head: head(model, source)?.iter().map(|slice| slice.at(precision, Pass::Both)).collect(),
        precision,
        kept: Kept {
            moments: Moments::of(asked.into_values(), precision, ranks),
            tokens: weighed.into_iter().map(|stage| (stage, Vec::with_capacity(count))).collect(),
        },
        ranks,
        progress,
    };
    progress.phase("weighing outputs", 2 * layers * batches);
    for (number, windows) in probed.chunks(batch).enumerate() {
        let first = number * batch;
        let windows = windows.iter().zip(first..).filter(|&(_, number)| ranks.owns(number));
        let own: Vec<(u64, &Vec<u32>)> = windows.map(|(&window, number)| (number as u64, window)).collect();
        probe.run(&own, (first..count.min(first + batch)).len(), memory.history(journal)?)?;
    }
    progress.finish();
    let Kept { moments, mut tokens } = probe.kept;
    for roots in tokens.values_mut() {
        *roots = of_all_windows(ranks, std::mem::take(roots), count)?;
        normalize(roots);
    }
    Ok(Gathered { moments, tokens })
}

/// Windows of `tokens` each that go back together, of `count`, where memory is not bounded.
pub(crate) fn batch(model: &Model, count: usize, tokens: usize) -> usize {
    let of_window = model.layers.len() * tokens * model.hyperparameters.hidden_size * size_of::<f32>();
    (STATES / of_window.max(1)).clamp(LEAST_BATCH.min(count), count)
}

struct Probe<'a> {
    model: &'a Model,
    source: &'a dyn WeightSource,
    forward: Forward<'a>,
    outer: OuterWeights,
    head: Vec<LinearOperator>,
    precision: Precision,
    kept: Kept,
    ranks: &'a dyn Ranks,
    progress: &'a dyn Progress,
}

/// What is being gathered.
struct Kept {
    moments: Moments,
    /// Of this rank's windows.
    tokens: BTreeMap<(usize, usize), Vec<Vec<f32>>>,
}

impl Probe<'_> {
    /// The weights, for products of this run's precision.
    fn rounded(&self, pass: Pass) -> AtPrecision<'_> {
        AtPrecision { source: self.source, precision: self.precision, pass }
    }

    /// This rank's windows, with their numbers, of a batch of so many windows; `before` takes the residual streams before each layer.
    fn run(&mut self, windows: &[(u64, &Vec<u32>)], batch: usize, mut before: History) -> Result<(), Error> {
        let numbers: Vec<u64> = windows.iter().map(|&(number, _)| number).collect();
        let seen = match numbers[..] {
            [first, .., last] => format!("windows {} to {}", first + 1, last + 1),
            _ => format!("{} windows", numbers.len()),
        };
        let embed = |(_, tokens): &(u64, &Vec<u32>)| {
            self.forward.embed(self.source, tokens, 0).map_err(Error::from_source)
        };
        let forward = section("gradients, forward");
        let mut states = windows.par_iter().map(embed).collect::<Result<Vec<_>, Error>>()?;
        for layer in &self.model.layers {
            go_on(self.progress)?;
            self.progress.at(&format!("layer {}, forwards, {seen}", layer.index));
            before.push(states.iter().map(WindowState::hidden))?;
            let weights = self.rounded(Pass::Forward);
            self.forward.advance_windows(layer, &weights, &mut states).map_err(Error::from_source)?;
            let place = || format!("layer {}", layer.index);
            demand_finite(&numbers, states.iter().map(WindowState::hidden), &place)?;
            self.progress.step("");
        }
        drop(forward);
        let _section = section("gradients, backward");
        let backward = Backward::new(&self.forward);
        let head = Head { outer: &self.outer, slices: &self.head };
        let mut gradients: Vec<Array2<f32>> = states
            .par_iter()
            .zip(&numbers)
            .map(|(state, &number)| backward.fisher_probe(head, state.hidden(), number))
            .collect();
        drop(states);
        demand_finite(&numbers, gradients.iter().map(|gradient| gradient.view()), &|| {
            "gradient of the logits".to_owned()
        })?;
        for layer in self.model.layers.iter().rev() {
            go_on(self.progress)?;
            self.progress.at(&format!("layer {}, back, {seen}", layer.index));
            let inputs = before.pop()?;
            let mut back: Vec<OutputGradients> = inputs.iter().map(|_| OutputGradients::new()).collect();
            // Of experts nothing is kept: all of them together would be many times what a dense layer is.
            let keep = |kept: &mut OutputGradients, visit: Visit<'_>| {
                if let Visit::Linear(linear) = visit
                    && linear.slot.part.expert().is_none()
                {
                    kept.insert(linear.slot, linear.output_gradient.to_owned());
                }
            };
            let passed =
                backward.windows_vjp(layer, &self.rounded(Pass::Both), &inputs, &gradients, &mut back, &keep);
            gradients = passed.map_err(Error::from_source)?;
            for (place, stage) in layer.stages.iter().enumerate().filter(|(_, s)| s.part().expert().is_none())
            {
                self.kept.take((layer, place, stage), &mut back, (batch, self.ranks))?;
            }
            let place = || format!("gradient before layer {}", layer.index);
            demand_finite(&numbers, gradients.iter().map(|gradient| gradient.view()), &place)?;
            self.progress.step("");
        }
        Ok(())
    }
}

impl Kept {
    /// Takes from the gradients of a stage's outputs what is asked for, in a batch of so many windows.
    fn take(
        &mut self,
        (layer, place, stage): (&Layer, usize, &Stage),
        back: &mut [OutputGradients],
        (batch, ranks): (usize, &dyn Ranks),
    ) -> Result<(), Error> {
        let _section = section("gradients, moments");
        let mut weights: Option<Vec<Vec<f32>>> = self.tokens.contains_key(&(layer.index, place)).then(|| {
            let first = stage.linears.first().map(|linear| linear.id.slot());
            let of_window =
                |passed: &OutputGradients| first.and_then(|slot| passed.get(&slot)).map_or(0, Array2::nrows);
            back.iter().map(|passed| vec![0.0; of_window(passed)]).collect()
        });
        let mut of_linears = Vec::with_capacity(stage.linears.len());
        for linear in &stage.linears {
            let slot = linear.id.slot();
            let cut = |passed: &mut OutputGradients| passed.remove(&slot).map(cut);
            let gradients: Vec<Option<(Array2<f32>, Vec<f32>)>> = back.par_iter_mut().map(cut).collect();
            let mut of_windows = Vec::with_capacity(gradients.len());
            for (window, passed) in gradients.into_iter().enumerate() {
                // A stage that a window did not pass has no gradient of it.
                let (gradients, norms) = passed.unwrap_or_default();
                if let Some(weights) = &mut weights {
                    for (weight, norm) in weights[window].iter_mut().zip(norms) {
                        *weight += norm.powi(2).max(LEAST_WEIGHT) / stage.linears.len() as f32;
                    }
                }
                of_windows.push(gradients);
            }
            of_linears.push((linear, of_windows));
        }
        self.moments.observe(of_linears, (batch, ranks))?;
        if let (Some(all), Some(mut weights)) = (self.tokens.get_mut(&(layer.index, place)), weights) {
            weights.iter_mut().flatten().for_each(|weight| *weight = weight.sqrt());
            all.append(&mut weights);
        }
        Ok(())
    }
}

/// Shortens gradients of a window that are much longer than most. Gives with them each one's norm over the median of those that are not 0.
fn cut(mut gradients: Array2<f32>) -> (Array2<f32>, Vec<f32>) {
    let norm = |row: ArrayView1<'_, f32>| match row.as_slice() {
        Some(row) => sum_of_squares(row).sqrt() as f32,
        None => sum_of_squares(&row.to_vec()).sqrt() as f32,
    };
    let mut norms: Vec<f32> = gradients.rows().into_iter().map(norm).collect();
    let mut sorted: Vec<f32> = norms.iter().copied().filter(|&norm| norm > 0.0).collect();
    sorted.sort_by(f32::total_cmp);
    let Some(&median) = sorted.get(sorted.len() / 2) else { return (gradients, norms) };
    for (mut row, norm) in gradients.rows_mut().into_iter().zip(&mut norms) {
        *norm /= median;
        if *norm > MOST_OVER_MEDIAN {
            row *= MOST_OVER_MEDIAN / *norm;
            *norm = MOST_OVER_MEDIAN;
        }
    }
    (gradients, norms)
}

/// Makes the mean weight 1, so that losses keep their unit.
fn normalize(roots: &mut [Vec<f32>]) {
    let count = roots.iter().map(Vec::len).sum::<usize>();
    let total: f64 = roots.iter().flatten().map(|&root| f64::from(root).powi(2)).sum();
    if total > 0.0 {
        let factor = (count as f64 / total).sqrt() as f32;
        roots.iter_mut().flatten().for_each(|root| *root *= factor);
    }
}

/// Names the window of the first matrix that is not finite, by its number.
fn demand_finite<'a>(
    numbers: &[u64],
    windows: impl Iterator<Item = ArrayView2<'a, f32>>,
    place: &dyn Fn() -> String,
) -> Result<(), Error> {
    for (window, &number) in windows.zip(numbers) {
        let finite = window.as_slice().map_or_else(|| window.iter().all(|x| x.is_finite()), all_finite);
        if !finite {
            let window = number as usize;
            return Err(CalibrationError::NotFinite { window, place: place() }.into());
        }
    }
    Ok(())
}

/// Gradients of what the linears of a layer gave, of one window that went back through it.
type OutputGradients = BTreeMap<Slot, Array2<f32>>;

/// The head in slices of the vocabulary.
pub(crate) fn head(model: &Model, source: &dyn WeightSource) -> Result<Vec<LinearOperator>, Error> {
    let numbers = &model.hyperparameters;
    let slice = (HEAD_SLICE / numbers.hidden_size).clamp(1, numbers.vocabulary);
    (0..numbers.vocabulary)
        .step_by(slice)
        .map(|first| {
            source.head_rows(first..(first + slice).min(numbers.vocabulary)).map_err(Error::from_source)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_gradients_are_cut_and_norms_are_over_the_median() {
        let (window, norms) = cut(ndarray::array![[3.0_f32, 4.0], [0.0, 1.0], [600.0, 800.0], [0.0, 0.0]]);
        assert_eq!(norms, [1.0, 0.2, 3.0, 0.0]);
        assert_eq!(window, ndarray::array![[3.0, 4.0], [0.0, 1.0], [9.0, 12.0], [0.0, 0.0]]);
        assert_eq!(cut(Array2::zeros((2, 3))).1, [0.0, 0.0]);
    }

    #[test]
    fn the_mean_weight_is_one() {
        let mut roots = vec![vec![1.0, 3.0], vec![2.0, 0.5]];
        normalize(&mut roots);
        let weights: f32 = roots.iter().flatten().map(|root| root * root).sum();
        assert!((weights / 4.0 - 1.0).abs() < 1e-6);
        assert!((roots[0][1] / roots[0][0] - 3.0).abs() < 1e-6);
    }
}
