//! Keys of config.json under every name that the reference implementation has for them, with the defaults of an architecture.

use serde_json::{Map, Value, json};

use crate::architecture::Setting;
use crate::error::ModelError;

/// Largest value of any extent: far above every model there is, far below what could overflow a product of three.
const MOST: u64 = 1 << 24;
/// Largest number of decoder layers.
const MOST_LAYERS: u64 = 1024;

/// What else a key may be called (`attribute_map` of the configurations in transformers).
const SPELLINGS: [(&str, &[&str]); 13] = [
    ("hidden_size", &["n_embd", "n_embed", "d_model"]),
    ("num_hidden_layers", &["n_layer"]),
    ("num_attention_heads", &["n_head"]),
    ("num_key_value_heads", &["num_kv_heads", "n_head_kv"]),
    ("intermediate_size", &["n_inner", "ffn_dim", "ffn_hidden_size"]),
    ("max_position_embeddings", &["n_positions", "n_ctx", "seq_length"]),
    ("rms_norm_eps", &["layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_epsilon"]),
    ("hidden_act", &["hidden_activation", "activation_function", "activation"]),
    ("rope_theta", &["rotary_emb_base"]),
    ("partial_rotary_factor", &["rotary_pct", "rope_pct"]),
    ("sliding_window_pattern", &["_sliding_window_pattern"]),
    ("tie_word_embeddings", &[]),
    ("vocab_size", &[]),
];

/// Reads keys and names them when they are wrong.
pub(crate) struct Keys<'a> {
    config: &'a Map<String, Value>,
    defaults: Map<String, Value>,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(config: &'a Map<String, Value>, defaults: &[(&str, Setting)]) -> Self {
        let value = |setting: &Setting| match *setting {
            Setting::Flag(flag) => json!(flag),
            Setting::Number(number) if number.fract() == 0.0 && number.abs() < 1e15 => json!(number as i64),
            Setting::Number(number) => json!(number),
            Setting::Text(text) => json!(text),
        };
        let defaults = defaults.iter().map(|(key, setting)| ((*key).to_owned(), value(setting))).collect();
        Self { config, defaults }
    }

    /// What config.json calls the key, and its value there, where null counts as absent.
    fn spelled<'k>(&self, key: &'k str) -> Option<(&'k str, &Value)> {
        let others = SPELLINGS.iter().find(|(known, _)| *known == key).map_or(&[][..], |(_, others)| others);
        std::iter::once(key)
            .chain(others.iter().copied())
            .find_map(|name| Some((name, self.config.get(name).filter(|value| !value.is_null())?)))
    }

    /// The value in config.json, or the architecture's default.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.spelled(key).map(|(_, value)| value).or_else(|| self.defaults.get(key))
    }

    pub(crate) fn wrong(&self, key: &str, expected: String) -> ModelError {
        let (name, value) = match self.spelled(key) {
            Some((name, value)) => (name, Some(value)),
            None => (key, self.defaults.get(key)),
        };
        wrong_value(name, value, expected)
    }

    pub(crate) fn bounded(&self, key: &str, most: u64) -> Result<usize, ModelError> {
        let value = self.get(key).ok_or_else(|| ModelError::Missing { key: key.to_owned() })?;
        match value.as_u64() {
            Some(number) if (1..=most).contains(&number) => Ok(number as usize),
            _ => Err(self.wrong(key, format!("a whole number from 1 to {most}"))),
        }
    }

    pub(crate) fn layers(&self) -> Result<usize, ModelError> {
        self.bounded("num_hidden_layers", MOST_LAYERS)
    }

    pub(crate) fn extent(&self, key: &str) -> Result<usize, ModelError> {
        self.bounded(key, MOST)
    }

    pub(crate) fn optional_extent(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.get(key).map(|_| self.extent(key)).transpose()
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.get(key)
            .map(|value| value.as_f64().ok_or_else(|| self.wrong(key, "a number".to_owned())))
            .transpose()
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.get(key)
            .map(|value| value.as_bool().ok_or_else(|| self.wrong(key, "true or false".to_owned())))
            .transpose()
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<String>, ModelError> {
        self.get(key)
            .map(|value| value.as_str().map(str::to_owned).ok_or_else(|| self.wrong(key, "text".to_owned())))
            .transpose()
    }

    /// Whether a key has this value; one that is neither there nor has a default is false, zero or empty.
    pub(crate) fn holds(&self, key: &str, setting: Setting) -> bool {
        let value = self.get(key);
        match setting {
            Setting::Flag(flag) => value.map_or(Some(false), Value::as_bool) == Some(flag),
            Setting::Number(number) => value.map_or(Some(0.0), Value::as_f64) == Some(number),
            Setting::Text(text) => value.map_or(Some(""), Value::as_str) == Some(text),
        }
    }
}

/// A wrong value, shown in at most 80 characters.
pub(crate) fn wrong_value(key: &str, found: Option<&Value>, expected: String) -> ModelError {
    let shown = found.map_or_else(|| "absent".to_owned(), Value::to_string);
    let found = if shown.chars().count() > 80 {
        shown.chars().take(77).chain("...".chars()).collect()
    } else {
        shown
    };
    ModelError::Value { key: key.to_owned(), expected, found }
}
