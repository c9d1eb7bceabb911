//! Experts in four-bit floats as OpenAI publishes them (`quant_method` `mxfp4`): read only.
//!
//! For `P`, `gate_up_proj` or `down_proj` of all `E` experts of a layer, with `N` outputs (of `gate_up_proj` those of gate and up by turns) and
//! `K` inputs:
//!
//! | tensor | type | shape | content |
//! |---|---|---|---|
//! | `P_blocks` | U8 | `[E, N, K/32, 16]` | pairs of floats (E2M1), the first in the low nibble |
//! | `P_scales` | U8 | `[E, N, K/32]` | `e` of the scale `2^(e-127)` |
//!
//! All other linears, and biases, are as they were.

use kernels::PackedMatrix;
use model::linear::{Linear, Role};
use ndarray::Array2;
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use serde_json::Value;

use super::StoredFormat;
use super::floats::{nibbles, power_of_two};
use super::packed_parts::StoredLinear;
use super::registry::{Family, Opened, nothing};
use crate::checkpoint::{Checkpoint, Dtype};
use crate::error::FormatsError;

/// Columns that share a scale.
const GROUP: usize = 32;

/// A checkpoint in this format.
#[derive(Debug)]
struct Stored;

/// The form, which is read alone.
pub(super) static FAMILY: Family = Family { written: nothing, open };

/// Opens a checkpoint in this format; none where the configuration is another format's.
fn open(config: &Value) -> Opened {
    let ours = config.get("quant_method")? == "mxfp4";
    ours.then(|| Ok(Box::new(Stored) as Box<dyn StoredFormat>))
}

/// Where an expert's linear lies.
struct Place {
    /// What the names of its tensors begin with.
    stack: String,
    expert: usize,
    /// Of the expert's rows the first that is its own, and how many of them come by turns.
    first: usize,
    step: usize,
}

impl Place {
    fn of(linear: &Linear) -> Option<Self> {
        let expert = linear.id.part.expert()?;
        let (kind, first, step) = match linear.id.role {
            Role::Gate => ("gate_up_proj", 0, 2),
            Role::Up => ("gate_up_proj", 1, 2),
            Role::Down => ("down_proj", 0, 1),
            _ => return None,
        };
        let experts = linear.name.rsplitn(3, '.').nth(2)?;
        Some(Self { stack: format!("{experts}.{kind}"), expert, first, step })
    }

    /// The rows of this linear, `[out_features, columns]` bytes, of one of its tensors.
    fn rows(
        &self,
        suffix: &str,
        linear: &Linear,
        columns: &[usize],
        checkpoint: &Checkpoint,
    ) -> Result<Vec<u8>, FormatsError> {
        let name = format!("{}_{suffix}", self.stack);
        let found = checkpoint.info(&name)?;
        let rows = linear.out_features * self.step;
        let fits = found.dtype == Dtype::U8
            && matches!(found.shape, [experts, own @ ..]
                if self.expert < *experts && own.split_first() == Some((&rows, columns)));
        if !fits {
            let problem = format!(
                "is {} of shape {:?}, expected U8 of [more than {}, {rows}, {}]",
                found.dtype.name(),
                found.shape,
                self.expert,
                columns.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
            );
            return Err(FormatsError::tensor(found.file, &name, problem));
        }
        let row: usize = columns.iter().product();
        let mut all = vec![0; rows * row];
        checkpoint.read_bytes_at(&name, (self.expert * all.len()) as u64, &mut all)?;
        if self.step == 1 {
            return Ok(all);
        }
        Ok(all.chunks(row).skip(self.first).step_by(self.step).flatten().copied().collect())
    }
}

impl StoredFormat for Stored {
    fn id(&self) -> &'static str {
        "mxfp4"
    }

    fn scheme(&self, linear: &Linear) -> Option<Scheme> {
        Place::of(linear)?;
        Some(Scheme {
            bits: BitWidth::new(4).ok()?,
            levels: Levels::E2m1,
            granularity: Granularity::PerGroup(GroupSize::new(GROUP).ok()?),
            symmetry: Symmetry::Symmetric,
            scale_dtype: ScaleDtype::F32,
        })
    }

    fn tensors(&self, linear: &Linear, _scheme: Scheme) -> Vec<String> {
        let tensors =
            Place::of(linear).map(|place| ["blocks", "scales"].map(|part| format!("{}_{part}", place.stack)));
        tensors.into_iter().flatten().collect()
    }

    fn decode(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<QuantizedTensor, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        let (_, groups) = stored.groups()?;
        let fail = |problem: &str| FormatsError::tensor(checkpoint.directory(), &linear.name, problem);
        let place = Place::of(linear).ok_or_else(|| fail("is no expert's"))?;
        let patterns = nibbles(&place.rows("blocks", linear, &[groups, GROUP / 2], checkpoint)?);
        let codes = stored.coded("blocks", &patterns, Levels::E2m1)?;
        let scales = place.rows("scales", linear, &[groups], checkpoint)?;
        let scales = scales.into_iter().map(power_of_two).collect();
        let scales = Array2::from_shape_vec((linear.out_features, groups), scales);
        let scales = scales.map_err(|e| fail(&e.to_string()))?;
        stored.with_scales("scales", codes, (scheme.granularity, scales))
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

#[cfg(test)]
mod tests {
    use model::linear::{LinearClass, LinearId, Part};
    use serde_json::json;

    use super::*;
    use crate::container::{SafetensorsWriter, TensorData, TensorSpec};

    fn linear(role: Role, module: &str, expert: usize, shape: (usize, usize)) -> Linear {
        Linear {
            id: LinearId { layer: 0, part: Part::Expert(expert), role },
            name: format!("mlp.experts.{expert}.{module}"),
            out_features: shape.0,
            in_features: shape.1,
            bias: false,
            class: LinearClass::Stacked,
        }
    }

    /// Two experts of two outputs each way and 64 inputs; bytes count up.
    fn checkpoint(folder: &std::path::Path, scales: &[usize]) -> Checkpoint {
        let spec = |name: &str, shape: &[usize]| TensorSpec {
            name: format!("mlp.experts.gate_up_proj_{name}"),
            dtype: Dtype::U8,
            shape: shape.to_vec(),
        };
        let specs = [spec("blocks", &[2, 4, 2, 16]), spec("scales", scales)];
        let mut writer = SafetensorsWriter::create(folder, &specs, u64::MAX, "pt").unwrap();
        for (spec, first) in specs.iter().zip([0_u8, 120]) {
            let count: usize = spec.shape.iter().product();
            let bytes = (0..count).map(|place| first + (place % 100) as u8).collect();
            writer.put(&TensorData { name: spec.name.clone(), bytes }).unwrap();
        }
        writer.finish().unwrap();
        Checkpoint::open(folder).unwrap()
    }

    #[test]
    fn gate_and_up_lie_by_turns_and_the_low_nibble_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(folder.path(), &[2, 4, 2]);
        let format = open(&json!({"quant_method": "mxfp4"})).unwrap().unwrap();
        let up = linear(Role::Up, "up_proj", 1, (2, 64));
        let values = format.values(&up, format.scheme(&up).unwrap(), &checkpoint).unwrap();
        // Row 1 is the last of the expert's four: blocks from byte 224, which is 24, scales from 134 on.
        assert_eq!(values[[1, 0]], levels(24 & 15) * 2.0_f32.powi(134 - 127));
        assert_eq!(values[[1, 1]], levels(24 >> 4) * 2.0_f32.powi(7));
        assert_eq!(values[[1, 32]], levels(40 & 15) * 2.0_f32.powi(8));
        assert_eq!(values[[0, 0]], levels(60 & 15) * 2.0_f32.powi(130 - 127));
    }

    /// The number of a pattern of four bits, by its definition.
    fn levels(pattern: u8) -> f32 {
        let (exponent, fraction) = (i32::from(pattern >> 1 & 3), f32::from(pattern & 1));
        let magnitude =
            if exponent == 0 { 0.5 * fraction } else { (1.0 + 0.5 * fraction) * 2.0_f32.powi(exponent - 1) };
        if pattern >> 3 == 1 { -magnitude } else { magnitude }
    }

    #[test]
    fn what_does_not_fit_the_linear_is_named_with_its_shape() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(folder.path(), &[2, 2, 4]);
        let problem = |linear: &Linear| {
            let scheme = Stored.scheme(linear).unwrap();
            Stored.decode(linear, scheme, &checkpoint).unwrap_err().to_string()
        };
        let message = problem(&linear(Role::Gate, "gate_proj", 0, (2, 64)));
        assert!(message.contains("_scales") && message.contains("[2, 2, 4]"), "{message}");
        let message = problem(&linear(Role::Gate, "gate_proj", 2, (2, 64)));
        assert!(message.contains("_blocks") && message.contains("more than 2"), "{message}");
        let message = problem(&linear(Role::Down, "down_proj", 0, (2, 64)));
        assert!(message.contains("down_proj_blocks"), "{message}");
        assert!(problem(&linear(Role::Gate, "gate_proj", 0, (2, 40))).contains("do not divide 40"));
    }
}
