//! In what precision calibration multiplies.
//!
//! Products with a linear, second moments and gradients cost most of a run. With factors rounded to bfloat16 they take about half the time on
//! machines that have the instruction. Where runtimes multiply in sixteen bits, the rounding is far below the error of a narrow grid, and the sums
//! stay in single precision; `docs/performance.md` has what it does to models of either type. Measuring is always in single precision.

use formats::Dtype;
use kernels::bf16::{self, Precision};
use serde::{Deserialize, Serialize};

use crate::plan::Plan;

/// What a recipe says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Products {
    /// bfloat16 where that loses nothing and is faster.
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// bfloat16.
    Bf16,
}

/// The widest code whose error is far above the rounding of bfloat16, which keeps 8 bits of a number.
const WIDEST: u8 = 5;

/// The precision of the calibration of a run that has these plans, which are of one recipe.
pub(crate) fn settle(plans: &[Plan]) -> Precision {
    let narrow = |plan: &Plan| plan.quantized().all(|(_, scheme)| scheme.bits.get() <= WIDEST);
    let fits = |plan: &Plan| match plan.products {
        Products::F32 => false,
        Products::Bf16 => true,
        Products::Auto => bf16::is_fast() && matches!(plan.runtime, Dtype::Bf16 | Dtype::F16) && narrow(plan),
    };
    if plans.iter().all(fits) { Precision::Bf16 } else { Precision::Single }
}

/// What the report calls it.
pub(crate) fn name(precision: Precision) -> &'static str {
    match precision {
        Precision::Single => "f32",
        Precision::Bf16 => "bf16",
    }
}
