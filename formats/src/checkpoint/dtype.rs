//! Element types of tensors on disk, and the numbers they hold.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// An element type of a safetensors file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// Bytes, or packed codes.
    U8,
    /// Signed bytes.
    I8,
    /// Packed codes.
    I32,
    /// Shapes.
    I64,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// Single precision.
    F32,
    /// Any other type of the standard: its name and the bits of an element. Carried, never computed with.
    Other(&'static str, u16),
}

/// Types that are carried but not computed with.
const OTHERS: [(&str, u16); 9] = [
    ("BOOL", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("I16", 16),
    ("U16", 16),
    ("U32", 32),
    ("F64", 64),
    ("U64", 64),
    ("F8_E8M0", 8),
];

impl Dtype {
    /// The type with this name in a safetensors header.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "U8" => Self::U8,
            "I8" => Self::I8,
            "I32" => Self::I32,
            "I64" => Self::I64,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "F32" => Self::F32,
            _ => OTHERS
                .iter()
                .find(|(known, _)| *known == name)
                .map(|&(name, bits)| Self::Other(name, bits))?,
        })
    }

    /// Its name in a safetensors header.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::I32 => "I32",
            Self::I64 => "I64",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F32 => "F32",
            Self::Other(name, _) => name,
        }
    }

    /// Its name in config.json, for the types that a model computes in.
    #[must_use]
    pub fn torch_name(self) -> Option<&'static str> {
        match self {
            Self::F16 => Some("float16"),
            Self::Bf16 => Some("bfloat16"),
            Self::F32 => Some("float32"),
            _ => None,
        }
    }

    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 => 8,
            Self::Other(_, bits) => usize::from(bits / 8),
        }
    }

    /// Whether [`Dtype::decode`] gives numbers.
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32)
    }

    /// Little-endian bytes as numbers; none for types that are not floating point.
    #[must_use]
    pub fn decode(self, bytes: &[u8]) -> Option<Vec<f32>> {
        let pair = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
        match self {
            Self::F32 => {
                Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }
            Self::Bf16 => {
                Some(bytes.chunks_exact(2).map(|b| f32::from_bits(u32::from(pair(b)) << 16)).collect())
            }
            Self::F16 => {
                let halves: Vec<f16> = bytes.chunks_exact(2).map(|b| f16::from_bits(pair(b))).collect();
                Some(halves.to_f32_vec())
            }
            _ => None,
        }
    }

    /// Numbers as little-endian bytes, rounded to nearest; none for types that are not floating point.
    #[must_use]
    pub fn encode(self, values: &[f32]) -> Option<Vec<u8>> {
        match self {
            Self::F32 => Some(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            Self::Bf16 => {
                Some(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect())
            }
            Self::F16 => Some(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_type_holds_survives_the_bytes() {
        let values = [0.0, -1.5, 0.099_975_586, 65504.0, -6.103_515_6e-5];
        for dtype in [Dtype::F16, Dtype::F32] {
            assert_eq!(dtype.decode(&dtype.encode(&values).unwrap()).unwrap(), values);
        }
        let coarse = [0.0, -1.5, 0.100_097_66, 3.4e38_f32];
        let once = Dtype::Bf16.decode(&Dtype::Bf16.encode(&coarse).unwrap()).unwrap();
        assert_eq!(once, Dtype::Bf16.decode(&Dtype::Bf16.encode(&once).unwrap()).unwrap());
        assert_eq!(once[..3], coarse[..3]);
        assert!(Dtype::I32.decode(&[0; 4]).is_none());
    }

    #[test]
    fn names_are_found_again() {
        for name in ["U8", "I8", "I32", "I64", "F16", "BF16", "F32", "BOOL", "F64", "F8_E4M3"] {
            assert_eq!(Dtype::named(name).unwrap().name(), name);
        }
        assert!(Dtype::named("F7").is_none());
    }
}
