//! Element types of tensors on disk, and the numbers they hold.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
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
    /// Packed codes.
    U32,
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
const OTHERS: [(&str, u16); 11] = [
    ("BOOL", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("I16", 16),
    ("U16", 16),
    ("F64", 64),
    ("U64", 64),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("C64", 64),
];

impl Dtype {
    /// The type with this name in a safetensors header.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "U8" => Self::U8,
            "I8" => Self::I8,
            "I32" => Self::I32,
            "U32" => Self::U32,
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
            Self::U32 => "U32",
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
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 => 8,
            Self::Other(_, bits) => usize::from(bits / 8),
        }
    }

    /// Place in the reference writer's order of types, from the narrowest on.
    pub(crate) fn rank(self) -> usize {
        ORDER.iter().position(|name| *name == self.name()).unwrap_or(0)
    }

    /// Whether [`Dtype::decode`] gives numbers.
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32)
    }

    /// Little-endian bytes as numbers; none for types that are not floating point. A partial element at the end is dropped.
    #[must_use]
    pub fn decode(self, bytes: &[u8]) -> Option<Vec<f32>> {
        let mut values = vec![0.0; bytes.len() / self.bytes()];
        self.decode_into(bytes, &mut values).then_some(values)
    }

    /// [`Dtype::decode`] into `values`; false, and nothing is written, for types that are not floating point.
    pub(crate) fn decode_into(self, bytes: &[u8], values: &mut [f32]) -> bool {
        match self {
            Self::F32 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Self::Bf16 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                }
            }
            Self::F16 => {
                let mut halves = [0; HALVES];
                for (values, bytes) in values.chunks_mut(HALVES).zip(bytes.chunks(2 * HALVES)) {
                    let halves = &mut halves[..values.len()];
                    for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks().0) {
                        *half = u16::from_le_bytes(*bytes);
                    }
                    halves.reinterpret_cast::<f16>().convert_to_f32_slice(values);
                }
            }
            _ => return false,
        }
        true
    }

    /// Numbers as little-endian bytes, rounded to nearest (ties to even); none for types that are not floating point.
    #[must_use]
    pub fn encode(self, values: &[f32]) -> Option<Vec<u8>> {
        let mut encoded = vec![0; values.len() * self.bytes()];
        match self {
            Self::F32 => {
                for (bytes, value) in encoded.as_chunks_mut().0.iter_mut().zip(values) {
                    *bytes = value.to_le_bytes();
                }
            }
            Self::Bf16 => {
                for (bytes, value) in encoded.as_chunks_mut().0.iter_mut().zip(values) {
                    *bytes = bf16::from_f32(*value).to_le_bytes();
                }
            }
            Self::F16 => {
                let mut halves = [0; HALVES];
                for (bytes, values) in encoded.chunks_mut(2 * HALVES).zip(values.chunks(HALVES)) {
                    let halves = &mut halves[..values.len()];
                    halves.reinterpret_cast_mut::<f16>().convert_from_f32_slice(values);
                    for (bytes, half) in bytes.as_chunks_mut().0.iter_mut().zip(halves) {
                        *bytes = half.to_le_bytes();
                    }
                }
            }
            _ => return None,
        }
        Some(encoded)
    }

    /// [`Dtype::encode`] of numbers in double precision, each rounded once.
    #[must_use]
    pub fn encode_doubles(self, values: &[f64]) -> Option<Vec<u8>> {
        let singles: Vec<f32> = match self {
            Self::F32 => values.iter().map(|&value| value as f32).collect(),
            _ => values.iter().map(|&value| to_odd(value)).collect(),
        };
        self.encode(&singles)
    }
}

/// The neighbour in single precision whose last bit is set, unless the number is one itself: rounding that to a type of at least two bits less
/// gives what rounding the number gives (Boldo and Melquiond 2008, IEEE Trans. Comput. 57).
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let bits = nearest.to_bits();
    if !nearest.is_finite() || f64::from(nearest) == value || bits & 1 == 1 {
        nearest
    } else if f64::from(nearest).abs() < value.abs() {
        f32::from_bits(bits + 1)
    } else {
        f32::from_bits(bits - 1)
    }
}

const ORDER: [&str; 19] = [
    "BOOL",
    "U8",
    "I8",
    "F8_E5M2",
    "F8_E4M3",
    "F8_E8M0",
    "F8_E4M3FNUZ",
    "F8_E5M2FNUZ",
    "I16",
    "U16",
    "F16",
    "BF16",
    "I32",
    "U32",
    "F32",
    "C64",
    "F64",
    "I64",
    "U64",
];

/// Halves converted at a time: 4 KiB, which stay in the first cache.
const HALVES: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_rounded_once() {
        // Just above the middle of two bfloat16 numbers, by less than single precision holds: twice rounded, it would be the lower one.
        let above = 1.0 + f64::powi(2.0, -8) + f64::powi(2.0, -40);
        let next = 1.0 + f64::powi(2.0, -7);
        for (value, expected) in [(above, next), (-above, -next), (1.0 + f64::powi(2.0, -8), 1.0), (0.0, 0.0)]
        {
            let bytes = Dtype::Bf16.encode_doubles(&[value]).unwrap();
            assert_eq!(f64::from(Dtype::Bf16.decode(&bytes).unwrap()[0]), expected, "{value}");
        }
        let middle = 1.0 + f64::powi(2.0, -11);
        for (value, expected) in
            [(middle + 1e-12, 1.0 + f64::powi(2.0, -10)), (middle - 1e-12, 1.0), (middle, 1.0)]
        {
            let bytes = Dtype::F16.encode_doubles(&[value]).unwrap();
            assert_eq!(f64::from(Dtype::F16.decode(&bytes).unwrap()[0]), expected, "{value}");
        }
        assert_eq!(Dtype::F32.encode_doubles(&[0.1]), Dtype::F32.encode(&[0.1]));
        assert_eq!(Dtype::I32.encode_doubles(&[0.1]), None);
    }

    #[test]
    fn every_half_survives_widening_and_narrowing() {
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let values = dtype.decode(&bytes).unwrap();
            let back = dtype.encode(&values).unwrap();
            for (bits, value) in (0..=u16::MAX).zip(&values) {
                let expected = match dtype {
                    Dtype::F16 => f16::from_bits(bits).to_f32(),
                    _ => bf16::from_bits(bits).to_f32(),
                };
                if expected.is_nan() {
                    assert!(value.is_nan());
                    continue;
                }
                assert_eq!(value.to_bits(), expected.to_bits(), "{dtype:?} {bits:#06x}");
                let place = 2 * usize::from(bits);
                assert_eq!(back[place..place + 2], bits.to_le_bytes(), "{dtype:?} {bits:#06x}");
            }
        }
    }

    #[test]
    fn single_precision_is_copied_and_narrowing_rounds_to_even() {
        let values = [1.0, -0.0, f32::MIN_POSITIVE, 1e30, f32::INFINITY];
        assert_eq!(Dtype::F32.decode(&Dtype::F32.encode(&values).unwrap()).unwrap(), values);
        // 1 + 2^-8 lies half way between two bfloat16, 1 + 2^-11 between two halves: both go to the even 1.
        assert_eq!(Dtype::Bf16.encode(&[1.0 + 1.0 / 256.0]).unwrap(), 0x3F80_u16.to_le_bytes());
        assert_eq!(Dtype::F16.encode(&[1.0 + 1.0 / 2048.0]).unwrap(), 0x3C00_u16.to_le_bytes());
        assert!(Dtype::I32.decode(&[0; 4]).is_none() && Dtype::I32.encode(&[0.0]).is_none());
    }

    #[test]
    fn names_are_found_again_and_sizes_are_those_of_the_reference() {
        use safetensors::Dtype as Reference;
        let all = [
            Reference::BOOL,
            Reference::U8,
            Reference::I8,
            Reference::F8_E5M2,
            Reference::F8_E4M3,
            Reference::F8_E8M0,
            Reference::F8_E4M3FNUZ,
            Reference::F8_E5M2FNUZ,
            Reference::I16,
            Reference::U16,
            Reference::F16,
            Reference::BF16,
            Reference::I32,
            Reference::U32,
            Reference::F32,
            Reference::C64,
            Reference::F64,
            Reference::I64,
            Reference::U64,
        ];
        for reference in all {
            let ours = Dtype::named(&reference.to_string()).unwrap();
            assert_eq!(ours.name(), reference.to_string());
            assert_eq!(8 * ours.bytes(), reference.bitsize());
        }
        assert!(Dtype::named("F7").is_none());
    }
}
