//! Streams of codes: any width, least significant bit first, without gaps, over 32-bit words.
//!
//! Code `i` takes bits `i * bits .. (i + 1) * bits` of its stream; stream bit `p` is bit `p mod 32` of word `p div 32`. The last word is
//! padded with zeros. GPTQ, compressed-tensors, MLX and MatMulNBits all store this stream and differ only in how streams lie side by side.

use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

/// Words that `codes` codes of `bits` bits take.
#[must_use]
pub fn words_for(codes: usize, bits: u8) -> usize {
    (codes * usize::from(bits)).div_ceil(32)
}

/// Packs one stream. Codes must fit in `bits`; higher bits would run into the next code.
///
/// # Panics
/// When `words` is not [`words_for`] long.
pub fn pack(codes: impl IntoIterator<Item = u8>, bits: u8, words: &mut [u32]) {
    let mut pending = 0_u64;
    let mut held = 0_u32;
    let mut next = words.iter_mut();
    for code in codes {
        pending |= u64::from(code) << held;
        held += u32::from(bits);
        if held >= 32 {
            *next.next().expect("as many words as the codes take") = pending as u32;
            pending >>= 32;
            held -= 32;
        }
    }
    if held > 0 {
        *next.next().expect("as many words as the codes take") = pending as u32;
    }
    assert!(next.next().is_none(), "no more words than the codes take");
}

/// Unpacks one stream into as many codes as `codes` holds.
///
/// # Panics
/// When `words` gives fewer codes.
pub fn unpack(words: impl IntoIterator<Item = u32>, bits: u8, codes: &mut [u8]) {
    let mask = (1_u64 << bits) - 1;
    let mut pending = 0_u64;
    let mut held = 0_u32;
    let mut next = words.into_iter();
    for code in codes {
        if held < u32::from(bits) {
            pending |= u64::from(next.next().expect("as many words as the codes take")) << held;
            held += 32;
        }
        *code = (pending & mask) as u8;
        pending >>= bits;
        held -= u32::from(bits);
    }
}

/// Packs each row: `[rows, columns]` codes to `[rows, words]`.
#[must_use]
pub fn pack_rows(codes: ArrayView2<'_, u8>, bits: u8) -> Array2<u32> {
    let mut words = Array2::zeros((codes.nrows(), words_for(codes.ncols(), bits)));
    words.axis_iter_mut(Axis(0)).into_par_iter().zip(codes.axis_iter(Axis(0))).for_each(
        |(mut words, codes)| {
            pack(
                codes.iter().copied(),
                bits,
                words.as_slice_mut().expect("rows of a new matrix are contiguous"),
            );
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
    let mut codes = Array2::zeros((words.nrows(), columns));
    codes.axis_iter_mut(Axis(0)).into_par_iter().zip(words.axis_iter(Axis(0))).for_each(
        |(mut codes, words)| {
            unpack(
                words.iter().copied(),
                bits,
                codes.as_slice_mut().expect("rows of a new matrix are contiguous"),
            );
        },
    );
    codes
}

/// Words as the little-endian bytes of a tensor, in row order.
#[must_use]
pub fn to_bytes(words: ArrayView2<'_, u32>) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Words from the little-endian bytes of a tensor; a partial word at the end is dropped.
#[must_use]
pub fn from_bytes(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(codes: &[u8], bits: u8) -> Vec<u32> {
        let mut words = vec![0; words_for(codes.len(), bits)];
        pack(codes.iter().copied(), bits, &mut words);
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
                unpack(packed(&codes, bits), bits, &mut back);
                assert_eq!(back, codes, "{bits} bits, {count} codes");
            }
        }
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
