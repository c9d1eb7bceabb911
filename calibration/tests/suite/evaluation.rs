//! Perplexity and divergence of the tiny random models against their definitions.

use std::ops::ControlFlow;

use crate::tiny::InMemory;
use calibration::CalibrationError;
use calibration::evaluation::{batches, evaluate, visit_logits};
use ndarray::Array2;

fn windows(count: u32, length: u32) -> Vec<Vec<u32>> {
    (0..count).map(|w| (0..length).map(|i| (w * 11 + i * i) % 64).collect()).collect()
}

#[test]
fn perplexity_is_the_exponential_of_the_likelihood_and_a_model_is_itself() {
    let source = InMemory::open("qwen3");
    let windows: Vec<Vec<u32>> = (0..9).map(|w| (0..20).map(|i| (w * 5 + i * i) % 64).collect()).collect();
    let mut total = 0.0;
    let mut index = 0;
    visit_logits(&source.model, &source, &windows, &mut |logits| {
        for position in 0..19 {
            let row = logits.row(position);
            let normalizer = row.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
            total += normalizer - f64::from(row[windows[index][position + 1] as usize]);
        }
        index += 1;
    })
    .unwrap();
    let mut steps = 0;
    let found = evaluate(&source.model, &source, Some(&source), (&windows, usize::MAX), &mut || {
        steps += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!((found.measured.perplexity.value / (total / 171.0).exp() - 1.0).abs() < 1e-6);
    assert!(found.measured.perplexity.stderr > 0.0);
    assert_eq!(Some(&found.measured), found.reference.as_ref());
    let divergence = found.divergence.unwrap();
    assert_eq!((divergence.mean.value, divergence.p99.value, divergence.top1_agreement), (0.0, 0.0, 1.0));
    assert_eq!((found.measured.window_nll.len(), steps), (9, 2 * source.model.layers.len() + 1));
}

/// ln of the probabilities of every position, in f64.
fn log_probabilities(source: &InMemory, windows: &[Vec<u32>]) -> Vec<Array2<f64>> {
    let mut all = Vec::new();
    visit_logits(&source.model, source, windows, &mut |logits| {
        let mut logits = logits.mapv(f64::from);
        for mut row in logits.rows_mut() {
            let normalizer = row.iter().map(|v| v.exp()).sum::<f64>().ln();
            row -= normalizer;
        }
        all.push(logits);
    })
    .unwrap();
    all
}

#[test]
fn divergence_meets_its_definition() {
    let (original, quantized) = (InMemory::open("llama31"), InMemory::perturbed("llama31", 0.2));
    // Of different lengths, as documents of tokens are.
    let mut windows = windows(10, 40);
    windows[3].truncate(7);
    windows[8].truncate(1);
    let (p, q) = (log_probabilities(&original, &windows), log_probabilities(&quantized, &windows));
    let mut divergences = Vec::new();
    let mut agreements = 0;
    for (index, window) in windows.iter().enumerate() {
        for position in 0..window.len() - 1 {
            let (p, q) = (p[index].row(position), q[index].row(position));
            divergences.push(p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>());
            let likeliest = |row: ndarray::ArrayView1<'_, f64>| {
                row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0
            };
            agreements += usize::from(likeliest(p) == likeliest(q));
        }
    }
    let found =
        evaluate(&original.model, &quantized, Some(&original), (&windows, usize::MAX), &mut go_on).unwrap();
    let found = found.divergence.unwrap();
    let mean = divergences.iter().sum::<f64>() / divergences.len() as f64;
    assert!(mean > 1e-3, "the perturbation must be seen: {mean}");
    assert!((found.mean.value / mean - 1.0).abs() < 1e-4, "{} {mean}", found.mean.value);
    divergences.sort_by(f64::total_cmp);
    let place = 0.99 * (divergences.len() - 1) as f64;
    let (low, high) = (divergences[place as usize], divergences[place as usize + 1]);
    let p99 = low + place.fract() * (high - low);
    assert!((found.p99.value / p99 - 1.0).abs() < 1e-4, "{} {p99}", found.p99.value);
    assert_eq!(found.top1_agreement, f64::from(agreements as u32) / divergences.len() as f64);
    assert!(found.mean.stderr > 0.0 && found.p99.stderr > 0.0);
}

#[test]
fn no_bit_depends_on_how_many_windows_are_in_memory() {
    let (original, quantized) = (InMemory::open("llama"), InMemory::perturbed("llama", 0.1));
    let windows = windows(5, 33);
    let score = |tokens| {
        let mut steps = 0;
        let mut step = || {
            steps += 1;
            ControlFlow::Continue(())
        };
        let found =
            evaluate(&original.model, &quantized, Some(&original), (&windows, tokens), &mut step).unwrap();
        assert_eq!(steps, (2 * original.model.layers.len() + 1) * batches(&windows, tokens).count());
        found
    };
    let expected = score(usize::MAX);
    for (tokens, count) in [(1, 5), (65, 5), (66, 3), (132, 2), (165, 1)] {
        assert_eq!(batches(&windows, tokens).count(), count);
        assert_eq!(score(tokens), expected);
    }
}

#[test]
fn no_bit_depends_on_the_number_of_threads() {
    let (original, quantized) = (InMemory::open("llama"), InMemory::perturbed("llama", 0.1));
    let windows = windows(5, 133);
    let score = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let found = || {
            evaluate(&original.model, &quantized, Some(&original), (&windows, usize::MAX), &mut || {
                ControlFlow::Continue(())
            })
        };
        pool.install(found).unwrap()
    };
    let expected = score(1);
    for threads in [2, 3, 8] {
        assert_eq!(score(threads), expected);
    }
}

#[test]
fn a_weight_that_is_no_number_is_noticed_with_its_place() {
    for (tensor, place) in [
        ("model.layers.1.mlp.down_proj.weight", "layer 1"),
        ("lm_head.weight", "logits"),
        ("model.norm.weight", "logits"),
    ] {
        let mut source = InMemory::open("qwen2");
        source.set(tensor, 3, f32::NAN);
        match evaluate(&source.model, &source, None, (&windows(2, 20), usize::MAX), &mut go_on) {
            Err(CalibrationError::NotFinite { window: 0, place: found }) => assert_eq!(found, place),
            other => panic!("{tensor}: {other:?}"),
        }
    }
    let source = InMemory::open("qwen2");
    let error =
        evaluate(&source.model, &source, None, (&[vec![3], vec![]], usize::MAX), &mut go_on).unwrap_err();
    assert!(matches!(error, CalibrationError::NothingToScore), "{error}");
}

fn go_on() -> ControlFlow<()> {
    ControlFlow::Continue(())
}
