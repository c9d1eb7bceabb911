//! Q8_0: scale, signed bytes.

use quantizer::levels::Levels;
use quantizer::scheme::{ScaleDtype, Symmetry};

use super::parts::{half, put_half};
use super::{BlockLayout, Piece};
use crate::gguf::TensorType;

/// The layout.
pub static Q8_0: BlockLayout = BlockLayout {
    tensor_type: TensorType { id: 8, name: "Q8_0", weights: 32, bytes: 34 },
    bits: 8,
    levels: Levels::Uniform,
    group: 32,
    symmetry: Symmetry::Symmetric,
    scale_dtype: ScaleDtype::F16,
    narrower: None,
    pack,
    unpack,
};

/// A code less 128, as a signed byte, is the code with its highest bit turned around.
const SIGN: u8 = 0x80;

fn pack(piece: &Piece, out: &mut [u8]) {
    put_half(piece.scale, out);
    out[2..].iter_mut().zip(&piece.codes).for_each(|(byte, code)| *byte = code ^ SIGN);
}

fn unpack(bytes: &[u8], piece: &mut Piece) {
    piece.scale = half(bytes);
    piece.codes.iter_mut().zip(&bytes[2..]).for_each(|(code, byte)| *code = byte ^ SIGN);
}

#[cfg(test)]
#[test]
fn golden() {
    use super::tests::{HALF, meets, piece};
    let piece = Piece { scale: HALF, ..piece(&Q8_0, |i| 37 * i % 255 + 1) };
    meets(&Q8_0, &piece, "003881a6cbf0153a5f85aacff4193e6389aed3f81d42678db2d7fc21466b91b6db00");
}
