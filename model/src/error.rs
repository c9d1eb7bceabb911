//! What can be wrong with a model's description.

/// A config.json that describes no model we can run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// Not a JSON object.
    #[error("config.json is not an object")]
    NotAnObject,
    /// A key that must be there.
    #[error("config.json has no `{key}`")]
    Missing {
        /// The key.
        key: String,
    },
    /// A value of the wrong kind or out of range.
    #[error("`{key}` in config.json is {found}, expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// An architecture without a description.
    #[error("unknown architecture `{found}`; the nearest known one is `{nearest}` (known: {known})")]
    UnknownArchitecture {
        /// `model_type` of config.json.
        found: String,
        /// The known name with the fewest edits.
        nearest: &'static str,
        /// All known names.
        known: String,
    },
}
