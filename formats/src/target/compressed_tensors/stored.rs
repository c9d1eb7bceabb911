//! Checkpoints of the library's formats, ours and llm-compressor's, as a configuration describes them.

use kernels::{CodeLayout, PackedMatrix};
use model::linear::Linear;
use ndarray::Array2;
use quantizer::inputs::InputRounding;
use quantizer::levels::Levels;
use quantizer::scheme::{Granularity, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use serde_json::Value;

use super::super::floats::{F8, e4m3, power_of_two};
use super::super::packed_parts::{PackedParts, StoredLinear, gathered};
use super::super::settings::{bad, given, object, text};
use super::super::{StoredFormat, TargetFormat};
use super::FORMAT;
use super::config::{self, Grid, Target};
use super::inputs::Inputs;
use super::numbers::Numbers;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::error::FormatsError;
use crate::packing::{pack_rows, unpack_rows};

const SCALE: &str = "weight_scale";

/// A checkpoint of one of the formats.
#[derive(Debug)]
pub(super) struct Stored {
    id: &'static str,
    groups: Vec<Group>,
    ignore: Vec<Target>,
}

/// Linears on one grid.
#[derive(Debug)]
struct Group {
    targets: Vec<Target>,
    grid: Grid,
    form: Form,
    inputs: Inputs,
}

/// How codes and scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Codes packed into words.
    Words,
    /// Numbers, one a byte, with scales in floating point.
    Numbers,
    /// Floats with exponents for scales.
    Exponents,
    /// Floats with scales that are eight-bit floats, divided by a number for the whole matrix.
    TwoLevel,
}

impl Form {
    /// By the library's name; none where codes on these levels are stored otherwise, or not read.
    fn named(name: &str, levels: Levels) -> Option<Self> {
        Some(match (name, levels) {
            (FORMAT, Levels::Uniform) => Self::Words,
            ("int-quantized" | "naive-quantized", Levels::Uniform) => Self::Numbers,
            ("float-quantized" | "naive-quantized", Levels::E4m3) => Self::Numbers,
            ("mxfp4-pack-quantized", Levels::E2m1) | ("mxfp8-quantized", Levels::E4m3) => Self::Exponents,
            ("nvfp4-pack-quantized", Levels::E2m1) => Self::TwoLevel,
            _ => return None,
        })
    }
}

impl Group {
    fn read(group: &Value, format: &str) -> Result<Self, String> {
        if given(group, "output_activations").is_some() {
            return Err("quantizes `output_activations`, which is not read".to_owned());
        }
        let weights = given(group, "weights").ok_or_else(|| "has a group without `weights`".to_owned())?;
        let grid = config::grid(weights)?;
        let format = text(group, "format", format)?;
        let form = Form::named(format, grid.scheme.levels)
            .filter(|form| grid.tile.is_none() || *form == Form::Numbers)
            .ok_or_else(|| {
                format!("gives weights of the format `{format}` the grid {weights}, which is not read")
            })?;
        if grid.columns_apart && form != Form::Words {
            return Err(format!("orders columns of the format `{format}`, which is not read"));
        }
        let (targets, inputs) = (Target::read_all(group, "targets")?, Inputs::read(group)?);
        Ok(Self { targets, grid, form, inputs })
    }
}

impl Stored {
    pub(super) fn read(config: &Value) -> Result<Self, FormatsError> {
        // Weights behind these would decode to numbers that no runtime multiplies with.
        for key in ["transform_config", "sparsity_config"] {
            if object(config, key).map_err(bad)?.is_some_and(|object| !object.is_empty()) {
                return Err(bad(format!("has a `{key}`, which is not read")));
            }
        }
        let described = object(config, "config_groups").map_err(bad)?;
        let described = described.ok_or_else(|| bad("has no `config_groups`".to_owned()))?;
        let format = text(config, "format", FORMAT).map_err(bad)?;
        let groups = described.values().map(|group| Group::read(group, format));
        let groups: Vec<Group> = groups.collect::<Result<_, String>>().map_err(bad)?;
        let mut inputs =
            described.values().map(|group| group.get("input_activations").unwrap_or(&Value::Null));
        let first = inputs.clone().next().unwrap_or(&Value::Null);
        let alike = inputs.all(|other| other == first);
        // A form of ours, if everything in it is.
        let numbers = Numbers::named(format, first)
            .filter(|numbers| alike && groups.iter().all(|group| numbers.holds(group.grid.scheme)));
        let whole_rows = format == FORMAT
            && first.is_null()
            && alike
            && !groups.is_empty()
            && groups.iter().all(|group| super::is_whole_rows_of_8_bit(group.grid.scheme));
        let words = if whole_rows { &super::INT8 } else { &super::PLAIN };
        let id = numbers.map_or(words.id(), TargetFormat::id);
        Ok(Self { id, groups, ignore: Target::read_all(config, "ignore").map_err(bad)? })
    }

    fn group(&self, linear: &Linear) -> Option<&Group> {
        if self.ignore.iter().any(|target| target.matches(linear)) {
            return None;
        }
        self.groups.iter().find(|group| group.targets.iter().any(|target| target.matches(linear)))
    }

    fn of(&self, stored: &StoredLinear<'_>) -> Result<&Group, FormatsError> {
        self.group(stored.linear).ok_or_else(|| stored.fail("weight", "is in no group of the configuration"))
    }

    /// Codes in words, and the group of each column where columns do not lie in order.
    fn words(stored: &StoredLinear<'_>) -> Result<(PackedParts, Option<Vec<usize>>), FormatsError> {
        let (columns, groups) = stored.groups()?;
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
        let zero_points = if scheme.symmetry == Symmetry::Asymmetric {
            Self::zero_points(stored, groups)?
        } else {
            Array2::from_elem((groups, outputs), scheme.bits.symmetric_zero())
        };
        let order = stored.group_order("weight_g_idx", columns, groups)?;
        let layout = CodeLayout::OutputMajor;
        Ok((PackedParts { scheme, words, layout, scales, zero_points }, order))
    }

    /// `[groups, outputs]`: packed down the outputs, or as older versions have them one signed byte each.
    fn zero_points(stored: &StoredLinear<'_>, groups: usize) -> Result<Array2<u8>, FormatsError> {
        const NAME: &str = "weight_zero_point";
        let (bits, outputs) = (stored.scheme.bits, stored.linear.out_features);
        if stored.checkpoint.info(&stored.name(NAME))?.dtype != Dtype::I8 {
            let packed = stored.streams(NAME, groups, outputs, true)?;
            return Ok(unpack_rows(packed.t(), bits.get(), outputs));
        }
        let bytes = stored.checkpoint.read_as(&stored.name(NAME), Dtype::I8, &[outputs, groups])?;
        let codes = Self::from_signed(stored, NAME, &bytes)?;
        let zeros = Array2::from_shape_vec((outputs, groups), codes);
        zeros.map(Array2::reversed_axes).map_err(|e| stored.fail(NAME, e.to_string()))
    }

    /// Codes of signed numbers.
    fn from_signed(stored: &StoredLinear<'_>, suffix: &str, bytes: &[u8]) -> Result<Vec<u8>, FormatsError> {
        let bits = stored.scheme.bits;
        let code = |byte: &u8| {
            let code = i16::from(*byte as i8) + i16::from(bits.symmetric_zero());
            u8::try_from(code).ok().filter(|&code| code <= bits.max_code())
        };
        let codes: Option<Vec<u8>> = bytes.iter().map(code).collect();
        codes.ok_or_else(|| stored.fail(suffix, format!("holds numbers of more than {} bits", bits.get())))
    }

    /// Scales as the configuration arranges them.
    fn row_scales(stored: &StoredLinear<'_>) -> Result<(Granularity, Array2<f32>), FormatsError> {
        let (outputs, inputs) = (stored.linear.out_features, stored.linear.in_features);
        let (found, scales) = stored.arranged(SCALE, stored.any_scales(SCALE, e4m3)?, None)?;
        let said = stored.scheme.granularity;
        // One row has one scale, whatever it is called.
        if scales.dim() != said.scale_shape(outputs, inputs) {
            return Err(stored.fail(SCALE, format!("has scales {found:?}, the configuration says {said:?}")));
        }
        Ok((said, scales))
    }

    fn numbers(stored: &StoredLinear<'_>, group: &Group) -> Result<QuantizedTensor, FormatsError> {
        let scheme = stored.scheme;
        let (outputs, inputs) = (stored.linear.out_features, stored.linear.in_features);
        let codes = if scheme.levels == Levels::Uniform {
            let bytes = stored.checkpoint.read_as(&stored.name("weight"), Dtype::I8, &[outputs, inputs])?;
            let codes = Self::from_signed(stored, "weight", &bytes)?;
            Array2::from_shape_vec((outputs, inputs), codes)
                .map_err(|e| stored.fail("weight", e.to_string()))?
        } else {
            stored.float_codes("weight", F8, scheme.levels)?
        };
        let found = match group.grid.tile {
            Some(_) => stored.arranged(SCALE, stored.any_scales(SCALE, e4m3)?, group.grid.tile)?,
            None => Self::row_scales(stored)?,
        };
        if scheme.symmetry != Symmetry::Asymmetric {
            return stored.with_scales(SCALE, codes, found);
        }
        let bytes = stored.checkpoint.read(&stored.name("weight_zero_point"))?;
        let zeros = Self::from_signed(stored, "weight_zero_point", &bytes)?;
        let zeros = Array2::from_shape_vec(found.1.dim(), zeros)
            .map_err(|e| stored.fail("weight_zero_point", e.to_string()))?;
        let scheme = Scheme { granularity: found.0, ..scheme };
        QuantizedTensor::new(scheme, codes, found.1, Some(zeros))
            .map_err(|e| stored.fail(SCALE, format!("is no solution's: {e}")))
    }

    /// Floats of four or eight bits with exponents.
    fn exponents(stored: &StoredLinear<'_>) -> Result<QuantizedTensor, FormatsError> {
        let (_, groups) = stored.groups()?;
        let levels = stored.scheme.levels;
        let (suffix, dtype) =
            if levels == Levels::E2m1 { ("weight_packed", Dtype::U8) } else { ("weight", F8) };
        let codes = stored.float_codes(suffix, dtype, levels)?;
        let name = stored.name("weight_scale");
        let outputs = stored.linear.out_features;
        let scales = stored.checkpoint.read_as(&name, Dtype::U8, &[outputs, groups])?;
        let scales =
            Array2::from_shape_vec((outputs, groups), scales.into_iter().map(power_of_two).collect());
        let scales = scales.map_err(|e| stored.fail("weight_scale", e.to_string()))?;
        stored.with_scales("weight_scale", codes, (stored.scheme.granularity, scales))
    }

    fn two_level(stored: &StoredLinear<'_>) -> Result<QuantizedTensor, FormatsError> {
        let codes = stored.float_codes("weight_packed", Dtype::U8, Levels::E2m1)?;
        let divisor = stored.single("weight_global_scale")?;
        if divisor == 0.0 {
            return Err(stored.fail("weight_global_scale", "is zero, and scales are divided by it"));
        }
        let (granularity, fine) = Self::row_scales(stored)?;
        let scales = (granularity, fine.mapv(|scale| scale / divisor));
        // A power of two is what we write, and what all of its products can be told from.
        let shared = shared_exponent(divisor).filter(|_| fine.iter().all(|&scale| scale >= 0.0));
        let scale_dtype = match (shared, stored.scheme.scale_dtype) {
            (Some(exponent), ScaleDtype::F32) => ScaleDtype::SharedE4m3 { exponent },
            (_, asked) => asked,
        };
        let scheme = Scheme { scale_dtype, ..stored.scheme };
        StoredLinear { scheme, ..*stored }.with_scales("weight_scale", codes, scales)
    }

    /// Numbers of equal steps as packed integers, which the kernels multiply with.
    fn repacked(tensor: &QuantizedTensor) -> PackedParts {
        let (scheme, scales) = (tensor.scheme(), tensor.scales_by_row().reversed_axes());
        PackedParts {
            scheme,
            words: pack_rows(tensor.codes(), scheme.bits.get()),
            layout: CodeLayout::OutputMajor,
            zero_points: tensor.zero_points_by_row().reversed_axes(),
            scales: scales.as_standard_layout().into_owned(),
        }
    }
}

/// The exponent of the power of two that divides by this number; none where it is no power of two.
fn shared_exponent(divisor: f32) -> Option<i8> {
    let exponent = 127 - i32::try_from(divisor.to_bits() >> 23).ok()?;
    let exponent = i8::try_from(exponent).ok().filter(|exponent| (-100..=100).contains(exponent))?;
    (ScaleDtype::SharedE4m3 { exponent }.unit() * divisor == 1.0).then_some(exponent)
}

impl StoredFormat for Stored {
    fn id(&self) -> &'static str {
        self.id
    }

    fn rounds_inputs(&self) -> bool {
        self.groups.iter().any(|group| !matches!(group.inputs, Inputs::AsTheyAre))
    }

    fn input_rounding(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<Option<InputRounding>, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        self.of(&stored)?.inputs.rounding(&stored)
    }

    fn unrounded_inputs(&self) -> Option<String> {
        let other = |group: &Group| match &group.inputs {
            Inputs::Other(said) => Some(format!("`input_activations` of {said}")),
            _ => None,
        };
        self.groups.iter().find_map(other)
    }

    fn scheme(&self, linear: &Linear) -> Option<Scheme> {
        self.group(linear).map(|group| group.grid.scheme)
    }

    fn tensors(&self, linear: &Linear, scheme: Scheme) -> Vec<String> {
        let mut parts = match self.group(linear).map(|group| group.form) {
            None => vec![],
            Some(Form::Words) => vec!["weight_packed", "weight_scale", "weight_shape"],
            Some(Form::Numbers) => vec!["weight", "weight_scale"],
            Some(Form::Exponents) if scheme.levels == Levels::E4m3 => vec!["weight", "weight_scale"],
            Some(Form::Exponents) => vec!["weight_packed", "weight_scale"],
            Some(Form::TwoLevel) => vec!["weight_packed", "weight_scale", "weight_global_scale"],
        };
        if scheme.symmetry == Symmetry::Asymmetric {
            parts.push("weight_zero_point");
        }
        parts.extend(self.group(linear).map(|group| group.inputs.tensors()).unwrap_or_default());
        parts.into_iter().map(|part| format!("{}.{part}", linear.name)).collect()
    }

    fn decode(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<QuantizedTensor, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        let group = self.of(&stored)?;
        match group.form {
            Form::Words => {
                let (parts, order) = Self::words(&stored)?;
                stored.demand_in_order("weight_g_idx", order.as_deref())?;
                parts.decode(&stored)
            }
            Form::Numbers => Self::numbers(&stored, group),
            Form::Exponents => Self::exponents(&stored),
            Form::TwoLevel => Self::two_level(&stored),
        }
    }

    fn values(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<Array2<f32>, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        if self.of(&stored)?.form == Form::Words
            && let (parts, Some(order)) = Self::words(&stored)?
        {
            return Ok(gathered(parts, linear, &order));
        }
        Ok(self.decode(linear, scheme, checkpoint)?.dequantize())
    }

    fn packed(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<Option<PackedMatrix>, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        let group = self.of(&stored)?;
        match group.form {
            Form::Words => match Self::words(&stored)? {
                (parts, None) => parts.packed(&stored).map(Some),
                (_, Some(_)) => Ok(None),
            },
            Form::Numbers if scheme.levels == Levels::Uniform => {
                Self::repacked(&Self::numbers(&stored, group)?).packed(&stored).map(Some)
            }
            _ => Ok(None),
        }
    }
}
