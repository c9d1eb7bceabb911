//! Factors for the features between two linears, folded into the first: the scale invariance of neighbouring layers (Nagel et al., arXiv
//! 1906.04721, section 4.1) with AWQ's choice of factors (arXiv 2306.00978, section 3.2).
//!
//! Attention is linear in the values and a gated MLP in what `up` gives, so with one factor for each value feature `c`, shared by the query heads
//! of its group, and one for each inner feature `i` of the MLP
//!
//! ```text
//! value row c:  W' = W / s,  b' = b / s         output columns of c in each query head:  W' = W s
//! up row i:     W' = W / s,  b' = b / s         down column i:                           W' = W s
//! ```
//!
//! changes no output. Rows of value and up have scales of their own, which take their factor up; what changes is which columns of output and
//! down stick out of their groups. Which `s`: `balance.rs`.

use model::graph::StageInput;
use model::linear::Role;
use model::{Layer, Model};
use ndarray::Array1;

use super::balance::{column_squares, factors};
use super::dense::DenseLayer;
use super::observe::Sizes;

/// The factors of one layer.
#[derive(Clone, Debug)]
pub(super) struct Factors {
    /// `[key_value_heads * head_dim]`.
    values: Array1<f64>,
    /// `[intermediate]`.
    inner: Array1<f64>,
}

impl Factors {
    /// For a layer whose stages see inputs of these sizes.
    pub(super) fn choose(model: &Model, layer: &Layer, dense: &DenseLayer, sizes: &Sizes) -> Self {
        let size_of = |input: StageInput| {
            let place = layer.stages.iter().position(|stage| stage.input == input);
            &sizes[place.expect("a layer has this stage")]
        };
        let squared = |sizes: &Array1<f64>| sizes.mapv(|size| size * size);
        let values = factors(
            &shared(model, &squared(size_of(StageInput::AttentionOutput))).mapv(f64::sqrt),
            &shared(model, &column_squares(&dense.linear(Role::Output).weight)),
        );
        let inner =
            factors(size_of(StageInput::MlpOutput), &column_squares(&dense.linear(Role::Down).weight));
        Self { values, inner }
    }

    /// Puts them into the layer that they were chosen for.
    pub(super) fn apply(&self, model: &Model, dense: &mut DenseLayer) {
        divide_rows(dense, Role::Value, &self.values);
        for (column, mut weights) in
            dense.linear_mut(Role::Output).weight.columns_mut().into_iter().enumerate()
        {
            weights *= self.values[value_feature(model, column)];
        }
        divide_rows(dense, Role::Up, &self.inner);
        dense.linear_mut(Role::Down).weight *= &self.inner;
    }
}

fn divide_rows(dense: &mut DenseLayer, role: Role, factors: &Array1<f64>) {
    let linear = dense.linear_mut(role);
    for (mut row, factor) in linear.weight.rows_mut().into_iter().zip(factors) {
        row /= *factor;
    }
    if let Some(bias) = &mut linear.bias {
        *bias /= factors;
    }
}

/// Sums over the query heads of each group: `[heads * head_dim]` to `[key_value_heads * head_dim]`.
fn shared(model: &Model, values: &Array1<f64>) -> Array1<f64> {
    let numbers = &model.hyperparameters;
    let mut sums = Array1::zeros(numbers.key_value_heads * numbers.head_dim);
    for (column, value) in values.iter().enumerate() {
        sums[value_feature(model, column)] += value;
    }
    sums
}

/// The value feature that a column of the output projection weights.
fn value_feature(model: &Model, column: usize) -> usize {
    let numbers = &model.hyperparameters;
    let (head, feature) = (column / numbers.head_dim, column % numbers.head_dim);
    head * numbers.key_value_heads / numbers.heads * numbers.head_dim + feature
}
