//! IQ4_XS: a half-precision number, eight scales of six bits (less 32), nibbles in runs of 32.

use quantizer::levels::Levels;
use quantizer::scheme::{ScaleDtype, Symmetry};

use super::parts::{half, nibbles, put_half, put_nibbles};
use super::{BlockLayout, IQ4_NL, Piece};
use crate::gguf::TensorType;

/// The layout.
pub static IQ4_XS: BlockLayout = BlockLayout {
    tensor_type: TensorType { id: 23, name: "IQ4_XS", weights: 256, bytes: 136 },
    bits: 4,
    levels: Levels::Iq4,
    group: 32,
    symmetry: Symmetry::Symmetric,
    scale_dtype: ScaleDtype::Integers { least: -32, most: 31 },
    narrower: Some(&IQ4_NL),
    pack,
    unpack,
};

fn pack(piece: &Piece, out: &mut [u8]) {
    put_half(piece.scale, out);
    out[2..8].fill(0);
    for (group, scale) in piece.scales[..8].iter().enumerate() {
        let stored = (scale + 32) as u8;
        out[2 + group / 4] |= (stored >> 4 & 3) << (2 * (group % 4));
        out[4 + group / 2] |= (stored & 15) << (4 * (group % 2));
    }
    put_nibbles(&piece.codes, &mut out[8..]);
}

fn unpack(bytes: &[u8], piece: &mut Piece) {
    piece.scale = half(bytes);
    for (group, scale) in piece.scales[..8].iter_mut().enumerate() {
        let high = bytes[2 + group / 4] >> (2 * (group % 4)) & 3;
        let low = bytes[4 + group / 2] >> (4 * (group % 2)) & 15;
        *scale = i16::from(high << 4 | low) - 32;
    }
    nibbles(&bytes[8..], &mut piece.codes);
}

#[cfg(test)]
#[test]
fn golden() {
    use super::tests::{meets, super_piece};
    let piece = super_piece(&IQ4_XS, &[0, 9, 18, 27, 36, 45, 54, 63].map(|stored| stored - 32), &[]);
    meets(&IQ4_XS, &piece, &format!("002c50fa90b2d4f6{}", "33aa1188ff66dd44bb22990077ee55cc".repeat(8)));
}
