//! How a file's model rotates positions, as the `rope_parameters` of config.json that would make it do so.
//!
//! llama.cpp divides each frequency by a factor of a tensor, or stretches all of them by a rule (`none`, `linear`, `yarn`), and multiplies
//! cosines and sines by `attn_factor`. Factors that Llama 3's rule makes are recognised, so that other formats can say them too; what no rule
//! says is spelled as LongRope, whose arithmetic is the same.

use std::collections::BTreeMap;

use model::rope::{Rope, RopeScaling};
use serde_json::{Value as Json, json};

use super::hyperparameters::{rope_factors, usual_attention};
use super::names::{LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS};
use super::{Header, Value};

/// Llama 3's rule has been published with these: low and high frequency factor.
const LLAMA3_BANDS: (f64, f64) = (1.0, 4.0);
/// Largest relative difference of a factor, which other programs compute in single precision.
const SAME: f32 = 1e-5;

/// What rotates.
#[derive(Clone, Copy, Debug)]
pub(super) struct RotatedHeads {
    /// Features of a head.
    pub(super) head_dim: u64,
    /// The longest sequence, tokens.
    pub(super) context: u64,
    /// Whether features are made of latent ones, of which those that rotate are apart.
    pub(super) latent: bool,
}

/// `rope_parameters` of the model `name` in a file; `divisors` is what its tensors of them hold.
pub(super) fn read(
    header: &Header,
    name: &str,
    RotatedHeads { head_dim, context, latent }: RotatedHeads,
    divisors: &BTreeMap<&str, Vec<f32>>,
) -> Result<Json, String> {
    let factors = divisors.get(ROPE_FACTORS).map(Vec::as_slice);
    let get = |key: &str| header.values.get(&format!("{name}.rope.{key}"));
    let real = |key: &str| match get(key) {
        None => Ok(None),
        Some(value) => match value.as_f32().map(f64::from) {
            Some(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(format!("has no single number for `{name}.rope.{key}`")),
        },
    };
    let theta = real("freq_base")?.unwrap_or(10_000.0);
    let mut kind = get("scaling.type").and_then(Value::as_text).unwrap_or("none");
    // The older key means linear stretching whatever else is said.
    let older = real("scale_linear")?.filter(|&factor| factor != 1.0 && factor != 0.0);
    let factor = real("scaling.factor")?.filter(|&factor| factor != 0.0).or(older);
    if older.is_some() && kind == "none" {
        kind = "linear";
    }
    let original = get("scaling.original_context_length").and_then(Value::as_u64).unwrap_or(context);
    let mut attention = real("scaling.attn_factor")?.unwrap_or(1.0);
    let mut rope = json!({"rope_type": "default", "rope_theta": theta});
    // Fewer features than the head has, where it says so.
    let rotated = get("dimension_count").and_then(Value::as_u64).unwrap_or(head_dim);
    if rotated == 0 || rotated > head_dim {
        return Err(format!("rotates {rotated} features of heads of {head_dim}"));
    }
    if rotated != head_dim && !latent {
        rope["partial_rotary_factor"] = json!(rotated as f64 / head_dim as f64);
    }
    if let (Some(short), Some(long)) = (divisors.get(SHORT_FACTORS), divisors.get(LONG_FACTORS)) {
        divide(&mut rope, short, original);
        rope["long_factor"] = json!(long);
        rope["attention_factor"] = json!(attention);
        return Ok(rope);
    }
    match (kind, factors, factor) {
        ("none" | "linear", Some(factors), None) => {
            match llama3(factors, theta, rotated, context).filter(|_| attention == 1.0) {
                Some((factor, original)) => {
                    rope["rope_type"] = json!("llama3");
                    rope["factor"] = json!(factor);
                    rope["original_max_position_embeddings"] = json!(original);
                    (rope["low_freq_factor"], rope["high_freq_factor"]) =
                        (json!(LLAMA3_BANDS.0), json!(LLAMA3_BANDS.1));
                }
                None => divide(&mut rope, factors, context),
            }
        }
        ("none", None, _) | ("linear", None, None) => {
            if attention != 1.0 {
                divide(&mut rope, &vec![1.0; (rotated / 2).min(MOST_DIMENSIONS) as usize], context);
            }
        }
        ("linear", None, Some(factor)) if attention == 1.0 => {
            rope["rope_type"] = json!("linear");
            rope["factor"] = json!(factor);
        }
        ("yarn", None, Some(factor)) => {
            if let Some(other) =
                real("scaling.yarn_ext_factor")?.filter(|&share| share != 1.0 && share >= 0.0)
            {
                return Err(format!("mixes frequencies by `yarn_ext_factor` {other}, which is not read"));
            }
            rope["rope_type"] = json!("yarn");
            rope["factor"] = json!(factor);
            rope["original_max_position_embeddings"] = json!(original);
            for (key, stored) in
                [("beta_fast", "scaling.yarn_beta_fast"), ("beta_slow", "scaling.yarn_beta_slow")]
            {
                if let Some(beta) = real(stored)?.filter(|&beta| beta >= 0.0) {
                    rope[key] = json!(beta);
                }
            }
            attention *= real("scaling.yarn_attn_factor")?.filter(|&share| share >= 0.0).unwrap_or(1.0);
            if let Some(log) = real("scaling.yarn_log_multiplier")?.filter(|_| latent) {
                (rope["mscale"], rope["mscale_all_dim"]) = (json!(log * 10.0), json!(log * 10.0));
            }
            if attention != 1.0 {
                attention *= usual_attention(factor, latent);
                rope["attention_factor"] = json!(attention);
            }
            return Ok(rope);
        }
        _ => {
            return Err(format!(
                "rotates by `{kind}` with `{ROPE_FACTORS}`, with an `attn_factor` or without a factor, which is not read"
            ));
        }
    }
    if rope["rope_type"] == "longrope" {
        rope["attention_factor"] = json!(attention);
    }
    Ok(rope)
}

/// Features of a head that nobody exceeds: a file's number is not to be believed as a length.
const MOST_DIMENSIONS: u64 = 1 << 16;

/// The same arithmetic by another name: each frequency has its own divisor, for sequences of any length.
fn divide(rope: &mut Json, factors: &[f32], context: u64) {
    rope["rope_type"] = json!("longrope");
    for key in ["short_factor", "long_factor"] {
        rope[key] = json!(factors);
    }
    rope["original_max_position_embeddings"] = json!(context);
}

/// Factor and original context of Llama 3's rule, where it makes these factors for some context that the model was first trained on.
fn llama3(factors: &[f32], theta: f64, rotated: u64, context: u64) -> Option<(f32, usize)> {
    let dim = usize::try_from(rotated).ok().filter(|dim| *dim == 2 * factors.len())?;
    let factor = factors.iter().copied().fold(1.0_f32, f32::max);
    let (low, high) = LLAMA3_BANDS;
    let original = (4..=20).map(|power| 1_usize << power).filter(|&tokens| tokens as u64 <= context).find(
        |&tokens| {
            let scaling = RopeScaling::Llama3 {
                factor: f64::from(factor),
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_context: tokens,
            };
            let made = rope_factors(&Rope { theta, first: 0, dim, scaling });
            made.is_some_and(|made| {
                made.len() == factors.len()
                    && made.iter().zip(factors).all(|(made, found)| (made - found).abs() <= SAME * found)
            })
        },
    )?;
    Some((factor, original))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Values;

    fn header(values: &[(&str, Value)]) -> Header {
        let values: Values =
            values.iter().map(|(key, value)| (format!("llama.rope.{key}"), value.clone())).collect();
        Header { values, tensors: std::collections::BTreeMap::new() }
    }

    fn read(header: &Header, head_dim: u64, context: u64, factors: Option<&[f32]>) -> Result<Json, String> {
        let divisors = factors.map(|factors| (ROPE_FACTORS, factors.to_vec())).into_iter().collect();
        super::read(header, "llama", RotatedHeads { head_dim, context, latent: false }, &divisors)
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn factors_of_llama_3_are_recognised_and_others_stay_what_they_are() {
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 8192,
        };
        let factors = rope_factors(&Rope { theta: 500_000.0, first: 0, dim: 64, scaling }).unwrap();
        let file = header(&[("freq_base", Value::F32(500_000.0))]);
        let found = read(&file, 64, 131_072, Some(&factors)).unwrap();
        assert_eq!(
            (&found["rope_type"], &found["original_max_position_embeddings"]),
            (&json!("llama3"), &json!(8192))
        );
        assert_eq!(
            (&found["factor"], &found["low_freq_factor"], &found["high_freq_factor"]),
            (&json!(32.0), &json!(1.0), &json!(4.0))
        );
        let mut other = factors.clone();
        other[20] *= 1.01;
        assert_eq!(read(&file, 64, 131_072, Some(&other)).unwrap()["rope_type"], "longrope");
        // Another base has other frequencies.
        assert_eq!(read(&header(&[]), 64, 131_072, Some(&factors)).unwrap()["rope_type"], "longrope");
    }

    #[test]
    fn what_changes_cosines_and_ramps_is_read_or_refused() {
        let plain = read(&header(&[("scaling.attn_factor", Value::F32(1.25))]), 8, 64, None).unwrap();
        assert_eq!((&plain["rope_type"], &plain["attention_factor"]), (&json!("longrope"), &json!(1.25)));
        assert_eq!(plain["long_factor"], json!([1.0, 1.0, 1.0, 1.0]));
        let yarn = [
            ("scaling.type", text("yarn")),
            ("scaling.factor", Value::F32(4.0)),
            ("scaling.attn_factor", Value::F32(0.5)),
        ];
        let found = read(&header(&yarn), 8, 64, None).unwrap();
        let expected = 0.5 * (0.1 * 4.0_f64.ln() + 1.0);
        assert!((found["attention_factor"].as_f64().unwrap() - expected).abs() < 1e-12);
        let beta = [yarn.to_vec(), vec![("scaling.yarn_beta_fast", Value::F32(16.0))]].concat();
        assert_eq!(read(&header(&beta), 8, 64, None).unwrap()["beta_fast"], 16.0);
        let mixed = [yarn.to_vec(), vec![("scaling.yarn_ext_factor", Value::F32(0.5))]].concat();
        assert!(read(&header(&mixed), 8, 64, None).unwrap_err().contains("yarn_ext_factor"));
        let linear = [
            ("scaling.type", text("linear")),
            ("scaling.factor", Value::F32(4.0)),
            ("scaling.attn_factor", Value::F32(0.5)),
        ];
        assert!(read(&header(&linear), 8, 64, None).is_err());
        let older = read(&header(&[("scale_linear", Value::F32(4.0))]), 8, 64, None).unwrap();
        assert_eq!((&older["rope_type"], &older["factor"]), (&json!("linear"), &json!(4.0)));
    }
}
