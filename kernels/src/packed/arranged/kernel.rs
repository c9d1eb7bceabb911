//! What a machine must be able to do with arranged codes and rounded activations.

use std::ops::Range;

use crate::packed::kernel::LANES;

/// Tokens that are multiplied at a time, at most.
pub(crate) const TOKENS: usize = 6;

/// Four codes or activations of one byte each, of a unit.
pub(crate) const DWORDS: usize = 8;

/// Consecutive columns that share a scale and a zero point.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) columns: Range<usize>,
    /// Where its units begin; the last one is padded with zeros.
    pub(crate) first_unit: usize,
    pub(crate) units: usize,
}

/// Zero points of a panel.
#[derive(Clone, Copy)]
pub(crate) enum ZeroPoints<'a> {
    /// Those of every group.
    Same(&'a [f32; LANES]),
    /// `[groups, LANES]`
    Each(&'a [f32]),
}

/// [`LANES`] outputs.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    bits: usize,
    groups: &'a [Group],
    words: &'a [u32],
    scales: &'a [f32],
    zero_points: ZeroPoints<'a>,
}

impl<'a> Panel<'a> {
    /// `words` are `[units, bits, LANES]`, `scales` `[groups, LANES]`.
    ///
    /// # Panics
    /// When there are groups whose units, scales or zero points are not there.
    pub(crate) fn new(
        bits: usize,
        groups: &'a [Group],
        words: &'a [u32],
        scales: &'a [f32],
        zero_points: ZeroPoints<'a>,
    ) -> Self {
        assert!((2..=8).contains(&bits));
        assert!(groups.len() * LANES <= scales.len());
        if let ZeroPoints::Each(zeros) = zero_points {
            assert_eq!(zeros.len(), scales.len());
        }
        assert!(groups.iter().all(|group| (group.first_unit + group.units) * bits * LANES <= words.len()));
        Self { bits, groups, words, scales, zero_points }
    }

    pub(crate) fn bits(self) -> usize {
        self.bits
    }

    pub(crate) fn groups(self) -> &'a [Group] {
        self.groups
    }

    /// Word `word` of a lane in a unit.
    pub(crate) fn word(self, unit: usize, word: usize, lane: usize) -> u32 {
        self.words[(unit * self.bits + word) * LANES + lane]
    }

    pub(crate) fn scale(self, group: usize, lane: usize) -> f32 {
        self.scales[group * LANES + lane]
    }

    pub(crate) fn zero_point(self, group: usize, lane: usize) -> f32 {
        match self.zero_points {
            ZeroPoints::Same(zeros) => zeros[lane],
            ZeroPoints::Each(zeros) => zeros[group * LANES + lane],
        }
    }
}

/// A few tokens' rounded activations.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    count: usize,
    units: usize,
    groups: usize,
    codes: &'a [i32],
    steps: &'a [f32],
    sums: &'a [f32],
}

impl<'a> Tokens<'a> {
    /// `count` tokens, at most [`TOKENS`]: `codes` are `[count, units, DWORDS]`, `steps` `[count, units]`, `sums` `[count, groups]`.
    ///
    /// # Panics
    /// When they are not.
    pub(crate) fn new(count: usize, codes: &'a [i32], steps: &'a [f32], sums: &'a [f32]) -> Self {
        assert!((1..=TOKENS).contains(&count));
        let (units, groups) = (steps.len() / count, sums.len() / count);
        assert_eq!(
            (steps.len(), codes.len(), sums.len()),
            (count * units, count * units * DWORDS, count * groups)
        );
        Self { count, units, groups, codes, steps, sums }
    }

    pub(crate) fn count(self) -> usize {
        self.count
    }

    /// Four activations, the first one in the lowest byte.
    pub(crate) fn codes(self, token: usize, unit: usize, dword: usize) -> i32 {
        self.codes[(token * self.units + unit) * DWORDS + dword]
    }

    /// What an activation of one is worth in the unit.
    pub(crate) fn step(self, token: usize, unit: usize) -> f32 {
        self.steps[token * self.units + unit]
    }

    /// The sum of the group's rounded activations, each times its step.
    pub(crate) fn sum(self, token: usize, group: usize) -> f32 {
        self.sums[token * self.groups + group]
    }

    /// Those of `count` tokens from `first` on.
    pub(crate) fn some(self, first: usize, count: usize) -> Self {
        let by = |length: usize| first * length..(first + count) * length;
        Self {
            count,
            codes: &self.codes[by(self.units * DWORDS)],
            steps: &self.steps[by(self.units)],
            sums: &self.sums[by(self.groups)],
            ..self
        }
    }

    /// Whether they were rounded for the groups of the panel.
    pub(crate) fn fit(self, panel: Panel<'_>) -> bool {
        let units = panel.groups.last().map_or(0, |last| last.first_unit + last.units);
        self.groups == panel.groups.len() && units == self.units
    }
}

/// Where one group of a strip of lanes lies, for some tokens.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Of the group's first unit, the strip's first lane; words are [`LANES`] apart.
    pub(crate) words: *const u32,
    pub(crate) units: usize,
    /// Of the group's first unit, the first token; [`DWORDS`] to a unit. As are the steps, one to a unit.
    pub(crate) codes: *const i32,
    pub(crate) steps: *const f32,
    /// Units from a token to the next.
    pub(crate) stride: usize,
    /// Of the first token.
    pub(crate) sums: *const f32,
    /// From the sum of a token to that of the next.
    pub(crate) groups: usize,
    /// The strip's first lane, as are the zero points.
    pub(crate) scales: *const f32,
    pub(crate) zero_points: *const f32,
}

impl Place {
    /// All that this points to may be read for as many lanes from `lane` on as there are, and all tokens of `x`.
    ///
    /// # Panics
    /// When there is no such group, or the tokens were rounded for other groups.
    pub(crate) fn new(panel: Panel<'_>, group: usize, lane: usize, x: Tokens<'_>) -> Self {
        assert!(lane < LANES && x.fit(panel));
        let Group { first_unit, units, .. } = panel.groups[group];
        let grid = group * LANES + lane;
        Self {
            words: panel.words[first_unit * panel.bits * LANES + lane..].as_ptr(),
            units,
            codes: x.codes[first_unit * DWORDS..].as_ptr(),
            steps: x.steps[first_unit..].as_ptr(),
            stride: x.units,
            sums: x.sums[group..].as_ptr(),
            groups: x.groups,
            scales: panel.scales[grid..].as_ptr(),
            zero_points: match panel.zero_points {
                ZeroPoints::Same(zeros) => zeros[lane..].as_ptr(),
                ZeroPoints::Each(zeros) => zeros[grid..].as_ptr(),
            },
        }
    }
}

/// One machine's way.
pub(crate) trait Int8Kernel: Copy + Send + Sync {
    /// `out[t]` becomes the products of token `t` with the panel's outputs.
    ///
    /// # Panics
    /// When there are not as many rows of `out` as tokens, or the tokens were rounded for other groups.
    fn multiply(self, panel: Panel<'_>, x: Tokens<'_>, out: &mut [[f32; LANES]]);
}

/// Calls the body for each dword of a unit with a constant number, so that every shift is an immediate.
macro_rules! for_each_dword {
    ($dword:ident => $body:expr) => {
        $crate::packed::arranged::kernel::for_each_dword!(@ $dword, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $dword:ident, $body:expr, $($number:literal)*) => {
        $({ const $dword: usize = $number; $body; })*
    };
}

pub(crate) use for_each_dword;
