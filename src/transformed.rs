//! The original as a recipe's transforms leave it.

use std::ops::ControlFlow;

use calibration::CalibrationError;
use calibration::transforms::{Rounding, Transformed};
use formats::Dtype;

use crate::error::Error;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::stored::StoredModel;

/// Windows that activations are looked at on: a mean magnitude for each feature needs no more.
const WINDOWS: usize = 32;

/// The transformed original; none where nothing is changed.
pub(crate) fn of<'s>(
    source: &'s StoredModel,
    plan: &Plan,
    windows: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<Option<Transformed<'s>>, Error> {
    if plan.transforms.is_empty() && !plan.untie {
        return Ok(None);
    }
    let mut transformed = Transformed::new(source, &source.model, &plan.transforms, plan.untie);
    if plan.transforms.iter().any(|transform| transform.needs_data()) {
        progress.phase("equalizing", source.model.layers.len());
        let mut step = || {
            progress.step("");
            if progress.interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let windows = &windows[..windows.len().min(WINDOWS)];
        match transformed.equalize(&plan.transforms, windows, rounding(plan.runtime), &mut step) {
            Err(CalibrationError::Interrupted) => return Err(Error::Interrupted),
            done => done?,
        }
        progress.finish();
    }
    Ok(Some(transformed))
}

/// How the type that runtimes multiply in rounds.
fn rounding(dtype: Dtype) -> Rounding {
    match dtype {
        Dtype::F16 => |value| half::f16::from_f64(value).to_f64(),
        Dtype::Bf16 => |value| half::bf16::from_f64(value).to_f64(),
        _ => |value| f64::from(value as f32),
    }
}
