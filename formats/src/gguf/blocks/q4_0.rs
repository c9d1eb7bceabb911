//! Q4_0: scale, nibbles.

use quantizer::levels::Levels;
use quantizer::scheme::{ScaleDtype, Symmetry};

use super::parts::{half, nibbles, put_half, put_nibbles};
use super::{BlockLayout, Piece};
use crate::gguf::TensorType;

/// The layout.
pub static Q4_0: BlockLayout = BlockLayout {
    tensor_type: TensorType { id: 2, name: "Q4_0", weights: 32, bytes: 18 },
    bits: 4,
    levels: Levels::Uniform,
    group: 32,
    symmetry: Symmetry::Symmetric,
    scale_dtype: ScaleDtype::F16,
    narrower: None,
    pack,
    unpack,
};

pub(super) fn pack(piece: &Piece, out: &mut [u8]) {
    put_half(piece.scale, out);
    put_nibbles(&piece.codes[..32], &mut out[2..]);
}

pub(super) fn unpack(bytes: &[u8], piece: &mut Piece) {
    piece.scale = half(bytes);
    nibbles(&bytes[2..], &mut piece.codes[..32]);
}

#[cfg(test)]
#[test]
fn golden() {
    use super::tests::{HALF, meets, piece};
    let piece = Piece { scale: HALF, ..piece(&Q4_0, |i| (7 * i + 3) % 16) };
    meets(&Q4_0, &piece, "003833aa1188ff66dd44bb22990077ee55cc");
}
