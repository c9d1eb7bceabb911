//! config.json as numbers: the spellings of transformers 4 and 5, every value checked before anything is computed from it.

use serde_json::{Map, Value};

use crate::architecture::{Architecture, Window};
use crate::error::ModelError;
use crate::experts::ExpertNumbers;
use crate::rope::Rope;

/// Largest value of any extent: far above every model there is, far below what could overflow a product of three.
const MOST: u64 = 1 << 24;
/// Largest number of decoder layers.
const MOST_LAYERS: u64 = 4096;

/// The numbers of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyperparameters {
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features inside the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub key_value_heads: usize,
    /// Features of a head; even.
    pub head_dim: usize,
    /// Tokens that the embedding knows.
    pub vocabulary: usize,
    /// The longest sequence that the model was made for, tokens.
    pub context: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Activation of the MLP.
    pub activation: Activation,
    /// Rotary positions.
    pub rope: Rope,
    /// Whether attention's projections have biases, where the architecture leaves it to the configuration.
    pub attention_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// Whether the head is the embedding.
    pub tied_head: bool,
    /// For each layer the tokens that it attends to, itself included; none: all earlier ones.
    pub windows: Vec<Option<usize>>,
    /// Experts, where the architecture has them.
    pub experts: Option<ExpertNumbers>,
    /// Type of the checkpoint as config.json names it (`bfloat16`, `float16`, `float32`), if it does.
    pub dtype: Option<String>,
}

/// Activation functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// Exact Gaussian error linear unit.
    Gelu,
    /// Its approximation by a hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Hyperparameters {
    /// # Errors
    /// A key that is missing, of the wrong kind, out of range, or at odds with another.
    pub fn read(architecture: &Architecture, config: &Value) -> Result<Self, ModelError> {
        let keys = Keys(config.as_object().ok_or(ModelError::NotAnObject)?);
        let hidden_size = keys.extent("hidden_size")?;
        let heads = keys.extent("num_attention_heads")?;
        let key_value_heads = keys.optional_extent("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(key_value_heads) {
            return Err(
                keys.wrong("num_key_value_heads", format!("a divisor of the {heads} attention heads"))
            );
        }
        let head_dim = match keys.optional_extent("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                return Err(
                    keys.wrong("num_attention_heads", format!("a divisor of hidden_size {hidden_size}"))
                );
            }
        };
        if !head_dim.is_multiple_of(2) {
            return Err(keys.wrong("head_dim", "an even number".to_owned()));
        }
        let layers = keys.bounded("num_hidden_layers", MOST_LAYERS)?;
        let context = keys.extent("max_position_embeddings")?;
        let norm_eps = keys.number("rms_norm_eps")?.unwrap_or(1e-6);
        if !(norm_eps > 0.0 && norm_eps < 1.0) {
            return Err(keys.wrong("rms_norm_eps", "a number between 0 and 1".to_owned()));
        }
        Ok(Self {
            hidden_size,
            intermediate_size: keys.extent("intermediate_size")?,
            layers,
            heads,
            key_value_heads,
            head_dim,
            vocabulary: keys.extent("vocab_size")?,
            context,
            norm_eps,
            activation: keys.activation()?,
            rope: Rope::read(keys.0, head_dim, context)?,
            attention_bias: keys.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: keys.flag("mlp_bias")?.unwrap_or(false),
            tied_head: keys.flag("tie_word_embeddings")?.unwrap_or(architecture.tied_head),
            windows: keys.windows(architecture.layer.attention.window, layers)?,
            experts: ExpertNumbers::read(architecture, &keys, layers)?,
            dtype: keys.text("dtype")?.or(keys.text("torch_dtype")?),
        })
    }
}

/// Reads keys and names them when they are wrong.
pub(crate) struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    /// The value, where null counts as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn wrong(&self, key: &str, expected: String) -> ModelError {
        wrong_value(key, self.get(key), expected)
    }

    pub(crate) fn bounded(&self, key: &str, most: u64) -> Result<usize, ModelError> {
        let value = self.get(key).ok_or_else(|| ModelError::Missing { key: key.to_owned() })?;
        match value.as_u64() {
            Some(number) if (1..=most).contains(&number) => Ok(number as usize),
            _ => Err(self.wrong(key, format!("a whole number from 1 to {most}"))),
        }
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

    fn activation(&self) -> Result<Activation, ModelError> {
        match self.text("hidden_act")?.as_deref() {
            None | Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu") => Ok(Activation::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some("relu") => Ok(Activation::Relu),
            Some(_) => {
                Err(self.wrong("hidden_act", "silu, gelu, gelu_new, gelu_pytorch_tanh or relu".to_owned()))
            }
        }
    }

    fn windows(&self, rule: Window, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
        let none = vec![None; layers];
        match rule {
            Window::Never => Ok(none),
            Window::EveryLayer => Ok(vec![self.optional_extent("sliding_window")?; layers]),
            Window::Switched if self.flag("use_sliding_window")?.unwrap_or(false) => {
                let Some(window) = self.optional_extent("sliding_window")? else { return Ok(none) };
                match self.layer_types(layers)? {
                    Some(sliding) => {
                        Ok(sliding.into_iter().map(|sliding| sliding.then_some(window)).collect())
                    }
                    None => {
                        let first =
                            self.get("max_window_layers").and_then(Value::as_u64).unwrap_or(layers as u64);
                        Ok((0..layers as u64).map(|layer| (layer >= first).then_some(window)).collect())
                    }
                }
            }
            Window::Switched => Ok(none),
        }
    }

    /// For each layer whether `layer_types` says that it slides.
    fn layer_types(&self, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
        let Some(value) = self.get("layer_types") else { return Ok(None) };
        let expected = || format!("a list of {layers} times full_attention or sliding_attention");
        let types = value.as_array().filter(|types| types.len() == layers);
        let types = types.ok_or_else(|| self.wrong("layer_types", expected()))?;
        let slides = types.iter().map(|kind| match kind.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(wrong_value("layer_types", Some(kind), expected())),
        });
        slides.collect::<Result<Vec<_>, _>>().map(Some)
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
