//! Streams of codes: any width, least significant bit first, without gaps, over 32-bit words.
//!
//! Code `i` takes bits `i * bits .. (i + 1) * bits` of its stream; stream bit `p` is bit `p mod 32` of word `p div 32`. The last word is
//! padded with zeros. GPTQ, compressed-tensors, MLX and MatMulNBits all store this stream and differ only in how streams lie side by side.

//!
//! Eight codes in the bytes of a 64-bit word are squeezed together in three steps of shifts and masks: neighbours, then pairs, then
//! fours. Thirty-two codes fill whole words at every width, so longer streams are packed thirty-two codes at a time.

use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

/// Codes that fill whole words at every width.
const RUN: usize = 32;

/// Words that `codes` codes of `bits` bits take.
#[must_use]
pub fn words_for(codes: usize, bits: u8) -> usize {
    (codes * usize::from(bits)).div_ceil(32)
}

/// Packs one stream. Codes must fit in `bits`, which is 1 to 8; higher bits would run into the next code.
///
/// # Panics
/// When `words` is not [`words_for`] long, or for another width.
pub fn pack(codes: &[u8], bits: u8, words: &mut [u32]) {
    assert_eq!(words.len(), words_for(codes.len(), bits), "as many words as the codes take");
    match bits {
        1 => pack_width::<1>(codes, words),
        2 => pack_width::<2>(codes, words),
        3 => pack_width::<3>(codes, words),
        4 => pack_width::<4>(codes, words),
        5 => pack_width::<5>(codes, words),
        6 => pack_width::<6>(codes, words),
        7 => pack_width::<7>(codes, words),
        8 => pack_width::<8>(codes, words),
        _ => panic!("codes have 1 to 8 bits, not {bits}"),
    }
}

/// Unpacks one stream into as many codes as `codes` holds.
///
/// # Panics
/// When `words` is not [`words_for`] long, or for a width outside of 1 to 8.
pub fn unpack(words: &[u32], bits: u8, codes: &mut [u8]) {
    assert_eq!(words.len(), words_for(codes.len(), bits), "as many words as the codes take");
    match bits {
        1 => unpack_width::<1>(words, codes),
        2 => unpack_width::<2>(words, codes),
        3 => unpack_width::<3>(words, codes),
        4 => unpack_width::<4>(words, codes),
        5 => unpack_width::<5>(words, codes),
        6 => unpack_width::<6>(words, codes),
        7 => unpack_width::<7>(words, codes),
        8 => unpack_width::<8>(words, codes),
        _ => panic!("codes have 1 to 8 bits, not {bits}"),
    }
}

/// The bits after the last code of a stream that is [`words_for`] `codes` long: zero in every stream that [`pack`] wrote.
#[must_use]
pub fn padding(last_word: u32, codes: usize, bits: u8) -> u32 {
    match codes * usize::from(bits) % 32 {
        0 => 0,
        used => last_word >> used,
    }
}

fn pack_width<const BITS: usize>(codes: &[u8], words: &mut [u32]) {
    let (runs, rest) = codes.as_chunks::<RUN>();
    let (whole, last) = words.split_at_mut(runs.len() * BITS);
    for (codes, words) in runs.iter().zip(whole.chunks_exact_mut(BITS)) {
        pack_run::<BITS>(codes, words);
    }
    if !rest.is_empty() {
        let mut codes = [0; RUN];
        codes[..rest.len()].copy_from_slice(rest);
        let mut words = [0; 8];
        pack_run::<BITS>(&codes, &mut words[..BITS]);
        last.copy_from_slice(&words[..last.len()]);
    }
}

fn pack_run<const BITS: usize>(codes: &[u8; RUN], words: &mut [u32]) {
    let mut bytes = [0; RUN];
    for (number, codes) in codes.as_chunks::<8>().0.iter().enumerate() {
        // The bytes beyond the eight codes are zero, and the next eight overwrite them.
        let squeezed = squeeze::<BITS>(u64::from_le_bytes(*codes));
        bytes[number * BITS..number * BITS + 8].copy_from_slice(&squeezed.to_le_bytes());
    }
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
}

fn unpack_width<const BITS: usize>(words: &[u32], codes: &mut [u8]) {
    let (runs, rest) = codes.as_chunks_mut::<RUN>();
    let (whole, last) = words.split_at(runs.len() * BITS);
    for (codes, words) in runs.iter_mut().zip(whole.chunks_exact(BITS)) {
        unpack_run::<BITS>(words, codes);
    }
    if !rest.is_empty() {
        let mut codes = [0; RUN];
        unpack_run::<BITS>(last, &mut codes);
        rest.copy_from_slice(&codes[..rest.len()]);
    }
}

fn unpack_run<const BITS: usize>(words: &[u32], codes: &mut [u8; RUN]) {
    let mut bytes = [0; RUN];
    for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    for (number, codes) in codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let mut squeezed = [0; 8];
        squeezed.copy_from_slice(&bytes[number * BITS..number * BITS + 8]);
        *codes = spread::<BITS>(u64::from_le_bytes(squeezed)).to_le_bytes();
    }
}

/// Eight codes, one in each byte, to the lowest `8 * BITS` bits.
fn squeeze<const BITS: usize>(codes: u64) -> u64 {
    let (even, odd) = (codes & EVEN_BYTES, codes >> 8 & EVEN_BYTES);
    let pairs = even | odd << BITS;
    let (even, odd) = (pairs & EVEN_PAIRS, pairs >> 16 & EVEN_PAIRS);
    let fours = even | odd << (2 * BITS);
    fours & u64::from(u32::MAX) | fours >> 32 << (4 * BITS)
}

/// The inverse of [`squeeze`]; bits above the lowest `8 * BITS` are ignored.
fn spread<const BITS: usize>(squeezed: u64) -> u64 {
    let mask = |bits: usize| (1_u64 << bits) - 1;
    let four = mask(4 * BITS);
    let fours = squeezed & four | (squeezed >> (4 * BITS) & four) << 32;
    let pair = mask(2 * BITS) * 0x1_0000_0001;
    let pairs = fours & pair | (fours >> (2 * BITS) & pair) << 16;
    let code = mask(BITS) * 0x1_0001_0001_0001;
    pairs & code | (pairs >> BITS & code) << 8
}

const EVEN_BYTES: u64 = 0x00FF_00FF_00FF_00FF;
const EVEN_PAIRS: u64 = 0x0000_FFFF_0000_FFFF;

/// Packs each row: `[rows, columns]` codes to `[rows, words]`.
#[must_use]
pub fn pack_rows(codes: ArrayView2<'_, u8>, bits: u8) -> Array2<u32> {
    let codes = codes.as_standard_layout();
    let mut words = Array2::zeros((codes.nrows(), words_for(codes.ncols(), bits)));
    words.axis_iter_mut(Axis(0)).into_par_iter().zip(codes.axis_iter(Axis(0))).for_each(
        |(mut words, codes)| {
            let codes = codes.to_slice().expect("rows of a standard layout are contiguous");
            pack(codes, bits, words.as_slice_mut().expect("rows of a new matrix are contiguous"));
        },
    );
    words
}

/// Unpacks each row: `[rows, words]` to `[rows, columns]` codes.
///
/// # Panics
/// When the words are not [`words_for`] `columns` a row.
#[must_use]
pub fn unpack_rows(words: ArrayView2<'_, u32>, bits: u8, columns: usize) -> Array2<u8> {
    assert_eq!(words.ncols(), words_for(columns, bits), "words of a row");
    let words = words.as_standard_layout();
    let mut codes = Array2::zeros((words.nrows(), columns));
    codes.axis_iter_mut(Axis(0)).into_par_iter().zip(words.axis_iter(Axis(0))).for_each(
        |(mut codes, words)| {
            let words = words.to_slice().expect("rows of a standard layout are contiguous");
            unpack(words, bits, codes.as_slice_mut().expect("rows of a new matrix are contiguous"));
        },
    );
    codes
}

/// `[rows, columns]` to `[columns, rows]` in memory, tile by tile: a column walked as a whole would miss the cache at every step.
#[must_use]
pub fn transposed(words: ArrayView2<'_, u32>) -> Array2<u32> {
    const TILE: usize = 32;
    let mut out = Array2::zeros((words.ncols(), words.nrows()));
    out.axis_chunks_iter_mut(Axis(0), TILE)
        .into_par_iter()
        .zip(words.axis_chunks_iter(Axis(1), TILE))
        .for_each(|(mut out, words)| {
            for (mut out, words) in
                out.axis_chunks_iter_mut(Axis(1), TILE).zip(words.axis_chunks_iter(Axis(0), TILE))
            {
                out.assign(&words.t());
            }
        });
    out
}

/// Words as the little-endian bytes of a tensor, in row order.
#[must_use]
pub fn to_bytes(words: ArrayView2<'_, u32>) -> Vec<u8> {
    let words = words.as_standard_layout();
    let mut bytes = vec![0; 4 * words.len()];
    for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(&words) {
        *bytes = word.to_le_bytes();
    }
    bytes
}

/// Words from the little-endian bytes of a tensor; a partial word at the end is dropped.
#[must_use]
pub fn from_bytes(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(codes: &[u8], bits: u8) -> Vec<u32> {
        let mut words = vec![0; words_for(codes.len(), bits)];
        pack(codes, bits, &mut words);
        words
    }

    /// Codes of the goldens: `(5 i + 3) mod 2^bits`.
    fn sequence(bits: u8, count: usize) -> Vec<u8> {
        (0..count).map(|i| ((5 * i + 3) % (1 << bits)) as u8).collect()
    }

    #[test]
    fn streams_meet_the_words_of_the_reference_implementations() {
        // compressed-tensors 0.20 pack_to_int32 and GPTQModel, 2026-11.
        let goldens: [(u8, &[u32]); 7] = [
            (2, &[0x9393_9393, 0x9393_9393]),
            (3, &[0x43C6_7543, 0x7543_C675, 0xC675_43C6]),
            (4, &[0x61C7_2D83, 0xE94F_A50B, 0x61C7_2D83, 0xE94F_A50B]),
            (5, &[0x7979_3503, 0xFD56_0B30, 0x7713_7249, 0x1BB4_5871, 0xF668_F514]),
            (6, &[0x1748_D203, 0x5C2B_9A17, 0x3891_3FEB, 0x2789_D613, 0x503B_DB1B, 0x7995_0F28]),
            (7, &[0x7243_4403, 0x2B4C_84E1, 0x23F7_4D58, 0x6C53_9D26, 0xC766_7C57, 0x4140_7BED, 0x3C64_A0F1]),
            (
                8,
                &[
                    0x120D_0803,
                    0x2621_1C17,
                    0x3A35_302B,
                    0x4E49_443F,
                    0x625D_5853,
                    0x7671_6C67,
                    0x8A85_807B,
                    0x9E99_948F,
                ],
            ),
        ];
        for (bits, words) in goldens {
            assert_eq!(packed(&sequence(bits, 32), bits), words, "{bits} bits");
        }
        assert_eq!(packed(&sequence(3, 40), 3), [0x43C6_7543, 0x7543_C675, 0xC675_43C6, 0x00C6_7543]);
        assert_eq!(packed(&[1, 8, 15, 6, 13, 4, 11, 2], 4), [0x2B4D_6F81]);
    }

    #[test]
    fn unpacking_returns_what_was_packed_for_every_width_and_length() {
        for bits in 1..=8 {
            for count in 0..200 {
                let codes: Vec<u8> = (0..count).map(|i| ((i * 37 + i / 3) % (1 << bits)) as u8).collect();
                let mut back = vec![0; count];
                unpack(&packed(&codes, bits), bits, &mut back);
                assert_eq!(back, codes, "{bits} bits, {count} codes");
            }
        }
    }

    #[test]
    fn a_stream_is_its_codes_bit_by_bit() {
        for bits in 1..=8_u8 {
            for count in [1, 7, 31, 32, 33, 100] {
                let codes: Vec<u8> = (0..count).map(|i| ((i * 91 + i / 5) % (1 << bits)) as u8).collect();
                let words = packed(&codes, bits);
                for (i, code) in codes.iter().enumerate() {
                    for bit in 0..usize::from(bits) {
                        let place = i * usize::from(bits) + bit;
                        assert_eq!(words[place / 32] >> (place % 32) & 1, u32::from(code >> bit & 1));
                    }
                }
                assert_eq!(padding(words[words.len() - 1], count, bits), 0);
            }
        }
        assert_eq!(padding(0x80, 1, 7), 1);
        assert_eq!(padding(u32::MAX, 4, 8), 0);
    }

    #[test]
    fn transposing_moves_every_word() {
        let words = Array2::from_shape_fn((37, 65), |(row, column)| (row * 100 + column) as u32);
        assert_eq!(transposed(words.view()), words.t());
        assert_eq!(to_bytes(words.t()), to_bytes(transposed(words.view()).view()));
    }

    #[test]
    fn rows_are_streams_of_their_own() {
        let codes = Array2::from_shape_fn((5, 43), |(row, column)| ((row * 7 + column * 3) % 8) as u8);
        let words = pack_rows(codes.view(), 3);
        assert_eq!(words.row(2).to_vec(), packed(&codes.row(2).to_vec(), 3));
        assert_eq!(unpack_rows(words.view(), 3, 43), codes);
        assert_eq!(from_bytes(&to_bytes(words.view())), words.iter().copied().collect::<Vec<_>>());
    }
}
