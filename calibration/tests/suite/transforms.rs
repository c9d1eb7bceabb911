//! Transformed models compute what their originals compute.

use std::ops::ControlFlow;

use crate::tiny::{InMemory, LLAMA_LIKE, TINY};
use calibration::CalibrationError;
use calibration::evaluation::visit_logits;
use calibration::transforms::{ALL, Transform, Transformed};
use calibration::weights::{LinearWeights, WeightSource};
use model::Model;
use model::linear::Role;
use ndarray::Array2;

fn windows() -> Vec<Vec<u32>> {
    (0..5).map(|w| (0..30).map(|i| (w * 11 + i * i) % 64).collect()).collect()
}

fn logits(model: &Model, source: &dyn WeightSource) -> Vec<Array2<f32>> {
    let mut seen = Vec::new();
    visit_logits(model, source, &windows(), &mut |logits| seen.push(logits.to_owned())).unwrap();
    seen
}

/// As bfloat16 rounds, towards zero.
fn coarse(value: f64) -> f64 {
    f64::from(f32::from_bits((value as f32).to_bits() & 0xffff_0000))
}

fn transformed<'s>(source: &'s InMemory, transforms: &[Transform]) -> Transformed<'s> {
    let mut transformed = Transformed::new(source, &source.model, transforms, true);
    let mut layers = 0;
    let mut step = || {
        layers += 1;
        ControlFlow::Continue(())
    };
    if transforms.iter().any(|transform| transform.needs_data()) {
        transformed.equalize(transforms, &windows(), coarse, &mut step).unwrap();
        assert_eq!(layers, source.model.layers.len());
    }
    transformed
}

#[test]
fn every_architecture_computes_the_same_under_every_transform() {
    for name in LLAMA_LIKE {
        let source = InMemory::open(name);
        let expected = logits(&source.model, &source);
        let each = ALL.iter().map(|(transform, ..)| vec![*transform]);
        let all: Vec<Transform> = ALL.iter().map(|(transform, ..)| *transform).collect();
        for transforms in each.chain([all]) {
            let transformed = transformed(&source, &transforms);
            assert!(!transformed.model().hyperparameters.tied_head);
            let found = logits(transformed.model(), &transformed);
            for (found, expected) in found.iter().zip(&expected) {
                let worst = (found - expected).iter().fold(0.0_f32, |worst, d| worst.max(d.abs()));
                assert!(worst < 1e-4, "{name} {transforms:?}: {worst}");
            }
            let layer = &source.model.layers[1];
            let (new, old) = (transformed.layer(layer).unwrap(), source.layer(layer).unwrap());
            let weight = |weights: &calibration::weights::LayerWeights, role| {
                let LinearWeights::Dense(weight) = &weights.linear(role).weights else { unreachable!() };
                weight.clone()
            };
            let changed = [Role::Query, Role::Value, Role::Output, Role::Gate, Role::Up, Role::Down]
                .iter()
                .any(|&role| weight(&new, role) != weight(&old, role));
            assert!(changed, "{name} {transforms:?} did nothing");
        }
    }
}

#[test]
fn biases_are_turned_and_divided_with_their_rows() {
    // The checkpoints' own biases may be zero; a large one on a value feature shows in every logit.
    let mut source = InMemory::open("qwen2");
    for layer in 0..source.model.layers.len() {
        let name = source.model.layers[layer].linear(Role::Value).unwrap().bias_name().unwrap();
        source.set(&name, 3, 2.5);
    }
    let expected = logits(&source.model, &source);
    let all: Vec<Transform> = ALL.iter().map(|(transform, ..)| *transform).collect();
    let transformed = transformed(&source, &all);
    for (found, expected) in logits(transformed.model(), &transformed).iter().zip(&expected) {
        assert!((found - expected).iter().all(|d| d.abs() < 1e-4));
    }
}

#[test]
fn a_rotation_folds_every_norm_and_spreads_what_sticks_out() {
    let mut source = InMemory::open("llama");
    let name = source.model.layers[0].linear(Role::Up).unwrap().weight_name();
    source.set(&name, 5, 40.0);
    let transformed = transformed(&source, &[Transform::RotateResidual]);
    let weights = transformed.layer(&source.model.layers[0]).unwrap();
    assert!(weights.norms.values().all(|norm| norm.weight.iter().all(|&gain| gain == 1.0)));
    let last = transformed.outer().unwrap().final_norm.unwrap();
    assert!(last.weight.iter().all(|&gain| gain == 1.0));
    let LinearWeights::Dense(up) = &weights.linear(Role::Up).weights else { unreachable!() };
    assert!(up.iter().all(|weight| weight.abs() < 20.0));
}

#[test]
fn names_and_values_of_a_layer_come_out_as_they_are_read() {
    let source = InMemory::open("qwen3");
    let transformed = transformed(&source, &[Transform::RotateValues]);
    let layer = &source.model.layers[0];
    let tensors = transformed.dense_layer(layer).unwrap().tensors(layer);
    let prefix = "model.layers.0.";
    let expected: Vec<String> = source
        .model
        .expected_tensors()
        .map(|tensor| tensor.name)
        .filter(|name| name.starts_with(prefix))
        .collect();
    assert!(tensors.len() == expected.len() && expected.iter().all(|name| tensors.contains_key(name)));
    let query = source.layer(layer).unwrap();
    let LinearWeights::Dense(query) = &query.linear(Role::Query).weights else { unreachable!() };
    let found = &tensors[&layer.linear(Role::Query).unwrap().weight_name()];
    assert!(found.iter().zip(query).all(|(&found, &read)| found == f64::from(read)));
}

#[test]
fn looking_at_activations_can_be_interrupted() {
    let source = InMemory::open("llama");
    let mut transformed = Transformed::new(&source, &source.model, &[Transform::EqualizeInputs], false);
    let found = transformed
        .equalize(&[Transform::EqualizeInputs], &windows(), coarse, &mut || ControlFlow::Break(()));
    assert!(matches!(found, Err(CalibrationError::Interrupted)));
}

#[test]
fn what_a_transform_takes_for_granted_is_checked_and_what_passes_computes_the_same() {
    let mut suited = 0;
    for name in TINY.iter() {
        let source = InMemory::open(name);
        let expected = logits(&source.model, &source);
        for (transform, id, _) in ALL {
            match transform.check(&source.model) {
                Err(problem) => {
                    assert!(problem.contains(id) && !LLAMA_LIKE.contains(&name.as_str()), "{problem}");
                }
                Ok(()) => {
                    suited += 1;
                    let transformed = transformed(&source, &[transform]);
                    for (found, expected) in logits(transformed.model(), &transformed).iter().zip(&expected) {
                        assert!((found - expected).iter().all(|d| d.abs() < 1e-4), "{name} {id}");
                    }
                }
            }
        }
    }
    assert!(suited > 4 * LLAMA_LIKE.len(), "{suited}");
}
