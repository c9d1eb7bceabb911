//! The library's eight-bit form (`LLM.int8`): `P.weight` I8 `[N, K]`, `P.SCB` F32 `[N]`, `w = number * SCB / 127`. Read only. Its runtime rounds
//! inputs as well, all but their outliers.

use kernels::PackedMatrix;
use model::linear::Linear;
use ndarray::Array2;
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use serde_json::Value;

use super::super::StoredFormat;
use super::super::packed_parts::StoredLinear;
use super::super::registry::{Family, Opened, nothing};
use super::METHOD;
use super::stored::kept;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::error::FormatsError;

/// A checkpoint, as its configuration describes it.
#[derive(Debug)]
struct Stored {
    /// Parts of names of linears that are not quantized.
    kept: Vec<String>,
}

/// The form, which is read alone.
pub(in super::super) static FAMILY: Family = Family { written: nothing, open };

/// Opens a checkpoint in this form; none where the configuration is another's.
fn open(config: &Value) -> Opened {
    let ours =
        config.get("quant_method")? == METHOD && config.get("load_in_8bit") == Some(&Value::Bool(true));
    ours.then(|| Ok(Box::new(Stored { kept: kept(config)? }) as Box<dyn StoredFormat>))
}

impl StoredFormat for Stored {
    fn id(&self) -> &'static str {
        "bitsandbytes:int8"
    }

    fn rounds_inputs(&self) -> bool {
        true
    }

    fn unrounded_inputs(&self) -> Option<String> {
        Some("eight bits, all inputs but the features with an outlier".to_owned())
    }

    fn scheme(&self, linear: &Linear) -> Option<Scheme> {
        if self.kept.iter().any(|part| linear.name.contains(part)) {
            return None;
        }
        Some(Scheme {
            bits: BitWidth::new(8).ok()?,
            levels: Levels::Uniform,
            granularity: Granularity::PerChannel,
            symmetry: Symmetry::Symmetric,
            scale_dtype: ScaleDtype::F32,
        })
    }

    fn tensors(&self, linear: &Linear, _scheme: Scheme) -> Vec<String> {
        vec![linear.weight_name(), format!("{}.SCB", linear.name)]
    }

    fn decode(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<QuantizedTensor, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        let (outputs, inputs) = (linear.out_features, linear.in_features);
        let bytes = checkpoint.read_as(&stored.name("weight"), Dtype::I8, &[outputs, inputs])?;
        let codes = stored.coded("weight", &bytes, Levels::Uniform)?;
        let largest = checkpoint.read_vector(&stored.name("SCB"), outputs)?;
        let scales = Array2::from_shape_fn((outputs, 1), |(row, _)| largest[row] / 127.0);
        stored.with_scales("SCB", codes, (scheme.granularity, scales))
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
