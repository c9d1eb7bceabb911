//! How large each feature of each stage's input is: the mean magnitude over all tokens of some windows.

use model::{Layer, Model};
use ndarray::{Array1, Axis};
use rayon::prelude::*;

use crate::error::CalibrationError;
use crate::forward::Forward;
use crate::weights::WeightSource;

/// For each stage of a layer, `E |x|` `[in_features]`.
pub(super) type Sizes = Vec<Array1<f64>>;

/// Told about each layer in turn.
type See<'s> = dyn FnMut(&Layer, &Sizes) -> Result<(), CalibrationError> + 's;

/// Runs `source` on `windows` and tells `see` the sizes of every layer's inputs.
pub(super) fn layers(
    model: &Model,
    source: &dyn WeightSource,
    windows: &[Vec<u32>],
    see: &mut See<'_>,
) -> Result<(), CalibrationError> {
    let forward = Forward::new(model, windows.iter().map(Vec::len).max().unwrap_or(0));
    let tokens = windows.iter().map(Vec::len).sum::<usize>().max(1) as f64;
    let embedded = windows.par_iter().map(|tokens| forward.embed(source, tokens, 0));
    let mut states = embedded.collect::<Result<Vec<_>, _>>().map_err(CalibrationError::Source)?;
    for layer in &model.layers {
        let weights = source.layer(layer).map_err(CalibrationError::Source)?;
        let mut sizes = Sizes::with_capacity(layer.stages.len());
        for stage in 0..layer.stages.len() {
            let sums: Vec<Array1<f64>> = states
                .par_iter_mut()
                .map(|state| {
                    let input = forward.stage_input(layer, stage, &weights, state);
                    let sum = input.axis_iter(Axis(0)).fold(Array1::zeros(input.ncols()), |mut sum, row| {
                        sum.zip_mut_with(&row, |sum, value| *sum += f64::from(value.abs()));
                        sum
                    });
                    drop(input);
                    forward.advance(layer, stage, &weights, state);
                    sum
                })
                .collect();
            // One window after the other, so that threads change nothing.
            let features = layer.stages[stage].linears.first().map_or(0, |linear| linear.in_features);
            sizes.push(sums.iter().fold(Array1::zeros(features), |total, sum| total + sum) / tokens);
        }
        if let Some(window) = states.par_iter().position_first(|state| !state.is_finite()) {
            return Err(CalibrationError::NotFinite { window, place: format!("layer {}", layer.index) });
        }
        see(layer, &sizes)?;
    }
    Ok(())
}
