//! A file's linears as its tensors' types describe them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use kernels::{CodeLayout, PackedMatrix};
use model::Model;
use model::linear::Linear;
use ndarray::Array2;
use quantizer::levels::Levels;
use quantizer::scheme::{ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;

use super::super::StoredFormat;
use super::super::packed_parts::{PackedParts, StoredLinear};
use super::{FILE_TYPE, TYPES, UNKNOWN_TYPE};
use crate::checkpoint::{Checkpoint, Dtype};
use crate::error::FormatsError;
use crate::gguf::blocks::{self, BlockLayout, DecodedRows};
use crate::gguf::names;
use crate::gguf::{Header, Value};
use crate::packing::pack_rows;

/// A file's linears, by the layouts that they have.
#[derive(Debug)]
pub(crate) struct Stored {
    id: &'static str,
    /// By the checkpoint's names of weights.
    layouts: BTreeMap<String, &'static BlockLayout>,
}

impl Stored {
    /// The format of a file with this header.
    ///
    /// # Errors
    /// A matrix of a type that is not read, named by what the file calls it.
    pub(crate) fn of(header: &Header, model: &Model) -> Result<Self, String> {
        let mut layouts = BTreeMap::new();
        let outer: Vec<Linear> = model.outer_linears().collect();
        let linears: BTreeSet<String> = model.linears().chain(&outer).map(Linear::weight_name).collect();
        for named in names::tensors(model) {
            let Some(entry) = header.tensors.get(&named.name) else { continue };
            if entry.tensor_type.weights == 1 {
                continue;
            }
            let layout = BlockLayout::find(entry.tensor_type).filter(|_| linears.contains(&named.original));
            let Some(layout) = layout else {
                let known: Vec<&str> = blocks::ALL.iter().map(|layout| layout.tensor_type.name).collect();
                return Err(format!(
                    "tensor `{}` has type {}; read are F32, F16, BF16, and for matrices {}",
                    named.name,
                    entry.tensor_type.name,
                    known.join(", ")
                ));
            };
            layouts.insert(named.original, layout);
        }
        // Files of other programs may say nothing, or what no type here is.
        let said = header.values.get(FILE_TYPE).and_then(Value::as_u64);
        let known = TYPES.iter().find(|format| Some(u64::from(format.file_type)) == said);
        let id = known.map_or(UNKNOWN_TYPE, |format| format.id);
        Ok(Self { id, layouts })
    }

    fn decoded(&self, stored: &StoredLinear<'_>, rows: Range<usize>) -> Result<DecodedRows, FormatsError> {
        let (inputs, outputs) = (stored.linear.in_features, stored.linear.out_features);
        let name = stored.linear.weight_name();
        let layout = self.layouts.get(&name);
        let fits = |layout: &BlockLayout| {
            layout.scheme().granularity == stored.scheme.granularity
                && inputs.is_multiple_of(layout.weights())
        };
        let layout = layout.filter(|layout| fits(layout));
        let layout = layout.ok_or_else(|| stored.fail("weight", "is not packed in such groups"))?;
        let row = layout.row_bytes(inputs);
        let bytes = stored.checkpoint.read_rows_as(&name, Dtype::U8, &[outputs, row], rows.clone())?;
        let rows = layout.decode(&bytes, rows.len(), inputs);
        match rows.scales.indexed_iter().find(|(_, scale)| !scale.is_finite()) {
            None => Ok(rows),
            Some((place, scale)) => Err(stored.fail("weight", format!("has the scale {scale} at {place:?}"))),
        }
    }
}

impl StoredFormat for Stored {
    fn id(&self) -> &'static str {
        self.id
    }

    fn scheme(&self, linear: &Linear) -> Option<Scheme> {
        let scheme = self.layouts.get(&linear.weight_name())?.scheme();
        // Scales are what was read; those that are products are so in what was read, too.
        let scale_dtype = if scheme.scale_dtype.is_product() { scheme.scale_dtype } else { ScaleDtype::F32 };
        Some(Scheme { scale_dtype, ..scheme })
    }

    fn tensors(&self, linear: &Linear, _scheme: Scheme) -> Vec<String> {
        vec![linear.weight_name()]
    }

    fn decode(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<QuantizedTensor, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        let tensor = self.decoded(&stored, 0..linear.out_features)?.into_tensor(scheme);
        tensor.map_err(|e| stored.fail("weight", format!("is no solution: {e}")))
    }

    fn rows(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
        rows: Range<usize>,
    ) -> Result<Option<Array2<f32>>, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        let tensor = self.decoded(&stored, rows)?.into_tensor(scheme);
        let tensor = tensor.map_err(|e| stored.fail("weight", format!("is no solution: {e}")))?;
        Ok(Some(tensor.dequantize()))
    }

    fn packed(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<Option<PackedMatrix>, FormatsError> {
        if scheme.levels != Levels::Uniform || scheme.symmetry != Symmetry::Symmetric {
            return Ok(None);
        }
        let stored = StoredLinear { linear, scheme, checkpoint };
        let rows = self.decoded(&stored, 0..linear.out_features)?;
        let words = pack_rows(rows.codes.view(), scheme.bits.get());
        let scales = rows.scales.reversed_axes().as_standard_layout().into_owned();
        let zero_points = Array2::from_elem(scales.dim(), scheme.bits.symmetric_zero());
        let parts = PackedParts { scheme, words, layout: CodeLayout::OutputMajor, scales, zero_points };
        parts.packed(&stored).map(Some)
    }
}
