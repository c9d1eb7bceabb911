//! Values of a header: what a file says beside tensors.

use std::collections::BTreeMap;

use crate::bytes::Reader;

/// Values by key. Their order in a file means nothing, so they are kept and written sorted.
pub type Values = BTreeMap<String, Value>;

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned number; most are.
    U32(u32),
    /// A real number.
    F32(f32),
    /// Yes or no.
    Bool(bool),
    /// Text.
    Text(String),
    /// Values of one type.
    Array(Array),
    /// A number of another type (its number in a file), as it is stored.
    Other(u32, Vec<u8>),
}

/// Values of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Texts.
    Texts(Vec<String>),
    /// Signed numbers.
    I32(Vec<i32>),
    /// Real numbers.
    F32(Vec<f32>),
    /// Numbers of another type (its number in a file), as they are stored.
    Other(u32, Vec<u8>),
}

const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of the types that have always the same.
fn width(value_type: u32) -> Option<u64> {
    match value_type {
        0 | 1 | BOOL => Some(1),
        2 | 3 => Some(2),
        U32 | I32 | F32 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl Value {
    pub(super) fn read(reader: &mut Reader<'_>, key: &str) -> Result<Self, String> {
        let what = format!("`{key}`");
        let value_type = reader.u32(&what)?;
        Ok(match value_type {
            U32 => Self::U32(reader.u32(&what)?),
            F32 => Self::F32(f32::from_le_bytes(reader.array(&what)?)),
            BOOL => Self::Bool(reader.bytes(1, &what)?[0] != 0),
            TEXT => Self::Text(text(reader, &what)?),
            ARRAY => Self::Array(Array::read(reader, &what)?),
            other => match width(other) {
                Some(width) => Self::Other(other, reader.bytes(width, &what)?.to_vec()),
                None => return Err(format!("has {what} of type {other}, which is not known")),
            },
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::U32(value) => typed(out, U32, &value.to_le_bytes()),
            Self::F32(value) => typed(out, F32, &value.to_le_bytes()),
            Self::Bool(value) => typed(out, BOOL, &[u8::from(*value)]),
            Self::Text(value) => {
                out.extend(TEXT.to_le_bytes());
                put_text(out, value);
            }
            Self::Array(array) => {
                out.extend(ARRAY.to_le_bytes());
                array.write(out);
            }
            Self::Other(value_type, bytes) => typed(out, *value_type, bytes),
        }
    }

    /// A whole number that is not negative, of whatever type.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::U32(value) => Some(u64::from(*value)),
            Self::Other(value_type, bytes) => {
                let mut wide = [0; 8];
                wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
                // The signed ones are the odd types below 10, and 11: one that is negative has its highest bit set.
                let signed = [1, 3, I32, 11].contains(value_type);
                let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
                (*value_type != 12 && !(signed && negative)).then(|| u64::from_le_bytes(wide))
            }
            _ => None,
        }
    }

    /// A real number.
    #[must_use]
    pub fn as_f32(&self) -> Option<f32> {
        if let Self::F32(value) = self { Some(*value) } else { None }
    }

    /// Text.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(value) = self { Some(value) } else { None }
    }

    /// Texts.
    #[must_use]
    pub fn as_texts(&self) -> Option<&[String]> {
        if let Self::Array(Array::Texts(texts)) = self { Some(texts) } else { None }
    }
}

impl Array {
    fn read(reader: &mut Reader<'_>, what: &str) -> Result<Self, String> {
        let (element_type, count) = (reader.u32(what)?, reader.u64(what)?);
        match (element_type, width(element_type)) {
            (TEXT, _) => {
                // Not reserved: the count is the file's word, the texts are its bytes.
                let mut texts = Vec::new();
                for _ in 0..count {
                    texts.push(text(reader, what)?);
                }
                Ok(Self::Texts(texts))
            }
            (F32, _) => Ok(Self::F32(reader.numbers(count, what)?)),
            (_, Some(width)) => {
                let bytes = reader.bytes(count.saturating_mul(width), what)?;
                Ok(if element_type == I32 {
                    Self::I32(bytes.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect())
                } else {
                    Self::Other(element_type, bytes.to_vec())
                })
            }
            _ => Err(format!("has {what}, an array of type {element_type}, which is not known")),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let begin = |out: &mut Vec<u8>, element_type: u32, count: usize| {
            out.extend(element_type.to_le_bytes());
            out.extend((count as u64).to_le_bytes());
        };
        match self {
            Self::Texts(texts) => {
                begin(out, TEXT, texts.len());
                texts.iter().for_each(|text| put_text(out, text));
            }
            Self::I32(values) => {
                begin(out, I32, values.len());
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Self::F32(values) => {
                begin(out, F32, values.len());
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Self::Other(element_type, bytes) => {
                let width = width(*element_type).unwrap_or(1) as usize;
                begin(out, *element_type, bytes.len() / width);
                out.extend(bytes);
            }
        }
    }
}

fn typed(out: &mut Vec<u8>, value_type: u32, bytes: &[u8]) {
    out.extend(value_type.to_le_bytes());
    out.extend(bytes);
}

pub(super) fn text(reader: &mut Reader<'_>, what: &str) -> Result<String, String> {
    let length = reader.u64(what)?;
    reader.text(length, what)
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.bytes());
}
