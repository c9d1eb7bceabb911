//! Text that the tiny random models write, and the pass with kept keys and values against the whole one.

use std::borrow::Cow;
use std::ops::ControlFlow;

use crate::tiny::{InMemory, TINY};
use calibration::CalibrationError;
use calibration::evaluation::visit_logits;
use calibration::forward::Forward;
use calibration::generation::{Beginning, LIKELIEST, Request, sample, steps};
use calibration::weights::WeightSource;
use kernels::bf16::Precision;
use ndarray::{Array2, s};

fn request(sequences: usize, tokens: usize) -> Request {
    let (beginning, ends, precision) = (Beginning::Token(1), Vec::new(), Precision::Single);
    Request { sequences, tokens, beginning, ends, seed: 5, precision }
}

fn written(source: &InMemory, request: &Request) -> Vec<Vec<u32>> {
    let mut counted = 0;
    let tokens = sample(&source.model, source, request, &mut || {
        counted += 1;
        ControlFlow::Continue(())
    });
    assert_eq!(counted, steps(&source.model, request));
    tokens.unwrap()
}

#[test]
fn a_token_at_a_time_gives_the_logits_of_the_whole_sequence() {
    for name in TINY.iter() {
        let source = InMemory::open(name);
        let length = source.longest();
        let windows: Vec<Vec<u32>> =
            (0..3).map(|w| (0..length).map(|i| (w * 17 + i * i * 3 + i) as u32 % 64).collect()).collect();
        let mut expected = Vec::new();
        visit_logits(&source.model, &source, &windows, &mut |seen| expected.push(seen.to_owned())).unwrap();
        let forward = Forward::new(&source.model, length);
        let layers: Vec<_> = source.model.layers.iter().map(|layer| source.whole_layer(layer)).collect();
        let mut caches: Vec<_> = layers.iter().map(|_| forward.layer_cache(3, length)).collect();
        let (outer, head) =
            (source.outer().unwrap(), source.head_rows(0..source.model.hyperparameters.vocabulary).unwrap());
        for position in 0..length {
            let tokens: Vec<u32> = windows.iter().map(|window| window[position]).collect();
            let mut state = forward.embed_each(&source, &tokens, position).unwrap();
            for ((layer, weights), cache) in source.model.layers.iter().zip(&layers).zip(&mut caches) {
                forward
                    .advance_layer_token(layer, Cow::Borrowed(weights), &source, position, &mut state, cache)
                    .unwrap();
            }
            let found: Array2<f32> = forward.logits(&outer, &head, state.hidden());
            for (found, expected) in found.rows().into_iter().zip(&expected) {
                let worst =
                    (&found - &expected.slice(s![position, ..])).iter().fold(0.0_f32, |w, d| w.max(d.abs()));
                assert!(worst < 2e-5, "{name}, position {position}: {worst}");
            }
        }
    }
}

#[test]
fn tokens_come_as_often_as_the_model_believes() {
    let source = InMemory::open("qwen2");
    let windows = written(&source, &request(4000, 2));
    let mut expected = Vec::new();
    visit_logits(&source.model, &source, &[vec![1]], &mut |logits| expected = logits.row(0).to_vec())
        .unwrap();
    let total: f64 = expected.iter().map(|&logit| f64::from(logit).exp()).sum();
    for (token, logit) in expected.into_iter().enumerate() {
        let share = windows.iter().filter(|window| window[1] as usize == token).count() as f64 / 4000.0;
        let probability = f64::from(logit).exp() / total;
        let error = (probability * (1.0 - probability) / 4000.0).sqrt();
        assert!((share - probability).abs() < 5.0 * error + 1e-3, "{token}: {share} {probability}");
    }
}

#[test]
fn threads_and_other_sequences_change_nothing_and_the_seed_does() {
    let source = InMemory::open("qwen3");
    let expected = written(&source, &request(9, 40));
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| written(&source, &request(9, 40))), expected);
    }
    assert!(expected.iter().all(|window| window.len() == 40 && window[0] == 1));
    assert!(expected.iter().all(|window| expected.iter().filter(|other| *other == window).count() == 1));
    assert_ne!(written(&source, &Request { seed: 6, ..request(9, 40) }), expected);
}

#[test]
fn a_text_that_ends_is_followed_by_a_beginning() {
    let source = InMemory::open("llama");
    let ends: Vec<u32> = (10..40).collect();
    for window in written(&source, &Request { ends: ends.clone(), ..request(20, 30) }) {
        for pair in window.windows(2).filter(|pair| ends.contains(&pair[0])) {
            assert_eq!(pair[1], 1, "{window:?}");
        }
    }
}

#[test]
fn without_a_beginning_token_the_first_is_drawn_and_the_next_are_the_likeliest() {
    let source = InMemory::open("mistral_sw");
    let beginning = Beginning::AnyOf((20..50).collect());
    let windows = written(&source, &Request { beginning, ..request(30, 12) });
    let mut firsts: Vec<u32> = windows.iter().map(|window| window[0]).collect();
    assert!(firsts.iter().all(|first| (20..50).contains(first)));
    firsts.sort_unstable();
    firsts.dedup();
    assert!(firsts.len() > 10, "{firsts:?}");
    let mut index = 0;
    visit_logits(&source.model, &source, &windows, &mut |logits| {
        for position in 0..LIKELIEST {
            let row = logits.row(position);
            let chosen = row[windows[index][position + 1] as usize];
            assert!(row.iter().all(|&other| other <= chosen + 1e-4));
        }
        index += 1;
    })
    .unwrap();
}

#[test]
fn what_cannot_be_written_is_said() {
    let source = InMemory::open("llama");
    let run = |request: &Request| {
        sample(&source.model, &source, request, &mut || ControlFlow::Continue(())).unwrap_err().to_string()
    };
    assert!(run(&request(0, 8)).contains("0 windows"));
    assert!(run(&request(1, 1)).contains("1 tokens"));
    let outside = Request { beginning: Beginning::Token(64_000), ..request(2, 8) };
    assert!(run(&outside).contains("64000"));
    let stopped = sample(&source.model, &source, &request(2, 8), &mut || ControlFlow::Break(()));
    assert!(matches!(stopped, Err(CalibrationError::Interrupted)));
    let mut broken = InMemory::open("llama");
    let head = broken.model.head();
    broken.set(&head, 40, f32::NAN);
    let found = sample(&broken.model, &broken, &request(2, 8), &mut || ControlFlow::Continue(()));
    assert!(matches!(found, Err(CalibrationError::NotFinite { window: 0, .. })));
}
