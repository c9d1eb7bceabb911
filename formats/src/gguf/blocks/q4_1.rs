//! Q4_1: scale, minimum, nibbles.

use quantizer::levels::Levels;
use quantizer::scheme::{ScaleDtype, Symmetry};

use super::parts::{half, nibbles, put_half, put_nibbles};
use super::{BlockLayout, Piece};
use crate::gguf::TensorType;

/// The layout.
pub static Q4_1: BlockLayout = BlockLayout {
    tensor_type: TensorType { id: 3, name: "Q4_1", weights: 32, bytes: 20 },
    bits: 4,
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
    put_nibbles(&piece.codes[..32], &mut out[4..]);
}

fn unpack(bytes: &[u8], piece: &mut Piece) {
    (piece.scale, piece.minimum) = (half(bytes), half(&bytes[2..]));
    nibbles(&bytes[4..], &mut piece.codes[..32]);
}

#[cfg(test)]
#[test]
fn golden() {
    use super::tests::{HALF, MINIMUM, meets, piece};
    let piece = Piece { scale: HALF, minimum: MINIMUM, ..piece(&Q4_1, |i| (7 * i + 3) % 16) };
    meets(&Q4_1, &piece, "003800bd33aa1188ff66dd44bb22990077ee55cc");
}
