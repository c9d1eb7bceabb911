//! Rotary positions as data: which frequencies a model rotates with. The rotation itself is in `calibration`.

mod frequencies;

use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::hyperparameters::{Keys, wrong_value};

/// Rotary positions of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// The first feature of a head that is rotated.
    pub first: usize,
    /// Features of a head that are rotated, from that one; even.
    pub dim: usize,
    /// How the series is stretched for long contexts.
    pub scaling: RopeScaling,
}

/// How frequencies are changed for contexts longer than the model was first trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// How much longer the context is.
        factor: f64,
    },
    /// The base grows with the length beyond the original context (NTK-aware).
    Dynamic {
        /// How much longer the context is.
        factor: f64,
        /// Context before stretching, tokens.
        original_context: usize,
    },
    /// Llama 3.1: long wavelengths divided, short ones kept, a ramp between.
    Llama3 {
        /// How much longer the context is.
        factor: f64,
        /// Wavelengths above `original_context / low` are divided.
        low_frequency_factor: f64,
        /// Wavelengths below `original_context / high` are kept.
        high_frequency_factor: f64,
        /// Context before stretching, tokens.
        original_context: usize,
    },
    /// YaRN (arXiv 2309.00071): a ramp over dimensions, and a factor on cosine and sine.
    Yarn {
        /// How much longer the context is.
        factor: f64,
        /// Rotations over the original context from which a dimension is kept.
        beta_fast: f64,
        /// Rotations over the original context below which a dimension is divided.
        beta_slow: f64,
        /// Whether the ramp's ends are whole dimensions.
        truncate: bool,
        /// Factor on cosine and sine.
        attention_factor: f64,
        /// What `mscale_all_dim` makes of queries and of keys, for architectures whose products have that factor; 1 without it.
        temperature: f64,
        /// Context before stretching, tokens.
        original_context: usize,
    },
    /// LongRoPE (arXiv 2402.13753): a divisor for each frequency, one list for short and one for long sequences.
    LongRope {
        /// Divisors up to the original context, `dim / 2`.
        short_factor: Vec<f64>,
        /// Divisors beyond it, `dim / 2`.
        long_factor: Vec<f64>,
        /// Factor on cosine and sine.
        attention_factor: f64,
        /// Context before stretching, tokens.
        original_context: usize,
    },
}

impl Rope {
    /// Whole heads, the usual base, not stretched.
    pub(crate) fn plain(head_dim: usize) -> Self {
        Self { theta: 10000.0, first: 0, dim: head_dim, scaling: RopeScaling::Default }
    }

    /// `kind` is the kind of layers that the frequencies are of, where kinds have their own: transformers 5 has an object for each,
    /// transformers 4 one base for those that slide (`rope_local_base_freq`), which are not stretched.
    pub(crate) fn read(
        keys: &Keys<'_>,
        kind: Option<&str>,
        head_dim: usize,
        context: usize,
    ) -> Result<Self, ModelError> {
        let object =
            ["rope_parameters", "rope_scaling"].into_iter().find_map(|key| Some((key, keys.get(key)?)));
        let empty = Map::new();
        let (mut name, mut parameters) = match object {
            None => ("rope_parameters".to_owned(), &empty),
            Some((key, value)) => (
                key.to_owned(),
                value.as_object().ok_or_else(|| wrong_value(key, Some(value), "an object".to_owned()))?,
            ),
        };
        if let (Some(new), Some(old)) = (keys.get("rope_parameters"), keys.get("rope_scaling"))
            && !agree(new, old)
        {
            return Err(wrong_value("rope_scaling", Some(old), "what `rope_parameters` says".to_owned()));
        }
        let mut theta = "rope_theta";
        match kind.map(|kind| (kind, parameters.get(kind))) {
            Some((kind, Some(Value::Object(own)))) => {
                name = format!("{name}.{kind}");
                parameters = own;
            }
            Some(("sliding_attention", _)) => {
                theta = "rope_local_base_freq";
                parameters = &empty;
            }
            _ => {}
        }
        if let Some((key, value)) = parameters.iter().find(|(_, value)| value.is_object()) {
            let expected = "one set of parameters for all layers".to_owned();
            return Err(wrong_value(&format!("{name}.{key}"), Some(value), expected));
        }
        let source = Source { keys, parameters, name };
        let theta = source.positive(theta)?.unwrap_or(10000.0);
        let dim = match keys.optional_extent("rotary_dim")? {
            Some(dim) => dim,
            None => (head_dim as f64 * source.positive("partial_rotary_factor")?.unwrap_or(1.0)) as usize,
        };
        if dim > head_dim || dim < 2 || !dim.is_multiple_of(2) {
            return Err(source
                .wrong("partial_rotary_factor", "a share of the head that is an even number of features"));
        }
        Ok(Self { theta, first: 0, dim, scaling: source.scaling(dim, context)? })
    }
}

/// Whether an object of transformers 4 says nothing else than one of transformers 5, which calls `type` `rope_type`.
fn agree(new: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return new == old };
    old.iter().all(|(key, value)| {
        let key = if key == "type" { "rope_type" } else { key };
        new.get(key).is_none_or(|other| other == value) && (key != "rope_type" || new.contains_key(key))
    })
}

/// A key may stand among the rope's own parameters (transformers 5) or at the top (transformers 4).
struct Source<'a> {
    keys: &'a Keys<'a>,
    parameters: &'a Map<String, Value>,
    name: String,
}

impl Source<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        let own = self.parameters.get(key).filter(|value| !value.is_null());
        own.or_else(|| self.keys.get(key))
    }

    fn wrong(&self, key: &str, expected: &str) -> ModelError {
        wrong_value(&format!("{}.{key}", self.name), self.get(key), expected.to_owned())
    }

    fn positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.get(key).map(Value::as_f64) {
            None => Ok(None),
            Some(Some(number)) if number > 0.0 && number.is_finite() => Ok(Some(number)),
            Some(_) => Err(self.wrong(key, "a positive number")),
        }
    }

    fn required(&self, key: &str) -> Result<f64, ModelError> {
        self.positive(key)?.ok_or_else(|| self.wrong(key, "a positive number"))
    }

    fn original_context(&self, otherwise: usize) -> Result<usize, ModelError> {
        match self.get("original_max_position_embeddings") {
            None => Ok(otherwise),
            Some(value) => match value.as_u64() {
                Some(tokens) if (1..=1 << 30).contains(&tokens) => Ok(tokens as usize),
                _ => Err(self.wrong("original_max_position_embeddings", "a whole number of tokens")),
            },
        }
    }

    fn factors(&self, key: &str, count: usize) -> Result<Vec<f64>, ModelError> {
        let expected = format!("a list of {count} positive numbers");
        let list = self.get(key).and_then(Value::as_array).filter(|list| list.len() == count);
        let list = list.ok_or_else(|| self.wrong(key, &expected))?;
        list.iter()
            .map(|value| value.as_f64().filter(|number| *number > 0.0 && number.is_finite()))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| self.wrong(key, &expected))
    }

    fn scaling(&self, dim: usize, context: usize) -> Result<RopeScaling, ModelError> {
        let kind = self.parameters.get("rope_type").or_else(|| self.parameters.get("type"));
        let kind = kind.filter(|value| !value.is_null()).map_or(Some("default"), Value::as_str);
        match kind {
            Some("default") => Ok(RopeScaling::Default),
            Some("linear") => Ok(RopeScaling::Linear { factor: self.required("factor")? }),
            Some("dynamic") => Ok(RopeScaling::Dynamic {
                factor: self.required("factor")?,
                original_context: self.original_context(context)?,
            }),
            Some("llama3") => self.llama3(context),
            Some("yarn") => self.yarn(context),
            Some("longrope" | "su") => self.long_rope(dim, context),
            _ => Err(wrong_value(
                &format!("{}.rope_type", self.name),
                self.parameters.get("rope_type").or_else(|| self.parameters.get("type")),
                "default, linear, dynamic, llama3, yarn or longrope".to_owned(),
            )),
        }
    }

    fn llama3(&self, context: usize) -> Result<RopeScaling, ModelError> {
        let (low, high) = (self.required("low_freq_factor")?, self.required("high_freq_factor")?);
        if low >= high {
            return Err(self.wrong("low_freq_factor", "a number below high_freq_factor"));
        }
        Ok(RopeScaling::Llama3 {
            factor: self.required("factor")?,
            low_frequency_factor: low,
            high_frequency_factor: high,
            original_context: self.original_context(context)?,
        })
    }

    fn yarn(&self, context: usize) -> Result<RopeScaling, ModelError> {
        let factor = self.required("factor")?;
        let attention_factor = match (
            self.positive("attention_factor")?,
            self.positive("mscale")?,
            self.positive("mscale_all_dim")?,
        ) {
            (Some(given), _, _) => given,
            (None, Some(scale), Some(all)) => yarn_scale(factor, scale) / yarn_scale(factor, all),
            (None, _, _) => yarn_scale(factor, 1.0),
        };
        let all = self.positive("mscale_all_dim")?;
        Ok(RopeScaling::Yarn {
            temperature: all.map_or(1.0, |all| yarn_scale(factor, all)),
            factor,
            beta_fast: self.positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.positive("beta_slow")?.unwrap_or(1.0),
            truncate: self.get("truncate").and_then(Value::as_bool).unwrap_or(true),
            attention_factor,
            original_context: self.original_context(context)?,
        })
    }

    fn long_rope(&self, dim: usize, context: usize) -> Result<RopeScaling, ModelError> {
        let original_context = self.original_context(context)?;
        let stretch = match self.positive("factor")? {
            Some(factor) => factor,
            None => context as f64 / original_context as f64,
        };
        let attention_factor = match self.positive("attention_factor")? {
            Some(given) => given,
            None if stretch <= 1.0 => 1.0,
            None => (1.0 + stretch.ln() / (original_context as f64).ln()).sqrt(),
        };
        Ok(RopeScaling::LongRope {
            short_factor: self.factors("short_factor", dim / 2)?,
            long_factor: self.factors("long_factor", dim / 2)?,
            attention_factor,
            original_context,
        })
    }
}

/// YaRN's temperature, `0.1 scale ln(factor) + 1` (arXiv 2309.00071, section 3.4).
fn yarn_scale(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
}
