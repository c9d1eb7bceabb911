//! A rotation of the residual stream: R1 of SpinQuant (arXiv 2405.16406, section 3.1), QuaRot's rotation (arXiv 2404.00456, section 4,
//! stage 1a) after SliceGPT's observation that an RMS norm without weights commutes with it (arXiv 2401.15024, section 3).
//!
//! With `x` a row of the residual stream, `n(x) = x / sqrt(mean(x²) + eps)` and `R` orthogonal, `n(x R) = n(x) R`. So the stream `x R` runs
//! through the same architecture when
//!
//! ```text
//! embedding           E' = E R
//! reads the stream    W' = W diag(g) R        g, the norm's weights, become ones
//! writes the stream   W' = Rᵀ W,  b' = b R
//! head                W' = W diag(g) R        g, the last norm's weights, become ones
//! ```
//!
//! Each of the rotated weights is a mixture of a whole row or column, so that none sticks out: ranges of groups shrink. The online rotations of
//! those papers, inside the MLP and on queries and keys, need runtimes to know, and are not done.

use kernels::rotation::Rotation;
use model::Layer;
use ndarray::{Array1, Array2};

use super::dense::DenseLayer;

/// The one rotation that is used: the first sixteen digits of the golden ratio's fraction, for lack of a better one.
pub(super) const SEED: u64 = 6_180_339_887_498_948;

/// Turns a layer's weights.
pub(super) fn layer(rotation: &Rotation, layer: &Layer, dense: &mut DenseLayer) {
    for stage in &layer.stages {
        let gains =
            dense.gains_mut(stage.input).map(|gains| std::mem::replace(gains, Array1::ones(gains.len())));
        for linear in &stage.linears {
            let linear = dense.linear_mut(linear.id.slot());
            if let Some(gains) = &gains {
                linear.weight *= gains;
                rotation.rotate_rows(linear.weight.view_mut());
            } else if stage.writes_residual {
                rotation.rotate_columns(linear.weight.view_mut());
                if let Some(bias) = &mut linear.bias {
                    rotation.rotate_rows(bias.view_mut().insert_axis(ndarray::Axis(0)));
                }
            }
        }
    }
}

/// Turns rows of the head; `gains` are the last norm's.
pub(super) fn head(rotation: &Rotation, gains: &Array1<f64>, head: &mut Array2<f64>) {
    *head *= gains;
    rotation.rotate_rows(head.view_mut());
}
