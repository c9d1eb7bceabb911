//! Q5_1: scale, minimum, fifth bits, nibbles.

use quantizer::levels::Levels;
use quantizer::scheme::{ScaleDtype, Symmetry};

use super::parts::{add_fifth_bits, half, nibbles, put_fifth_bits, put_half, put_nibbles};
use super::{BlockLayout, Piece};
use crate::gguf::TensorType;

/// The layout.
pub static Q5_1: BlockLayout = BlockLayout {
    tensor_type: TensorType { id: 7, name: "Q5_1", weights: 32, bytes: 24 },
    bits: 5,
    levels: Levels::Uniform,
    group: 32,
    symmetry: Symmetry::Minimum,
    scale_dtype: ScaleDtype::F16,
    narrower: None,
    pack,
    unpack,
};

fn pack(piece: &Piece, out: &mut [u8]) {
    put_half(piece.scale, out);
    put_half(piece.minimum, &mut out[2..]);
    put_fifth_bits(&piece.codes[..32], &mut out[4..]);
    put_nibbles(&piece.codes[..32], &mut out[8..]);
}

fn unpack(bytes: &[u8], piece: &mut Piece) {
    (piece.scale, piece.minimum) = (half(bytes), half(&bytes[2..]));
    nibbles(&bytes[8..], &mut piece.codes[..32]);
    add_fifth_bits(&bytes[4..], &mut piece.codes[..32]);
}

#[cfg(test)]
#[test]
fn golden() {
    use super::tests::{HALF, MINIMUM, meets, piece};
    let piece = Piece { scale: HALF, minimum: MINIMUM, ..piece(&Q5_1, |i| (7 * i + 3) % 32) };
    meets(&Q5_1, &piece, "003800bd9c3963c633aa1188ff66dd44bb22990077ee55cc");
}
