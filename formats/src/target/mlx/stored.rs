//! Checkpoints of MLX, ours and mlx-lm's: affine codes, and the modes whose codes are floats.

use std::ops::Range;

use kernels::{CodeLayout, PackedMatrix};
use model::Model;
use model::linear::Linear;
use ndarray::Array2;
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::{Offsets, QuantizedTensor};
use serde_json::Value;

use super::super::floats::{e4m3, nibbles, power_of_two};
use super::super::packed_parts::{PackedParts, StoredLinear};
use super::super::settings::{bad, given};
use super::super::{StoredFormat, TargetFormat};
use super::modes::Mode;
use super::{Mlx, WIDTHS, bias, module, stack};
use crate::checkpoint::{Checkpoint, Dtype};
use crate::error::FormatsError;
use crate::packing::{from_bytes, unpack_rows, words_for};
use crate::stacks::Stacks;

/// The largest float of four bits times the largest of eight.
const MOST_PRODUCT: f32 = 6.0 * 448.0;

/// A checkpoint in this format, as its configuration describes it.
#[derive(Debug)]
pub(super) struct Stored {
    base: Scheme,
    /// Modules that differ; none: not quantized.
    others: Vec<(String, Option<Scheme>)>,
}

impl Stored {
    pub(super) fn read(config: &Value) -> Result<Self, FormatsError> {
        let base = scheme(config).map_err(bad)?;
        let modules = config.as_object().into_iter().flatten();
        let others = modules.filter(|(key, _)| !["group_size", "bits", "mode"].contains(&key.as_str())).map(
            |(module, value)| match value {
                Value::Bool(false) => Ok((module.clone(), None)),
                Value::Bool(true) => Ok((module.clone(), Some(base))),
                own => {
                    Ok((module.clone(), Some(scheme(own).map_err(|e| bad(format!("of `{module}` {e}")))?)))
                }
            },
        );
        Ok(Self { base, others: others.collect::<Result<_, FormatsError>>()? })
    }

    /// Codes that are floats, with scales of eight bits.
    fn floats(stored: &StoredLinear<'_>) -> Result<QuantizedTensor, FormatsError> {
        let (_, groups) = stored.groups()?;
        let (inputs, outputs) = (stored.linear.in_features, stored.linear.out_features);
        let levels = stored.scheme.levels;
        let bytes = inputs * usize::from(stored.scheme.bits.get()) / 8;
        let words = [outputs, bytes.div_ceil(4)];
        let bytes = stored.checkpoint.read_as(&stored.name("weight"), Dtype::U32, &words)?;
        let patterns = if levels == Levels::E2m1 { nibbles(&bytes) } else { bytes };
        let codes = stored.coded("weight", &patterns, levels)?;
        let scales = stored.checkpoint.read_as(&stored.name("scales"), Dtype::U8, &[outputs, groups])?;
        let two_level = Mode::of(stored.scheme).is_some_and(|mode| mode.scales != ScaleDtype::E8m0);
        let scale = |bits: u8| if two_level { e4m3(bits) } else { Some(power_of_two(bits)) };
        let scales: Option<Vec<f32>> = scales.into_iter().map(scale).collect();
        let scales = scales.ok_or_else(|| stored.fail("scales", "holds what is no number"))?;
        let mut scales = Array2::from_shape_vec((outputs, groups), scales)
            .map_err(|e| stored.fail("scales", e.to_string()))?;
        if two_level && stored.checkpoint.contains(&stored.name("global_scale")) {
            // The runtime's factor is this over the largest product of a code and a scale.
            scales *= stored.single("global_scale")? / MOST_PRODUCT;
        }
        stored.with_scales("scales", codes, (stored.scheme.granularity, scales))
    }

    fn parts(stored: &StoredLinear<'_>) -> Result<Parts, FormatsError> {
        let (_, groups) = stored.groups()?;
        let (inputs, outputs) = (stored.linear.in_features, stored.linear.out_features);
        let words = stored.typed_streams("weight", Dtype::U32, outputs, inputs)?;
        let read = |suffix: &str| stored.checkpoint.read_matrix(&stored.name(suffix), (outputs, groups));
        Ok(Parts { words, scales: read("scales")?, biases: read("biases")? })
    }
}

/// The stored parts of one linear.
struct Parts {
    /// `[out, words]`.
    words: Array2<u32>,
    /// `[out, groups]`.
    scales: Array2<f32>,
    /// `[out, groups]`.
    biases: Array2<f32>,
}

impl Parts {
    /// The first bias that a symmetric grid does not have, and what it has.
    fn off_middle(&self, bits: BitWidth) -> Option<((usize, usize), f32, f32)> {
        let pairs = self.scales.indexed_iter().zip(&self.biases);
        let mut expected = pairs.map(|((place, scale), found)| (place, *found, bias(*scale, bits)));
        expected.find(|(_, found, expected)| found != expected)
    }

    fn symmetric(self, scheme: Scheme) -> PackedParts {
        let scales = self.scales.reversed_axes();
        let zero_points = Array2::from_elem(scales.dim(), scheme.bits.symmetric_zero());
        PackedParts { scheme, words: self.words, layout: CodeLayout::OutputMajor, scales, zero_points }
    }
}

impl StoredFormat for Stored {
    fn id(&self) -> &'static str {
        Mlx::of(self.base).id()
    }

    fn scheme(&self, linear: &Linear) -> Option<Scheme> {
        let own = module(linear);
        let other = self.others.iter().find(|(module, _)| *module == own);
        other.map_or(Some(self.base), |(_, scheme)| *scheme)
    }

    fn stacks(&self, model: &Model) -> Stacks {
        let mut stacks = Stacks::new();
        for (linear, stack) in model.linears().filter_map(|linear| Some((linear, stack(linear)?))) {
            let bias = linear.bias.then_some("bias");
            for suffix in ["weight", "scales", "biases"].into_iter().chain(bias) {
                let members = stacks.entry(format!("{stack}.{suffix}")).or_default();
                members.push(format!("{}.{suffix}", linear.name));
            }
        }
        stacks
    }

    fn tensors(&self, linear: &Linear, scheme: Scheme) -> Vec<String> {
        Mlx::of(scheme).layout(linear, scheme).into_iter().map(|spec| spec.name).collect()
    }

    fn decode(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<QuantizedTensor, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        if scheme.levels != Levels::Uniform {
            return Self::floats(&stored);
        }
        let parts = Self::parts(&stored)?;
        if scheme.symmetry != Symmetry::Minimum {
            return match parts.off_middle(scheme.bits) {
                None => parts.symmetric(scheme).decode(&stored),
                Some((place, found, expected)) => {
                    let problem = format!("holds {found} at {place:?}, a symmetric grid has {expected}");
                    Err(stored.fail("biases", problem))
                }
            };
        }
        let codes = unpack_rows(parts.words.view(), scheme.bits.get(), linear.in_features);
        QuantizedTensor::with_offsets(scheme, codes, parts.scales, Offsets::Minimums(parts.biases))
            .map_err(|e| stored.fail("weight", format!("is no solution: {e}")))
    }

    fn rows(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
        rows: Range<usize>,
    ) -> Result<Option<Array2<f32>>, FormatsError> {
        if scheme.levels != Levels::Uniform {
            return Ok(None);
        }
        let stored = StoredLinear { linear, scheme, checkpoint };
        let (columns, groups) = stored.groups()?;
        let (inputs, outputs) = (linear.in_features, linear.out_features);
        let words = words_for(inputs, scheme.bits.get());
        let words_of =
            checkpoint.read_rows_as(&stored.name("weight"), Dtype::U32, &[outputs, words], rows.clone())?;
        let words_of = Array2::from_shape_vec((rows.len(), words), from_bytes(&words_of))
            .map_err(|e| stored.fail("weight", e.to_string()))?;
        let codes = unpack_rows(words_of.view(), scheme.bits.get(), inputs);
        let part = |suffix: &str| {
            checkpoint.expect_shape(&stored.name(suffix), &[outputs, groups])?;
            checkpoint.read_rows(&stored.name(suffix), rows.clone())
        };
        let (scales, biases) = (part("scales")?, part("biases")?);
        Ok(Some(Array2::from_shape_fn(codes.dim(), |(row, column)| {
            let group = [row, column / columns];
            scales[group] * f32::from(codes[[row, column]]) + biases[group]
        })))
    }

    fn packed(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<Option<PackedMatrix>, FormatsError> {
        if scheme.levels != Levels::Uniform {
            return Ok(None);
        }
        let stored = StoredLinear { linear, scheme, checkpoint };
        let parts = Self::parts(&stored)?;
        if parts.off_middle(scheme.bits).is_some() {
            return Ok(None);
        }
        parts.symmetric(scheme).packed(&stored).map(Some)
    }
}

/// The scheme that an object's keys describe.
fn scheme(config: &Value) -> Result<Scheme, String> {
    let get = |key: &str| given(config, key);
    let floats = match get("mode").filter(|mode| **mode != "affine") {
        None => None,
        Some(mode) => {
            let known = mode.as_str().and_then(Mode::named);
            Some(known.ok_or_else(|| format!("has the mode {mode}, which is not read"))?)
        }
    };
    if let Some(mode) = floats {
        let name = mode.name;
        let found = [("bits", u64::from(mode.bits)), ("group_size", mode.columns as u64)];
        if let Some((key, only)) =
            found.into_iter().find(|(key, only)| get(key).is_some_and(|value| *value != *only))
        {
            return Err(format!("has the mode `{name}` with a `{key}` that is not {only}"));
        }
        return mode.scheme(ScaleDtype::F32).ok_or_else(|| format!("has the mode `{name}` without a grid"));
    }
    let width = |bits: &Value| {
        let bits = u8::try_from(bits.as_u64()?).ok().filter(|bits| WIDTHS.contains(bits))?;
        BitWidth::new(bits).ok()
    };
    let bits = get("bits").ok_or("has no `bits`")?;
    let bits = width(bits).ok_or_else(|| format!("has {bits} bits, expected one of {WIDTHS:?}"))?;
    let columns = get("group_size").ok_or("has no `group_size`")?;
    let size = columns.as_u64().and_then(|columns| GroupSize::new(columns as usize).ok());
    let size = size.ok_or_else(|| format!("has the group size {columns}"))?;
    let granularity = Granularity::PerGroup(size);
    Ok(Scheme {
        bits,
        levels: Levels::Uniform,
        granularity,
        symmetry: Symmetry::Minimum,
        scale_dtype: ScaleDtype::F32,
    })
}
