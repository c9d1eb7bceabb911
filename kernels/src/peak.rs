//! What a processor does at most, for measurements to be compared with: instructions that depend on nothing but their own results, and memory that
//! is read once.

use std::hint::black_box;

use crate::arch::lanes::{Lanes, Task, Unit};
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::int8_vnni::Vnni;

/// Independent sums: more than a processor's multipliers have stages.
const SUMS: usize = 16;

/// Multiplies and adds in single precision, `rounds` times in each lane of `SUMS` vectors, on the widest unit; gives how many operations that
/// were.
#[must_use]
pub fn multiply_and_add(rounds: usize) -> usize {
    Unit::widest().run(MultiplyAndAdd { rounds })
}

/// Multiplies and adds bytes, four to a lane of `SUMS` vectors; gives how many operations that were. None where no instruction does that.
#[must_use]
pub fn multiply_and_add_bytes(rounds: usize) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    return Vnni::detect().map(|unit| unit.busy::<SUMS>(rounds));
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = rounds;
        None
    }
}

/// Reads all of `values`; gives how many bytes that were.
#[must_use]
pub fn read(values: &[f32]) -> usize {
    black_box(Unit::widest().run(Read { values }));
    size_of_val(values)
}

struct MultiplyAndAdd {
    rounds: usize,
}

impl Task for MultiplyAndAdd {
    type Output = usize;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> usize {
        let mut sums = [lanes.splat(0.0); SUMS];
        let (factor, term) = (lanes.splat(black_box(0.5)), lanes.splat(black_box(1.0)));
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = lanes.multiply_add(*sum, factor, term);
            }
        }
        let mut out = [0.0; 16];
        for sum in sums {
            lanes.store(sum, &mut out);
            black_box(&out);
        }
        2 * self.rounds * SUMS * L::COUNT
    }
}

struct Read<'a> {
    values: &'a [f32],
}

impl Task for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f32 {
        let mut sums = [lanes.splat(0.0); SUMS];
        for part in self.values.chunks_exact(SUMS * L::COUNT) {
            for (sum, part) in sums.iter_mut().zip(part.chunks_exact(L::COUNT)) {
                *sum = lanes.add(*sum, lanes.load(part));
            }
        }
        let total = sums.into_iter().reduce(|a, b| lanes.add(a, b)).unwrap_or(lanes.splat(0.0));
        let mut out = [0.0; 16];
        lanes.store(total, &mut out);
        out.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_and_bytes_are_counted() {
        let of_one = multiply_and_add(1);
        assert!(of_one >= 2 * SUMS * 8 && multiply_and_add(3) == 3 * of_one);
        assert!(
            multiply_and_add_bytes(3)
                .is_none_or(|count| Some(count) == multiply_and_add_bytes(1).map(|one| 3 * one))
        );
        assert_eq!(read(&[1.0; 1000]), 4000);
    }
}
