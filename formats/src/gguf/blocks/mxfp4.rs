//! MXFP4: exponent of the scale, nibbles of four-bit floats.

use quantizer::levels::Levels;
use quantizer::scheme::{ScaleDtype, Symmetry};

use super::parts::{nibbles, put_nibbles};
use super::{BlockLayout, Piece};
use crate::gguf::TensorType;

/// The layout.
pub static MXFP4: BlockLayout = BlockLayout {
    tensor_type: TensorType { id: 39, name: "MXFP4", weights: 32, bytes: 17 },
    bits: 4,
    levels: Levels::E2m1,
    group: 32,
    symmetry: Symmetry::Symmetric,
    scale_dtype: ScaleDtype::E8m0,
    narrower: None,
    pack,
    unpack,
};

/// The code of zero: levels ascend, patterns are sign and magnitude.
const ZERO: u8 = 7;

fn pack(piece: &Piece, out: &mut [u8]) {
    // A power of two: its exponent is its bits.
    out[0] = (piece.scale.to_bits() >> 23) as u8;
    let mut patterns = [0; 32];
    for (pattern, &code) in patterns.iter_mut().zip(&piece.codes) {
        *pattern = if code < ZERO { 15 - code } else { code - ZERO };
    }
    put_nibbles(&patterns, &mut out[1..]);
}

fn unpack(bytes: &[u8], piece: &mut Piece) {
    piece.scale = f32::from_bits(u32::from(bytes[0]) << 23);
    nibbles(&bytes[1..], &mut piece.codes[..32]);
    for code in &mut piece.codes[..32] {
        *code = if *code < 8 { *code + ZERO } else { 15 - *code };
    }
}

#[cfg(test)]
#[test]
fn golden() {
    use super::tests::{meets, piece};
    // The patterns of the golden but for the negative zero, which is the code of zero here.
    let pattern = |i: usize| (7 * i + 3) % 16;
    let code = |i: usize| if pattern(i) < 8 { pattern(i) + 7 } else { 15 - pattern(i) };
    let piece = Piece { scale: 0.5, ..piece(&MXFP4, code) };
    meets(&MXFP4, &piece, "7e33aa1100ff66dd44bb22990077ee55cc");
}
