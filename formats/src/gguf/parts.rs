//! A model in several files, as llama.cpp splits it: `NAME-00001-of-00003.gguf` and so on. The first has all values; each says its number, how many there
//! are, and how many tensors all of them have (tools/gguf-split at 0c1e570).

use std::path::{Path, PathBuf};

use super::{Value, Values};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";
/// Types of these values.
const U16: u32 = 2;
const I32: u32 = 5;

/// What a file says of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// From 0.
    pub(super) number: usize,
    pub(super) count: usize,
    /// Of all files.
    pub(super) tensors: usize,
}

/// Path and values of one of `count` files of a model that would be called `path`; with one file, those of the model.
pub(super) fn of(
    path: &Path,
    values: &Values,
    number: usize,
    count: usize,
    tensors: usize,
) -> (PathBuf, Values) {
    if count == 1 {
        return (path.to_owned(), values.clone());
    }
    let mut own = if number == 0 { values.clone() } else { Values::new() };
    let short = |number: usize| Value::Other(U16, (number as u16).to_le_bytes().to_vec());
    own.insert(NUMBER.to_owned(), short(number));
    own.insert(COUNT.to_owned(), short(count));
    own.insert(TENSORS.to_owned(), Value::Other(I32, (tensors as i32).to_le_bytes().to_vec()));
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    (path.with_file_name(name(&stem, number, count)), own)
}

/// What the file with this number is called.
pub(super) fn name(stem: &str, number: usize, count: usize) -> String {
    format!("{stem}-{:05}-of-{count:05}.gguf", number + 1)
}

/// The stem, number and count that a file's name says.
pub(super) fn named(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|digit| digit.is_ascii_digit());
    if !digits(number) || !digits(count) {
        return None;
    }
    Some((stem, number.parse::<usize>().ok()?.checked_sub(1)?, count.parse().ok()?))
}

impl Part {
    /// None where a file is a whole model.
    pub(super) fn read(values: &Values) -> Option<Self> {
        let number = |key: &str| values.get(key).and_then(Value::as_u64).map(|number| number as usize);
        let count = number(COUNT).filter(|count| *count > 1)?;
        Some(Self { number: number(NUMBER)?, count, tensors: number(TENSORS)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_say_in_name_and_values_which_they_are() {
        let (path, values) = of(Path::new("a/model-q4_0.gguf"), &Values::new(), 1, 3, 40);
        assert_eq!(path, Path::new("a/model-q4_0-00002-of-00003.gguf"));
        assert_eq!(Part::read(&values), Some(Part { number: 1, count: 3, tensors: 40 }));
        assert_eq!(named("model-q4_0-00002-of-00003.gguf"), Some(("model-q4_0", 1, 3)));
        for other in ["model.gguf", "a-1-of-3.gguf", "a-00000-of-00003.gguf", "a-00001-of-0000x.gguf"] {
            assert_eq!(named(other), None, "{other}");
        }
        assert_eq!(Part::read(&of(&path, &Values::new(), 0, 1, 40).1), None);
    }
}
