//! What a linear's output and the residual stream that it is added to lack together, because its input does and the stream does.

use kernels::bf16::{Bf16Matrix, Precision};
use kernels::product::product_nt;
use ndarray::{Array2, ArrayView2};

use super::Seen;

/// The linear that a lack of its input goes through.
pub(crate) enum Through<'w> {
    Single(ArrayView2<'w, f32>),
    Rounded(Bf16Matrix),
}

impl<'w> Through<'w> {
    /// With this weight, `[hidden, in_features]`, in products of this precision.
    pub(crate) fn new(weight: ArrayView2<'w, f32>, precision: Precision) -> Self {
        match precision {
            Precision::Single => Self::Single(weight),
            Precision::Bf16 => Self::Rounded(Bf16Matrix::of_linear(weight)),
        }
    }

    /// `ΔX Wᵀ + ΔR` of a window, `[tokens, hidden]`; none where the original does not run beside.
    pub(crate) fn lack(&self, seen: &Seen<'_>) -> Option<Array2<f32>> {
        let (input, residual) = seen.original?;
        let lack = &input - &seen.input;
        let mut out = Array2::zeros(residual.dim());
        match self {
            Self::Single(weight) => product_nt(lack.view(), *weight, out.view_mut()),
            Self::Rounded(matrix) => matrix.product(lack.view(), out.view_mut()),
        }
        out += &residual;
        out -= &seen.residual;
        Some(out)
    }
}
