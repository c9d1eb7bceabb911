//! Q2_K: sixteen scales and minimums of four bits, pairs of bits, two half-precision numbers.

use quantizer::levels::Levels;
use quantizer::scheme::{ScaleDtype, Symmetry};

use super::parts::{half, pairs, put_half, put_pairs};
use super::{BlockLayout, Piece, Q4_0};
use crate::gguf::TensorType;

/// The layout.
pub static Q2_K: BlockLayout = BlockLayout {
    tensor_type: TensorType { id: 10, name: "Q2_K", weights: 256, bytes: 84 },
    bits: 2,
    levels: Levels::Uniform,
    group: 16,
    symmetry: Symmetry::Minimum,
    scale_dtype: ScaleDtype::Integers { least: 1, most: 15 },
    narrower: Some(&Q4_0),
    pack,
    unpack,
};

fn pack(piece: &Piece, out: &mut [u8]) {
    for ((byte, scale), minimum) in out[..16].iter_mut().zip(piece.scales).zip(piece.minimums) {
        *byte = scale as u8 & 15 | minimum << 4;
    }
    put_pairs(&piece.codes, &mut out[16..80]);
    put_half(piece.scale, &mut out[80..]);
    put_half(piece.minimum, &mut out[82..]);
}

fn unpack(bytes: &[u8], piece: &mut Piece) {
    for (group, byte) in bytes[..16].iter().enumerate() {
        (piece.scales[group], piece.minimums[group]) = (i16::from(byte & 15), byte >> 4);
    }
    pairs(&bytes[16..80], &mut piece.codes);
    (piece.scale, piece.minimum) = (half(&bytes[80..]), half(&bytes[82..]));
}

#[cfg(test)]
#[test]
fn golden() {
    use super::tests::{meets, piece, super_piece};
    let (scales, minimums): (Vec<i16>, Vec<u8>) =
        (0..16).map(|j| ((3 * j + 1) % 16, ((5 * j + 2) % 16) as u8)).unzip();
    let codes = piece(&Q2_K, |i| (3 * i + i / 5) % 4).codes;
    let piece = Piece { codes, ..super_piece(&Q2_K, &scales, &minimums) };
    let expected = "2174c71a6db00356a9fc4f92e5388bdec88772211cc88772211cc88772211cc88772211cc88772211cc88772211cc887211cc88772211cc88772211cc88772211cc88772211cc88772211cc88772211c002c0028";
    meets(&Q2_K, &piece, expected);
}
