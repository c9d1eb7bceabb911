//! Values with random signs, one bit each, in vectors: what a random probe of a softmax is made of.
//!
//! As in [`crate::elementwise`], the code is plain, sums run in lanes in an order that is always the same, and nothing is fused.

use crate::arch::lanes::{Lanes, Task, Unit};

/// Running values of a sum.
const LANES: usize = 16;
/// Signs of a word.
const BITS: usize = u32::BITS as usize;

/// Σ ±√value in double precision, each root in single; a bit that is set in its word, lowest first, is a minus.
///
/// # Panics
/// When there are not as many `signs` as runs of 32 values.
#[must_use]
pub fn sum_of_signed_roots(values: &[f32], signs: &[u32]) -> f64 {
    demand_signs(values, signs);
    Unit::widest().run(SumOfSignedRoots { values, signs })
}

/// Replaces each value by `±√value - factor * value`; a bit that is set in its word, lowest first, is a minus.
///
/// # Panics
/// When there are not as many `signs` as runs of 32 values.
pub fn signed_roots_less(values: &mut [f32], signs: &[u32], factor: f32) {
    demand_signs(values, signs);
    Unit::widest().run(SignedRootsLess { values, signs, factor });
}

fn demand_signs(values: &[f32], signs: &[u32]) {
    assert_eq!(values.len().div_ceil(BITS), signs.len(), "words of signs for {} values", values.len());
}

/// `√value`, less than zero where the bit of its place is set.
#[inline(always)]
fn signed_root(value: f32, signs: u32, place: usize) -> f32 {
    f32::from_bits(value.sqrt().to_bits() ^ ((signs >> place) << 31))
}

struct SumOfSignedRoots<'a> {
    values: &'a [f32],
    signs: &'a [u32],
}

impl Task for SumOfSignedRoots<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> f64 {
        let mut lanes = [0.0_f64; LANES];
        let (whole, rest) = self.values.as_chunks::<BITS>();
        for (values, &signs) in whole.iter().zip(self.signs) {
            for half in 0..BITS / LANES {
                for (lane, sum) in lanes.iter_mut().enumerate() {
                    let place = half * LANES + lane;
                    *sum += f64::from(signed_root(values[place], signs, place));
                }
            }
        }
        for (place, &value) in rest.iter().enumerate() {
            lanes[place % LANES] += f64::from(signed_root(value, self.signs[whole.len()], place));
        }
        lanes.iter().sum()
    }
}

struct SignedRootsLess<'a> {
    values: &'a mut [f32],
    signs: &'a [u32],
    factor: f32,
}

impl Task for SignedRootsLess<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let Self { values, signs, factor } = self;
        let (whole, rest) = values.as_chunks_mut::<BITS>();
        for (values, &signs) in whole.iter_mut().zip(signs) {
            for (place, value) in values.iter_mut().enumerate() {
                *value = signed_root(*value, signs, place) - factor * *value;
            }
        }
        for (place, value) in rest.iter_mut().enumerate() {
            *value = signed_root(*value, signs[whole.len()], place) - factor * *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_get_the_signs_of_their_bits() {
        for count in [0_usize, 1, 7, 31, 32, 33, 172, 576, 1000] {
            let values: Vec<f32> = (0..count).map(|place| (place * place % 97) as f32 / 97.0).collect();
            let signs: Vec<u32> =
                (0..count.div_ceil(BITS) as u32).map(|word| 0x9e37_79b9_u32.rotate_left(word * 5)).collect();
            let sign = |place: usize| if signs[place / BITS] >> (place % BITS) & 1 == 0 { 1.0 } else { -1.0 };
            let plain: Vec<f64> = values
                .iter()
                .enumerate()
                .map(|(place, &value)| sign(place) * f64::from(value.sqrt()))
                .collect();
            let sum = sum_of_signed_roots(&values, &signs);
            assert!((sum - plain.iter().sum::<f64>()).abs() < 1e-9, "{count}: {sum}");
            let mut less = values.clone();
            signed_roots_less(&mut less, &signs, 0.75);
            for ((less, plain), value) in less.iter().zip(&plain).zip(&values) {
                assert_eq!(*less, *plain as f32 - 0.75 * value, "{count}");
            }
        }
    }
}
