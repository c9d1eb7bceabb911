//! What a machine must be able to do with packed codes, and the arithmetic that every machine shares.
//!
//! The driver cuts a matrix into panels of [`LANES`] outputs and units of [`UNIT`] columns. A unit of `bits`-bit codes is
//! exactly `bits` words, so every unit has its codes in the same places, and outputs are vector lanes: one shift serves a
//! whole vector, whatever the width.
//!
//! A code need not even be shifted down to be used. With its bits at `shift .. shift + bits` of a word, below bit 23,
//!
//! ```text
//! bits_of(2^23) | (word & mask << shift) = bits_of(2^23 + code * 2^shift)
//! ```
//!
//! is the encoding of a float, subtracting `2^23 + middle * 2^shift` leaves `(code - middle) * 2^shift` exactly, and `2^-shift`
//! has been multiplied into the activation beforehand. [`Placement`] says where each of the 32 codes is taken from.

/// Outputs of a panel.
pub(crate) const LANES: usize = 64;

/// Columns of a unit.
pub(crate) const UNIT: usize = 32;

/// `2^23`, whose last bit counts ones.
pub(crate) const MAGIC: f32 = 8_388_608.0;

/// Where the code of a unit's column is read.
#[derive(Clone, Copy)]
pub(crate) struct Placement {
    /// The word of the unit that holds its lowest bit.
    pub(crate) word: usize,
    /// The code's lowest bit in that word.
    pub(crate) offset: usize,
    /// Its lowest bit after the word was taken as it is, shifted right by 16, or joined with the next one.
    pub(crate) shift: usize,
}

impl Placement {
    /// Of column `column` of a unit.
    #[inline(always)]
    pub(crate) const fn new(bits: usize, column: usize) -> Self {
        let (word, offset) = (column * bits / 32, column * bits % 32);
        let shift = if offset + bits <= 23 {
            offset
        } else if offset + bits <= 32 {
            offset - 16
        } else {
            0
        };
        Self { word, offset, shift }
    }

    /// `2^-shift`.
    #[inline(always)]
    pub(crate) const fn factor(self) -> f32 {
        1.0 / (1_u32 << self.shift) as f32
    }

    /// Whether the code's upper bits are in the next word.
    #[inline(always)]
    pub(crate) const fn straddles(self, bits: usize) -> bool {
        self.offset + bits > 32
    }
}

/// Calls the body for each column of a unit with a constant number, so that every shift is an immediate.
macro_rules! for_each_column {
    ($column:ident => $body:expr) => {
        $crate::packed::kernel::for_each_column!(@ $column, $body,
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
    };
    (@ $column:ident, $body:expr, $($number:literal)*) => {
        $({ const $column: usize = $number; $body; })*
    };
}

pub(crate) use for_each_column;

/// The code in the middle of the grid, `2^(bits-1)`.
#[inline(always)]
pub(crate) const fn middle(bits: usize) -> u32 {
    1 << (bits - 1)
}

/// Whole units of [`LANES`] outputs: word `i` of lane `l` at `i * stride + l`.
#[derive(Clone, Copy)]
pub(crate) struct Codes<'a> {
    words: &'a [u32],
    stride: usize,
    bits: usize,
    units: usize,
}

impl<'a> Codes<'a> {
    /// # Panics
    /// When `words` does not hold all of them.
    pub(crate) fn new(words: &'a [u32], stride: usize, bits: usize, units: usize) -> Self {
        assert!((2..=8).contains(&bits) && stride >= LANES);
        assert!(units == 0 || (units * bits - 1) * stride + LANES <= words.len());
        Self { words, stride, bits, units }
    }

    /// Some of the units.
    pub(crate) fn range(self, first: usize, units: usize) -> Self {
        assert!(first + units <= self.units);
        Self { words: &self.words[first * self.bits * self.stride..], units, ..self }
    }

    /// Word 0 of lane 0; `(units * bits - 1) * stride + LANES` words may be read from here.
    pub(crate) fn words(self) -> &'a [u32] {
        self.words
    }

    /// From one word of a lane to the next.
    pub(crate) fn stride(self) -> usize {
        self.stride
    }

    /// Width of a code.
    pub(crate) fn bits(self) -> usize {
        self.bits
    }

    /// How many units.
    pub(crate) fn units(self) -> usize {
        self.units
    }
}

/// The scale and the zero point of each lane in one group.
#[derive(Clone, Copy)]
pub(crate) struct GroupGrid<'a> {
    pub(crate) scales: &'a [f32; LANES],
    pub(crate) zero_points: &'a [f32; LANES],
}

/// Code to value as it is: `1 * (code - 0)`.
pub(crate) const IDENTITY_GRID: GroupGrid<'static> =
    GroupGrid { scales: &[1.0; LANES], zero_points: &[0.0; LANES] };

/// A few tokens against the units of one group.
#[derive(Clone, Copy)]
pub(crate) struct GroupActivations<'a> {
    /// `x[t, k]` times [`PackedKernel::activation_factor`], token `t` at `t * stride`.
    pub(crate) scaled: &'a [f32],
    /// From one token to the next.
    pub(crate) stride: usize,
    /// The sum of `x[t, k]` over the columns, of each token.
    pub(crate) sums: &'a [f32],
}

/// One machine's way.
pub(crate) trait PackedKernel: Copy + Send + Sync {
    /// Outputs that [`PackedKernel::tile`] multiplies at a time; divides [`LANES`].
    const STRIP: usize;
    /// Tokens that [`PackedKernel::tile`] multiplies at a time, at most.
    const ROWS: usize;

    /// Turns lanes that are `words_per_lane` apart into neighbours: `to[i * LANES + l] = from[l * words_per_lane + i]` for
    /// each `l < LANES`, `i < to.len() / LANES`.
    fn interleave(self, from: &[u32], words_per_lane: usize, to: &mut [u32]);

    /// Weights `scale * (code - zero_point)`, each operation rounded, of columns `k` and lanes `l` at
    /// `l / STRIP * strip_stride + k * STRIP + l % STRIP`.
    fn decode(self, codes: Codes<'_>, grid: GroupGrid<'_>, weights: &mut [f32], strip_stride: usize);

    /// `sums[r * STRIP + l]` = sum over `k < columns` of `x[r * x_stride + k] * weights[k * STRIP + l]`, in this order, for
    /// each `r < rows`.
    fn tile(self, x: &[f32], x_stride: usize, rows: usize, weights: &[f32], columns: usize, sums: &mut [f32]);

    /// What the activation of a unit's column must have been multiplied by for [`PackedKernel::multiply_group`]: a power of
    /// two.
    fn activation_factor(self, bits: usize, column: usize) -> f32;

    /// Adds to `out[t * LANES + l]` the sum over the units' columns of `x[t, k] * scale * (code - zero_point)`.
    fn multiply_group(self, codes: Codes<'_>, grid: GroupGrid<'_>, x: GroupActivations<'_>, out: &mut [f32]);
}
