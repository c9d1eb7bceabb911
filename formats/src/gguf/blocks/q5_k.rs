//! Q5_K: two half-precision numbers, eight scales and minimums of six bits, fifth bits, nibbles in runs of 64.

use quantizer::levels::Levels;
use quantizer::scheme::{ScaleDtype, Symmetry};

use super::parts::{add_bits, half, put_bits, put_half, put_sixes, put_wide_nibbles, sixes, wide_nibbles};
use super::{BlockLayout, Piece, Q5_1};
use crate::gguf::TensorType;

/// The layout.
pub static Q5_K: BlockLayout = BlockLayout {
    tensor_type: TensorType { id: 13, name: "Q5_K", weights: 256, bytes: 176 },
    bits: 5,
    levels: Levels::Uniform,
    group: 32,
    symmetry: Symmetry::Minimum,
    scale_dtype: ScaleDtype::Integers { least: 1, most: 63 },
    narrower: Some(&Q5_1),
    pack,
    unpack,
};

fn pack(piece: &Piece, out: &mut [u8]) {
    put_half(piece.scale, out);
    put_half(piece.minimum, &mut out[2..]);
    put_sixes(&piece.scales, &piece.minimums, &mut out[4..16]);
    put_bits(&piece.codes, 4, &mut out[16..48]);
    put_wide_nibbles(&piece.codes, &mut out[48..]);
}

fn unpack(bytes: &[u8], piece: &mut Piece) {
    (piece.scale, piece.minimum) = (half(bytes), half(&bytes[2..]));
    sixes(&bytes[4..16], &mut piece.scales, &mut piece.minimums);
    wide_nibbles(&bytes[48..], &mut piece.codes);
    add_bits(&bytes[16..48], 4, &mut piece.codes);
}

#[cfg(test)]
#[test]
fn golden() {
    use super::tests::{meets, super_piece};
    let piece = super_piece(&Q5_K, &[1, 9, 17, 25, 33, 41, 49, 63], &[2, 10, 18, 26, 34, 42, 50, 61]);
    let high = "0000ffffff0000ffff0000ffffff0000ffff000000ffff0000ffff000000ffff";
    meets(
        &Q5_K,
        &piece,
        &format!("002c00288189d1d9828ad2da21a921df{high}{}", "33aa1188ff66dd44bb22990077ee55cc".repeat(8)),
    );
}
