//! Scales that learn from the original, once every code stands.
//!
//! The solver sees one linear at a time; what errors do together is seen by the whole model alone. So with the codes fixed the scales `s` of all
//! linears go down the gradient of the divergence from the original's predictions, over some calibration windows, as in the end-to-end phase
//! of EfficientQAT (arXiv 2407.11062, section 3.3), which trains step sizes on labels where here the original is the teacher:
//!
//! ```text
//! minimize over s      Σ_windows KL(original || quantized)          ∂/∂s_rg = Σ_{j in g} W̄_rj w_rj / s_rg          W̄ = Ȳᵀ X
//! ```
//!
//! Steps are Adam's (arXiv 1412.6980) on `ln |s|`, so that a scale keeps its sign and moves by a share of itself; they get shorter and shorter. The
//! forward pass multiplies with scales as they would be stored; the unrounded ones take the steps. Every eighth window is held out: what is
//! learned stands only if the divergence on those fell. Scales that are products or powers of two, or have minimums beside them, stay.
//! Lessons are given in the precision of calibration, and judged in single precision, as all measuring is.
//!
//! One layer is dense at a time. For each weight a code is held until the end, since nothing can be written before; for each token of a batch
//! the residual streams before all layers, and for each token of all windows the original's last one.

use calibration::CalibrationError;
use calibration::activations::History;
use calibration::backward::{Backward, Head, Visit};
use calibration::forward::{Forward, WindowState};
use calibration::weights::{
    AtPrecision, LayerWeights, LinearOperator, Linears, OuterWeights, Pass, SourceError, WeightSource,
};
use kernels::account::section;
use kernels::bf16::Precision;
use model::linear::{Linear, Slot};
use model::{Layer, Model};
use ndarray::{Array2, ArrayView2, Axis};
use quantizer::scheme::{ScaleDtype, Symmetry};
use quantizer::tensor::QuantizedTensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::gradients::head;
use crate::journal::Journal;
use crate::memory::Memory;
use crate::progress::{Progress, go_on};

/// Windows that are learned from and judged on, spread evenly over the calibration text.
pub(crate) const WINDOWS: usize = 512;
/// Every so many windows one is held out.
const HELD_OUT: usize = 8;
/// Windows of a step.
pub(crate) const BATCH: usize = 8;
/// Largest share of itself that a scale moves in the first step.
const RATE: f32 = 2e-3;
/// Adam's decay of the mean gradient and of the mean square.
const DECAY: (f32, f32) = (0.9, 0.99);

/// A linear with its solution.
pub(crate) struct Solved {
    pub(crate) linear: Linear,
    pub(crate) tensor: QuantizedTensor,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearnedScales {
    /// Windows that were learned from.
    pub windows: usize,
    /// Windows that judged.
    pub held_out: usize,
    /// Divergence from the original on those, nats a token, before.
    pub before: f64,
    /// With what was learned; it stands only where this is less.
    pub after: f64,
}

/// How far scales have learned, for the journal: after a pass, or when it is `done`.
pub(crate) struct Learning {
    pub(crate) done: Option<LearnedScales>,
    /// Steps taken.
    pub(crate) step: usize,
    /// One for each linear.
    pub(crate) pupils: Vec<PupilState>,
}

/// What a linear's scales are in the middle of: unrounded scales, and Adam's means; `[rows, groups]` as stored. When it is done: the
/// scales that stand.
#[derive(Clone)]
pub(crate) struct PupilState {
    pub(crate) scales: Array2<f32>,
    pub(crate) mean: Array2<f32>,
    pub(crate) square: Array2<f32>,
}

/// Lets the scales of `solved` learn for so many passes over the windows, factors of products rounded to `precision`; none where too few windows
/// are there to hold one out.
pub(crate) fn learn(
    model: &Model,
    source: &dyn WeightSource,
    (windows, precision): (&[Vec<u32>], Precision),
    passes: usize,
    solved: &mut [Solved],
    (journal, memory, track): (&mut Journal, Memory, usize),
    progress: &dyn Progress,
) -> Result<Option<LearnedScales>, Error> {
    let count = windows.len().min(WINDOWS);
    let chosen: Vec<&Vec<u32>> = (0..count).map(|k| &windows[k * windows.len() / count]).collect();
    let is_held_out = |index: usize| (index + 1).is_multiple_of(count.min(HELD_OUT));
    if passes == 0 || count < 2 || !solved.iter().any(Solved::learns) {
        return Ok(None);
    }
    let earlier = journal.learning(track)?.filter(|earlier| earlier.pupils.len() == solved.len());
    if let Some(Learning { done: Some(done), pupils, .. }) = &earlier {
        for (solved, pupil) in solved.iter_mut().zip(pupils) {
            solved.set_scales(pupil.scales.clone())?;
        }
        return Ok(Some(*done));
    }
    let _section = section("learning scales");
    let (held_out, learned_from): (Vec<_>, Vec<_>) =
        chosen.iter().enumerate().partition(|&(index, _)| is_held_out(index));
    let [held_out, learned_from] =
        [held_out, learned_from].map(|part| part.into_iter().map(|(_, &window)| window).collect::<Vec<_>>());
    let tokens = chosen.iter().map(|window| window.len()).max().unwrap_or(0);
    let school = |precision| School::open(model, source, tokens, precision);
    let (held_out, before) = {
        let judging = school(Precision::Single)?;
        let held_out = judging.lessons(&held_out)?;
        let before = judging.divergence(&held_out, solved)?;
        (held_out, before)
    };
    let teaching = school(precision)?;
    let learned_from = teaching.lessons(&learned_from)?;
    let steps_of_pass = learned_from.len().div_ceil(BATCH);
    let steps = passes * steps_of_pass;
    progress.phase("learning scales", steps);
    let original: Vec<Array2<f32>> = solved.iter().map(|solved| solved.tensor.scales().to_owned()).collect();
    let (mut pupils, taken) = match earlier {
        None => (solved.iter().map(PupilState::new).collect::<Vec<_>>(), 0),
        Some(Learning { pupils, step, .. }) => (pupils, step),
    };
    if taken > 0 {
        for (solved, pupil) in solved.iter_mut().zip(&pupils) {
            solved.set_scales(pupil.scales.clone())?;
        }
    }
    let batches = (0..passes).flat_map(|_| learned_from.chunks(BATCH));
    for (step, batch) in batches.enumerate().skip(taken) {
        go_on(progress)?;
        progress.at(&format!("pass {} of {passes}", step / steps_of_pass + 1));
        let gradients = teaching.gradients(batch, solved, memory.history(journal)?)?;
        let rate = RATE * (steps - step) as f32 / steps as f32;
        for ((pupil, solved), gradient) in pupils.iter_mut().zip(solved.iter_mut()).zip(&gradients) {
            if let Some(gradient) = gradient {
                solved.set_scales(pupil.step(gradient, rate, step + 1))?;
            }
        }
        if (step + 1).is_multiple_of(steps_of_pass) {
            journal.keep_learning(track, &Learning { done: None, step: step + 1, pupils: pupils.clone() })?;
        }
        progress.step("");
    }
    progress.finish();
    drop(teaching);
    let after = school(Precision::Single)?.divergence(&held_out, solved)?;
    if after.is_nan() || after >= before {
        for (solved, scales) in solved.iter_mut().zip(original) {
            solved.set_scales(scales)?;
        }
    }
    let done = LearnedScales { windows: learned_from.len(), held_out: held_out.len(), before, after };
    let pupils = solved.iter().map(PupilState::new).collect();
    journal.keep_learning(track, &Learning { done: Some(done), step: steps, pupils })?;
    Ok(Some(done))
}

/// A window, and the original's residual stream behind the last layer.
struct Lesson<'w> {
    tokens: &'w Vec<u32>,
    teacher: Array2<f32>,
}

impl PupilState {
    fn new(solved: &Solved) -> Self {
        let scales = solved.tensor.scales().to_owned();
        let zeros = Array2::zeros(scales.dim());
        Self { scales, mean: zeros.clone(), square: zeros }
    }

    /// The scales after step `number`, from 1, down `gradient`, which is that of `ln |s|`.
    fn step(&mut self, gradient: &Array2<f32>, rate: f32, number: usize) -> Array2<f32> {
        let exponent = i32::try_from(number).unwrap_or(i32::MAX);
        let (first, second) = (1.0 - DECAY.0.powi(exponent), 1.0 - DECAY.1.powi(exponent));
        ndarray::Zip::from(&mut self.scales)
            .and(&mut self.mean)
            .and(&mut self.square)
            .and(gradient)
            .for_each(|scale, mean, square, &gradient| {
                *mean += (1.0 - DECAY.0) * (gradient - *mean);
                *square += (1.0 - DECAY.1) * (gradient * gradient - *square);
                let direction = (*mean / first) / ((*square / second).sqrt() + f32::MIN_POSITIVE);
                *scale *= 1.0 - rate * direction;
            });
        self.scales.clone()
    }
}

impl Solved {
    /// Whether its scales are single numbers that may take any value.
    fn learns(&self) -> bool {
        let scheme = self.tensor.scheme();
        // One backward pass has the gradients of all experts' weights; they would be many times a dense layer's.
        self.linear.id.part.expert().is_none()
            && scheme.symmetry != Symmetry::Minimum
            && matches!(
                scheme.scale_dtype,
                ScaleDtype::F16 | ScaleDtype::Bf16 | ScaleDtype::F16AndBf16 | ScaleDtype::F32
            )
    }

    /// The same codes with these scales, rounded to their stored type.
    fn set_scales(&mut self, scales: Array2<f32>) -> Result<(), Error> {
        if !self.learns() {
            return Ok(());
        }
        let scheme = self.tensor.scheme();
        let codes = self.tensor.codes().to_owned();
        let zero_points = self.tensor.zero_points().map(|zeros| zeros.to_owned());
        let scales = scales.mapv_into(|scale| scheme.scale_dtype.round(scale));
        self.tensor = QuantizedTensor::new(scheme, codes, scales, zero_points)
            .map_err(|problem| Error::Internal(format!("`{}`: {problem}", self.linear.name)))?;
        Ok(())
    }

    /// Of `ln |s|`, where the weight's is `gradient`, `[out_features, in_features]`: `Σ W̄ w` over each scale's weights.
    fn scale_gradient(&self, gradient: ArrayView2<'_, f32>, weight: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut found = Array2::zeros(self.tensor.scales().dim());
        let columns = self.tensor.scheme().granularity.columns_per_scale(weight.ncols()).max(1);
        let last = found.nrows() - 1;
        for (row, (gradient, weight)) in gradient.rows().into_iter().zip(weight.rows()).enumerate() {
            let of_row =
                gradient.axis_chunks_iter(Axis(0), columns).zip(weight.axis_chunks_iter(Axis(0), columns));
            for (sum, (gradient, weight)) in found.row_mut(row.min(last)).iter_mut().zip(of_row) {
                *sum += gradient.dot(&weight);
            }
        }
        found
    }
}

/// Where lessons are given.
struct School<'a> {
    model: &'a Model,
    source: &'a dyn WeightSource,
    forward: Forward<'a>,
    outer: OuterWeights,
    head: Vec<LinearOperator>,
    /// What factors of products are rounded to.
    precision: Precision,
}

/// The original, or with the solutions of its linears.
struct Pupils<'a> {
    source: &'a dyn WeightSource,
    solved: &'a [Solved],
}

impl Pupils<'_> {
    fn replace(&self, layer: &Layer, linears: &mut Linears) {
        for solved in self.solved.iter().filter(|solved| solved.linear.id.layer == layer.index) {
            if let Some(operator) = linears.get_mut(&solved.linear.id.slot()) {
                operator.weights = solved.tensor.dequantize().into();
            }
        }
    }
}

impl WeightSource for Pupils<'_> {
    fn embed(&self, tokens: &[u32]) -> Result<Array2<f32>, SourceError> {
        self.source.embed(tokens)
    }

    fn layer(&self, layer: &Layer) -> Result<LayerWeights, SourceError> {
        let mut weights = self.source.layer(layer)?;
        self.replace(layer, &mut weights.linears);
        Ok(weights)
    }

    fn expert(&self, layer: &Layer, expert: usize) -> Result<Linears, SourceError> {
        let mut linears = self.source.expert(layer, expert)?;
        self.replace(layer, &mut linears);
        Ok(linears)
    }

    fn positions(&self, rows: std::ops::Range<usize>) -> Result<Array2<f32>, SourceError> {
        self.source.positions(rows)
    }

    fn outer(&self) -> Result<OuterWeights, SourceError> {
        self.source.outer()
    }

    fn head_rows(&self, rows: std::ops::Range<usize>) -> Result<LinearOperator, SourceError> {
        self.source.head_rows(rows)
    }
}

impl<'a> School<'a> {
    /// For windows of so many tokens.
    fn open(
        model: &'a Model,
        source: &'a dyn WeightSource,
        tokens: usize,
        precision: Precision,
    ) -> Result<Self, Error> {
        Ok(Self {
            model,
            source,
            forward: Forward::new(model, tokens).with_precision(precision),
            outer: source.outer().map_err(Error::from_source)?,
            head: head(model, source)?.iter().map(|slice| slice.at(precision, Pass::Both)).collect(),
            precision,
        })
    }

    /// With what the original makes of them.
    fn lessons<'w>(&self, windows: &[&'w Vec<u32>]) -> Result<Vec<Lesson<'w>>, Error> {
        let mut lessons = Vec::with_capacity(windows.len());
        for batch in windows.chunks(BATCH) {
            let hidden = self.run(batch, &[], None)?;
            lessons.extend(batch.iter().zip(hidden).map(|(tokens, teacher)| Lesson { tokens, teacher }));
        }
        Ok(lessons)
    }

    /// The residual streams behind the last layer; `before` takes those before each.
    fn run(
        &self,
        windows: &[&Vec<u32>],
        solved: &[Solved],
        mut before: Option<&mut History>,
    ) -> Result<Vec<Array2<f32>>, Error> {
        let embed =
            |tokens: &&Vec<u32>| self.forward.embed(self.source, tokens, 0).map_err(Error::from_source);
        let mut states = windows.par_iter().map(embed).collect::<Result<Vec<_>, Error>>()?;
        let pupils = Pupils { source: self.source, solved };
        let pupils = AtPrecision { source: &pupils, precision: self.precision, pass: Pass::Forward };
        for layer in &self.model.layers {
            if let Some(before) = &mut before {
                before.push(states.iter().map(WindowState::hidden))?;
            }
            self.forward.advance_windows(layer, &pupils, &mut states).map_err(Error::from_source)?;
        }
        match states.iter().position(|state| !state.is_finite()) {
            None => Ok(states.into_iter().map(|state| state.hidden().to_owned()).collect()),
            Some(window) => {
                Err(CalibrationError::NotFinite { window, place: "last layer".to_owned() }.into())
            }
        }
    }

    /// Divergence of each lesson's window, summed over its tokens, and its gradient at the residual stream.
    fn judge(&self, lessons: &[Lesson<'_>], hidden: &[Array2<f32>]) -> Vec<(f64, Array2<f32>)> {
        let head = Head { outer: &self.outer, slices: &self.head };
        let backward = Backward::new(&self.forward);
        let judged = lessons.par_iter().zip(hidden).map(|(lesson, hidden)| {
            let loss = backward.kl_divergence(head, hidden.view(), head, lesson.teacher.view());
            (loss.sum, loss.hidden_gradient)
        });
        judged.collect()
    }

    /// Mean divergence, nats a token.
    fn divergence(&self, lessons: &[Lesson<'_>], solved: &[Solved]) -> Result<f64, Error> {
        let (mut sum, mut tokens) = (0.0, 0);
        for batch in lessons.chunks(BATCH) {
            let windows: Vec<_> = batch.iter().map(|lesson| lesson.tokens).collect();
            let hidden = self.run(&windows, solved, None)?;
            sum += self.judge(batch, &hidden).iter().map(|(sum, _)| sum).sum::<f64>();
            tokens += windows.iter().map(|window| window.len()).sum::<usize>();
        }
        Ok(sum / tokens.max(1) as f64)
    }

    /// The gradients of all `ln |s|`, in the order of `solved`; none where scales do not learn.
    fn gradients(
        &self,
        lessons: &[Lesson<'_>],
        solved: &[Solved],
        mut before: History,
    ) -> Result<Vec<Option<Array2<f32>>>, Error> {
        let windows: Vec<_> = lessons.iter().map(|lesson| lesson.tokens).collect();
        let hidden = self.run(&windows, solved, Some(&mut before))?;
        let mut gradients: Vec<Array2<f32>> =
            self.judge(lessons, &hidden).into_iter().map(|(_, gradient)| gradient).collect();
        let mut found: Vec<Option<Array2<f32>>> = solved.iter().map(|_| None).collect();
        let backward = Backward::new(&self.forward);
        let pupils = Pupils { source: self.source, solved };
        let pupils = AtPrecision { source: &pupils, precision: self.precision, pass: Pass::Both };
        for layer in self.model.layers.iter().rev() {
            let inputs = before.pop()?;
            let mut ends: Vec<Vec<Ends>> = inputs.iter().map(|_| Vec::new()).collect();
            let learners = learners(layer, solved);
            let see = |ends: &mut Vec<Ends>, visit: Visit<'_>| {
                if let Visit::Linear(linear) = visit
                    && learners.iter().any(|&(_, slot)| slot == linear.slot)
                {
                    let (input, output_gradient) =
                        (linear.input.to_owned(), linear.output_gradient.to_owned());
                    ends.push(Ends { slot: linear.slot, input, output_gradient });
                }
            };
            let passed = backward.windows_vjp(layer, &pupils, &inputs, &gradients, &mut ends, &see);
            gradients = passed.map_err(Error::from_source)?;
            let of_scales = |&(index, slot): &(usize, Slot)| {
                let of_weights = weight_gradient(&ends, slot, self.precision);
                let weight = solved[index].tensor.dequantize();
                (index, solved[index].scale_gradient(of_weights.view(), weight.view()))
            };
            for (index, gradient) in learners.par_iter().map(of_scales).collect::<Vec<_>>() {
                found[index] = Some(gradient);
            }
        }
        Ok(found)
    }
}

/// What a linear was given in one window, `[tokens, in_features]`, and the gradient of what it gave, `[tokens, out_features]`.
struct Ends {
    slot: Slot,
    input: Array2<f32>,
    output_gradient: Array2<f32>,
}

/// The linears of a layer whose scales learn, with their places in `solved`.
fn learners(layer: &Layer, solved: &[Solved]) -> Vec<(usize, Slot)> {
    let own = |(_, solved): &(usize, &Solved)| solved.linear.id.layer == layer.index && solved.learns();
    solved.iter().enumerate().filter(own).map(|(index, solved)| (index, solved.linear.id.slot())).collect()
}

/// `Ȳᵀ X` over the tokens of all windows, in their order.
fn weight_gradient(windows: &[Vec<Ends>], slot: Slot, precision: Precision) -> Array2<f32> {
    let ends = || windows.iter().flatten().filter(|ends| ends.slot == slot);
    let inputs: Vec<_> = ends().map(|ends| ends.input.view()).collect();
    let gradients: Vec<_> = ends().map(|ends| ends.output_gradient.view()).collect();
    let stacked = |parts: &[ArrayView2<'_, f32>]| {
        ndarray::concatenate(Axis(0), parts).expect("all windows meet the same linear")
    };
    let (input, gradient) = (stacked(&inputs), stacked(&gradients));
    precision.columns(gradient.view()).product(&precision.columns(input.view()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::linear::{LinearId, Part, Role};
    use quantizer::levels::Levels;
    use quantizer::scheme::{BitWidth, Granularity, GroupSize, Scheme};

    fn solved(granularity: Granularity) -> Solved {
        let scheme = Scheme {
            bits: BitWidth::new(3).unwrap(),
            levels: Levels::Uniform,
            granularity,
            symmetry: Symmetry::Symmetric,
            scale_dtype: ScaleDtype::F32,
        };
        let codes = Array2::from_shape_fn((3, 32), |(row, column)| ((5 * row + 3 * column) % 8) as u8);
        let shape = granularity.scale_shape(3, 32);
        let scales = Array2::from_shape_fn(shape, |(row, group)| 0.5 - 0.2 * (row + 2 * group) as f32);
        let id = LinearId { layer: 0, part: Part::Main, role: Role::Up };
        let linear = Linear {
            id,
            name: "up".to_owned(),
            out_features: 3,
            in_features: 32,
            bias: false,
            class: model::linear::LinearClass::Plain,
        };
        Solved { linear, tensor: QuantizedTensor::new(scheme, codes, scales, None).unwrap() }
    }

    #[test]
    fn the_gradient_of_a_scale_is_what_a_share_of_it_changes() {
        let group = Granularity::PerGroup(GroupSize::new(16).unwrap());
        for granularity in [group, Granularity::PerChannel, Granularity::PerTensor] {
            let of_weights =
                Array2::from_shape_fn((3, 32), |(row, column)| (row as f32 - 1.3) * (column as f32).sin());
            let loss = |solved: &Solved| -> f64 {
                let weight = solved.tensor.dequantize();
                weight.iter().zip(&of_weights).map(|(&w, &g)| f64::from(w) * f64::from(g)).sum()
            };
            let start = solved(granularity);
            let gradient = start.scale_gradient(of_weights.view(), start.tensor.dequantize().view());
            for (place, &expected) in gradient.indexed_iter() {
                let mut moved = solved(granularity);
                let mut scales = moved.tensor.scales().to_owned();
                scales[place] *= 1.01;
                moved.set_scales(scales).unwrap();
                let found = (loss(&moved) - loss(&start)) / 0.01;
                assert!(
                    (found - f64::from(expected)).abs() < 1e-3,
                    "{granularity:?} {place:?}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn steps_go_down_the_gradient_by_a_share_and_keep_the_sign() {
        let solved = solved(Granularity::PerChannel);
        let before = solved.tensor.scales().to_owned();
        let mut pupil = PupilState::new(&solved);
        let gradient = ndarray::array![[2.0_f32], [-1e-6], [0.0]];
        let after = pupil.step(&gradient, 0.1, 1);
        let expected = ndarray::array![[0.9_f32], [1.1], [1.0]] * &before;
        assert!(after.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{after} {expected}");
    }
}
