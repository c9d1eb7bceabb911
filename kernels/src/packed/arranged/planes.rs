//! How codes lie in the words of a unit, so that four of them at a time become four bytes by one shift and one mask.
//!
//! A code's bits are cut into planes of 4, 2 or 1, the widest lowest (8 bits are one plane): 3 bits are a plane of the lower two and one of the upper
//! bit. A plane of `width` bits has `width` words for the 32 codes of a unit. Code `k` is in byte `k % 4` of word `k / 4 * width / 8`, from bit
//! `k / 4 * width % 8` of that byte on. So a unit takes as many bits as it has codes times their width, and its codes `4 d .. 4 d + 4` are
//!
//! ```text
//! sum over the planes of (word[d * width / 8] >> d * width % 8 & mask(width)) << first bit of the plane
//! ```
//!
//! in the four bytes of one word, in order.

use super::kernel::DWORDS;
use crate::packed::kernel::LANES;

/// Some of the bits of every code.
#[derive(Clone, Copy)]
pub(crate) struct Plane {
    pub(crate) width: usize,
    /// The lowest of its bits in a code.
    pub(crate) first_bit: usize,
    /// Where its words begin in those of a unit.
    pub(crate) first_word: usize,
}

impl Plane {
    /// The plane that begins with bit `first_bit` of codes of `bits`.
    #[inline(always)]
    pub(crate) const fn at(bits: usize, first_bit: usize) -> Self {
        let left = bits - first_bit;
        let width = if left == 8 {
            8
        } else if left >= 4 {
            4
        } else if left >= 2 {
            2
        } else {
            1
        };
        Self { width, first_bit, first_word: first_bit }
    }

    /// The word of a unit that holds this plane of dword `dword`, and the lowest bit of it there.
    #[inline(always)]
    pub(crate) const fn place(self, dword: usize) -> (usize, usize) {
        (self.first_word + dword * self.width / 8, dword * self.width % 8)
    }

    /// The plane's bits of four codes.
    #[inline(always)]
    pub(crate) const fn mask(self) -> u32 {
        ((1 << self.width) - 1) << self.first_bit & 0xFF
    }

    /// [`Plane::mask`] in each byte.
    #[inline(always)]
    pub(crate) const fn masks(self) -> u32 {
        self.mask() * 0x0101_0101
    }
}

/// Writes up to 32 codes of one output to words that are [`LANES`] apart; missing ones are zero.
pub(super) fn store(bits: usize, codes: &[u8], words: &mut [u32]) {
    let mut padded = [0; 4 * DWORDS];
    padded[..codes.len()].copy_from_slice(codes);
    let mut first_bit = 0;
    while first_bit < bits {
        let plane = Plane::at(bits, first_bit);
        for (dword, four) in padded.as_chunks::<4>().0.iter().enumerate() {
            let (word, shift) = plane.place(dword);
            let field = (u32::from_le_bytes(*four) & plane.masks()) >> first_bit;
            words[word * LANES] |= field << shift;
        }
        first_bit += plane.width;
    }
}

/// Four codes, from word `word` of a unit as `read` gives it.
#[inline(always)]
pub(crate) fn load(bits: usize, dword: usize, read: impl Fn(usize) -> u32) -> [u8; 4] {
    let mut codes = 0;
    let mut first_bit = 0;
    while first_bit < bits {
        let plane = Plane::at(bits, first_bit);
        let (word, shift) = plane.place(dword);
        codes |= (read(word) >> shift << first_bit) & plane.masks();
        first_bit += plane.width;
    }
    codes.to_le_bytes()
}
