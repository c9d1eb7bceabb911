//! The definition of every operation on lanes, in plain Rust.
//!
//! `mul_add` is one instruction where the target has it (aarch64 always) and a call into the C library elsewhere: slow, and
//! right to the last bit.

use std::array::from_fn;

use half::{bf16, f16};

use crate::arch::lanes::{Lanes, Task};

/// No vector unit in particular.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

impl Lanes for Portable {
    type Vector = [f32; 8];

    const COUNT: usize = 8;

    fn run<T: Task>(self, task: T) -> T::Output {
        task.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; 8] {
        [value; 8]
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> [f32; 8] {
        from_fn(|i| from[i])
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> [f32; 8] {
        from_fn(|i| from[i].to_f32())
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> [f32; 8] {
        from_fn(|i| from[i].to_f32())
    }

    #[inline(always)]
    fn store(self, value: [f32; 8], to: &mut [f32]) {
        to[..8].copy_from_slice(&value);
    }

    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn subtract(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn multiply(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn divide(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn multiply_add(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn maximum(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn minimum(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn round_half_even(self, a: [f32; 8]) -> [f32; 8] {
        a.map(f32::round_ties_even)
    }

    #[inline(always)]
    fn where_negative(self, a: [f32; 8], then: [f32; 8], otherwise: [f32; 8]) -> [f32; 8] {
        from_fn(|i| if a[i] < 0.0 { then[i] } else { otherwise[i] })
    }

    #[inline(always)]
    fn add_weighted_square(self, weight: f64, a: [f32; 8], sums: &mut [f64]) {
        for (sum, a) in sums[..8].iter_mut().zip(a) {
            let a = f64::from(a);
            *sum = (a * a).mul_add(weight, *sum);
        }
    }
}
