//! What layouts are put together from: half-precision numbers, nibbles, pairs of bits, six-bit scales.

use half::f16;

/// A half-precision number.
pub(super) fn put_half(value: f32, out: &mut [u8]) {
    out[..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// The inverse of [`put_half`].
pub(super) fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// The low four bits of 32 codes: byte `j` holds code `j` in its low half and code `j + 16` in its high half. Longer runs of codes one
/// after the other.
pub(super) fn put_nibbles(codes: &[u8], out: &mut [u8]) {
    split_nibbles(codes, out, 16);
}

/// The inverse of [`put_nibbles`].
pub(super) fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    join_nibbles(bytes, codes, 16);
}

/// [`put_nibbles`] in runs of 64 codes.
pub(super) fn put_wide_nibbles(codes: &[u8], out: &mut [u8]) {
    split_nibbles(codes, out, 32);
}

/// The inverse of [`put_wide_nibbles`].
pub(super) fn wide_nibbles(bytes: &[u8], codes: &mut [u8]) {
    join_nibbles(bytes, codes, 32);
}

fn split_nibbles(codes: &[u8], out: &mut [u8], apart: usize) {
    for (codes, out) in codes.chunks_exact(2 * apart).zip(out.chunks_exact_mut(apart)) {
        let (low, high) = codes.split_at(apart);
        for ((byte, low), high) in out.iter_mut().zip(low).zip(high) {
            *byte = low & 15 | high << 4;
        }
    }
}

fn join_nibbles(bytes: &[u8], codes: &mut [u8], apart: usize) {
    for (codes, bytes) in codes.chunks_exact_mut(2 * apart).zip(bytes.chunks_exact(apart)) {
        let (low, high) = codes.split_at_mut(apart);
        for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
            (*low, *high) = (byte & 15, byte >> 4);
        }
    }
}

/// The fifth bits of 32 codes: bit `j` of four bytes is of code `j`.
pub(super) fn put_fifth_bits(codes: &[u8], out: &mut [u8]) {
    let bits =
        codes.iter().enumerate().fold(0_u32, |bits, (place, code)| bits | u32::from(code >> 4 & 1) << place);
    out[..4].copy_from_slice(&bits.to_le_bytes());
}

/// Adds what [`put_fifth_bits`] wrote.
pub(super) fn add_fifth_bits(bytes: &[u8], codes: &mut [u8]) {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    for (place, code) in codes.iter_mut().enumerate() {
        *code |= ((bits >> place & 1) as u8) << 4;
    }
}

/// The low two bits of 256 codes in 64 bytes: of each half, byte `r` holds codes `r`, `r + 32`, `r + 64`, `r + 96`, from the lowest bits on.
pub(super) fn put_pairs(codes: &[u8], out: &mut [u8]) {
    for (codes, out) in codes.chunks_exact(128).zip(out.chunks_exact_mut(32)) {
        for (place, byte) in out.iter_mut().enumerate() {
            *byte = (0..4).fold(0, |bits, part| bits | (codes[32 * part + place] & 3) << (2 * part));
        }
    }
}

/// The inverse of [`put_pairs`].
pub(super) fn pairs(bytes: &[u8], codes: &mut [u8]) {
    for (codes, bytes) in codes.chunks_exact_mut(128).zip(bytes.chunks_exact(32)) {
        for (place, code) in codes.iter_mut().enumerate() {
            *code = bytes[place % 32] >> (2 * (place / 32)) & 3;
        }
    }
}

/// One bit of each of 256 codes in 32 bytes: bit `i / 32` of byte `i mod 32` is of code `i`.
pub(super) fn put_bits(codes: &[u8], bit: u8, out: &mut [u8]) {
    for (place, byte) in out[..32].iter_mut().enumerate() {
        *byte = (0..8).fold(0, |bits, part| bits | (codes[32 * part + place] >> bit & 1) << part);
    }
}

/// Adds what [`put_bits`] wrote.
pub(super) fn add_bits(bytes: &[u8], bit: u8, codes: &mut [u8]) {
    for (place, code) in codes.iter_mut().enumerate() {
        *code |= (bytes[place % 32] >> (place / 32) & 1) << bit;
    }
}

/// Eight scales and eight minimums of six bits in twelve bytes.
pub(super) fn put_sixes(scales: &[i16], minimums: &[u8], out: &mut [u8]) {
    for place in 0..4 {
        let (scale, later) = (scales[place] as u8, scales[place + 4] as u8);
        out[place] = scale & 63 | later >> 4 << 6;
        out[place + 4] = minimums[place] & 63 | minimums[place + 4] >> 4 << 6;
        out[place + 8] = later & 15 | minimums[place + 4] << 4;
    }
}

/// The inverse of [`put_sixes`].
pub(super) fn sixes(bytes: &[u8], scales: &mut [i16], minimums: &mut [u8]) {
    for place in 0..4 {
        scales[place] = i16::from(bytes[place] & 63);
        minimums[place] = bytes[place + 4] & 63;
        scales[place + 4] = i16::from(bytes[place + 8] & 15 | bytes[place] >> 6 << 4);
        minimums[place + 4] = bytes[place + 8] >> 4 | bytes[place + 4] >> 6 << 4;
    }
}
