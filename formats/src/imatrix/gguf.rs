//! The newer form: as much of GGUF as an importance matrix has.

use std::collections::BTreeMap;

use super::reader::Reader;
use super::{Entry, Imatrix};

pub(super) const MAGIC: &[u8] = b"GGUF";
const VERSION: u32 = 3;
const ALIGNMENT: u64 = 32;
/// Type of a tensor of F32.
const F32: u32 = 0;

// Types of values.
const U32: u32 = 4;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Arrays in arrays that are followed.
const MOST_DEPTH: usize = 4;

/// A tensor's number of elements and place.
struct Tensor {
    elements: u64,
    offset: u64,
}

pub(super) fn decode(mut reader: Reader<'_>) -> Result<Imatrix, String> {
    reader.bytes(4, "the magic number")?;
    let version = reader.u32("the version")?;
    if !(2..=3).contains(&version) {
        return Err(format!("is GGUF of version {version}, expected 2 or 3 (little-endian)"));
    }
    let (tensors, values) = (reader.u64("the number of tensors")?, reader.u64("the number of values")?);
    let mut found = Imatrix::default();
    let mut alignment = ALIGNMENT;
    let mut kind = None;
    for _ in 0..values {
        let key = text(&mut reader, "a key")?;
        let value_type = reader.u32("a value's type")?;
        match (key.as_str(), value_type) {
            ("general.type", STRING) => kind = Some(text(&mut reader, "`general.type`")?),
            ("general.alignment", U32) => alignment = reader.u32("`general.alignment`")?.into(),
            ("imatrix.chunk_count", U32) => found.chunks = reader.u32("`imatrix.chunk_count`")?,
            ("imatrix.chunk_size", U32) => found.chunk_size = Some(reader.u32("`imatrix.chunk_size`")?),
            ("imatrix.datasets", ARRAY) => found.datasets = texts(&mut reader)?,
            _ => skip(&mut reader, value_type, 0)?,
        }
    }
    if kind.as_deref() != Some("imatrix") {
        let kind = kind.unwrap_or_default();
        return Err(format!("has the `general.type` `{kind}`, expected `imatrix`"));
    }
    if !alignment.is_power_of_two() {
        return Err(format!("has the alignment {alignment}, expected a power of two"));
    }
    let mut infos: BTreeMap<String, Tensor> = BTreeMap::new();
    for _ in 0..tensors {
        let name = text(&mut reader, "a tensor's name")?;
        let dimensions = reader.u32("a tensor's dimensions")?;
        if !(1..=4).contains(&dimensions) {
            return Err(format!("tensor `{name}` has {dimensions} dimensions, expected 1 to 4"));
        }
        let mut elements = 1_u64;
        for _ in 0..dimensions {
            elements = elements.saturating_mul(reader.u64("a tensor's shape")?);
        }
        let element_type = reader.u32("a tensor's type")?;
        if element_type != F32 {
            return Err(format!("tensor `{name}` has type {element_type}, expected F32 ({F32})"));
        }
        let offset = reader.u64("a tensor's offset")?;
        if infos.insert(name.clone(), Tensor { elements, offset }).is_some() {
            return Err(format!("has tensor `{name}` twice"));
        }
    }
    // Tensors that share bytes could ask for far more memory than the file has.
    let asked = infos.values().fold(0_u64, |sum, tensor| sum.saturating_add(tensor.elements));
    let there = reader.len() as u64 / 4;
    if asked > there {
        return Err(format!("has tensors of {asked} numbers, and {there} have room in it"));
    }
    let start = (reader.place() as u64).next_multiple_of(alignment);
    let numbers = |name: &str, tensor: &Tensor| {
        reader.at(start.saturating_add(tensor.offset))?.numbers(tensor.elements, &format!("tensor `{name}`"))
    };
    for (tensor, info) in &infos {
        let Some(name) = tensor.strip_suffix(".in_sum2") else { continue };
        let counts = format!("{name}.counts");
        let Some(count) = infos.get(&counts) else {
            return Err(format!("has `{tensor}` and no `{counts}`"));
        };
        // Experts' matrices have several.
        if count.elements != 1 {
            continue;
        }
        let count = numbers(&counts, count)?[0];
        if !(count.is_finite() && count > 0.0) {
            return Err(format!("`{counts}` is {count}, expected tokens"));
        }
        let sums = numbers(tensor, info)?;
        let mean_squares = sums.into_iter().map(|sum| sum / count).collect();
        found.entries.insert(name.to_owned(), Entry { mean_squares, count });
    }
    if found.entries.is_empty() {
        return Err("has no `.in_sum2` of a linear".to_owned());
    }
    Ok(found)
}

fn text(reader: &mut Reader<'_>, what: &str) -> Result<String, String> {
    let length = reader.u64(what)?;
    reader.text(length, what)
}

fn texts(reader: &mut Reader<'_>) -> Result<Vec<String>, String> {
    let what = "`imatrix.datasets`";
    let (element_type, count) = (reader.u32(what)?, reader.u64(what)?);
    if element_type != STRING {
        return Err(format!("has {what} of type {element_type}, expected text"));
    }
    let mut texts = Vec::new();
    for _ in 0..count {
        texts.push(text(reader, what)?);
    }
    Ok(texts)
}

/// Passes over a value.
fn skip(reader: &mut Reader<'_>, value_type: u32, depth: usize) -> Result<(), String> {
    let what = "a value";
    match (value_type, width(value_type)) {
        (_, Some(width)) => reader.bytes(width, what).map(|_| ()),
        (STRING, None) => text(reader, what).map(|_| ()),
        (ARRAY, None) if depth < MOST_DEPTH => {
            let (element_type, count) = (reader.u32(what)?, reader.u64(what)?);
            match width(element_type) {
                Some(width) => reader.bytes(count.saturating_mul(width), what).map(|_| ()),
                // Each takes bytes, so that the end of the file ends this too.
                None => (0..count).try_for_each(|_| skip(reader, element_type, depth + 1)),
            }
        }
        _ => Err(format!("has a value of type {value_type} at byte {}, which is not known", reader.place())),
    }
}

/// Bytes of the types that have always the same.
fn width(value_type: u32) -> Option<u64> {
    match value_type {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

pub(super) fn encode(imatrix: &Imatrix) -> Vec<u8> {
    let mut tensors: Vec<(String, Vec<f32>)> = Vec::new();
    for (name, entry) in &imatrix.entries {
        let sums = entry.mean_squares.iter().map(|mean| mean * entry.count).collect();
        tensors.push((format!("{name}.in_sum2"), sums));
        tensors.push((format!("{name}.counts"), vec![entry.count]));
    }
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(4_u64.to_le_bytes());
    let key = |out: &mut Vec<u8>, key: &str, value_type: u32| {
        put_text(out, key);
        out.extend(value_type.to_le_bytes());
    };
    key(&mut out, "general.type", STRING);
    put_text(&mut out, "imatrix");
    key(&mut out, "imatrix.datasets", ARRAY);
    out.extend(STRING.to_le_bytes());
    out.extend((imatrix.datasets.len() as u64).to_le_bytes());
    imatrix.datasets.iter().for_each(|dataset| put_text(&mut out, dataset));
    key(&mut out, "imatrix.chunk_count", U32);
    out.extend(imatrix.chunks.to_le_bytes());
    key(&mut out, "imatrix.chunk_size", U32);
    out.extend(imatrix.chunk_size.unwrap_or_default().to_le_bytes());
    let mut offset = 0_u64;
    for (name, values) in &tensors {
        put_text(&mut out, name);
        out.extend(1_u32.to_le_bytes());
        out.extend((values.len() as u64).to_le_bytes());
        out.extend(F32.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (4 * values.len() as u64).next_multiple_of(ALIGNMENT);
    }
    for (_, values) in &tensors {
        out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
        out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    out
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.bytes());
}
