//! The forward pass against transformers 5.23 in f32: logits of the tiny random models in tests/data/hf_tiny.

use std::fs;

use crate::tiny::{InMemory, TINY, folder};
use calibration::evaluation::visit_logits;
use calibration::forward::Forward;
use calibration::weights::{LinearOperator, LinearWeights};
use kernels::packed::{ArrangedMatrix, CodeLayout, PackedMatrix, PackedShape};
use model::linear::{Part, Role};
use ndarray::{Array2, ArrayView2, s};
use serde_json::Value;

fn golden(name: &str) -> (Vec<u32>, Vec<f64>, Vec<f64>, f64, f64) {
    let golden: Value =
        serde_json::from_str(&fs::read_to_string(folder(name).join("golden.json")).unwrap()).unwrap();
    let ids = golden["input_ids"].as_array().unwrap();
    let ids = ids.first().and_then(Value::as_array).unwrap_or(ids);
    let numbers = |key: &str| golden[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    (
        ids.iter().map(|v| v.as_u64().unwrap() as u32).collect(),
        numbers("logits_first"),
        numbers("logits_last"),
        golden["sum"].as_f64().unwrap(),
        golden["abs_sum"].as_f64().unwrap(),
    )
}

#[test]
fn logits_meet_the_reference_implementation() {
    for name in TINY.iter() {
        let source = InMemory::open(name);
        let (ids, first, last, sum, abs_sum) = golden(name);
        let mut seen = 0;
        visit_logits(&source.model, &source, std::slice::from_ref(&ids), &mut |logits| {
            seen += 1;
            for (row, expected) in [(0, &first), (ids.len() - 1, &last)] {
                for (found, expected) in logits.row(row).iter().zip(expected) {
                    assert!((f64::from(*found) - expected).abs() < 1e-4, "{name}: {found} {expected}");
                }
            }
            let total: f64 = logits.iter().map(|&v| f64::from(v)).sum();
            let absolute: f64 = logits.iter().map(|&v| f64::from(v.abs())).sum();
            assert!((total - sum).abs() < 1e-2 && (absolute - abs_sum).abs() < 1e-2, "{name}");
        })
        .unwrap();
        assert_eq!(seen, 1);
    }
}

#[test]
fn stages_in_turn_are_the_layer() {
    for name in ["qwen3", "qwen2_moe"] {
        let source = InMemory::open(name);
        let tokens: Vec<u32> = (0..40).map(|i| (i * 7) % 64).collect();
        let forward = Forward::new(&source.model, tokens.len());
        let mut whole = forward.embed(&source, &tokens, 0).unwrap();
        let mut staged = whole.clone();
        for layer in &source.model.layers {
            let weights = source.whole_layer(layer);
            forward.advance_layer(layer, &weights, &mut whole);
            let mut sent = 0;
            for (stage, described) in layer.stages.iter().enumerate() {
                let input = forward.stage_input(layer, stage, &weights, &staged);
                let expected = match described.part() {
                    Part::Expert(expert) => staged.sent_to(expert),
                    Part::Main | Part::Shared => tokens.len(),
                };
                assert_eq!(input.dim(), (expected, described.linears[0].in_features));
                sent += if described.part().expert().is_some() { expected } else { 0 };
                drop(input);
                forward.advance(layer, stage, &weights, &mut staged);
            }
            assert_eq!(whole.hidden(), staged.hidden());
            // Each token goes to two experts, which have two stages.
            assert_eq!(sent, if layer.experts() > 0 { 2 * 2 * tokens.len() } else { 0 });
        }
    }
}

#[test]
fn experts_that_are_read_one_at_a_time_do_what_all_of_them_do() {
    for name in ["mixtral", "qwen2_moe", "qwen3_moe"] {
        let source = InMemory::open(name);
        let forward = Forward::new(&source.model, 9);
        let window = |first: u32| forward.embed(&source, &[first, 8, 3, 60, 41], 0).unwrap();
        let mut windows = [window(1), window(7)];
        let mut whole = windows.clone();
        for layer in &source.model.layers {
            forward.advance_windows(layer, &source, &mut windows).unwrap();
            let weights = source.whole_layer(layer);
            whole.iter_mut().for_each(|state| forward.advance_layer(layer, &weights, state));
        }
        assert_eq!(windows[1].hidden(), whole[1].hidden(), "{name}");
        assert_eq!(windows[0].hidden(), whole[0].hidden(), "{name}");
    }
}

#[test]
fn later_tokens_change_nothing_before_them() {
    let source = InMemory::open("mistral_sw");
    let tokens: Vec<u32> = (0..150).map(|i| (i * 13 + 5) % 64).collect();
    let mut logits = Vec::new();
    let windows = [tokens.clone(), tokens[..97].to_vec()];
    visit_logits(&source.model, &source, &windows, &mut |seen| logits.push(seen.to_owned())).unwrap();
    let difference = &logits[0].slice(s![..97, ..]) - &logits[1];
    assert!(difference.iter().all(|d| d.abs() < 1e-5));
}

/// The matrix rounded to 8 bits with one scale a row, packed, and what that stands for.
pub(crate) fn packed(matrix: ArrayView2<'_, f32>) -> (PackedMatrix, Array2<f32>) {
    let (rows, columns) = matrix.dim();
    let shape = PackedShape {
        bits: 8,
        layout: CodeLayout::OutputMajor,
        out_features: rows,
        in_features: columns,
        group_size: columns,
    };
    let scales = Array2::from_shape_fn((1, rows), |(_, row)| {
        matrix.row(row).iter().fold(0.0_f32, |most, value| most.max(value.abs())) / 127.0
    });
    let code = |row: usize, column: usize| (matrix[[row, column]] / scales[[0, row]]).round() as i32 + 128;
    let words = (0..rows).flat_map(|row| {
        (0..columns / 4)
            .map(move |word| (0..4).fold(0, |bits, i| bits | (code(row, word * 4 + i) as u32) << (8 * i)))
    });
    let zero_points = Array2::from_elem((1, rows), 128.0);
    let packed = PackedMatrix::new(shape, words.collect(), scales.clone(), zero_points).unwrap();
    let dense = packed.dequantize();
    (packed, dense)
}

#[test]
fn packed_weights_do_what_their_dense_values_do() {
    // Heads and inner features of the other tiny mixtures fill no words.
    for name in ["qwen2", "mixtral"] {
        packed_weights_of(name);
    }
}

/// Rounding 32 activations to a step of a 127th of the largest moves a product by a small part of what it typically is.
#[test]
fn rounded_activations_move_a_product_little_and_narrow_weights_not_at_all() {
    let source = InMemory::open("qwen2");
    let weights = source.whole_layer(&source.model.layers[0]);
    let tokens: Vec<u32> = (0..40).map(|i| (i * 7) % 64).collect();
    let x = Forward::new(&source.model, tokens.len()).embed(&source, &tokens, 0).unwrap();
    let x = x.hidden();
    for role in [Role::Query, Role::Up] {
        let LinearWeights::Dense(matrix) = &weights.linear(role).weights else { unreachable!() };
        let (packed, dense) = packed(matrix.view());
        let bias = weights.linear(role).bias.clone();
        let operator = |weights: LinearWeights| LinearOperator { weights, bias: bias.clone(), inputs: None };
        let arranged = operator(LinearWeights::Arranged(ArrangedMatrix::new(&packed)));
        assert_eq!(*arranged.weights.values().unwrap(), dense);
        let exact = operator(dense.clone().into()).apply(x);
        let found = arranged.apply(x);
        let worst = (&found - &exact).iter().fold(0.0_f32, |worst, d| worst.max(d.abs()));
        let largest = exact.iter().fold(0.0_f32, |most, y| most.max(y.abs()));
        assert!(worst > 0.0 && worst < 0.02 * largest, "{worst} of {largest}");
        let gradient = Array2::ones((2, dense.nrows()));
        assert_eq!(
            arranged.apply_transposed(gradient.view()),
            operator(packed.into()).apply_transposed(gradient.view())
        );

        let short = dense.mapv(|value| f32::from_bits(value.to_bits() & 0xFFFF_0000));
        let narrow = operator(short.clone().into()).narrowed();
        assert!(
            matches!(narrow.weights, LinearWeights::Narrow(_)) && *narrow.weights.values().unwrap() == short
        );
        let exact = operator(short.into()).apply(x);
        assert!(narrow.apply(x).iter().zip(&exact).all(|(a, b)| (a - b).abs() < 1e-5 * largest));
    }
}

fn packed_weights_of(name: &str) {
    let source = InMemory::open(name);
    let tokens: Vec<u32> = (0..40).map(|i| (i * 7) % 64).collect();
    let forward = Forward::new(&source.model, tokens.len());
    let start = forward.embed(&source, &tokens, 0).unwrap();
    let mut states = [start.clone(), start];
    for layer in &source.model.layers {
        let mut dense_weights = source.whole_layer(layer);
        let mut packed_weights = dense_weights.clone();
        for linear in layer.stages.iter().flat_map(|stage| &stage.linears) {
            let slot = linear.id.slot();
            let LinearWeights::Dense(matrix) = &dense_weights.linear(slot).weights else { unreachable!() };
            let (packed, dense) = packed(matrix.view());
            dense_weights.replace(slot, dense);
            packed_weights.replace(slot, packed);
        }
        forward.advance_layer(layer, &dense_weights, &mut states[0]);
        forward.advance_layer(layer, &packed_weights, &mut states[1]);
    }
    let difference = &states[0].hidden() - &states[1].hidden();
    assert!(difference.iter().all(|d| d.abs() < 1e-4), "{difference}");
}
