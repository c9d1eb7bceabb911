//! Factors and caps as numbers.

use super::Keys;
use crate::architecture::{Factor, Factors};
use crate::error::ModelError;

/// Values of [`Factors`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FactorValues {
    /// On what the embedding gives.
    pub embedding: f32,
    /// On the products of queries and keys.
    pub attention: f32,
    /// On what a branch adds to the residual stream.
    pub residual: f32,
    /// On the logits.
    pub logits: f32,
    /// `c` where `c tanh(s / c)` takes the place of the scaled products `s` of queries and keys.
    pub attention_cap: Option<f32>,
    /// The same for logits.
    pub logit_cap: Option<f32>,
}

impl FactorValues {
    pub(super) fn read(
        factors: &Factors,
        keys: &Keys<'_>,
        [hidden_size, head_dim]: [usize; 2],
        temperature: f64,
        dtype: Option<&str>,
    ) -> Result<Self, ModelError> {
        let positive = |key: &str| match key {
            "hidden_size" => Ok(hidden_size as f64),
            "head_dim" => Ok(head_dim as f64),
            _ => {
                let number = keys.number(key)?.ok_or_else(|| ModelError::Missing { key: key.to_owned() })?;
                if number > 0.0 && number.is_finite() {
                    Ok(number)
                } else {
                    Err(keys.wrong(key, "a positive number".to_owned()))
                }
            }
        };
        let value = |factor| {
            Ok::<_, ModelError>(match factor {
                Factor::One => 1.0,
                Factor::Key(key) => positive(key)? as f32,
                Factor::OneOver(key) => (1.0 / positive(key)?) as f32,
                Factor::OneOverRootOf(key) => 1.0 / (positive(key)? as f32).sqrt(),
                Factor::TemperedOneOverRootOf(key) => (temperature / positive(key)?.sqrt()) as f32,
                Factor::RoundedRootOf(key) => rounded(positive(key)?.sqrt() as f32, dtype),
            })
        };
        let cap = |key: Option<&str>| {
            key.filter(|key| keys.get(key).is_some()).map(|key| Ok(positive(key)? as f32)).transpose()
        };
        Ok(Self {
            embedding: value(factors.embedding)?,
            attention: value(factors.attention)?,
            residual: value(factors.residual)?,
            logits: value(factors.logits)?,
            attention_cap: cap(factors.attention_cap)?,
            logit_cap: cap(factors.logit_cap)?,
        })
    }
}

/// To the digits of the checkpoint's type, ties to even, as a number of ordinary size.
fn rounded(value: f32, dtype: Option<&str>) -> f32 {
    let dropped = match dtype {
        Some("bfloat16") => 16,
        Some("float16") => 13,
        _ => return value,
    };
    let bits = value.to_bits();
    let half = (1_u32 << (dropped - 1)) - 1 + (bits >> dropped & 1);
    f32::from_bits((bits + half) >> dropped << dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_have_the_digits_of_the_checkpoints_type() {
        let root = 2304_f32.sqrt();
        assert_eq!(rounded(root, Some("bfloat16")), 48.0);
        assert_eq!(rounded(2048_f32.sqrt(), Some("bfloat16")), 45.25);
        assert_eq!(rounded(3072_f32.sqrt(), Some("bfloat16")), 55.5);
        assert_eq!(rounded(2048_f32.sqrt(), Some("float16")), 45.25);
        assert_eq!(rounded(3072_f32.sqrt(), Some("float16")), 55.4375);
        assert_eq!(rounded(2048_f32.sqrt(), Some("float32")), 2048_f32.sqrt());
    }
}
