//! What a machine must be able to do with arranged codes and rounded activations.

use std::ops::Range;

use crate::packed::kernel::LANES;

/// Tokens that are multiplied at a time, at most.
pub(crate) const TOKENS: usize = 8;

/// Four codes or activations of one byte each, of a unit.
pub(crate) const DWORDS: usize = 8;

/// Consecutive columns of one group that share a step.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) columns: Range<usize>,
    /// Where its units begin; the last one is padded with zeros.
    pub(crate) first_unit: usize,
    pub(crate) units: usize,
    pub(crate) group: usize,
}

/// [`LANES`] outputs.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    bits: usize,
    pieces: &'a [Piece],
    words: &'a [u32],
    scales: &'a [f32],
    zero_point: i32,
    zero_points: Option<&'a [f32]>,
}

impl<'a> Panel<'a> {
    /// `words` are `[units, bits, LANES]`, scales and zero points `[groups, LANES]`; a zero point is the sum of `zero_point` and that of
    /// `zero_points`.
    ///
    /// # Panics
    /// When a piece has units or a group that are not there.
    pub(crate) fn new(
        bits: usize,
        pieces: &'a [Piece],
        words: &'a [u32],
        scales: &'a [f32],
        zero_point: i32,
        zero_points: Option<&'a [f32]>,
    ) -> Self {
        assert!((2..=8).contains(&bits));
        assert!(zero_points.is_none_or(|zeros| zeros.len() == scales.len()));
        for piece in pieces {
            assert!((piece.first_unit + piece.units) * bits * LANES <= words.len());
            assert!((piece.group + 1) * LANES <= scales.len());
        }
        Self { bits, pieces, words, scales, zero_point, zero_points }
    }

    pub(crate) fn bits(self) -> usize {
        self.bits
    }

    pub(crate) fn pieces(self) -> &'a [Piece] {
        self.pieces
    }

    /// Those of all pieces may be read.
    pub(crate) fn words(self) -> &'a [u32] {
        self.words
    }

    /// Those of all pieces' groups may be read.
    pub(crate) fn scales(self) -> &'a [f32] {
        self.scales
    }

    /// What is subtracted from every code.
    pub(crate) fn zero_point(self) -> i32 {
        self.zero_point
    }

    /// What is subtracted besides; as many as scales.
    pub(crate) fn zero_points(self) -> Option<&'a [f32]> {
        self.zero_points
    }
}

/// A few tokens' rounded activations.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    count: usize,
    codes: &'a [i32],
    stride: usize,
    pieces: usize,
    steps: &'a [f32],
    sums: &'a [i32],
}

impl<'a> Tokens<'a> {
    /// `count` tokens, at most [`TOKENS`]: `codes` are `[count, units, DWORDS]`, `steps` and `sums` `[count, pieces]`.
    ///
    /// # Panics
    /// When they are not.
    pub(crate) fn new(count: usize, codes: &'a [i32], steps: &'a [f32], sums: &'a [i32]) -> Self {
        assert!((1..=TOKENS).contains(&count));
        assert!(codes.len().is_multiple_of(count * DWORDS) && steps.len().is_multiple_of(count));
        assert_eq!(steps.len(), sums.len());
        Self { count, codes, stride: codes.len() / count, pieces: steps.len() / count, steps, sums }
    }

    pub(crate) fn count(self) -> usize {
        self.count
    }

    /// Four activations each, the first one in the lowest byte; token `t` from `t * stride` on.
    pub(crate) fn codes(self) -> &'a [i32] {
        self.codes
    }

    pub(crate) fn stride(self) -> usize {
        self.stride
    }

    /// What an activation of one is worth in the piece.
    pub(crate) fn step(self, token: usize, piece: usize) -> f32 {
        self.steps[token * self.pieces + piece]
    }

    /// The sum of the piece's activations.
    pub(crate) fn sum(self, token: usize, piece: usize) -> i32 {
        self.sums[token * self.pieces + piece]
    }

    /// Those of `count` tokens from `first` on.
    pub(crate) fn some(self, first: usize, count: usize) -> Self {
        let by = |length: usize| first * length..(first + count) * length;
        Self {
            count,
            codes: &self.codes[by(self.stride)],
            steps: &self.steps[by(self.pieces)],
            sums: &self.sums[by(self.pieces)],
            ..self
        }
    }

    /// Whether there are steps and codes for all pieces of the panel.
    pub(crate) fn fit(self, panel: Panel<'_>) -> bool {
        let units = panel.pieces.last().map_or(0, |last| last.first_unit + last.units);
        self.pieces == panel.pieces.len() && units * DWORDS <= self.stride
    }
}

/// Where one piece of a strip of lanes lies, for some tokens.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Of the piece's first unit, the strip's first lane; words are [`LANES`] apart.
    pub(crate) words: *const u32,
    pub(crate) units: usize,
    /// Of the piece's first unit, the first token.
    pub(crate) codes: *const i32,
    /// From the codes of a token to those of the next.
    pub(crate) stride: usize,
    /// Of the first token; as is the sum.
    pub(crate) steps: *const f32,
    pub(crate) sums: *const i32,
    /// From the step of a token to that of the next.
    pub(crate) pieces: usize,
    /// Of the piece's group, the strip's first lane; as are the zero points.
    pub(crate) scales: *const f32,
    pub(crate) zero_points: Option<*const f32>,
    pub(crate) zero_point: i32,
}

impl Place {
    /// All that this points to may be read for as many lanes from `lane` on as there are, and all tokens of `x`.
    ///
    /// # Panics
    /// When there is no such piece, or the tokens were rounded for other pieces.
    pub(crate) fn new(panel: Panel<'_>, piece: usize, lane: usize, x: Tokens<'_>) -> Self {
        assert!(lane < LANES && x.fit(panel));
        let Piece { first_unit, units, group, .. } = panel.pieces[piece];
        let grid = group * LANES + lane;
        Self {
            words: panel.words[first_unit * panel.bits * LANES + lane..].as_ptr(),
            units,
            codes: x.codes[first_unit * DWORDS..].as_ptr(),
            stride: x.stride,
            steps: x.steps[piece..].as_ptr(),
            sums: x.sums[piece..].as_ptr(),
            pieces: x.pieces,
            scales: panel.scales[grid..].as_ptr(),
            zero_points: panel.zero_points.map(|zeros| zeros[grid..].as_ptr()),
            zero_point: panel.zero_point,
        }
    }
}

/// One machine's way.
pub(crate) trait Int8Kernel: Copy + Send + Sync {
    /// `out[t]` becomes the products of token `t` with the panel's outputs.
    ///
    /// # Panics
    /// When there are not as many rows of `out` as tokens, or the tokens were rounded for other pieces.
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
