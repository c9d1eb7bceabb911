//! The likelihood of endings: what a model gives the last tokens of a sequence, after those before them.

use std::ops::ControlFlow;

use model::Model;

use super::score_windows;
use super::stream::Stream;
use crate::error::CalibrationError;
use crate::forward::Forward;
use crate::weights::WeightSource;

/// A sequence whose last tokens are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// All tokens.
    pub tokens: Vec<u32>,
    /// How many of the last are scored; fewer than there are.
    pub scored: usize,
}

/// The log-likelihood of each ending, nats. `step` is called after each layer.
///
/// # Errors
/// A break, those of the weight source, a forward pass that leaves the finite numbers, and an ending that nothing is before.
pub fn log_likelihoods(
    model: &Model,
    source: &dyn WeightSource,
    endings: &[Ending],
    step: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Vec<f64>, CalibrationError> {
    if let Some(ending) = endings.iter().find(|ending| ending.scored >= ending.tokens.len()) {
        return Err(CalibrationError::Shape { samples: 1, context: ending.tokens.len() });
    }
    let windows: Vec<&[u32]> = endings.iter().map(|ending| ending.tokens.as_slice()).collect();
    let forward = Forward::new(model, windows.iter().map(|window| window.len()).max().unwrap_or(0));
    let mut stream = Stream::run(&forward, source, &windows, step)?;
    // A position predicts the token after it.
    let first: Vec<usize> = endings.iter().map(|ending| ending.tokens.len() - ending.scored - 1).collect();
    stream.keep_from(&first);
    let kept: Vec<&[u32]> = windows.iter().zip(&first).map(|(window, &first)| &window[first..]).collect();
    let figures = score_windows(&kept, &stream, None)?;
    Ok(figures.iter().map(|window| -window.measured_nll.iter().sum::<f64>()).collect())
}
