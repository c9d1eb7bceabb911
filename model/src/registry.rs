//! Which description a configuration means.

use std::sync::RwLock;

use serde_json::{Map, Value};

use crate::architecture::{Architecture, Setting};
use crate::architectures::ALL;
use crate::error::ModelError;
use crate::hyperparameters::{Keys, wrong_value};

/// Descriptions that were added while the program runs.
static ADDED: RwLock<Vec<&'static Architecture>> = RwLock::new(Vec::new());

/// Makes a description known, before all others of its `model_type`.
pub fn add(architecture: &'static Architecture) {
    if let Ok(mut added) = ADDED.write() {
        added.insert(0, architecture);
    }
}

/// Every known description, those that were added first.
#[must_use]
pub fn all() -> Vec<&'static Architecture> {
    let added = ADDED.read().map(|added| added.clone()).unwrap_or_default();
    added.into_iter().chain(ALL.iter().copied()).collect()
}

/// The description with the configuration's `model_type`, whose conditions it meets.
pub(crate) fn find(config: &Map<String, Value>) -> Result<&'static Architecture, ModelError> {
    let model_type = match config.get("model_type") {
        None | Some(Value::Null) => return Err(ModelError::Missing { key: "model_type".to_owned() }),
        Some(Value::String(text)) => text,
        Some(other) => return Err(wrong_value("model_type", Some(other), "text".to_owned())),
    };
    let all = all();
    let of_type: Vec<_> = all.iter().copied().filter(|known| known.model_type == model_type).collect();
    let unmet = |known: &Architecture| {
        let keys = Keys::new(config, known.defaults);
        let (key, setting) = known.when.iter().find(|(key, setting)| !keys.holds(key, *setting))?;
        let expected = match setting {
            Setting::Flag(flag) => flag.to_string(),
            Setting::Number(number) => number.to_string(),
            Setting::Text(text) => (*text).to_owned(),
        };
        Some(keys.wrong(key, format!("{expected}: another model of `{model_type}` is not described")))
    };
    if let Some(known) = of_type.iter().find(|known| unmet(known).is_none()) {
        return Ok(known);
    }
    // Of several, the one that most conditions speak for says what is wrong.
    let met = |known: &&Architecture| {
        let keys = Keys::new(config, known.defaults);
        known.when.iter().take_while(|(key, setting)| keys.holds(key, *setting)).count()
    };
    if let Some(error) = of_type.into_iter().max_by_key(met).and_then(unmet) {
        return Err(error);
    }
    let nearest = all.iter().min_by_key(|known| edits(known.model_type, model_type));
    let mut known: Vec<&str> = all.iter().map(|known| known.model_type).collect();
    known.dedup();
    Err(ModelError::UnknownArchitecture {
        found: model_type.chars().take(80).collect(),
        nearest: nearest.map_or("", |known| known.model_type),
        known: known.join(", "),
    })
}

/// Levenshtein distance of the first 80 characters.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(80).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, right) in b.iter().enumerate() {
            let changed = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
