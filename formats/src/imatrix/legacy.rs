//! The older form: entries one after the other.

use super::{Entry, Imatrix};
use crate::bytes::Reader;

pub(super) fn decode(mut reader: Reader<'_>) -> Result<Imatrix, String> {
    let mut found = Imatrix::default();
    let entries = reader.count("the number of entries")?;
    if entries == 0 {
        return Err("has no entry, and does not begin as GGUF does".to_owned());
    }
    for _ in 0..entries {
        let length = reader.count("the length of a name")?;
        let name = reader.text(length.into(), "a name")?;
        let what = format!("the entry of `{name}`");
        let calls = reader.count(&what)?;
        let values = reader.count(&what)?;
        let mut mean_squares = reader.numbers(values.into(), &what)?;
        if calls == 0 || values == 0 {
            return Err(format!("`{name}` has {values} values of {calls} calls, expected some of both"));
        }
        mean_squares.iter_mut().for_each(|value| *value /= calls as f32);
        let entry = Entry { mean_squares, count: calls as f32 };
        if found.entries.insert(name.clone(), entry).is_some() {
            return Err(format!("has `{name}` twice"));
        }
    }
    // Files of the first months end here.
    if !reader.is_at_end() {
        found.chunks = reader.count("the number of chunks")?;
        let length = reader.count("the length of the dataset's name")?;
        found.datasets = vec![reader.text(length.into(), "the dataset's name")?];
    }
    if reader.is_at_end() {
        Ok(found)
    } else {
        Err(format!("goes on behind its end at byte {}", reader.place()))
    }
}
