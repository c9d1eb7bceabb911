//! Normalizers of a tokenizer.json, looked at before `tokenizers` reads them: four bytes of a `precompiled_charsmap` say how much its reader takes
//! at once, up to 8 GB, also where the rest of the file is damaged.

use std::fmt;

use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

/// Fails where a `precompiled_charsmap` lies about its length, where normalizers are spelled in a way that none could be found in, and
/// where the file is no JSON object.
pub(crate) fn check(file: &[u8]) -> Result<(), String> {
    let mut reader = serde_json::Deserializer::from_slice(file);
    reader.deserialize_map(Normalizers).map_err(|error| error.to_string())?;
    reader.end().map_err(|error| error.to_string())
}

/// Visits every value of the key, also where it is there more than once: `tokenizers` reads each.
struct Normalizers;

impl<'de> Visitor<'de> for Normalizers {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "normalizer" {
                check_normalizers(&map.next_value()?).map_err(M::Error::custom)?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

fn check_normalizers(normalizer: &Value) -> Result<(), String> {
    let mut open = vec![normalizer];
    while let Some(step) = open.pop() {
        match step {
            Value::Null => continue,
            Value::Object(_) => {}
            // A list without names of fields would be read as well.
            _ => return Err("has a normalizer that is not an object".to_owned()),
        }
        open.extend(step["normalizers"].as_array().into_iter().flatten());
        if let Some(map) = step["precompiled_charsmap"].as_str() {
            check_length(map)?;
        }
    }
    Ok(())
}

/// The first four bytes of the map are the length of its first table.
fn check_length(map: &str) -> Result<(), String> {
    let mut length = 0_u64;
    for (place, digit) in map.bytes().take(6).enumerate() {
        let digit = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err("has a `precompiled_charsmap` that is not base64".to_owned()),
        };
        // Little-endian: the first digits hold the first byte.
        length |= u64::from(digit) << (30 - 6 * place);
    }
    let length = u64::from(((length >> 4) as u32).swap_bytes());
    let room = (map.len() as u64 / 4 * 3).saturating_sub(4);
    if length > room {
        return Err(format!(
            "has a `precompiled_charsmap` of {room} bytes whose first table is said to have {length}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lying_map_is_found_wherever_it_would_be_read() {
        let lies = r#"{"type": "Precompiled", "precompiled_charsmap": "/////w=="}"#;
        let found = |file: &str| check(file.as_bytes()).unwrap_err();
        for file in [
            format!(r#"{{"normalizer": {lies}}}"#),
            format!(r#"{{"normalizer": {lies}, "normalizer": null}}"#),
            format!(r#"{{"norm\u0061lizer": {lies}, "model": {{"vocab" 1"#),
            format!(r#"{{"normalizer": {{"type": "Sequence", "normalizers": [null, {lies}]}}}}"#),
        ] {
            assert!(found(&file).contains("said to have 4294967295"), "{file}: {}", found(&file));
        }
        assert!(found(r#"{"normalizer": ["/////w=="]}"#).contains("not an object"));
        assert!(found(r#"{"normalizer": {"normalizers": [["/////w=="]]}}"#).contains("not an object"));
        assert!(found("[]").contains("expected an object"));
        assert!(found("{} x").contains("trailing"));
    }

    #[test]
    fn others_pass() {
        for file in [
            r#"{"normalizer": null}"#,
            r#"{"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}, "model": {"normalizer": [1]}}"#,
            r#"{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}}"#,
        ] {
            assert_eq!(check(file.as_bytes()), Ok(()), "{file}");
        }
    }
}
