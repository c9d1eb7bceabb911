//! GPTQ checkpoints, of either version, as their configuration describes them.

use kernels::{CodeLayout, PackedMatrix};
use model::linear::Linear;
use ndarray::Array2;
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use regex::Regex;
use serde_json::Value;

use super::super::StoredFormat;
use super::super::packed_parts::{PackedParts, StoredLinear, gathered};
use super::super::settings::{bad, given, object};
use super::{Version, specs};
use crate::checkpoint::Checkpoint;
use crate::error::FormatsError;
use crate::packing::unpack_rows;

/// A checkpoint in this format, as its configuration describes it.
#[derive(Debug)]
pub(super) struct Stored {
    id: &'static str,
    base: Scheme,
    version: Version,
    rules: Vec<(Regex, Option<Scheme>)>,
}

impl Stored {
    pub(super) fn read(id: &'static str, config: &Value) -> Result<Self, FormatsError> {
        let named = given(config, "checkpoint_format").or_else(|| given(config, "format"));
        let version = match named {
            None => Version::First,
            Some(name) => [Version::First, Version::Second]
                .into_iter()
                .find(|version| name == version.name())
                .ok_or_else(|| bad(format!("has the checkpoint format {name}")))?,
        };
        if let Some(word) = given(config, "pack_dtype").filter(|word| **word != "int32") {
            return Err(bad(format!("packs codes into {word}, only int32 is read")));
        }
        let base = scheme(config, None).map_err(bad)?;
        let mut rules = Vec::new();
        for (key, value) in object(config, "dynamic").map_err(bad)?.into_iter().flatten() {
            let (excluded, pattern) = match key.strip_prefix("-:") {
                Some(pattern) => (true, pattern),
                None => (false, key.strip_prefix("+:").unwrap_or(key)),
            };
            let regex = Regex::new(&format!("^(?:{pattern})"))
                .map_err(|e| bad(format!("has the rule `{key}`: {e}")))?;
            let scheme = if excluded { None } else { Some(scheme(value, Some(base)).map_err(bad)?) };
            rules.push((regex, scheme));
        }
        // Readers take exclusions first.
        rules.sort_by_key(|(_, scheme)| scheme.is_some());
        Ok(Self { id, base, version, rules })
    }

    /// Codes, and the group of each column where columns do not lie in order.
    fn parts(&self, stored: &StoredLinear<'_>) -> Result<(PackedParts, Option<Vec<usize>>), FormatsError> {
        let (columns, groups) = stored.groups()?;
        let scheme = stored.scheme;
        let (inputs, outputs) = (stored.linear.in_features, stored.linear.out_features);
        let words = stored.streams("qweight", outputs, inputs, true)?;
        let packed_zeros = stored.streams("qzeros", groups, outputs, false)?;
        let zero_points = unpack_rows(packed_zeros.view(), scheme.bits.get(), outputs)
            .mapv(|zero| zero.wrapping_add(self.version.less()) & scheme.bits.max_code());
        if scheme.symmetry == Symmetry::Symmetric {
            stored.demand_symmetric("qzeros", zero_points.view())?;
        }
        let scales = stored.checkpoint.read_matrix(&stored.name("scales"), (groups, outputs))?;
        let order = stored.group_order("g_idx", columns, groups)?;
        Ok((PackedParts { scheme, words, layout: CodeLayout::InputMajor, scales, zero_points }, order))
    }
}

impl StoredFormat for Stored {
    fn id(&self) -> &'static str {
        self.id
    }

    fn scheme(&self, linear: &Linear) -> Option<Scheme> {
        let rule = self.rules.iter().find(|(pattern, _)| pattern.is_match(&linear.name));
        rule.map_or(Some(self.base), |(_, scheme)| *scheme)
    }

    fn tensors(&self, linear: &Linear, scheme: Scheme) -> Vec<String> {
        specs(linear, scheme).into_iter().map(|spec| spec.name).collect()
    }

    fn decode(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<QuantizedTensor, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        let (parts, order) = self.parts(&stored)?;
        stored.demand_in_order("g_idx", order.as_deref())?;
        parts.decode(&stored)
    }

    fn values(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<Array2<f32>, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        match self.parts(&stored)? {
            (parts, Some(order)) => Ok(gathered(parts, linear, &order)),
            (parts, None) => Ok(parts.decode(&stored)?.dequantize()),
        }
    }

    fn packed(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<Option<PackedMatrix>, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        match self.parts(&stored)? {
            (parts, None) => parts.packed(&stored).map(Some),
            (_, Some(_)) => Ok(None),
        }
    }
}

/// The scheme that an object's keys describe; keys it lacks are those of `base`.
fn scheme(config: &Value, base: Option<Scheme>) -> Result<Scheme, String> {
    let get = |key: &str| given(config, key);
    let bits = match (get("bits"), base) {
        (Some(value), _) => value
            .as_u64()
            .and_then(|bits| u8::try_from(bits).ok())
            .and_then(|bits| BitWidth::new(bits).ok())
            .ok_or_else(|| format!("has {value} bits"))?,
        (None, Some(base)) => base.bits,
        (None, None) => return Err("has no `bits`".to_owned()),
    };
    let granularity = match (get("group_size"), base) {
        (Some(value), _) if value == -1 => Granularity::PerChannel,
        (Some(value), _) => value
            .as_u64()
            .and_then(|columns| GroupSize::new(columns as usize).ok())
            .map(Granularity::PerGroup)
            .ok_or_else(|| format!("has the group size {value}"))?,
        (None, Some(base)) => base.granularity,
        (None, None) => return Err("has no `group_size`".to_owned()),
    };
    let symmetry = match (get("sym"), base) {
        (Some(value), _) => {
            let symmetric = value.as_bool().ok_or_else(|| format!("has `sym` {value}"))?;
            if symmetric { Symmetry::Symmetric } else { Symmetry::Asymmetric }
        }
        (None, Some(base)) => base.symmetry,
        (None, None) => Symmetry::Symmetric,
    };
    Ok(Scheme { bits, levels: Levels::Uniform, granularity, symmetry, scale_dtype: ScaleDtype::F32 })
}
