//! The newer form: what an importance matrix is in GGUF.

use crate::bytes::Reader;
use crate::gguf::{Array, GgufSpec, Header, TensorEntry, TensorType, Value, Values, header_bytes};

use super::{Entry, Imatrix};

const TYPE: &str = "general.type";
const CHUNKS: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
const DATASETS: &str = "imatrix.datasets";

pub(super) fn decode(reader: Reader<'_>) -> Result<Imatrix, String> {
    let header = Header::parse(reader, reader.len() as u64)?;
    let kind = header.values.get(TYPE).and_then(Value::as_text).unwrap_or_default();
    if kind != "imatrix" {
        return Err(format!("has the `{TYPE}` `{kind}`, expected `imatrix`"));
    }
    if let Some((name, other)) =
        header.tensors.iter().find(|(_, tensor)| *tensor.tensor_type != TensorType::F32)
    {
        return Err(format!("tensor `{name}` has type {}, expected F32", other.tensor_type.name));
    }
    let number = |key: &str| match header.values.get(key) {
        None => Ok(None),
        Some(value) => match value.as_u64().map(u32::try_from) {
            Some(Ok(number)) => Ok(Some(number)),
            _ => Err(format!("has `{key}` {value:?}, expected a number")),
        },
    };
    let datasets = match header.values.get(DATASETS) {
        None => Vec::new(),
        Some(value) => {
            value.as_texts().ok_or_else(|| format!("has `{DATASETS}` that are no texts"))?.to_vec()
        }
    };
    let mut found = Imatrix {
        chunks: number(CHUNKS)?.unwrap_or_default(),
        chunk_size: number(CHUNK_SIZE)?,
        datasets,
        ..Imatrix::default()
    };
    let numbers = |name: &str, tensor: &TensorEntry| {
        reader.at(tensor.offset)?.numbers(tensor.bytes / 4, &format!("tensor `{name}`"))
    };
    for (tensor, sums) in &header.tensors {
        let Some(name) = tensor.strip_suffix(".in_sum2") else { continue };
        let counts = format!("{name}.counts");
        let Some(count) = header.tensors.get(&counts) else {
            return Err(format!("has `{tensor}` and no `{counts}`"));
        };
        // Experts' matrices have several.
        if count.bytes != 4 {
            continue;
        }
        let count = numbers(&counts, count)?[0];
        if !(count.is_finite() && count > 0.0) {
            return Err(format!("`{counts}` is {count}, expected tokens"));
        }
        let mean_squares = numbers(tensor, sums)?.into_iter().map(|sum| sum / count).collect();
        found.entries.insert(name.to_owned(), Entry { mean_squares, count });
    }
    if found.entries.is_empty() {
        return Err("has no `.in_sum2` of a linear".to_owned());
    }
    Ok(found)
}

pub(super) fn encode(imatrix: &Imatrix) -> Vec<u8> {
    let values = Values::from([
        (TYPE.to_owned(), Value::Text("imatrix".to_owned())),
        (DATASETS.to_owned(), Value::Array(Array::Texts(imatrix.datasets.clone()))),
        (CHUNKS.to_owned(), Value::U32(imatrix.chunks)),
        (CHUNK_SIZE.to_owned(), Value::U32(imatrix.chunk_size.unwrap_or_default())),
    ]);
    let mut tensors: Vec<(String, Vec<f32>)> = Vec::new();
    for (name, entry) in &imatrix.entries {
        let sums = entry.mean_squares.iter().map(|mean| mean * entry.count).collect();
        tensors.push((format!("{name}.in_sum2"), sums));
        tensors.push((format!("{name}.counts"), vec![entry.count]));
    }
    let specs = tensors.iter().map(|(name, values)| GgufSpec {
        name: name.clone(),
        tensor_type: TensorType::F32,
        shape: vec![values.len()],
    });
    let mut out = header_bytes(&values, &specs.collect::<Vec<_>>());
    for (_, values) in &tensors {
        out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        out.resize(out.len().next_multiple_of(crate::gguf::ALIGNMENT as usize), 0);
    }
    out
}
