//! Layouts of packed weights: one file each, with its golden; one line in the registry.
//!
//! A piece is 32 or 256 weights of a row with what they are scaled by. A layout is how a piece lies in bytes; which values it can hold is
//! its grid, and solvers solve on that.

mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod parts;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod rows;

use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};

use super::TensorType;

pub use iq4_nl::IQ4_NL;
pub use iq4_xs::IQ4_XS;
pub use mxfp4::MXFP4;
pub use q2_k::Q2_K;
pub use q3_k::Q3_K;
pub use q4_0::Q4_0;
pub use q4_1::Q4_1;
pub use q4_k::Q4_K;
pub use q5_0::Q5_0;
pub use q5_1::Q5_1;
pub use q5_k::Q5_K;
pub use q6_k::Q6_K;
pub use q8_0::Q8_0;
pub use rows::DecodedRows;

/// Weights of the largest piece.
pub const MOST_WEIGHTS: usize = 256;
/// Groups of the piece with most.
pub const MOST_GROUPS: usize = 16;

/// Every layout that is read and written.
pub static ALL: [&BlockLayout; 13] =
    [&Q8_0, &Q6_K, &Q5_K, &Q5_1, &Q5_0, &Q4_K, &Q4_1, &Q4_0, &IQ4_XS, &IQ4_NL, &MXFP4, &Q3_K, &Q2_K];

/// One layout.
#[derive(Clone, Copy, Debug)]
pub struct BlockLayout {
    /// Its type in a file.
    pub tensor_type: TensorType,
    /// Bits of a code.
    pub bits: u8,
    /// What codes stand for.
    pub levels: Levels,
    /// Weights that share a scale; divides those of a piece.
    pub group: usize,
    /// Where zero lies.
    pub symmetry: Symmetry,
    /// How scales are stored.
    pub scale_dtype: ScaleDtype,
    /// What takes its place for rows that its pieces do not fill.
    pub narrower: Option<&'static BlockLayout>,
    /// Writes a piece.
    pub pack: fn(&Piece, &mut [u8]),
    /// Reads a piece.
    pub unpack: fn(&[u8], &mut Piece),
}

/// A piece of a row. What a layout does not have stays zero.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Codes.
    pub codes: [u8; MOST_WEIGHTS],
    /// The scale, or what `scales` are multiplied by.
    pub scale: f32,
    /// The minimum, or what `minimums` are multiplied by before their sum is subtracted.
    pub minimum: f32,
    /// Of each group.
    pub scales: [i16; MOST_GROUPS],
    /// Of each group.
    pub minimums: [u8; MOST_GROUPS],
}

impl Default for Piece {
    fn default() -> Self {
        Self {
            codes: [0; MOST_WEIGHTS],
            scale: 0.0,
            minimum: 0.0,
            scales: [0; MOST_GROUPS],
            minimums: [0; MOST_GROUPS],
        }
    }
}

impl BlockLayout {
    /// The layout of a type; none where it is not known.
    #[must_use]
    pub fn find(tensor_type: &TensorType) -> Option<&'static Self> {
        ALL.into_iter().find(|known| known.tensor_type == *tensor_type)
    }

    /// Weights of a piece.
    #[must_use]
    pub fn weights(&self) -> usize {
        self.tensor_type.weights as usize
    }

    /// This layout, or what takes its place for rows of so many weights; none where nothing does.
    #[must_use]
    pub fn for_rows(&'static self, weights: usize) -> Option<&'static Self> {
        if weights.is_multiple_of(self.weights()) { Some(self) } else { self.narrower?.for_rows(weights) }
    }

    /// The grid that it holds.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        Scheme {
            bits: BitWidth::new(self.bits).expect("layouts have 2 to 8 bits"),
            levels: self.levels,
            granularity: Granularity::PerGroup(
                GroupSize::new(self.group).expect("16 and 32 are group sizes"),
            ),
            symmetry: self.symmetry,
            scale_dtype: self.scale_dtype,
        }
    }

    /// Bytes of a row of so many weights.
    #[must_use]
    pub fn row_bytes(&self, weights: usize) -> usize {
        weights / self.weights() * self.tensor_type.bytes as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scale of the goldens of single scales, and the minimum.
    pub(super) const HALF: f32 = 0.5;
    pub(super) const MINIMUM: f32 = -1.25;

    /// Packs a piece, compares it with the bytes that gguf-py 0.19 decodes to the same values, and unpacks it again.
    pub(super) fn meets(layout: &BlockLayout, piece: &Piece, hex: &str) {
        let mut bytes = vec![0; layout.tensor_type.bytes as usize];
        (layout.pack)(piece, &mut bytes);
        let written: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(written, hex);
        let mut back = Piece::default();
        (layout.unpack)(&bytes, &mut back);
        assert_eq!(back, *piece);
    }

    /// A piece of these codes.
    pub(super) fn piece(layout: &BlockLayout, code: impl Fn(usize) -> usize) -> Piece {
        let mut piece = Piece::default();
        for (place, to) in piece.codes[..layout.weights()].iter_mut().enumerate() {
            *to = code(place) as u8;
        }
        piece
    }

    /// Of the layouts of 256 weights: a sixteenth and, where there are minimums, a half of that.
    pub(super) fn super_piece(layout: &BlockLayout, scales: &[i16], minimums: &[u8]) -> Piece {
        let most = 1 << layout.bits;
        let mut piece = piece(layout, |i| (7 * i + 3) % most);
        piece.scale = 1.0 / 16.0;
        piece.minimum = if minimums.is_empty() { 0.0 } else { 1.0 / 32.0 };
        piece.scales[..scales.len()].copy_from_slice(scales);
        piece.minimums[..minimums.len()].copy_from_slice(minimums);
        piece
    }

    #[test]
    fn every_layout_is_as_long_as_its_type_and_found_by_it() {
        for layout in ALL {
            assert_eq!(TensorType::find(layout.tensor_type.id), Some(&layout.tensor_type));
            assert!(layout.weights().is_multiple_of(layout.group));
            assert_eq!(layout.row_bytes(768) as u64, layout.tensor_type.row_bytes(768).unwrap());
            assert_eq!(BlockLayout::find(&layout.tensor_type).unwrap().scheme(), layout.scheme());
            assert!(layout.for_rows(32).is_some_and(|found| found.weights() == 32));
            assert!(layout.for_rows(33).is_none());
        }
        assert!(BlockLayout::find(&TensorType::F16).is_none());
    }

    #[test]
    fn any_bytes_are_a_piece_and_any_piece_comes_back() {
        let mut state = 1_u32;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        for layout in ALL {
            for _ in 0..50 {
                let bytes: Vec<u8> = (0..layout.tensor_type.bytes).map(|_| random() as u8).collect();
                let mut piece = Piece::default();
                (layout.unpack)(&bytes, &mut piece);
                let mut again = vec![0; bytes.len()];
                (layout.pack)(&piece, &mut again);
                let mut back = Piece::default();
                (layout.unpack)(&again, &mut back);
                assert_eq!(format!("{back:?}"), format!("{piece:?}"), "{}", layout.tensor_type.name);
            }
        }
    }
}
