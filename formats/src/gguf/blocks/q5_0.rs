//! Q5_0: scale, fifth bits, nibbles.

use quantizer::levels::Levels;
use quantizer::scheme::{ScaleDtype, Symmetry};

use super::parts::{add_fifth_bits, half, nibbles, put_fifth_bits, put_half, put_nibbles};
use super::{BlockLayout, Piece};
use crate::gguf::TensorType;

/// The layout.
pub static Q5_0: BlockLayout = BlockLayout {
    tensor_type: TensorType { id: 6, name: "Q5_0", weights: 32, bytes: 22 },
    bits: 5,
    levels: Levels::Uniform,
    group: 32,
    symmetry: Symmetry::Symmetric,
    scale_dtype: ScaleDtype::F16,
    narrower: None,
    pack,
    unpack,
};

fn pack(piece: &Piece, out: &mut [u8]) {
    put_half(piece.scale, out);
    put_fifth_bits(&piece.codes[..32], &mut out[2..]);
    put_nibbles(&piece.codes[..32], &mut out[6..]);
}

fn unpack(bytes: &[u8], piece: &mut Piece) {
    piece.scale = half(bytes);
    nibbles(&bytes[6..], &mut piece.codes[..32]);
    add_fifth_bits(&bytes[2..], &mut piece.codes[..32]);
}

#[cfg(test)]
#[test]
fn golden() {
    use super::tests::{HALF, meets, piece};
    let piece = Piece { scale: HALF, ..piece(&Q5_0, |i| (7 * i + 3) % 32) };
    meets(&Q5_0, &piece, "00389c3963c633aa1188ff66dd44bb22990077ee55cc");
}
