//! Gradients against differences of the forward pass that they are the derivatives of.
//!
//! What is compared is the derivative along random directions, of a sum in f64 over what the forward pass gives in f32. The differences are
//! of fourth order, so that steps can be large enough for the roundings of f32 not to matter.

use std::collections::BTreeMap;

use crate::forward::packed;
use crate::tiny::{InMemory, TINY};
use calibration::backward::{Backward, Head, Loss, Visit};
use calibration::forward::{Forward, WindowState};
use calibration::weights::{LayerWeights, LinearOperator, LinearWeights, OuterWeights, WeightSource};
use model::architecture::NormKind;
use model::graph::NormPlace;
use model::hyperparameters::{Activation, Rotation};
use model::linear::{Role, Slot};
use ndarray::{Array1, Array2, ArrayView2};

/// More than a tile of queries, and many times the tiny sliding window.
const TOKENS: usize = 75;
/// Random directions that each gradient is compared along.
const DIRECTIONS: u64 = 5;

/// What the roundings of f32 leave in differences of a sum over a layer's result.
const ROUNDING: f64 = 5e-3;

/// What a layer's result depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Parameter {
    Input,
    Weight(Slot),
    Bias(Slot),
    Router,
    SharedGate,
    Norm(NormPlace),
    NormBias(NormPlace),
}

/// Uniform between -1 and 1.
fn noise(shape: (usize, usize), seed: u64) -> Array2<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    Array2::from_shape_fn(shape, |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

fn inner(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// The derivative of `value` at zero, but for errors of fourth order in `step`.
fn slope(value: &dyn Fn(f32) -> f64, step: f32) -> f64 {
    let difference = |step: f32| value(step) - value(-step);
    (8.0 * difference(step) - difference(2.0 * step)) / (12.0 * f64::from(step))
}

/// Compares a gradient with the slopes of `value` along random directions; `value` is given what is added to the parameter. Errors are
/// relative to the slopes' root mean square.
fn check(what: &str, gradient: &Array2<f32>, step: f32, value: &dyn Fn(&Array2<f32>) -> f64) {
    let (mut squares, mut errors) = (0.0, 0.0);
    for seed in 0..DIRECTIONS {
        let direction = noise(gradient.dim(), 100 + seed);
        let found = inner(gradient.view(), direction.view());
        let expected = slope(&|step| value(&(&direction * step)), step);
        squares += expected * expected;
        errors += (found - expected) * (found - expected);
    }
    let (error, slopes) = (errors.sqrt(), squares.sqrt());
    assert!(squares > 0.0 && error < 3e-3 * slopes + ROUNDING, "{what}: off by {error:e} of {slopes:e}");
}

fn dense(weights: &mut LinearWeights) -> &mut Array2<f32> {
    let LinearWeights::Dense(matrix) = weights else { panic!("the tiny models are dense") };
    matrix
}

fn row(vector: &Array1<f32>) -> Array2<f32> {
    vector.clone().insert_axis(ndarray::Axis(0))
}

/// A layer of a tiny model, with weights large enough that attention looks at some tokens more than at others, and a linear function of its
/// result.
struct Case {
    source: InMemory,
    index: usize,
    weights: LayerWeights,
    /// `[tokens, hidden]`.
    input: Array2<f32>,
    /// Gradient of the linear function.
    output_gradient: Array2<f32>,
}

impl Case {
    fn new(name: &str, index: usize) -> Self {
        let source = InMemory::open(name);
        let mut weights = source.whole_layer(&source.model.layers[index]);
        for (seed, operator) in (100 * index as u64 + 200..).zip(weights.linears.values_mut()) {
            let matrix = dense(&mut operator.weights);
            *matrix = noise(matrix.dim(), seed) * (2.0 / (matrix.ncols() as f32).sqrt());
            if let Some(bias) = &mut operator.bias {
                *bias += &noise((1, bias.len()), seed + 20).row(0);
            }
        }
        if let Some(router) = &mut weights.router {
            // An expert looks at a feature of its own, see below.
            let matrix = dense(&mut router.outputs.weights);
            *matrix = noise(matrix.dim(), 100 * index as u64 + 230) * 0.02;
            (0..matrix.nrows()).for_each(|expert| matrix[[expert, expert]] += 0.5);
        }
        for (seed, norm) in (100 * index as u64 + 240..).zip(weights.norms.values_mut()) {
            let noise = noise((2, norm.weight.len()), seed);
            let middle = if norm.kind == NormKind::RmsPlusOne { 0.0 } else { 1.0 };
            norm.weight = noise.row(0).mapv(|value| middle + 0.5 * value);
            if let Some(bias) = &mut norm.bias {
                *bias = noise.row(1).to_owned();
            }
        }
        let shape = (TOKENS, source.model.hyperparameters.hidden_size);
        let mut input = noise(shape, 1);
        let experts = source.model.layers[index].experts();
        if experts > 0 {
            // Each token has two experts' features that stick out far enough for no small step to send it elsewhere, which has no derivative.
            // Where they come in groups, of which a token takes one, both are of one.
            let router = source.model.layers[index].router.as_ref().unwrap();
            let grouped = router.routing.groups.is_some();
            for (token, mut row) in input.rows_mut().into_iter().enumerate() {
                (0..experts).for_each(|expert| row[expert] -= 12.0);
                let first = token % experts;
                row[first] = 20.0;
                row[if grouped { first ^ 1 } else { (first + 1 + token / experts % 2) % experts }] = 12.0;
            }
        }
        Self { source, index, weights, input, output_gradient: noise(shape, 2) }
    }

    fn value(&self, weights: &LayerWeights, input: Array2<f32>) -> f64 {
        let mut state = WindowState::new(input);
        let layer = &self.source.model.layers[self.index];
        Forward::new(&self.source.model, self.input.nrows()).advance_layer(layer, weights, &mut state);
        inner(state.hidden(), self.output_gradient.view())
    }

    /// The value when something is added to a parameter.
    fn moved(&self, parameter: Parameter, step: &Array2<f32>) -> f64 {
        let mut weights = self.weights.clone();
        let mut input = self.input.clone();
        let by_slot = |weights: &mut LayerWeights, slot: Slot, bias: bool| {
            let operator = weights.linears.get_mut(&slot).unwrap();
            if bias {
                *operator.bias.as_mut().unwrap() += &step.row(0);
            } else {
                *dense(&mut operator.weights) += step;
            }
        };
        match parameter {
            Parameter::Input => input += step,
            Parameter::Weight(slot) => by_slot(&mut weights, slot, false),
            Parameter::Bias(slot) => by_slot(&mut weights, slot, true),
            Parameter::Router => *dense(&mut weights.router.as_mut().unwrap().outputs.weights) += step,
            Parameter::SharedGate => {
                let gate = weights.router.as_mut().unwrap().shared_gate.as_mut().unwrap();
                *dense(&mut gate.weights) += step;
            }
            Parameter::Norm(place) => weights.norms.get_mut(&place).unwrap().weight += &step.row(0),
            Parameter::NormBias(place) => {
                *weights.norms.get_mut(&place).unwrap().bias.as_mut().unwrap() += &step.row(0);
            }
        }
        self.value(&weights, input)
    }

    fn gradients(&self) -> BTreeMap<Parameter, Array2<f32>> {
        let forward = Forward::new(&self.source.model, self.input.nrows());
        let layer = &self.source.model.layers[self.index];
        let mut gradients = BTreeMap::new();
        let input_gradient = Backward::new(&forward).layer_vjp(
            layer,
            &self.weights,
            self.input.view(),
            self.output_gradient.view(),
            &mut |visit| match visit {
                Visit::Linear(linear) => {
                    gradients.insert(Parameter::Weight(linear.slot), linear.weight_gradient());
                    if self.weights.linear(linear.slot).bias.is_some() {
                        gradients.insert(Parameter::Bias(linear.slot), row(&linear.bias_gradient()));
                    }
                }
                Visit::Norm(norm) => {
                    gradients.insert(Parameter::Norm(norm.place), row(&norm.gradient.to_owned()));
                    if let Some(bias) = norm.bias_gradient {
                        gradients.insert(Parameter::NormBias(norm.place), row(&bias.to_owned()));
                    }
                }
                Visit::Router(router) if router.shared_gate => {
                    gradients.insert(Parameter::SharedGate, router.weight_gradient());
                }
                Visit::Router(router) => {
                    gradients.insert(Parameter::Router, router.weight_gradient());
                }
            },
        );
        gradients.insert(Parameter::Input, input_gradient);
        gradients
    }

    fn check(&self, what: &str) -> usize {
        let gradients = self.gradients();
        let layer = &self.source.model.layers[self.index];
        for (&parameter, gradient) in &gradients {
            // What is added to all keys alike changes no probability, unless keys are turned or normed after.
            if parameter == Parameter::Bias(Role::Key.into()) && layer.rotation == Rotation::None {
                let largest = gradient.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                assert!(largest < 1e-3, "{what}, {parameter:?}: {largest}");
                continue;
            }
            check(&format!("{what}, {parameter:?}"), gradient, 0.004, &|step| self.moved(parameter, step));
        }
        gradients.len()
    }
}

/// A step over the bend of a ReLU sees both its slopes, so what the activation is given is kept away from it.
fn without_bends(case: &mut Case) {
    if case.source.model.hyperparameters.activation == Activation::Relu {
        let up = case.weights.linears.get_mut(&Role::Up.into()).unwrap();
        let features = up.out_features();
        up.bias = Some(Array1::from_shape_fn(features, |i| if i % 3 == 0 { -12.0 } else { 12.0 }));
    }
}

#[test]
fn every_gradient_of_a_layer_is_the_slope_of_its_forward_pass() {
    for name in TINY.iter() {
        for index in 0..2 {
            let mut case = Case::new(name, index);
            without_bends(&mut case);
            // The input, and every tensor.
            let router = case.weights.router.as_ref();
            let router = router.map_or(0, |router| 1 + usize::from(router.shared_gate.is_some()));
            let norms = case.weights.norms.values().map(|norm| 1 + usize::from(norm.bias.is_some()));
            let linears = case.weights.linears.values().map(|linear| 1 + usize::from(linear.bias.is_some()));
            let count = 1 + router + norms.sum::<usize>() + linears.sum::<usize>();
            assert_eq!(case.check(&format!("{name} {index}")), count);
        }
    }
}

#[test]
fn windows_together_have_the_gradients_of_each_alone() {
    for name in ["qwen3", "qwen2_moe"] {
        let source = InMemory::open(name);
        let forward = Forward::new(&source.model, TOKENS);
        let backward = Backward::new(&forward);
        let layer = &source.model.layers[1];
        let inputs = [noise((TOKENS, 32), 3), noise((9, 32), 4)];
        let gradients = [noise((TOKENS, 32), 5), noise((9, 32), 6)];
        let mut kept = [BTreeMap::new(), BTreeMap::new()];
        let see = |kept: &mut BTreeMap<Slot, Array2<f32>>, visit: Visit<'_>| {
            if let Visit::Linear(linear) = visit {
                kept.insert(linear.slot, linear.weight_gradient());
            }
        };
        let found = backward.windows_vjp(layer, &source, &inputs, &gradients, &mut kept, &see).unwrap();
        let weights = source.whole_layer(layer);
        for window in 0..2 {
            let mut alone = BTreeMap::new();
            let mut show = |visit: Visit<'_>| see(&mut alone, visit);
            let (input, gradient) = (inputs[window].view(), gradients[window].view());
            assert_eq!(found[window], backward.layer_vjp(layer, &weights, input, gradient, &mut show));
            assert_eq!(kept[window], alone, "{name}");
        }
    }
}

#[test]
fn every_activation_has_its_slope() {
    for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        let mut case = Case::new("llama", 0);
        case.source.model.hyperparameters.activation = activation;
        case.check(&format!("{activation:?}"));
    }
    // A step over the bend of a ReLU sees both its slopes, so the inputs of the gates are kept away from it.
    let mut case = Case::new("llama", 0);
    case.source.model.hyperparameters.activation = Activation::Relu;
    let gate = case.weights.linears.get_mut(&Role::Gate.into()).unwrap();
    gate.bias = Some(Array1::from_shape_fn(48, |i| if i % 3 == 0 { -12.0 } else { 12.0 }));
    case.check("Relu");
}

#[test]
fn the_length_of_a_window_does_not_matter() {
    for tokens in [1, 2, 64, 65, 130] {
        for name in ["llama", "mistral_sw"] {
            let mut case = Case::new(name, 0);
            case.input = noise((tokens, 32), 7);
            case.output_gradient = noise((tokens, 32), 8);
            let gradient = case.gradients().remove(&Parameter::Input).unwrap();
            check(&format!("{name} {tokens}"), &gradient, 0.004, &|step| case.moved(Parameter::Input, step));
        }
    }
}

#[test]
fn packed_weights_have_the_gradients_of_their_dense_values() {
    let mut case = Case::new("qwen2", 0);
    let mut packed_weights = case.weights.clone();
    for (&slot, operator) in &mut case.weights.linears {
        let (packed, values) = packed(dense(&mut operator.weights).view());
        operator.weights = values.into();
        packed_weights.replace(slot, packed);
    }
    let expected = case.gradients();
    // Which gradients there are does not depend on what weights are stored as.
    case.weights = packed_weights;
    let found = case.gradients();
    for (parameter, expected) in &expected {
        let difference = &found[parameter] - expected;
        let relative = inner(difference.view(), difference.view()) / inner(expected.view(), expected.view());
        assert!(relative.sqrt() < 1e-5, "{parameter:?}: {relative:e}");
    }
}

/// The whole head, in slices of `rows`.
fn slices(source: &InMemory, rows: usize) -> Vec<LinearOperator> {
    let vocabulary = source.model.hyperparameters.vocabulary;
    let slice = |first: usize| source.head_rows(first..(first + rows).min(vocabulary)).unwrap();
    (0..vocabulary).step_by(rows).map(slice).collect()
}

/// Two residual streams after the last layer, some way apart, and larger than a tiny random model makes them, so that it predicts something.
fn last_hidden(tokens: usize) -> [Array2<f32>; 2] {
    let teacher = noise((tokens, 32), 11);
    [&teacher + &(noise((tokens, 32), 12) * 0.3), teacher]
}

/// What lies before the head, with a norm that makes the tiny random models' logits large.
fn outer(source: &InMemory) -> OuterWeights {
    let mut outer = source.outer().unwrap();
    if let Some(norm) = &mut outer.final_norm {
        norm.weight *= 20.0;
    }
    outer
}

/// A loss as a function of the norm before the head and of the residual stream.
type LossOf<'a> = dyn Fn(Head<'_>, ArrayView2<'_, f32>) -> Loss + 'a;

#[test]
fn gradients_of_the_losses_are_their_slopes() {
    for name in TINY.iter() {
        let source = InMemory::open(name);
        let slices = slices(&source, 24);
        let outer = outer(&source);
        let forward = Forward::new(&source.model, 150);
        let backward = Backward::new(&forward);
        let [student, teacher] = last_hidden(150);
        let targets: Vec<u32> = (0..149).map(|i| (i * i + 3) % 64).collect();
        let head = Head { outer: &outer, slices: &slices };
        let losses: [(&str, &LossOf<'_>); 2] = [
            ("divergence", &|moved, hidden| backward.kl_divergence(moved, hidden, head, teacher.view())),
            ("cross entropy", &|moved, hidden| backward.cross_entropy(moved, hidden, &targets)),
        ];
        for (what, loss) in losses {
            let found = loss(head, student.view());
            check(&format!("{name}, {what}"), &found.hidden_gradient, 0.004, &|step| {
                loss(head, (&student + step).view()).sum
            });
            let Some(norm_gradient) = found.norm_gradient else { continue };
            check(&format!("{name}, norm of {what}"), &row(&norm_gradient), 0.1, &|step| {
                let mut moved = outer.clone();
                moved.final_norm.as_mut().unwrap().weight += &step.row(0);
                loss(Head { outer: &moved, ..head }, student.view()).sum
            });
        }
    }
}

#[test]
fn losses_meet_their_definitions_however_the_head_is_cut() {
    let source = InMemory::open("qwen3");
    let outer = outer(&source);
    let forward = Forward::new(&source.model, 150);
    let backward = Backward::new(&forward);
    let hidden = last_hidden(150);
    let head = source.head_rows(0..64).unwrap();
    let [q, p] = [&hidden[0], &hidden[1]].map(|hidden| {
        let mut logits = forward.logits(&outer, &head, hidden.view()).mapv(f64::from);
        logits.rows_mut().into_iter().for_each(|mut row| {
            let normalizer = row.iter().map(|v| v.exp()).sum::<f64>().ln();
            row -= normalizer;
        });
        logits
    });
    let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
    let targets: Vec<u32> = (0..149).map(|i| (i * i + 3) % 64).collect();
    let nll: f64 = targets.iter().enumerate().map(|(t, &target)| -q[[t, target as usize]]).sum();
    assert!(divergence > 1.0);
    for rows in [1, 7, 64] {
        let slices = slices(&source, rows);
        let head = Head { outer: &outer, slices: &slices };
        let found = backward.kl_divergence(head, hidden[0].view(), head, hidden[1].view());
        assert!((found.sum / divergence - 1.0).abs() < 1e-5, "{rows}: {} {divergence}", found.sum);
        let found = backward.cross_entropy(head, hidden[0].view(), &targets);
        assert!((found.sum / nll - 1.0).abs() < 1e-5, "{rows}: {} {nll}", found.sum);
        assert!(found.hidden_gradient.row(149).iter().all(|&value| value == 0.0));
    }
}

#[test]
fn a_student_that_is_its_teacher_has_nothing_to_learn() {
    let source = InMemory::open("llama");
    let (outer, slices) = (outer(&source), slices(&source, 24));
    let forward = Forward::new(&source.model, 150);
    let head = Head { outer: &outer, slices: &slices };
    let [hidden, _] = last_hidden(150);
    let found = Backward::new(&forward).kl_divergence(head, hidden.view(), head, hidden.view());
    assert_eq!(found.sum, 0.0);
    assert!(found.hidden_gradient.iter().chain(&found.norm_gradient.unwrap()).all(|&value| value == 0.0));
}

#[test]
fn what_is_no_number_shows_in_the_sum() {
    let source = InMemory::open("llama");
    let (outer, slices) = (outer(&source), slices(&source, 24));
    let forward = Forward::new(&source.model, 150);
    let backward = Backward::new(&forward);
    let head = Head { outer: &outer, slices: &slices };
    let [mut hidden, teacher] = last_hidden(3);
    assert!(backward.cross_entropy(head, hidden.view(), &[1, 64]).sum.is_nan());
    hidden[[1, 5]] = f32::NAN;
    assert!(!backward.kl_divergence(head, hidden.view(), head, teacher.view()).sum.is_finite());
    assert!(!backward.kl_divergence(head, teacher.view(), head, hidden.view()).sum.is_finite());
    assert!(!backward.cross_entropy(head, hidden.view(), &[1, 2, 3]).sum.is_finite());
}

/// A whole tiny model, its linears larger than they were.
struct Whole {
    source: InMemory,
    layers: Vec<LayerWeights>,
    outer: OuterWeights,
    slices: Vec<LinearOperator>,
    tokens: Vec<u32>,
    /// The teacher's residual stream after the last layer.
    teacher: Array2<f32>,
}

impl Whole {
    fn new(name: &str) -> Self {
        let source = InMemory::open(name);
        let weights = |index| {
            let mut case = Case::new(name, index);
            without_bends(&mut case);
            case.weights
        };
        let layers = (0..source.model.layers.len()).map(weights).collect();
        let count = TOKENS.min(source.longest()) as u32;
        let tokens: Vec<u32> = (0..count).map(|i| (i * i + 7 * i + 5) % 64).collect();
        let (outer, slices) = (outer(&source), slices(&source, 24));
        let mut whole = Self { source, layers, outer, slices, tokens, teacher: Array2::zeros((0, 0)) };
        whole.teacher = whole.hidden_states(&whole.layers).pop().unwrap();
        // The student is the teacher with other weights.
        for (seed, operator) in whole.layers.iter_mut().flat_map(|l| l.linears.values_mut()).enumerate() {
            let matrix = dense(&mut operator.weights);
            *matrix += &(noise(matrix.dim(), 80 + seed as u64) * 0.05);
        }
        whole
    }

    /// The residual stream before each layer, and after the last.
    fn hidden_states(&self, layers: &[LayerWeights]) -> Vec<Array2<f32>> {
        let forward = Forward::new(&self.source.model, TOKENS);
        let mut state = forward.embed(&self.source, &self.tokens, 0).unwrap();
        let mut states = vec![state.hidden().to_owned()];
        for (layer, weights) in self.source.model.layers.iter().zip(layers) {
            forward.advance_layer(layer, weights, &mut state);
            states.push(state.hidden().to_owned());
        }
        states
    }

    fn loss(&self, hidden: &Array2<f32>) -> Loss {
        let forward = Forward::new(&self.source.model, TOKENS);
        let head = Head { outer: &self.outer, slices: &self.slices };
        Backward::new(&forward).kl_divergence(head, hidden.view(), head, self.teacher.view())
    }

    /// Gradients of the weights of layer 0.
    fn gradients(&self) -> BTreeMap<Slot, Array2<f32>> {
        let forward = Forward::new(&self.source.model, TOKENS);
        let backward = Backward::new(&forward);
        let mut states = self.hidden_states(&self.layers);
        let mut gradient = self.loss(&states.pop().unwrap()).hidden_gradient;
        let mut weight_gradients = BTreeMap::new();
        for (layer, weights) in self.source.model.layers.iter().zip(&self.layers).rev() {
            let input = states.pop().unwrap();
            gradient =
                backward.layer_vjp(layer, weights, input.view(), gradient.view(), &mut |visit| match visit {
                    Visit::Linear(linear) if layer.index == 0 => {
                        weight_gradients.insert(linear.slot, linear.weight_gradient());
                    }
                    Visit::Linear(_) | Visit::Norm(_) | Visit::Router(_) => {}
                });
        }
        weight_gradients
    }
}

#[test]
fn the_divergence_of_a_whole_model_has_its_slope_at_the_first_layer() {
    for name in TINY.iter() {
        let whole = Whole::new(name);
        // A step may send a token of a mixture elsewhere, which has no slope.
        if whole.source.model.hyperparameters.experts.is_some() {
            continue;
        }
        for (slot, gradient) in whole.gradients() {
            check(&format!("{name}, {slot:?}"), &gradient, 0.0007, &|step| {
                let mut layers = whole.layers.clone();
                *dense(&mut layers[0].linears.get_mut(&slot).unwrap().weights) += step;
                whole.loss(&whole.hidden_states(&layers).pop().unwrap()).sum
            });
        }
    }
}

#[test]
fn no_bit_of_a_gradient_depends_on_the_number_of_threads() {
    let whole = Whole::new("qwen3");
    let gradients = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| whole.gradients())
    };
    let expected = gradients(1);
    for threads in [2, 3, 8] {
        assert_eq!(gradients(threads), expected);
    }
}

/// The residual stream of one position, and the norm and head of a tiny model.
fn one_position() -> (InMemory, Array2<f32>, OuterWeights, Vec<LinearOperator>) {
    let source = InMemory::open("llama");
    let numbers = &source.model.hyperparameters;
    let hidden = noise((1, numbers.hidden_size), 5);
    let outer = source.outer().unwrap();
    let cuts = [0, numbers.vocabulary / 3, numbers.vocabulary];
    let head = cuts.windows(2).map(|cut| {
        let mut slice = source.head_rows(cut[0]..cut[1]).unwrap();
        let matrix = dense(&mut slice.weights);
        *matrix = noise(matrix.dim(), 50 + cut[0] as u64) * 0.3;
        slice
    });
    let head = head.collect();
    (source, hidden, outer, head)
}

#[test]
fn probes_have_the_covariance_of_the_gradients_of_drawn_labels() {
    let (source, hidden, outer, slices) = one_position();
    let forward = Forward::new(&source.model, 1);
    let backward = Backward::new(&forward);
    let head = Head { outer: &outer, slices: &slices };
    let square = |gradient: &Array2<f32>| {
        let gradient = gradient.mapv(f64::from);
        gradient.t().dot(&gradient)
    };
    let size = source.model.hyperparameters.hidden_size;
    let mut exact = Array2::<f64>::zeros((size, size));
    for label in 0..source.model.hyperparameters.vocabulary as u32 {
        let loss = backward.cross_entropy(head, hidden.view(), &[label]);
        exact += &(square(&loss.hidden_gradient) * (-loss.sum).exp());
    }
    let seeds = 3000;
    let mut found = Array2::<f64>::zeros((size, size));
    for seed in 0..seeds {
        found += &(square(&backward.fisher_probe(head, hidden.view(), seed)) / seeds as f64);
    }
    let norm = |matrix: &Array2<f64>| matrix.iter().map(|x| x * x).sum::<f64>().sqrt();
    let trace = |matrix: &Array2<f64>| matrix.diag().sum();
    let error = norm(&(&found - &exact)) / norm(&exact);
    assert!(error < 0.15, "{error}");
    assert!((trace(&found) / trace(&exact) - 1.0).abs() < 0.05);
}

#[test]
fn probes_do_not_depend_on_how_the_head_is_cut() {
    let (source, hidden, outer, slices) = one_position();
    let forward = Forward::new(&source.model, 1);
    let backward = Backward::new(&forward);
    let parts: Vec<Array2<f32>> = slices
        .iter()
        .map(|slice| match &slice.weights {
            LinearWeights::Dense(matrix) => matrix.clone(),
            _ => panic!("the tiny models are dense"),
        })
        .collect();
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    let whole = ndarray::concatenate(ndarray::Axis(0), &views).unwrap();
    let whole = [LinearOperator { weights: LinearWeights::Dense(whole), bias: None, inputs: None }];
    let in_parts = backward.fisher_probe(Head { outer: &outer, slices: &slices }, hidden.view(), 9);
    let at_once = backward.fisher_probe(Head { outer: &outer, slices: &whole }, hidden.view(), 9);
    for (a, b) in in_parts.iter().zip(&at_once) {
        assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{a} {b}");
    }
}
