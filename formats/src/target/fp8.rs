//! Checkpoints that their makers publish in eight-bit floats (DeepSeek, Qwen, Llama with `fbgemm_fp8`): read only.
//!
//! | tensor | type | shape | content |
//! |---|---|---|---|
//! | `P.weight` | `F8_E4M3` | `[N, K]` | `w = scale * number` |
//! | `P.weight_scale_inv` | F32, BF16 | `[ceil(N/128), ceil(K/128)]` | a scale for each tile of `weight_block_size`; multiplied with, whatever its name says |
//! | or `P.weight_scale` | F32, BF16 | `[]`, `[1]`, `[N, 1]` | one for all, or for each row |
//!
//! Runtimes round inputs to eight bits where `activation_scheme` says so, and with `fbgemm_fp8`; they are not here.

use kernels::PackedMatrix;
use model::linear::Linear;
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use serde_json::Value;

use super::StoredFormat;
use super::floats::{F8, e4m3};
use super::packed_parts::StoredLinear;
use super::registry::{Family, Opened, nothing};
use super::settings::{bad, given, names};
use crate::checkpoint::Checkpoint;
use crate::error::FormatsError;

/// `quant_method` of those with tiles or one scale, and of those with a scale for each row.
const METHODS: [&str; 2] = ["fp8", "fbgemm_fp8"];

/// A checkpoint, as its configuration describes it.
#[derive(Debug)]
struct Stored {
    /// Rows and columns that share a scale, where tiles do.
    tile: Option<[usize; 2]>,
    /// Parts of names of linears that are not quantized.
    kept: Vec<String>,
    rounds_inputs: bool,
}

/// The form, which is read alone.
pub(super) static FAMILY: Family = Family { written: nothing, open };

/// Opens a checkpoint in this format; none where the configuration is another format's.
fn open(config: &Value) -> Opened {
    let method = config.get("quant_method")?;
    let ours = METHODS.iter().any(|known| method == known);
    ours.then(|| Ok(Box::new(Stored::read(config)?) as Box<dyn StoredFormat>))
}

impl Stored {
    fn read(config: &Value) -> Result<Self, FormatsError> {
        if let Some(kind) = given(config, "fmt").filter(|kind| **kind != "e4m3") {
            return Err(bad(format!("has the floats {kind}, only e4m3 are read")));
        }
        let tile = match given(config, "weight_block_size") {
            None => None,
            Some(size) => {
                let sides: Option<Vec<usize>> = size.as_array().and_then(|sides| {
                    sides
                        .iter()
                        .map(|side| usize::try_from(side.as_u64()?).ok().filter(|&side| side > 0))
                        .collect()
                });
                match sides.as_deref() {
                    Some(&[tall, wide]) => Some([tall, wide]),
                    _ => {
                        return Err(bad(format!("has the `weight_block_size` {size}, expected two numbers")));
                    }
                }
            }
        };
        let mut kept = Vec::new();
        for key in ["modules_to_not_convert", "ignored_layers"] {
            kept.extend(names(config, key).map_err(bad)?.into_iter().map(str::to_owned));
        }
        let scheme = given(config, "activation_scheme").is_some();
        Ok(Self {
            tile,
            kept,
            rounds_inputs: scheme || config.get("quant_method") == Some(&METHODS[1].into()),
        })
    }

    fn scale(&self) -> &'static str {
        if self.tile.is_some() { "weight_scale_inv" } else { "weight_scale" }
    }
}

impl StoredFormat for Stored {
    fn id(&self) -> &'static str {
        "fp8"
    }

    fn rounds_inputs(&self) -> bool {
        self.rounds_inputs
    }

    fn unrounded_inputs(&self) -> Option<String> {
        self.rounds_inputs.then(|| "eight-bit floats".to_owned())
    }

    fn scheme(&self, linear: &Linear) -> Option<Scheme> {
        if self.kept.iter().any(|part| linear.name.contains(part)) {
            return None;
        }
        let granularity = match self.tile {
            None => Granularity::PerTensor,
            Some([_, wide]) => GroupSize::new(wide).map_or(Granularity::PerChannel, Granularity::PerGroup),
        };
        Some(Scheme {
            bits: BitWidth::new(8).ok()?,
            levels: Levels::E4m3,
            granularity,
            symmetry: Symmetry::Symmetric,
            scale_dtype: ScaleDtype::F32,
        })
    }

    fn tensors(&self, linear: &Linear, _scheme: Scheme) -> Vec<String> {
        vec![linear.weight_name(), format!("{}.{}", linear.name, self.scale())]
    }

    fn decode(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<QuantizedTensor, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        let codes = stored.float_codes("weight", F8, Levels::E4m3)?;
        let scales = stored.arranged(self.scale(), stored.any_scales(self.scale(), e4m3)?, self.tile)?;
        stored.with_scales(self.scale(), codes, scales)
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
