//! Reading the settings that describe a packed checkpoint: what a peer's file says, with a word for what cannot be meant.

use serde_json::{Map, Value};

use crate::error::FormatsError;

/// The error of settings that are not read.
pub(super) fn bad(problem: String) -> FormatsError {
    FormatsError::malformed("config.json".as_ref(), format!("`quantization_config` {problem}"))
}

/// What `key` says; none where it is absent or null.
pub(super) fn given<'c>(config: &'c Value, key: &str) -> Option<&'c Value> {
    config.get(key).filter(|value| !value.is_null())
}

/// The names in the list `key`; none of them where it is absent or null.
///
/// # Errors
/// What is not a list of names: one that is read as empty would leave out nothing.
pub(super) fn names<'c>(config: &'c Value, key: &str) -> Result<Vec<&'c str>, String> {
    let Some(value) = given(config, key) else { return Ok(Vec::new()) };
    let listed: Option<Vec<&str>> =
        value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
    listed.ok_or_else(|| format!("has the `{key}` {}, expected a list of names", brief(value)))
}

/// The object `key`; none where it is absent or null.
///
/// # Errors
/// What is not an object.
pub(super) fn object<'c>(config: &'c Value, key: &str) -> Result<Option<&'c Map<String, Value>>, String> {
    given(config, key)
        .map(|value| {
            value.as_object().ok_or_else(|| format!("has the `{key}` {}, expected an object", brief(value)))
        })
        .transpose()
}

/// A text, or what stands for it where it is absent or null.
///
/// # Errors
/// What is not a text.
pub(super) fn text<'c>(config: &'c Value, key: &str, otherwise: &'c str) -> Result<&'c str, String> {
    given(config, key).map_or(Ok(otherwise), |value| {
        value.as_str().ok_or_else(|| format!("has the `{key}` {}, expected a text", brief(value)))
    })
}

/// Yes or no; no where it is absent or null.
///
/// # Errors
/// What is neither.
pub(super) fn flag(config: &Value, key: &str) -> Result<bool, String> {
    given(config, key).map_or(Ok(false), |value| {
        value.as_bool().ok_or_else(|| format!("has the `{key}` {}, expected true or false", brief(value)))
    })
}

/// A value as a message shows it.
fn brief(value: &Value) -> String {
    const MOST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_absent_or_null_is_empty_and_what_is_of_another_kind_is_refused() {
        let config = json!({ "list": ["a"], "nothing": null, "number": 1, "mixed": ["a", 2], "long": "x".repeat(100) });
        assert_eq!(names(&config, "list"), Ok(vec!["a"]));
        assert_eq!(names(&config, "nothing"), Ok(vec![]));
        assert_eq!(names(&config, "absent"), Ok(vec![]));
        assert_eq!(names(&config, "number").unwrap_err(), "has the `number` 1, expected a list of names");
        assert_eq!(
            names(&config, "mixed").unwrap_err(),
            r#"has the `mixed` ["a",2], expected a list of names"#
        );
        assert!(names(&config, "long").unwrap_err().len() < 150);
        assert_eq!(object(&config, "absent"), Ok(None));
        assert!(object(&config, "list").is_err());
        assert_eq!(text(&config, "absent", "it"), Ok("it"));
        assert!(text(&config, "number", "it").is_err());
        assert_eq!(flag(&config, "nothing"), Ok(false));
        assert!(flag(&config, "number").is_err());
    }
}
