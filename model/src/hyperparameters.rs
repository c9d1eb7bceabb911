//! config.json as numbers: the spellings of transformers 4 and 5, every value checked before anything is computed from it.

mod factors;
mod keys;

use serde_json::{Map, Value};

use crate::architecture::{Architecture, Bias, Gating, Mlp, Positions, Qkv, Unturned, Window};
use crate::error::ModelError;
use crate::experts::ExpertNumbers;
use crate::rope::Rope;
pub use factors::FactorValues;
pub(crate) use keys::{Keys, wrong_value};

/// The numbers of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyperparameters {
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features of the embedding and the head: those of the residual stream, unless linears lie between.
    pub embedding_size: usize,
    /// Features inside the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub key_value_heads: usize,
    /// Features of a head's queries and keys; even where they are rotated.
    pub head_dim: usize,
    /// Features of a head's values.
    pub value_dim: usize,
    /// Latent features that queries, keys and values are made of, where the architecture has them.
    pub latent: Option<LatentNumbers>,
    /// Tokens that the embedding knows.
    pub vocabulary: usize,
    /// The longest sequence that the model was made for, tokens.
    pub context: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Activation of the MLP.
    pub activation: Activation,
    /// What clamps gate and up of a gated MLP, where something does; the activation has no meaning there.
    pub clamp: Option<GateClamp>,
    /// Factors and caps.
    pub factors: FactorValues,
    /// Rotary positions; of no meaning where no layer rotates.
    pub rope: Rope,
    /// Those of layers with a window, where they have their own.
    pub local_rope: Option<Rope>,
    /// Whether the projections of queries, keys and values have biases.
    pub attention_input_bias: bool,
    /// Whether the output projection has a bias.
    pub attention_output_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// Whether the head is the embedding.
    pub tied_head: bool,
    /// For each layer the tokens that it attends to, itself included; none: all earlier ones.
    pub windows: Vec<Option<usize>>,
    /// For each layer how it rotates queries and keys.
    pub rotations: Vec<Rotation>,
    /// Experts, where the architecture has them.
    pub experts: Option<ExpertNumbers>,
    /// Type of the checkpoint as config.json names it (`bfloat16`, `float16`, `float32`), if it does.
    pub dtype: Option<String>,
}

/// Numbers of [`Gating::Clamped`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GateClamp {
    /// Factor within the sigmoid.
    pub alpha: f32,
    /// Largest gate, and largest magnitude of up.
    pub limit: f32,
}

/// Latent features of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentNumbers {
    /// Those of queries; none: queries are made from the input.
    pub query_rank: Option<usize>,
    /// Those of keys and values.
    pub key_value_rank: usize,
    /// Features of a head's queries and keys that are not rotated, the first ones.
    pub unturned_dim: usize,
    /// Features that are; all heads have those of the key in common.
    pub turned_dim: usize,
}

/// How a layer rotates queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Not at all.
    None,
    /// By [`Hyperparameters::rope`].
    Global,
    /// By [`Hyperparameters::local_rope`].
    Local,
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
    /// Features that a runtime keeps of each token in a layer: keys and values, or the latent features that they are made of.
    #[must_use]
    pub fn cached_features(&self) -> usize {
        match &self.latent {
            Some(latent) => latent.key_value_rank + latent.turned_dim,
            None => self.key_value_heads * (self.head_dim + self.value_dim),
        }
    }

    /// # Errors
    /// A key that is missing, of the wrong kind, out of range, or at odds with another.
    pub fn read(architecture: &Architecture, config: &Map<String, Value>) -> Result<Self, ModelError> {
        let keys = Keys::new(config, architecture.defaults);
        let attention = &architecture.layer.attention;
        let hidden_size = keys.extent("hidden_size")?;
        let heads = keys.extent("num_attention_heads")?;
        let latent = LatentNumbers::read(attention.qkv, &keys)?;
        let key_value_heads = match keys.optional_extent("num_key_value_heads")? {
            _ if attention.single_key_head => 1,
            // Latent features are made into keys and values of every head.
            _ if latent.is_some() => heads,
            given => given.unwrap_or(heads),
        };
        if !heads.is_multiple_of(key_value_heads) {
            return Err(
                keys.wrong("num_key_value_heads", format!("a divisor of the {heads} attention heads"))
            );
        }
        let head_dim = match (keys.optional_extent("head_dim")?, &latent) {
            (_, Some(latent)) => latent.unturned_dim + latent.turned_dim,
            (Some(head_dim), None) => head_dim,
            (None, None) if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            (None, None) => {
                return Err(
                    keys.wrong("num_attention_heads", format!("a divisor of hidden_size {hidden_size}"))
                );
            }
        };
        let layers = keys.layers()?;
        let context = keys.extent("max_position_embeddings")?;
        let norm_eps = keys.number("rms_norm_eps")?.unwrap_or(1e-6);
        if !(norm_eps > 0.0 && norm_eps < 1.0) {
            return Err(keys.wrong("rms_norm_eps", "a number between 0 and 1".to_owned()));
        }
        let intermediate_size = match (keys.optional_extent("intermediate_size")?, architecture.layer.mlp) {
            (Some(given), _) => given,
            (None, Mlp::Plain { .. }) => 4 * hidden_size,
            (None, _) => keys.extent("intermediate_size")?,
        };
        let projected = architecture.projections.map(|_| keys.optional_extent("word_embed_proj_dim"));
        let bias = |bias| match bias {
            Bias::Never => Ok(false),
            Bias::Always => Ok(true),
            Bias::Key(key) => Ok::<_, ModelError>(keys.flag(key)?.unwrap_or(false)),
        };
        let windows = keys.windows(attention.window, layers)?;
        let turned_dim = latent.map_or(head_dim, |latent| latent.turned_dim);
        let (mut rope, mut local_rope) = read_ropes(&keys, attention.positions, turned_dim, context)?;
        for rope in std::iter::once(&mut rope).chain(&mut local_rope) {
            rope.first = head_dim - turned_dim;
        }
        let dtype = keys.text("dtype")?.or(keys.text("torch_dtype")?);
        Ok(Self {
            hidden_size,
            embedding_size: projected.transpose()?.flatten().unwrap_or(hidden_size),
            intermediate_size,
            layers,
            heads,
            key_value_heads,
            head_dim,
            value_dim: latent.map_or(Ok(head_dim), |_| keys.extent("v_head_dim"))?,
            latent,
            vocabulary: keys.extent("vocab_size")?,
            context,
            norm_eps,
            activation: keys.activation()?,
            clamp: GateClamp::read(architecture.layer.gating, &keys)?,
            factors: FactorValues::read(
                &architecture.factors,
                &keys,
                [hidden_size, head_dim],
                rope.temperature(),
                dtype.as_deref(),
            )?,
            rotations: rotations(&keys, attention.positions, &windows)?,
            rope,
            local_rope,
            attention_input_bias: bias(attention.input_bias)?,
            attention_output_bias: bias(attention.output_bias)?,
            mlp_bias: bias(architecture.layer.mlp_bias)?,
            tied_head: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            windows,
            experts: ExpertNumbers::read(architecture, &keys, layers)?,
            dtype,
        })
    }
}

impl GateClamp {
    fn read(gating: Gating, keys: &Keys<'_>) -> Result<Option<Self>, ModelError> {
        if gating == Gating::Activated {
            return Ok(None);
        }
        let number = |key: &str| match keys.number(key)? {
            Some(number) if number > 0.0 && number.is_finite() => Ok(number as f32),
            Some(_) => Err(keys.wrong(key, "a positive number".to_owned())),
            None => Err(ModelError::Missing { key: key.to_owned() }),
        };
        Ok(Some(Self { alpha: number("swiglu_alpha")?, limit: number("swiglu_limit")? }))
    }
}

impl LatentNumbers {
    /// None where the architecture has no latent features.
    fn read(qkv: Qkv, keys: &Keys<'_>) -> Result<Option<Self>, ModelError> {
        let Qkv::Latent(_) = qkv else { return Ok(None) };
        Ok(Some(Self {
            query_rank: keys.optional_extent("q_lora_rank")?,
            key_value_rank: keys.extent("kv_lora_rank")?,
            unturned_dim: keys.extent("qk_nope_head_dim")?,
            turned_dim: keys.extent("qk_rope_head_dim")?,
        }))
    }
}

/// The frequencies of all layers, and those of layers with a window where these have their own.
fn read_ropes(
    keys: &Keys<'_>,
    positions: Positions,
    head_dim: usize,
    context: usize,
) -> Result<(Rope, Option<Rope>), ModelError> {
    let Positions::Rotary { local, .. } = positions else {
        return Ok((Rope::plain(head_dim), None));
    };
    if !head_dim.is_multiple_of(2) {
        let key = if keys.get("qk_rope_head_dim").is_some() { "qk_rope_head_dim" } else { "head_dim" };
        return Err(keys.wrong(key, "an even number".to_owned()));
    }
    if !local {
        return Ok((Rope::read(keys, None, head_dim, context)?, None));
    }
    let global = Rope::read(keys, Some("full_attention"), head_dim, context)?;
    Ok((global, Some(Rope::read(keys, Some("sliding_attention"), head_dim, context)?)))
}

fn rotations(
    keys: &Keys<'_>,
    positions: Positions,
    windows: &[Option<usize>],
) -> Result<Vec<Rotation>, ModelError> {
    let Positions::Rotary { unturned, local, .. } = positions else {
        return Ok(vec![Rotation::None; windows.len()]);
    };
    let listed = match unturned {
        Unturned::Listed => Some(keys.turned_layers(windows.len())?),
        Unturned::None | Unturned::WithoutWindow => None,
    };
    let of = |(layer, window): (usize, &Option<usize>)| match (unturned, &listed) {
        (Unturned::Listed, Some(turned)) if !turned[layer] => Rotation::None,
        (Unturned::WithoutWindow, _) if window.is_none() => Rotation::None,
        _ if local && window.is_some() => Rotation::Local,
        _ => Rotation::Global,
    };
    Ok(windows.iter().enumerate().map(of).collect())
}

impl Keys<'_> {
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
        let window = self.optional_extent("sliding_window");
        let marked = |sliding: Vec<bool>, window| {
            sliding.into_iter().map(|sliding| sliding.then_some(window)).collect::<Vec<_>>()
        };
        match rule {
            Window::Never => Ok(none),
            Window::EveryLayer => Ok(vec![window?; layers]),
            Window::AllButEvery(period) => {
                let Some(window) = window? else { return Ok(none) };
                let period = self.optional_extent("sliding_window_pattern")?.unwrap_or(period);
                let sliding = self.layer_types(layers)?.unwrap_or_else(|| {
                    (0..layers).map(|layer| !(layer + 1).is_multiple_of(period)).collect()
                });
                Ok(marked(sliding, window))
            }
            Window::Switched if self.flag("use_sliding_window")?.unwrap_or(false) => {
                let Some(window) = window? else { return Ok(none) };
                match self.layer_types(layers)? {
                    Some(sliding) => Ok(marked(sliding, window)),
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
        let list = value.as_array().filter(|list| list.len() == layers);
        let list = list.ok_or_else(|| self.wrong("layer_types", expected()))?;
        let slides = list.iter().map(|kind| match kind.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(wrong_value("layer_types", Some(kind), expected())),
        });
        slides.collect::<Result<Vec<_>, _>>().map(Some)
    }

    /// For each layer whether it rotates.
    fn turned_layers(&self, layers: usize) -> Result<Vec<bool>, ModelError> {
        let Some(value) = self.get("no_rope_layers") else {
            let period = self.optional_extent("no_rope_layer_interval")?.unwrap_or(4);
            return Ok((0..layers).map(|layer| !(layer + 1).is_multiple_of(period)).collect());
        };
        let list = value.as_array().filter(|list| list.len() == layers);
        let turned = list.and_then(|list| {
            list.iter()
                .map(|layer| layer.as_u64().filter(|&turned| turned < 2).map(|turned| turned == 1))
                .collect()
        });
        turned.ok_or_else(|| self.wrong("no_rope_layers", format!("a list of {layers} times 0 or 1")))
    }
}
