//! Products with a quantized matrix, read straight from the words that a checkpoint stores.
//!
//! The weight of output `n` and input `k` is
//!
//! ```text
//! w[n, k] = scale[g, n] * (code[n, k] - zero_point[g, n])        g = k / group_size
//! ```
//!
//! and [`PackedMatrix::product`] computes `out[t, n] = sum over k of x[t, k] * w[n, k]` in single precision. The codes of
//! one output form a stream of bits, least significant bit first and without gaps, over 32-bit words: code `k` takes the
//! stream's bits `k * bits .. (k + 1) * bits`, and may straddle two words. How the streams of different outputs
//! interleave in memory is a parameter, [`CodeLayout`].
//!
//! [`ArrangedMatrix`] is the same matrix for products whose activations are rounded to eight bits: see [`arranged`].
//!
//! This module knows no file format and no tensor name.

pub mod arranged;
pub(crate) mod kernel;
mod product;
mod shape;
mod stage;
mod unpack;

pub use arranged::ArrangedMatrix;
pub use shape::{CodeLayout, PackedShape, PackedShapeError};

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use self::stage::Stored;
use crate::arch::generic::packed::Portable;
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::{packed_avx2::Avx2, packed_avx512::Avx512};

/// A quantized matrix `[out_features, in_features]` in the packing of a checkpoint.
///
/// The fields are private because the fast kernels rely on what [`PackedMatrix::new`] has checked.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedMatrix {
    shape: PackedShape,
    words: Vec<u32>,
    scales: Array2<f32>,
    zero_points: Array2<f32>,
}

impl PackedMatrix {
    /// `words` are the checkpoint's words in the order of `shape.layout`, [`PackedShape::word_count`] of them; `scales` and
    /// `zero_points` are `[groups, out_features]`. Bits after the last code of an output are ignored.
    ///
    /// # Errors
    /// Whatever [`PackedShape::word_count`] refuses, and arrays of another size than the shape demands.
    pub fn new(
        shape: PackedShape,
        words: Vec<u32>,
        scales: Array2<f32>,
        zero_points: Array2<f32>,
    ) -> Result<Self, PackedShapeError> {
        let expected = shape.word_count()?;
        if words.len() != expected {
            return Err(PackedShapeError::Words { expected, found: words.len() });
        }
        let expected = (shape.groups(), shape.out_features);
        for (what, grid) in [("scales", &scales), ("zero points", &zero_points)] {
            if grid.dim() != expected {
                return Err(PackedShapeError::Grid { what, expected, found: grid.dim() });
            }
        }
        let rows_contiguous = |grid: Array2<f32>| {
            if grid.is_standard_layout() { grid } else { grid.as_standard_layout().into_owned() }
        };
        Ok(Self { shape, words, scales: rows_contiguous(scales), zero_points: rows_contiguous(zero_points) })
    }

    /// Width, layout and sizes.
    #[must_use]
    pub fn shape(&self) -> PackedShape {
        self.shape
    }

    /// The words as stored.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// `[groups, out_features]`.
    #[must_use]
    pub fn scales(&self) -> ArrayView2<'_, f32> {
        self.scales.view()
    }

    /// `[groups, out_features]`, in units of a code.
    #[must_use]
    pub fn zero_points(&self) -> ArrayView2<'_, f32> {
        self.zero_points.view()
    }

    /// The codes, one to a byte, `[out_features, in_features]`.
    #[must_use]
    pub fn unpack_codes(&self) -> Array2<u8> {
        self.unpack_codes_on(Machine::best())
    }

    /// The weights, `[out_features, in_features]`: `scale * (code - zero_point)`, each of the two operations rounded once.
    #[must_use]
    pub fn dequantize(&self) -> Array2<f32> {
        self.dequantize_on(Machine::best())
    }

    /// `out = x wᵀ`, where `x` is `[tokens, in_features]` and `out` is `[tokens, out_features]`.
    ///
    /// Sums are kept in single precision in an order that does not depend on the number of threads.
    ///
    /// # Panics
    /// When the shapes of `x` and `out` are not those.
    pub fn product(&self, x: ArrayView2<'_, f32>, out: ArrayViewMut2<'_, f32>) {
        assert_eq!(x.ncols(), self.shape.in_features, "columns of `x` must be the input features");
        assert_eq!(out.dim(), (x.nrows(), self.shape.out_features), "`out` must be [tokens, out_features]");
        self.product_on(Machine::best(), x, out);
    }

    fn product_on(&self, machine: Machine, x: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) {
        if out.is_empty() {
            return;
        }
        if out.strides()[1] != 1 && out.ncols() > 1 {
            let mut contiguous = Array2::zeros(out.dim());
            self.product_on(machine, x, contiguous.view_mut());
            out.assign(&contiguous);
            return;
        }
        let x = x.as_standard_layout();
        with_kernel!(machine, kernel => product::product(kernel, Stored::new(self), x.view(), out));
    }

    fn unpack_codes_on(&self, machine: Machine) -> Array2<u8> {
        let mut codes = Array2::zeros((self.shape.out_features, self.shape.in_features));
        with_kernel!(machine, kernel => unpack::codes(kernel, Stored::new(self), codes.view_mut()));
        codes
    }

    fn dequantize_on(&self, machine: Machine) -> Array2<f32> {
        let mut weights = Array2::zeros((self.shape.out_features, self.shape.in_features));
        with_kernel!(machine, kernel => unpack::weights(kernel, Stored::new(self), weights.view_mut()));
        weights
    }
}

/// `x wᵀ` in double precision, `[tokens, out_features]`, for `x` `[tokens, in_features]` and dense `weights`
/// `[out_features, in_features]`: slow and obvious, in natural order, meant to check the fast products against.
///
/// # Panics
/// When `x` and `weights` have different numbers of columns.
#[must_use]
pub fn reference_product(x: ArrayView2<'_, f32>, weights: ArrayView2<'_, f32>) -> Array2<f64> {
    assert_eq!(x.ncols(), weights.ncols(), "`x` and `weights` must have the same number of columns");
    let mut out = Array2::zeros((x.nrows(), weights.nrows()));
    for ((token, output), y) in out.indexed_iter_mut() {
        *y = x.row(token).iter().zip(weights.row(output)).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
    }
    out
}

/// A set of kernels that this machine can run.
#[derive(Clone, Copy, Debug)]
enum Machine {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Machine {
    /// All of them, the fastest first.
    fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let fast = [Avx512::detect().map(Self::Avx512), Avx2::detect().map(Self::Avx2)];
        #[cfg(not(target_arch = "x86_64"))]
        let fast: [Option<Self>; 0] = [];
        fast.into_iter().flatten().chain([Self::Portable])
    }

    fn best() -> Self {
        Self::all().next().unwrap_or(Self::Portable)
    }
}

/// Compiles the body for each machine's kernel and runs one.
macro_rules! with_kernel {
    ($machine:expr, $kernel:ident => $body:expr) => {
        match $machine {
            Machine::Portable => {
                let $kernel = Portable;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Machine::Avx2($kernel) => $body,
            #[cfg(target_arch = "x86_64")]
            Machine::Avx512($kernel) => $body,
        }
    };
}
use with_kernel;

#[cfg(test)]
mod tests;
