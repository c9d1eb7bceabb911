//! Descriptions that users write: what differs from a known one, in the same words.

use serde_json::{Map, Value};

use crate::architecture::Architecture;
use crate::registry;

/// Parts of a description that are completed, not replaced: what is not said of them stays as it is in the known one.
const COMPLETED: [&str; 7] =
    ["", "layer", "attention", "attention_norms", "mlp_norms", "factors", "llama_cpp"];

/// The description that `changes` make of the one with the `model_type` that they name as `base`. `false` leaves out a part that need not be.
/// The description lives as long as the program.
///
/// # Errors
/// What is wrong with the changes.
pub fn describe(changes: &Value) -> Result<&'static Architecture, String> {
    let mut changes = changes.as_object().cloned().ok_or("a description is a table")?;
    let base = match changes.remove("base") {
        Some(Value::String(base)) => base,
        _ => return Err("`base` names the known architecture that it differs from".to_owned()),
    };
    let known = registry::all().into_iter().find(|known| known.model_type == base).ok_or_else(|| {
        let names: Vec<&str> = registry::all().iter().map(|known| known.model_type).collect();
        format!("`base` is `{base}`, known are {}", names.join(", "))
    })?;
    if !changes.contains_key("model_type") {
        return Err("`model_type` is what config.json calls the architecture".to_owned());
    }
    let mut whole = serde_json::to_value(known).map_err(|e| e.to_string())?;
    // What tells the known one from others of its name says nothing about this one.
    whole["when"] = Value::Array(Vec::new());
    complete("", &mut whole, Value::Object(changes));
    let text = serde_json::to_string(&whole).map_err(|e| e.to_string())?;
    let architecture: Architecture = serde_json::from_str(text.leak()).map_err(|e| {
        // The place within a text that nobody has seen says nothing.
        let said = e.to_string();
        said.split(" at line ").next().unwrap_or(&said).to_owned()
    })?;
    Ok(Box::leak(Box::new(architecture)))
}

fn complete(part: &str, value: &mut Value, change: Value) {
    match (value, change) {
        (Value::Object(object), Value::Object(changes)) if COMPLETED.contains(&part) => {
            for (key, change) in changes {
                complete(&key, object.entry(&key).or_insert(Value::Null), change);
            }
        }
        (value @ (Value::Null | Value::Object(_)), Value::Bool(false)) => *value = Value::Null,
        (value @ Value::Null, Value::Object(changes)) if COMPLETED.contains(&part) && !part.is_empty() => {
            *value = Value::Object(Map::new());
            complete(part, value, Value::Object(changes));
        }
        (value, change) => *value = change,
    }
}
