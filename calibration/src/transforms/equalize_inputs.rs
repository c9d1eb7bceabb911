//! Factors for the features behind a norm, folded into its weights: AWQ (arXiv 2306.00978, section 3.2).
//!
//! With `g` the weights of the norm in front of the linears `W` of one stage,
//!
//! ```text
//! g' = g / s,   W' = W diag(s)
//! ```
//!
//! changes no output. Which `s`: `balance.rs`, all linears of the stage taken together. Norms are written in 16 bit, so `g / s` is rounded first and
//! the factor taken from what is written, `s = g / g'`: the function stays exact.

use model::Layer;
use model::graph::StageInput;
use ndarray::Array1;

use super::Rounding;
use super::balance::{column_squares, factors};
use super::dense::DenseLayer;
use super::observe::Sizes;

/// The factors of one layer: for each stage behind a norm, what the norm becomes and `s`.
#[derive(Clone, Debug)]
pub(super) struct Factors(Vec<(StageInput, Array1<f64>, Array1<f64>)>);

impl Factors {
    /// For a layer whose stages see inputs of these sizes.
    pub(super) fn choose(layer: &Layer, dense: &DenseLayer, sizes: &Sizes, round: Rounding) -> Self {
        let mut dense = dense.clone();
        let mut chosen = Vec::new();
        for (stage, sizes) in layer.stages.iter().zip(sizes) {
            let Some(norm) = dense.gains_mut(stage.input).cloned() else { continue };
            let squares = stage.linears.iter().fold(Array1::zeros(norm.len()), |sum, linear| {
                sum + column_squares(&dense.linear(linear.id.slot()).weight)
            });
            let (mut written, mut exact) = (norm.clone(), Array1::ones(norm.len()));
            for (feature, factor) in factors(sizes, &squares).into_iter().enumerate() {
                let rounded = round(norm[feature] / factor);
                // A norm that closes a feature, or that rounds to one, stays as it is.
                if rounded != 0.0 && rounded.is_finite() {
                    written[feature] = rounded;
                    exact[feature] = norm[feature] / rounded;
                }
            }
            chosen.push((stage.input, written, exact));
        }
        Self(chosen)
    }

    /// Puts them into the layer that they were chosen for.
    pub(super) fn apply(&self, layer: &Layer, dense: &mut DenseLayer) {
        for (input, written, exact) in &self.0 {
            if let Some(norm) = dense.gains_mut(*input) {
                norm.assign(written);
            }
            for linear in layer.stages.iter().filter(|stage| stage.input == *input).flat_map(|s| &s.linears) {
                dense.linear_mut(linear.id.slot()).weight *= exact;
            }
        }
    }
}
