//! IQ4_NL: as Q4_0, of levels that lie closer around zero.

use quantizer::levels::Levels;
use quantizer::scheme::{ScaleDtype, Symmetry};

use super::BlockLayout;
use super::q4_0::{pack, unpack};
use crate::gguf::TensorType;

/// The layout.
pub static IQ4_NL: BlockLayout = BlockLayout {
    tensor_type: TensorType { id: 20, name: "IQ4_NL", weights: 32, bytes: 18 },
    bits: 4,
    levels: Levels::Iq4,
    group: 32,
    symmetry: Symmetry::Symmetric,
    scale_dtype: ScaleDtype::F16,
    narrower: None,
    pack,
    unpack,
};

#[cfg(test)]
#[test]
fn golden() {
    use super::tests::{HALF, meets, piece};
    let piece = super::Piece { scale: HALF, ..piece(&IQ4_NL, |i| (7 * i + 3) % 16) };
    meets(&IQ4_NL, &piece, "003833aa1188ff66dd44bb22990077ee55cc");
}
