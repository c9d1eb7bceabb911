//! What a piece of work takes on the clock and of processors, which differ where a machine has other work too.

use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Sub};

use crate::resources::Stopwatch;

/// Seconds of both kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cost {
    /// On the clock, with all threads.
    pub(super) wall: f64,
    /// Of processors, of all threads together.
    pub(super) cpu: f64,
}

impl Cost {
    /// Since the watch was started.
    pub(super) fn since(watch: &Stopwatch) -> Self {
        let found = watch.read();
        Self { wall: found.wall_seconds, cpu: found.cpu_seconds }
    }

    /// What is measured as a difference may come out below nothing.
    pub(super) fn or_nothing(self) -> Self {
        Self { wall: self.wall.max(0.0), cpu: self.cpu.max(0.0) }
    }
}

impl Add for Cost {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { wall: self.wall + other.wall, cpu: self.cpu + other.cpu }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Cost {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + other * -1.0
    }
}

impl Mul<f64> for Cost {
    type Output = Self;
    fn mul(self, factor: f64) -> Self {
        Self { wall: self.wall * factor, cpu: self.cpu * factor }
    }
}

impl Div<f64> for Cost {
    type Output = Self;
    fn div(self, divisor: f64) -> Self {
        self * (1.0 / divisor)
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Add::add)
    }
}
