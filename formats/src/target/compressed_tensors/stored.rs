//! Checkpoints of the library's formats, as a configuration describes them.

use kernels::{CodeLayout, PackedMatrix};
use model::linear::Linear;
use ndarray::Array2;
use quantizer::levels::Levels;
use quantizer::scheme::{Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use serde_json::Value;

use super::super::packed_parts::{PackedParts, StoredLinear};
use super::super::{StoredFormat, TargetFormat};
use super::config::{self, Target};
use super::numbers::Numbers;
use super::{CompressedTensors, FORMAT};
use crate::checkpoint::{Checkpoint, Dtype};
use crate::error::FormatsError;
use crate::packing::{pack_rows, unpack_rows};

/// A checkpoint of one of the formats.
#[derive(Debug)]
pub(super) struct Stored {
    groups: Vec<(Vec<Target>, Scheme)>,
    ignore: Vec<Target>,
    /// Codes that are numbers; none: packed integers.
    numbers: Option<&'static Numbers>,
}

impl Stored {
    pub(super) fn read(config: &Value) -> Result<Self, FormatsError> {
        let bad = |problem: String| {
            FormatsError::malformed("config.json".as_ref(), format!("`quantization_config` {problem}"))
        };
        // Weights behind these would decode to numbers that no runtime multiplies with.
        for key in ["transform_config", "sparsity_config"] {
            let given =
                config.get(key).filter(|value| value.as_object().is_some_and(|object| !object.is_empty()));
            if given.is_some() {
                return Err(bad(format!("has a `{key}`, which is not read")));
            }
        }
        let groups = config.get("config_groups").and_then(Value::as_object);
        let groups = groups.ok_or_else(|| bad("has no `config_groups`".to_owned()))?;
        let inputs = groups.values().map(|group| group.get("input_activations").unwrap_or(&Value::Null));
        let inputs: Vec<&Value> = inputs.collect();
        if inputs.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(bad("quantizes activations in some groups only, which is not read".to_owned()));
        }
        let inputs = *inputs.first().unwrap_or(&&Value::Null);
        let format = config.get("format").and_then(Value::as_str).unwrap_or(FORMAT);
        let numbers = Numbers::named(format, inputs);
        if numbers.is_none() && (format != FORMAT || !inputs.is_null()) {
            let problem =
                format!("has the format `{format}` with `input_activations` {inputs}, which is not read");
            return Err(bad(problem));
        }
        let groups = groups.values().map(|group| {
            if group.get("output_activations").is_some_and(|value| !value.is_null()) {
                return Err("quantizes `output_activations`, which is not read".to_owned());
            }
            let weights = group.get("weights").ok_or_else(|| "has a group without `weights`".to_owned())?;
            let levels = numbers.map_or(Levels::Uniform, |numbers| numbers.levels);
            let scheme = config::scheme(weights, levels)?;
            if numbers.is_some_and(|numbers| !numbers.holds(scheme)) {
                return Err(format!(
                    "gives weights of the format `{format}` the grid {weights}, which is not read"
                ));
            }
            Ok((Target::read_all(group.get("targets"))?, scheme))
        });
        Ok(Self {
            groups: groups.collect::<Result<_, String>>().map_err(&bad)?,
            ignore: Target::read_all(config.get("ignore")).map_err(&bad)?,
            numbers,
        })
    }

    fn parts(stored: &StoredLinear<'_>) -> Result<PackedParts, FormatsError> {
        let (_, groups) = stored.groups()?;
        let scheme = stored.scheme;
        let (inputs, outputs) = (stored.linear.in_features, stored.linear.out_features);
        let words = stored.streams("weight_packed", outputs, inputs, false)?;
        let name = stored.name("weight_scale");
        let scales = stored.checkpoint.read_matrix(&name, (outputs, groups))?.reversed_axes();
        let shape = stored.checkpoint.read_as(&stored.name("weight_shape"), Dtype::I64, &[2])?;
        let shape: Vec<u64> = shape.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        if shape != [outputs as u64, inputs as u64] {
            return Err(
                stored.fail("weight_shape", format!("holds {shape:?}, expected [{outputs}, {inputs}]"))
            );
        }
        if stored.checkpoint.contains(&stored.name("weight_g_idx")) {
            let problem = "gives columns groups out of order (`actorder`), which is not read";
            return Err(stored.fail("weight_g_idx", problem));
        }
        let zero_points = if scheme.symmetry == Symmetry::Asymmetric {
            let packed = stored.streams("weight_zero_point", groups, outputs, true)?;
            unpack_rows(packed.t(), scheme.bits.get(), outputs)
        } else {
            Array2::from_elem((groups, outputs), scheme.bits.symmetric_zero())
        };
        Ok(PackedParts { scheme, words, layout: CodeLayout::OutputMajor, scales, zero_points })
    }

    /// Numbers of equal steps as packed integers, which the kernels multiply with.
    fn repacked(tensor: &QuantizedTensor) -> PackedParts {
        let (scheme, scales) = (tensor.scheme(), tensor.scales_by_row().to_owned().reversed_axes());
        PackedParts {
            scheme,
            words: pack_rows(tensor.codes(), scheme.bits.get()),
            layout: CodeLayout::OutputMajor,
            zero_points: Array2::from_elem(scales.dim(), scheme.bits.symmetric_zero()),
            scales,
        }
    }
}

impl StoredFormat for Stored {
    fn id(&self) -> &'static str {
        self.numbers.map_or(super::ID, TargetFormat::id)
    }

    fn scheme(&self, linear: &Linear) -> Option<Scheme> {
        if self.ignore.iter().any(|target| target.matches(linear)) {
            return None;
        }
        let group =
            self.groups.iter().find(|(targets, _)| targets.iter().any(|target| target.matches(linear)));
        group.map(|(_, scheme)| *scheme)
    }

    fn tensors(&self, linear: &Linear, scheme: Scheme) -> Vec<String> {
        let layout = match self.numbers {
            Some(numbers) => numbers.layout(linear, scheme),
            None => CompressedTensors.layout(linear, scheme),
        };
        layout.into_iter().map(|spec| spec.name).collect()
    }

    fn decode(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<QuantizedTensor, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        match self.numbers {
            Some(numbers) => numbers.decode(&stored),
            None => Self::parts(&stored)?.decode(&stored),
        }
    }

    fn packed(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<Option<PackedMatrix>, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        let parts = match self.numbers {
            Some(numbers) if numbers.levels != Levels::Uniform => return Ok(None),
            Some(numbers) => Self::repacked(&numbers.decode(&stored)?),
            None => Self::parts(&stored)?,
        };
        parts.packed(&stored).map(Some)
    }
}
