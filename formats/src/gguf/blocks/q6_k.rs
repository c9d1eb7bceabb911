//! Q6_K: low four bits, high two bits, sixteen signed scales, a half-precision number.

use quantizer::levels::Levels;
use quantizer::scheme::{ScaleDtype, Symmetry};

use super::parts::{half, put_half};
use super::{BlockLayout, Piece, Q8_0};
use crate::gguf::TensorType;

/// The layout.
pub static Q6_K: BlockLayout = BlockLayout {
    tensor_type: TensorType { id: 14, name: "Q6_K", weights: 256, bytes: 210 },
    bits: 6,
    levels: Levels::Uniform,
    group: 16,
    symmetry: Symmetry::Symmetric,
    scale_dtype: ScaleDtype::Integers { least: -128, most: 127 },
    narrower: Some(&Q8_0),
    pack,
    unpack,
};

/// Where weight `i`'s low bits are (byte, shift), and its high bits: of each half, four runs of 32 share bytes.
fn places(i: usize) -> ((usize, u8), (usize, u8)) {
    let (part, run, place) = (i / 128, i % 128 / 32, i % 32);
    ((64 * part + place + 32 * (run % 2), 4 * (run / 2) as u8), (128 + 32 * part + place, 2 * run as u8))
}

fn pack(piece: &Piece, out: &mut [u8]) {
    out[..192].fill(0);
    for (i, code) in piece.codes.iter().enumerate() {
        let ((low, low_shift), (high, high_shift)) = places(i);
        out[low] |= (code & 15) << low_shift;
        out[high] |= (code >> 4 & 3) << high_shift;
    }
    out[192..208].iter_mut().zip(piece.scales).for_each(|(byte, scale)| *byte = scale as u8);
    put_half(piece.scale, &mut out[208..]);
}

fn unpack(bytes: &[u8], piece: &mut Piece) {
    for (i, code) in piece.codes.iter_mut().enumerate() {
        let ((low, low_shift), (high, high_shift)) = places(i);
        *code = bytes[low] >> low_shift & 15 | (bytes[high] >> high_shift & 3) << 4;
    }
    piece.scales.iter_mut().zip(&bytes[192..208]).for_each(|(scale, byte)| *scale = i16::from(*byte as i8));
    piece.scale = half(&bytes[208..]);
}

#[cfg(test)]
#[test]
fn golden() {
    use super::tests::{meets, piece, super_piece};
    let scales = [-128, -100, -50, -20, -5, -1, 1, 2, 3, 10, 20, 40, 60, 80, 100, 127];
    let codes = piece(&Q6_K, |i| (11 * i + i / 9) % 64).codes;
    let piece = Piece { codes, ..super_piece(&Q6_K, &scales, &[]) };
    let expected = "702bd6813ce7924d08b46f1ac5702bd6814cf8a35e09b46f1ac5803ce7924df8a35e09c4702bd6813ce7924d08b46f1ac5702bd6814cf8a35e09b46f1ac5803c5e09b46f1ac5803ce7924df8a35e09c4702bd6813ce7924d08b46f1ac5702bd6814cf8a35e09b46f1ac5803ce7924df8a35e09c4702bd6813ce7924d08b46f1a88d81d2276b788dc2d227687c8dd2d62778bc8dd2172778bd81d2272b788dc1ddc2d227687c8dd2d62778bc8dd21727788d81d2276b788dc2d227687c8dd2d62809cceecfbff0102030a14283c50647f002c";
    meets(&Q6_K, &piece, expected);
}
