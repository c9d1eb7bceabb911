//! Q3_K: third bits, pairs of bits, sixteen scales of six bits (less 32), a half-precision number.

use quantizer::levels::Levels;
use quantizer::scheme::{ScaleDtype, Symmetry};

use super::parts::{add_bits, half, pairs, put_bits, put_half, put_pairs};
use super::{BlockLayout, Piece, Q4_0};
use crate::gguf::TensorType;

/// The layout.
pub static Q3_K: BlockLayout = BlockLayout {
    tensor_type: TensorType { id: 11, name: "Q3_K", weights: 256, bytes: 110 },
    bits: 3,
    levels: Levels::Uniform,
    group: 16,
    symmetry: Symmetry::Symmetric,
    scale_dtype: ScaleDtype::Integers { least: -32, most: 31 },
    narrower: Some(&Q4_0),
    pack,
    unpack,
};

fn pack(piece: &Piece, out: &mut [u8]) {
    put_bits(&piece.codes, 2, &mut out[..32]);
    put_pairs(&piece.codes, &mut out[32..96]);
    out[96..108].fill(0);
    for (group, scale) in piece.scales.iter().enumerate() {
        let stored = (scale + 32) as u8;
        out[96 + group % 8] |= (stored & 15) << (4 * (group / 8));
        out[104 + group % 4] |= (stored >> 4 & 3) << (2 * (group / 4));
    }
    put_half(piece.scale, &mut out[108..]);
}

fn unpack(bytes: &[u8], piece: &mut Piece) {
    pairs(&bytes[32..96], &mut piece.codes);
    add_bits(&bytes[..32], 2, &mut piece.codes);
    for (group, scale) in piece.scales.iter_mut().enumerate() {
        let low = bytes[96 + group % 8] >> (4 * (group / 8)) & 15;
        let high = bytes[104 + group % 4] >> (2 * (group / 4)) & 3;
        *scale = i16::from(high << 4 | low) - 32;
    }
    piece.scale = half(&bytes[108..]);
}

#[cfg(test)]
#[test]
fn golden() {
    use super::tests::{meets, piece, super_piece};
    let scales = [-32, -20, -7, -1, 1, 3, 5, 7, 9, 11, 13, 15, 20, 25, 30, 31];
    let codes = piece(&Q3_K, |i| (5 * i + i / 7) % 8).codes;
    let piece = Piece { codes, ..super_piece(&Q3_K, &scales, &[]) };
    let expected = "2ab552ab955aa9d54aad546aa5562ab552ab955aa9d54aad546aa5562ab552ab50a53a4394e90e50a53a4394e90e50a53a4394e90e50a53a4394e90e50a53a433a4394e90e50a53a4394e90e50a53a4394e90e50a53a4394e90e50a53a4394e990bcd9ff4193e5f7e8e8e9e9002c";
    meets(&Q3_K, &piece, expected);
}
