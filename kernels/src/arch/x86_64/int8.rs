//! Products of arranged codes with rounded activations, for vectors of any width: written once, over [`Int8Unit`], whose machines differ in how
//! four products are added in each lane.
//!
//! What is `#[inline(always)]` here becomes part of [`Int8Unit::group`], which carries the machine's `target_feature`s; nothing in between may be a
//! closure, whose body need not.

use crate::arch::lanes::Lanes;
use crate::packed::arranged::kernel::{DWORDS, Panel, Place, Tokens, for_each_dword};
use crate::packed::arranged::planes::Plane;
use crate::packed::kernel::LANES;

/// Integers in the lanes of a vector unit; a value proves that this machine has it.
pub(crate) trait Int8Unit: Copy {
    /// What multiplies the dots by steps and scales.
    type Floats: Lanes;
    /// As many numbers of 32 bits as there are lanes.
    type Ints: Copy;

    fn floats(self) -> Self::Floats;

    fn splat(self, value: i32) -> Self::Ints;
    /// # Safety
    /// As many words as there are lanes may be read.
    unsafe fn load(self, from: *const u32) -> Self::Ints;
    fn shifted_right(self, a: Self::Ints, by: usize) -> Self::Ints;
    fn shifted_left(self, a: Self::Ints, by: usize) -> Self::Ints;
    /// `a | (b & mask)`.
    fn or_masked(self, a: Self::Ints, b: Self::Ints, mask: Self::Ints) -> Self::Ints;
    /// `sums` and the products of four codes of `BITS` bits with four activations from -127 to 127 in each lane.
    fn add_products<const BITS: usize>(
        self,
        sums: Self::Ints,
        codes: Self::Ints,
        x: Self::Ints,
    ) -> Self::Ints;
    fn to_floats(self, a: Self::Ints) -> <Self::Floats as Lanes>::Vector;

    /// How many of so many tokens are multiplied together.
    fn together(left: usize) -> usize;
    /// [`over_panel`] for codes of `BITS` bits, and as many tokens and lanes together as fit the registers.
    fn panel<const BITS: usize>(self, panel: Panel<'_>, x: Tokens<'_>, out: &mut [[f32; LANES]]);
    /// [`add_group`], compiled for this unit.
    ///
    /// # Safety
    /// As there.
    unsafe fn group<const BITS: usize, const TOKENS: usize, const VECTORS: usize>(
        self,
        at: Place,
        out: *mut f32,
    );
}

/// [`crate::packed::arranged::kernel::Int8Kernel::multiply`].
pub(super) fn multiply<U: Int8Unit>(unit: U, panel: Panel<'_>, x: Tokens<'_>, out: &mut [[f32; LANES]]) {
    assert!(out.len() == x.count() && x.fit(panel));
    out.as_flattened_mut().fill(0.0);
    let mut done = 0;
    while done < x.count() {
        let tokens = U::together(x.count() - done);
        let (some, out) = (x.some(done, tokens), &mut out[done..done + tokens]);
        match panel.bits() {
            2 => unit.panel::<2>(panel, some, out),
            3 => unit.panel::<3>(panel, some, out),
            4 => unit.panel::<4>(panel, some, out),
            5 => unit.panel::<5>(panel, some, out),
            6 => unit.panel::<6>(panel, some, out),
            7 => unit.panel::<7>(panel, some, out),
            _ => unit.panel::<8>(panel, some, out),
        }
        done += tokens;
    }
}

/// Adds the products of TOKENS tokens with the panel's lanes to `out`, VECTORS vectors of lanes at a time.
///
/// # Panics
/// When there are not so many tokens, or they were rounded for other groups.
pub(super) fn over_panel<U: Int8Unit, const BITS: usize, const TOKENS: usize, const VECTORS: usize>(
    unit: U,
    panel: Panel<'_>,
    x: Tokens<'_>,
    out: &mut [[f32; LANES]],
) {
    let strip = VECTORS * U::Floats::COUNT;
    assert!(
        LANES.is_multiple_of(strip) && panel.bits() == BITS && x.count() == TOKENS && out.len() == TOKENS
    );
    let out = out.as_flattened_mut().as_mut_ptr();
    for lane in (0..LANES).step_by(strip) {
        for number in 0..panel.groups().len() {
            let at = Place::new(panel, number, lane, x);
            // SAFETY: the strip's lanes are in the panel, there are TOKENS tokens, and `out` has a row for each of them.
            unsafe { unit.group::<BITS, TOKENS, VECTORS>(at, out.add(lane)) };
        }
    }
}

/// Adds the products of TOKENS tokens with VECTORS vectors of lanes over one group to `out`, where tokens are [`LANES`] apart. All sums stay in
/// registers.
///
/// # Safety
/// There are so many tokens and lanes from the place on, and in `out`; a unit of codes has BITS words.
#[inline(always)]
#[expect(
    clippy::needless_range_loop,
    reason = "iterators would put closures between the instructions and their function"
)]
pub(super) unsafe fn add_group<U: Int8Unit, const BITS: usize, const TOKENS: usize, const VECTORS: usize>(
    unit: U,
    at: Place,
    out: *mut f32,
) {
    let floats = unit.floats();
    let count = U::Floats::COUNT;
    let mut products = [[floats.splat(0.0); VECTORS]; TOKENS];
    for number in 0..at.units {
        let mut dots = [[unit.splat(0); VECTORS]; TOKENS];
        // SAFETY: the unit is one of the group's, for all lanes and tokens.
        unsafe {
            let words = at.words.add(number * BITS * LANES);
            if TOKENS <= FEW {
                for line in 0..BITS * VECTORS * count / LINE {
                    floats.prefetch(words.wrapping_add(AHEAD + line * LINE));
                }
            }
            let x_unit = at.codes.add(number * DWORDS);
            for_each_dword!(DWORD => {
                let mut weights = [unit.splat(0); VECTORS];
                for vector in 0..VECTORS {
                    weights[vector] = codes::<U, BITS>(unit, words.add(vector * count), DWORD);
                }
                for token in 0..TOKENS {
                    let x = unit.splat(*x_unit.add(token * at.stride * DWORDS + DWORD));
                    for vector in 0..VECTORS {
                        dots[token][vector] = unit.add_products::<BITS>(dots[token][vector], weights[vector], x);
                    }
                }
            });
            for token in 0..TOKENS {
                let step = floats.splat(*at.steps.add(token * at.stride + number));
                for vector in 0..VECTORS {
                    let dots = unit.to_floats(dots[token][vector]);
                    products[token][vector] = floats.multiply_add(dots, step, products[token][vector]);
                }
            }
        }
    }
    for token in 0..TOKENS {
        for vector in 0..VECTORS {
            let lane = vector * count;
            // SAFETY: the lane starts one of the strip's vectors, and there are a sum and a row for each token.
            unsafe {
                let slice = |from: *const f32| std::slice::from_raw_parts(from, count);
                let below = floats.splat(-*at.sums.add(token * at.groups));
                let zeros = floats.load(slice(at.zero_points.add(lane)));
                let product = floats.multiply_add(zeros, below, products[token][vector]);
                let out = std::slice::from_raw_parts_mut(out.add(token * LANES + lane), count);
                let sum =
                    floats.multiply_add(floats.load(slice(at.scales.add(lane))), product, floats.load(out));
                floats.store(sum, out);
            }
        }
    }
}

/// Tokens so few that the words come from memory more slowly than they are multiplied.
const FEW: usize = 2;
/// How far ahead words are asked for: more than the machine sees coming where a page ends, in words.
const AHEAD: usize = 1024;
/// Words of a line.
const LINE: usize = 16;

/// Four codes of each lane, one to a byte.
///
/// # Safety
/// `words` is word 0 of a unit for as many lanes as a vector has.
#[inline(always)]
unsafe fn codes<U: Int8Unit, const BITS: usize>(unit: U, words: *const u32, dword: usize) -> U::Ints {
    let mut codes = unit.splat(0);
    let mut first_bit = 0;
    while first_bit < BITS {
        let plane = Plane::at(BITS, first_bit);
        let (word, shift) = plane.place(dword);
        // SAFETY: a unit has BITS words, and `word` is one of them.
        let word = unsafe { unit.load(words.add(word * LANES)) };
        let placed = if shift >= first_bit {
            unit.shifted_right(word, shift - first_bit)
        } else {
            unit.shifted_left(word, first_bit - shift)
        };
        codes = unit.or_masked(codes, placed, unit.splat(plane.masks() as i32));
        first_bit += plane.width;
    }
    codes
}
