//! Arithmetic on several independent rows at once.
//!
//! A kernel is written once, over [`Lanes`], with one matrix row in each lane. Lanes never mix and every operation is
//! rounded as IEEE 754 says, fused multiply-add included, so a kernel gives a row the same bits on every machine and at
//! every width. [`widest`] picks the implementation at run time.

use half::{bf16, f16};

use super::generic::lanes::Portable;
#[cfg(target_arch = "x86_64")]
use super::x86_64::lanes::{Avx2, Avx512};

/// A vector unit, as a value whose existence proves that this machine has it.
pub(crate) trait Lanes: Copy + Send + Sync {
    /// [`Lanes::COUNT`] numbers in single precision.
    type Vector: Copy;

    /// Numbers in a vector. Divides 16.
    const COUNT: usize;

    /// Runs `task` compiled for this unit.
    fn run<T: Task>(self, task: T) -> T::Output;

    fn splat(self, value: f32) -> Self::Vector;
    /// The first [`Lanes::COUNT`] elements of `from`.
    fn load(self, from: &[f32]) -> Self::Vector;
    /// The first [`Lanes::COUNT`] elements of `from`, exactly.
    fn load_bf16(self, from: &[bf16]) -> Self::Vector;
    /// The first [`Lanes::COUNT`] elements of `from`, exactly.
    fn load_f16(self, from: &[f16]) -> Self::Vector;
    /// Asks for a line of memory before it is needed. It need not exist.
    fn prefetch<T>(self, _: *const T) {}
    /// Overwrites the first [`Lanes::COUNT`] elements of `to`.
    fn store(self, value: Self::Vector, to: &mut [f32]);

    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn subtract(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn multiply(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn divide(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a b + c`, rounded once.
    fn multiply_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// `a` where `a > b`, else `b`: `b` where either is not a number.
    fn maximum(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a` where `a < b`, else `b`: `b` where either is not a number.
    fn minimum(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// To the nearest integer, halves to the even one.
    fn round_half_even(self, a: Self::Vector) -> Self::Vector;
    /// `then` where `a < 0`, else `otherwise`.
    fn where_negative(self, a: Self::Vector, then: Self::Vector, otherwise: Self::Vector) -> Self::Vector;
    /// `sums[i] += weight a_i²` in double precision, for the first [`Lanes::COUNT`] elements of `sums`.
    fn add_weighted_square(self, weight: f64, a: Self::Vector, sums: &mut [f64]);
}

/// Work to be compiled for each vector unit. Mark `run` `#[inline(always)]`: it must become part of a function that is
/// compiled for the unit.
pub(crate) trait Task {
    type Output;
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// The vector units a kernel can run on. The results are the same.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Unit {
    /// Every unit of this machine, the widest last.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Portable(Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx2::detect().map(Self::Avx2));
            all.extend(Avx512::detect().map(Self::Avx512));
        }
        all
    }

    /// The widest unit of this machine.
    pub(crate) fn widest() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(unit) = Avx512::detect() {
                return Self::Avx512(unit);
            }
            if let Some(unit) = Avx2::detect() {
                return Self::Avx2(unit);
            }
        }
        Self::Portable(Portable)
    }

    /// Numbers in a vector.
    pub(crate) fn count(self) -> usize {
        match self {
            Self::Portable(_) => Portable::COUNT,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => Avx2::COUNT,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => Avx512::COUNT,
        }
    }

    pub(crate) fn run<T: Task>(self, task: T) -> T::Output {
        match self {
            Self::Portable(unit) => unit.run(task),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(unit) => unit.run(task),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(unit) => unit.run(task),
        }
    }
}
