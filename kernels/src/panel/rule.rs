//! Rounding to a grid, for the rows of a vector at once. Another kind of grid is another [`Rule`].

use crate::arch::lanes::Lanes;

/// How a number becomes a code.
pub(super) trait Rule: Copy + Send + Sync {
    /// The code nearest to `target` (a small integer, as a number) and the value it stands for.
    fn round<L: Lanes>(self, lanes: L, target: L::Vector, group: Group<L>) -> Rounded<L>;

    /// The value of `code`.
    fn value<L: Lanes>(self, lanes: L, code: L::Vector, group: Group<L>) -> L::Vector;
}

/// What a group of columns says about its grid, for each row.
#[derive(Clone, Copy)]
pub(super) struct Group<L: Lanes> {
    pub(super) scale: L::Vector,
    pub(super) zero_point: L::Vector,
}

/// A code and its value, for each row.
#[derive(Clone, Copy)]
pub(super) struct Rounded<L: Lanes> {
    pub(super) code: L::Vector,
    pub(super) value: L::Vector,
}

/// Codes `0..=max_code` in equal steps: `value = scale (code - zero_point)`.
#[derive(Clone, Copy)]
pub(super) struct Uniform {
    max_code: f32,
}

impl Uniform {
    pub(super) fn new(max_code: u8) -> Self {
        Self { max_code: f32::from(max_code) }
    }
}

impl Rule for Uniform {
    #[inline(always)]
    fn round<L: Lanes>(self, lanes: L, target: L::Vector, group: Group<L>) -> Rounded<L> {
        let steps = lanes.add(lanes.divide(target, group.scale), group.zero_point);
        let code = lanes.maximum(lanes.round_half_even(steps), lanes.splat(0.0));
        let code = lanes.minimum(code, lanes.splat(self.max_code));
        Rounded { code, value: self.value(lanes, code, group) }
    }

    #[inline(always)]
    fn value<L: Lanes>(self, lanes: L, code: L::Vector, group: Group<L>) -> L::Vector {
        lanes.multiply(group.scale, lanes.subtract(code, group.zero_point))
    }
}
