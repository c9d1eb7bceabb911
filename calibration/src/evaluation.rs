//! How well a model predicts text, and how far it is from another.
//!
//! Perplexity is `exp` of the mean negative log-likelihood over positions 1 to the end of every window. The divergence of a token position
//! is `KL(reference || measured) = Σ p (ln p - ln q)` over the vocabulary. Both models advance layer by layer over all windows, so that the
//! weights of one layer of one model are in memory; logits exist for a few tokens at a time.

use model::Model;
use ndarray::{ArrayView1, ArrayView2, s};
use rayon::prelude::*;

use crate::error::CalibrationError;
use crate::forward::{Forward, WindowState};
use crate::statistics;
pub use crate::statistics::Estimate;
use crate::weights::{HeadWeights, WeightSource};

/// Bytes of logits that one thread holds at a time.
const LOGIT_BYTES: usize = 16 << 20;

/// What a model scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Of the measured model.
    pub measured: Score,
    /// Of the reference, where there is one.
    pub reference: Option<Score>,
    /// Between the two.
    pub divergence: Option<Divergence>,
}

/// How well one model predicts the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// exp of the mean negative log-likelihood.
    pub perplexity: Estimate,
    /// Mean negative log-likelihood of each window, nats a token.
    pub window_nll: Vec<f64>,
}

/// How far the measured model is from the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// Mean KL divergence, nats a token.
    pub mean: Estimate,
    /// 99th percentile over tokens, nats.
    pub p99: Estimate,
    /// Share of positions where both rank the same token first.
    pub top1_agreement: f64,
}

/// Figures of each token position of one window.
struct WindowFigures {
    measured_nll: Vec<f32>,
    reference_nll: Vec<f32>,
    divergence: Vec<f32>,
    agreements: usize,
}

/// Scores `measured` and, where given, its divergence from `reference` on `windows` of at least two tokens. `step` is called after
/// each layer of each model, `model.layers.len()` times for each.
///
/// # Errors
/// Those of the weight sources, and a forward pass that leaves the finite numbers.
pub fn evaluate(
    model: &Model,
    measured: &dyn WeightSource,
    reference: Option<&dyn WeightSource>,
    windows: &[Vec<u32>],
    step: &mut dyn FnMut(),
) -> Result<Evaluation, CalibrationError> {
    let forward = Forward::new(model, windows.iter().map(Vec::len).max().unwrap_or(0));
    let measured_states = final_states(&forward, measured, windows, step)?;
    let measured_head = measured.head().map_err(CalibrationError::Source)?;
    let reference = match reference {
        None => None,
        Some(source) => {
            let states = final_states(&forward, source, windows, step)?;
            Some((states, source.head().map_err(CalibrationError::Source)?))
        }
    };
    let figures: Vec<WindowFigures> = windows
        .par_iter()
        .enumerate()
        .map(|(index, tokens)| {
            let measured = (measured_states[index].hidden(), &measured_head);
            let reference = reference.as_ref().map(|(states, head)| (states[index].hidden(), head));
            compare(&forward, tokens, measured, reference)
                .ok_or_else(|| CalibrationError::NotFinite { window: index, place: "logits".to_owned() })
        })
        .collect::<Result<_, _>>()?;

    let divergence = reference.is_some().then(|| {
        let divergences: Vec<_> = figures.iter().map(|window| window.divergence.clone()).collect();
        let positions: usize = divergences.iter().map(Vec::len).sum();
        let agreements: usize = figures.iter().map(|window| window.agreements).sum();
        Divergence {
            mean: statistics::mean(&divergences),
            p99: statistics::quantile(&divergences, 0.99),
            top1_agreement: agreements as f64 / positions as f64,
        }
    });
    let reference_score = reference
        .is_some()
        .then(|| score(figures.iter().map(|window| window.reference_nll.clone()).collect()));
    Ok(Evaluation {
        measured: score(figures.into_iter().map(|window| window.measured_nll).collect()),
        reference: reference_score,
        divergence,
    })
}

/// Calls `see` with the logits `[tokens, vocabulary]` of each window in turn.
///
/// # Errors
/// Those of the weight source.
pub fn visit_logits(
    model: &Model,
    source: &dyn WeightSource,
    windows: &[Vec<u32>],
    see: &mut dyn FnMut(ArrayView2<'_, f32>),
) -> Result<(), CalibrationError> {
    let forward = Forward::new(model, windows.iter().map(Vec::len).max().unwrap_or(0));
    let states = final_states(&forward, source, windows, &mut || {})?;
    let head = source.head().map_err(CalibrationError::Source)?;
    for state in &states {
        see(forward.logits(&head, state.hidden()).view());
    }
    Ok(())
}

/// The states of all windows after the last layer.
fn final_states(
    forward: &Forward<'_>,
    source: &dyn WeightSource,
    windows: &[Vec<u32>],
    step: &mut dyn FnMut(),
) -> Result<Vec<WindowState>, CalibrationError> {
    let embed =
        |tokens: &Vec<u32>| source.embed(tokens).map(WindowState::new).map_err(CalibrationError::Source);
    let mut states = windows.par_iter().map(embed).collect::<Result<Vec<_>, _>>()?;
    for layer in &forward.model().layers {
        let weights = source.layer(layer).map_err(CalibrationError::Source)?;
        states.par_iter_mut().for_each(|state| forward.advance_layer(layer, &weights, state));
        for (window, state) in states.iter().enumerate() {
            if !state.is_finite() {
                return Err(CalibrationError::NotFinite { window, place: format!("layer {}", layer.index) });
            }
        }
        step();
    }
    Ok(states)
}

/// Figures of one window; none where logits are not finite.
fn compare(
    forward: &Forward<'_>,
    tokens: &[u32],
    (measured, measured_head): (ArrayView2<'_, f32>, &HeadWeights),
    reference: Option<(ArrayView2<'_, f32>, &HeadWeights)>,
) -> Option<WindowFigures> {
    let positions = tokens.len() - 1;
    let mut figures = WindowFigures {
        measured_nll: Vec::with_capacity(positions),
        reference_nll: Vec::new(),
        divergence: Vec::new(),
        agreements: 0,
    };
    let vocabulary = measured_head.projection.out_features();
    let chunk = (LOGIT_BYTES / (4 * vocabulary.max(1))).clamp(1, 256);
    for start in (0..positions).step_by(chunk) {
        let range = start..(start + chunk).min(positions);
        let measured_logits = forward.logits(measured_head, measured.slice(s![range.clone(), ..]));
        let reference_logits =
            reference.map(|(hidden, head)| forward.logits(head, hidden.slice(s![range.clone(), ..])));
        for (row, position) in range.enumerate() {
            let target = tokens[position + 1] as usize;
            let q = LogSoftmax::of(measured_logits.row(row))?;
            figures.measured_nll.push((q.log_total - q.centered(target)) as f32);
            if let Some(logits) = &reference_logits {
                let p = LogSoftmax::of(logits.row(row))?;
                figures.reference_nll.push((p.log_total - p.centered(target)) as f32);
                figures.divergence.push(divergence(&p, &q) as f32);
                figures.agreements += usize::from(p.highest == q.highest);
            }
        }
    }
    Some(figures)
}

/// Logits with what turns them into probabilities.
struct LogSoftmax<'a> {
    logits: ArrayView1<'a, f32>,
    /// Index of the largest logit, the first of equals.
    highest: usize,
    /// The largest logit.
    offset: f32,
    /// ln Σ exp(logit - offset).
    log_total: f64,
}

impl<'a> LogSoftmax<'a> {
    fn of(logits: ArrayView1<'a, f32>) -> Option<Self> {
        let mut highest = 0;
        for (index, &logit) in logits.iter().enumerate() {
            if !logit.is_finite() {
                return None;
            }
            if logit > logits[highest] {
                highest = index;
            }
        }
        let offset = logits[highest];
        let total: f64 = logits.iter().map(|&logit| f64::from(crate::forward::exp(logit - offset))).sum();
        Some(Self { logits, highest, offset, log_total: total.ln() })
    }

    /// The logit of `token` below the largest.
    fn centered(&self, token: usize) -> f64 {
        f64::from(self.logits[token]) - f64::from(self.offset)
    }
}

/// `Σ p (ln p - ln q)`, where `ln p - ln q` is a difference of logits and of their normalizers.
fn divergence(p: &LogSoftmax<'_>, q: &LogSoftmax<'_>) -> f64 {
    let mut weighted = 0.0_f64;
    let mut total = 0.0_f64;
    for (&left, &right) in p.logits.iter().zip(&q.logits) {
        let weight = f64::from(crate::forward::exp(left - p.offset));
        total += weight;
        weighted += weight * (f64::from(left - p.offset) - f64::from(right - q.offset));
    }
    weighted / total - p.log_total + q.log_total
}

fn score(nll: Vec<Vec<f32>>) -> Score {
    let mean = statistics::mean(&nll);
    let perplexity = mean.value.exp();
    Score {
        perplexity: Estimate { value: perplexity, stderr: perplexity * mean.stderr },
        window_nll: nll
            .iter()
            .map(|window| window.iter().map(|&v| f64::from(v)).sum::<f64>() / window.len() as f64)
            .collect(),
    }
}
