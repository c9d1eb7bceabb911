//! JSON files of a checkpoint, read with limits.
//!
//! The parser limits the nesting (to 128). Configurations that Python wrote may hold `NaN`, `Infinity` and `-Infinity`, which are not
//! JSON: they are read as `{"__float__": "NaN"}` and so on, the spelling of transformers 5.

use std::path::Path;

use serde_json::Value;

use crate::error::FormatsError;
use crate::files;

/// Largest configuration, bytes: those of mixed widths name each linear.
const MOST_CONFIG: u64 = 16 << 20;
/// Largest JSON file, bytes: tokenizers of 50 MB exist.
const MOST_BYTES: u64 = 256 << 20;

/// Reads the JSON file `name` of a checkpoint's directory.
///
/// # Errors
/// A file that is missing, too large or not JSON, and a link that leads out of the directory.
pub fn read(directory: &Path, name: &str) -> Result<Value, FormatsError> {
    read_of(directory, name, MOST_BYTES)
}

/// Reads config.json of a checkpoint's directory.
///
/// # Errors
/// As [`read`].
pub fn read_config(directory: &Path) -> Result<Value, FormatsError> {
    read_of(directory, "config.json", MOST_CONFIG)
}

fn read_of(directory: &Path, name: &str, most: u64) -> Result<Value, FormatsError> {
    let text = files::read_small(directory, name, most)?;
    parse(&text).map_err(|e| FormatsError::malformed(&directory.join(name), e.to_string()))
}

fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice(text).or_else(|error| match spell_out_non_finite(text) {
        Some(text) => serde_json::from_slice(&text),
        None => Err(error),
    })
}

/// The text with Python's bare non-finite numbers replaced; none when it has no such number.
fn spell_out_non_finite(text: &[u8]) -> Option<Vec<u8>> {
    let mut spelled = Vec::with_capacity(text.len());
    let (mut rest, mut in_string, mut found) = (text, false, false);
    while let Some(&byte) = rest.first() {
        let mut taken = 1;
        if in_string {
            match byte {
                b'\\' => taken = rest.len().min(2),
                b'"' => in_string = false,
                _ => {}
            }
        } else if byte == b'"' {
            in_string = true;
        } else if let Some(word) =
            ["NaN", "Infinity", "-Infinity"].iter().find(|word| rest.starts_with(word.as_bytes()))
        {
            spelled.extend(format!(r#"{{"__float__": "{word}"}}"#).bytes());
            rest = &rest[word.len()..];
            found = true;
            continue;
        }
        spelled.extend(&rest[..taken]);
        rest = &rest[taken..];
    }
    found.then_some(spelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn non_finite_numbers_of_python_are_read_outside_of_strings_only() {
        let value = parse(br#"{"a": [NaN, -Infinity], "b": "NaN \" Infinity", "c": Infinity}"#).unwrap();
        assert_eq!(value["a"][0]["__float__"], "NaN");
        assert_eq!(value["a"][1]["__float__"], "-Infinity");
        assert_eq!(value["b"], "NaN \" Infinity");
        assert_eq!(value["c"]["__float__"], "Infinity");
        assert!(parse(br#"{"a": Nan}"#).is_err());
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
        assert!(parse(&vec![b'['; 1_000_000]).is_err());
    }
}
