//! Rounding to a grid, for the rows of a vector at once. Another kind of grid is another [`Rule`], and a variant of [`Levels`].

use crate::arch::lanes::Lanes;

/// What codes stand for, before scale and zero point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Levels<'a> {
    /// Code `c` of `0..=max_code` stands for `c`.
    Uniform {
        /// The largest code.
        max_code: u8,
    },
    /// Code `c` stands for number `c` of these, which ascend.
    Codebook(&'a [f32]),
}

impl Levels<'_> {
    /// The largest code.
    ///
    /// # Panics
    /// When a codebook has no level, or more than 256.
    #[must_use]
    pub fn max_code(self) -> u8 {
        match self {
            Self::Uniform { max_code } => max_code,
            Self::Codebook(levels) => u8::try_from(levels.len() - 1).expect("at most 256 levels"),
        }
    }

    /// What `code` stands for.
    ///
    /// # Panics
    /// When a codebook has no such code.
    #[must_use]
    pub fn level(self, code: u8) -> f32 {
        match self {
            Self::Uniform { .. } => f32::from(code),
            Self::Codebook(levels) => levels[usize::from(code)],
        }
    }

    /// The lowest and the highest level.
    #[must_use]
    pub fn ends(self) -> (f32, f32) {
        (self.level(0), self.level(self.max_code()))
    }
}

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

/// Codes that stand for the numbers of a table: `value = scale (levels[code] - zero_point)`. Of two levels equally near the lower is taken.
#[derive(Clone, Copy)]
pub(crate) struct Codebook<'a> {
    pub(crate) levels: &'a [f32],
}

impl Codebook<'_> {
    /// The code nearest to `steps`, and its level.
    #[inline(always)]
    pub(crate) fn nearest<L: Lanes>(self, lanes: L, steps: L::Vector) -> (L::Vector, L::Vector) {
        let (mut code, mut level) = (lanes.splat(0.0), lanes.splat(self.levels[0]));
        for (below, pair) in self.levels.windows(2).enumerate() {
            let middle = lanes.splat(0.5 * (pair[0] + pair[1]));
            let beyond = lanes.subtract(middle, steps);
            code = lanes.where_negative(beyond, lanes.splat((below + 1) as f32), code);
            level = lanes.where_negative(beyond, lanes.splat(pair[1]), level);
        }
        (code, level)
    }
}

impl Rule for Codebook<'_> {
    #[inline(always)]
    fn round<L: Lanes>(self, lanes: L, target: L::Vector, group: Group<L>) -> Rounded<L> {
        let steps = lanes.add(lanes.divide(target, group.scale), group.zero_point);
        let (code, level) = self.nearest(lanes, steps);
        Rounded { code, value: lanes.multiply(group.scale, lanes.subtract(level, group.zero_point)) }
    }

    #[inline(always)]
    fn value<L: Lanes>(self, lanes: L, code: L::Vector, group: Group<L>) -> L::Vector {
        let mut level = lanes.splat(self.levels[0]);
        for (below, &next) in self.levels[1..].iter().enumerate() {
            let beyond = lanes.subtract(lanes.splat(below as f32 + 0.5), code);
            level = lanes.where_negative(beyond, lanes.splat(next), level);
        }
        lanes.multiply(group.scale, lanes.subtract(level, group.zero_point))
    }
}
