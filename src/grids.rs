//! The grids of one stage, once its weights are known.
//!
//! Runtimes that fuse linears have one place for what each of them shares over its whole matrix. So where scales have such an exponent it is the
//! stage's: the largest of all its weights settles it.

use calibration::weights::LayerWeights;
use model::Stage;
use model::linear::Linear;
use quantizer::scheme::Scheme;

use crate::error::Error;
use crate::plan::Plan;
use crate::solving::dense;

/// The linears of a stage that are quantized, with their grids. `weights` are dense: nothing of the stage is solved yet.
pub(crate) fn of_stage<'s>(
    plan: &Plan,
    stage: &'s Stage,
    weights: &LayerWeights,
) -> Result<Vec<(&'s Linear, Scheme)>, Error> {
    let mut grids: Vec<(&Linear, Scheme)> =
        stage.linears.iter().filter_map(|linear| Some((linear, plan.scheme(linear)?))).collect();
    if grids.iter().all(|(_, scheme)| scheme.sharing(1.0) == *scheme) {
        return Ok(grids);
    }
    let mut most = 0.0_f32;
    for (linear, _) in &grids {
        most = dense(weights, linear)?.iter().fold(most, |most, weight| most.max(weight.abs()));
    }
    for (_, scheme) in &mut grids {
        *scheme = scheme.sharing(most);
    }
    Ok(grids)
}
