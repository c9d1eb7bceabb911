//! Checkpoints of four-bit codes, as their configuration and the tensors' own states describe them.

use kernels::PackedMatrix;
use model::linear::Linear;
use ndarray::Array2;
use quantizer::nested;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, NESTED_GROUPS, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::{QuantizedTensor, ScaleParts};
use serde_json::{Value, json};

use super::super::packed_parts::StoredLinear;
use super::super::settings::{bad, flag, names};
use super::super::{StoredFormat, TargetFormat};
use super::BitsAndBytes;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::error::FormatsError;

/// Where no configuration says how many weights share a scale, each tensor's state does.
const USUAL_BLOCK: usize = 64;
/// Largest state of a tensor, bytes.
const MOST_STATE: u64 = 4096;

/// A checkpoint in this format, as its configuration describes it.
#[derive(Debug)]
pub(super) struct Stored {
    format: &'static BitsAndBytes,
    /// Parts of names of linears that are not quantized.
    kept: Vec<String>,
}

/// What a tensor's state says.
struct State {
    /// Weights that share a scale.
    block: usize,
    /// Scales that share a scale of theirs, and what is added; where scales are quantized again.
    nested: Option<(usize, f32)>,
}

impl Stored {
    pub(super) fn read(format: &'static BitsAndBytes, config: &Value) -> Result<Self, FormatsError> {
        if !flag(config, "load_in_4bit").map_err(bad)? {
            return Err(bad("does neither `load_in_4bit` nor `load_in_8bit`".to_owned()));
        }
        Ok(Self { format, kept: kept(config)? })
    }

    fn state(&self, stored: &StoredLinear<'_>) -> Result<State, FormatsError> {
        let suffix = self.format.state_name();
        let name = stored.name(&suffix);
        let info = stored.checkpoint.info(&name)?;
        if info.bytes > MOST_STATE {
            return Err(stored.fail(&suffix, format!("has {} bytes, expected a few", info.bytes)));
        }
        let state: Value = serde_json::from_slice(&stored.checkpoint.read(&name)?)
            .map_err(|e| stored.fail(&suffix, format!("is no JSON: {e}")))?;
        let (outputs, inputs) = (stored.linear.out_features, stored.linear.in_features);
        if state.get("shape") != Some(&json!([outputs, inputs])) {
            let problem = format!("is of shape {:?}, expected [{outputs}, {inputs}]", state.get("shape"));
            return Err(stored.fail(&suffix, problem));
        }
        if state.get("quant_type").and_then(Value::as_str) != Some(self.format.kind) {
            return Err(stored.fail(&suffix, format!("is not of {} codes", self.format.kind)));
        }
        let known = |key: &str, types: &[&str]| {
            let found = state.get(key).and_then(Value::as_str);
            match found.is_some_and(|found| types.contains(&found)) {
                true => Ok(()),
                false => {
                    Err(stored.fail(&suffix, format!("has the `{key}` {found:?}, expected one of {types:?}")))
                }
            }
        };
        known("dtype", &["float32", "float16", "bfloat16"])?;
        let size = |key: &str| {
            let size = state.get(key).and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
            size.filter(|size| size.is_power_of_two())
                .ok_or_else(|| stored.fail(&suffix, format!("has no `{key}` that is a power of two")))
        };
        let nested = match state.get("nested_blocksize") {
            None => None,
            Some(_) => {
                known("nested_dtype", &["float32"])?;
                let offset = state.get("nested_offset").and_then(Value::as_f64).map(|offset| offset as f32);
                let offset = offset.filter(|offset| offset.is_finite());
                let missing = || stored.fail(&suffix, "has no `nested_offset`");
                Some((size("nested_blocksize")?, offset.ok_or_else(missing)?))
            }
        };
        Ok(State { block: size("blocksize")?, nested })
    }

    /// The scale of each block, and what it was made of.
    fn scales(stored: &StoredLinear<'_>, state: &State) -> Result<(Vec<f32>, Option<Nested>), FormatsError> {
        const CODES: &str = "weight.absmax";
        let blocks = (stored.linear.out_features * stored.linear.in_features).div_ceil(state.block);
        let vector = |suffix: &str, length| stored.checkpoint.read_vector(&stored.name(suffix), length);
        let Some((size, offset)) = state.nested else { return Ok((vector(CODES, blocks)?.to_vec(), None)) };
        let codes = stored.checkpoint.read_as(&stored.name(CODES), Dtype::U8, &[blocks])?;
        let table = vector("weight.nested_quant_map", 256)?;
        let coarse = vector("weight.nested_absmax", blocks.div_ceil(size))?;
        let fine: Vec<f32> = codes.into_iter().map(|code| table[usize::from(code)]).collect();
        let coarse: Vec<f32> = (0..blocks).map(|place| coarse[place / size]).collect();
        let scales = fine.iter().zip(&coarse).map(|(&fine, &coarse)| nested::scale(fine, coarse, offset));
        let scales: Vec<f32> = scales.collect();
        // As we would make them.
        let ours = size == NESTED_GROUPS
            && table.iter().zip(nested::TABLE.iter()).all(|(found, ours)| found.to_bits() == ours.to_bits())
            && scales.iter().all(|&scale| scale >= f32::MIN_POSITIVE);
        Ok((scales, ours.then_some(Nested { fine, coarse, offset })))
    }
}

/// What scales of blocks were made of.
struct Nested {
    fine: Vec<f32>,
    coarse: Vec<f32>,
    offset: f32,
}

impl Nested {
    /// For rows of so many blocks.
    fn parts(self, (rows, groups): (usize, usize)) -> Option<ScaleParts> {
        let fine = Array2::from_shape_vec((rows, groups), self.fine).ok()?;
        let coarse = |(row, group): (usize, usize)| match group {
            last if last == groups => self.offset,
            group => self.coarse[row * groups + group],
        };
        Some(ScaleParts { coarse: Array2::from_shape_fn((rows, groups + 1), coarse), fine })
    }
}

/// Parts of names of linears that a configuration leaves out.
pub(super) fn kept(config: &Value) -> Result<Vec<String>, FormatsError> {
    let kept = names(config, "llm_int8_skip_modules").map_err(bad)?;
    Ok(kept.into_iter().map(str::to_owned).collect())
}

impl StoredFormat for Stored {
    fn id(&self) -> &'static str {
        self.format.id
    }

    fn scheme(&self, linear: &Linear) -> Option<Scheme> {
        if self.kept.iter().any(|part| linear.name.contains(part)) {
            return None;
        }
        Some(Scheme {
            bits: BitWidth::new(4).ok()?,
            levels: self.format.levels,
            granularity: Granularity::PerGroup(GroupSize::new(USUAL_BLOCK).ok()?),
            symmetry: Symmetry::Symmetric,
            scale_dtype: ScaleDtype::F32,
        })
    }

    fn tensors(&self, linear: &Linear, scheme: Scheme) -> Vec<String> {
        self.format.layout(linear, scheme).into_iter().map(|spec| spec.name).collect()
    }

    fn decode(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<QuantizedTensor, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        let state = self.state(&stored)?;
        let (outputs, inputs) = (linear.out_features, linear.in_features);
        let weights = outputs * inputs;
        let table = checkpoint.read_vector(&stored.name("weight.quant_map"), 16)?;
        // Of two codes of zero the library's second is minus zero.
        let same = |(code, (found, ours)): (usize, (&f32, f32))| {
            found.to_bits() == ours.to_bits() || (code == 8 && ours == 0.0 && *found == 0.0)
        };
        if !table.iter().zip(self.format.table()).enumerate().all(same) {
            return Err(stored.fail("weight.quant_map", format!("is not the table of {}", self.format.id)));
        }
        let packed = checkpoint.read_as(&stored.name("weight"), Dtype::U8, &[weights.div_ceil(2), 1])?;
        let pairs = packed.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let codes: Vec<u8> = pairs.take(weights).map(|code| self.format.ours(code)).collect();
        let codes = Array2::from_shape_vec((outputs, inputs), codes)
            .map_err(|e| stored.fail("weight", e.to_string()))?;
        // Blocks run on from row to row; groups that lie in one block each do not.
        let alignment = 1 << inputs.trailing_zeros().min(GROUP_BITS);
        let size =
            GroupSize::new(state.block.min(alignment)).map_err(|e| stored.fail("weight", e.to_string()))?;
        let (scales, nested) = Self::scales(&stored, &state)?;
        let scales = Array2::from_shape_fn((outputs, inputs / size.get()), |(row, group)| {
            scales[(row * inputs + group * size.get()) / state.block]
        });
        let nested = nested.filter(|_| size.get() == state.block);
        let parts = nested.and_then(|nested| nested.parts(scales.dim()));
        let scale_dtype = if parts.is_some() { ScaleDtype::Nested } else { ScaleDtype::F32 };
        let scheme = Scheme { granularity: Granularity::PerGroup(size), scale_dtype, ..scheme };
        let tensor = QuantizedTensor::new(scheme, codes, scales, None);
        let tensor = match parts {
            None => tensor,
            Some(parts) => tensor.and_then(|tensor| tensor.in_parts(parts, None)),
        };
        tensor.map_err(|e| stored.fail("weight", format!("is no solution: {e}")))
    }

    fn packed(
        &self,
        _linear: &Linear,
        _scheme: Scheme,
        _checkpoint: &Checkpoint,
    ) -> Result<Option<PackedMatrix>, FormatsError> {
        Ok(None)
    }
}

/// Groups have at most `2^10` columns.
const GROUP_BITS: u32 = 10;
