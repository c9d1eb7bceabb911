//! A graph's packed weights as a solution, and as a matrix to multiply with.

use std::collections::BTreeMap;

use kernels::{CodeLayout, PackedMatrix};
use model::linear::Linear;
use ndarray::Array2;
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;
use serde_json::Value;

use super::super::settings::{bad, object};
use super::{ID, Onnx, WIDTHS};
use crate::checkpoint::{Checkpoint, Dtype};
use crate::error::FormatsError;
use crate::onnx::graph::{CODES, SCALES, ZERO_POINTS};
use crate::packing::{from_bytes, unpack_rows, words_for};
use crate::target::packed_parts::{PackedParts, StoredLinear};
use crate::target::{StoredFormat, TargetFormat};

/// What config.json says.
#[derive(Debug)]
pub(super) struct Stored {
    linears: BTreeMap<String, Scheme>,
}

impl Stored {
    pub(super) fn read(config: &Value) -> Result<Self, FormatsError> {
        let linears = object(config, "linears").map_err(bad)?;
        let linears = linears.ok_or_else(|| bad("has no `linears`".to_owned()))?;
        let read = |(name, grid): (&String, &Value)| {
            let scheme = scheme(grid).ok_or_else(|| bad(format!("gives `{name}` the grid {grid}")))?;
            Ok((name.clone(), scheme))
        };
        Ok(Self { linears: linears.iter().map(read).collect::<Result<_, FormatsError>>()? })
    }

    fn parts(stored: &StoredLinear<'_>) -> Result<PackedParts, FormatsError> {
        let (columns, groups) = stored.groups()?;
        let scheme = stored.scheme;
        let bits = scheme.bits.get();
        let (inputs, outputs) = (stored.linear.in_features, stored.linear.out_features);
        let block = columns * usize::from(bits) / 8;
        let codes = stored.checkpoint.read_as(&stored.name(CODES), Dtype::U8, &[outputs, groups, block])?;
        let words = in_words(&codes, outputs, inputs, bits);
        let scales = stored.checkpoint.read_matrix(&stored.name(SCALES), (outputs, groups))?.reversed_axes();
        let zero_points = if scheme.symmetry == Symmetry::Asymmetric {
            let row = (groups * usize::from(bits)).div_ceil(8);
            let packed = stored.checkpoint.read_as(&stored.name(ZERO_POINTS), Dtype::U8, &[outputs, row])?;
            let words = in_words(&packed, outputs, groups, bits);
            unpack_rows(words.view(), bits, groups).reversed_axes()
        } else {
            Array2::from_elem((groups, outputs), scheme.bits.symmetric_zero())
        };
        Ok(PackedParts { scheme, words, layout: CodeLayout::OutputMajor, scales, zero_points })
    }
}

/// Rows of bytes as rows of words, the last of each filled up with zeros.
fn in_words(bytes: &[u8], rows: usize, codes: usize, bits: u8) -> Array2<u32> {
    let (length, words) = ((codes * usize::from(bits)).div_ceil(8), words_for(codes, bits));
    let mut padded = Vec::with_capacity(rows * words * 4);
    for row in bytes.chunks(length.max(1)) {
        padded.extend_from_slice(row);
        padded.resize(padded.len() + 4 * words - row.len(), 0);
    }
    Array2::from_shape_vec((rows, words), from_bytes(&padded)).unwrap_or_default()
}

fn scheme(grid: &Value) -> Option<Scheme> {
    let bits = grid.get("bits")?.as_u64().and_then(|bits| u8::try_from(bits).ok())?;
    let bits = BitWidth::new(bits).ok().filter(|bits| WIDTHS.contains(&bits.get()))?;
    let size = usize::try_from(grid.get("group_size")?.as_u64()?).ok()?;
    let granularity = Granularity::PerGroup(GroupSize::new(size).ok()?);
    let symmetry = if grid.get("symmetric")?.as_bool()? { Symmetry::Symmetric } else { Symmetry::Asymmetric };
    Some(Scheme { bits, levels: Levels::Uniform, granularity, symmetry, scale_dtype: ScaleDtype::F32 })
}

impl StoredFormat for Stored {
    fn id(&self) -> &'static str {
        ID
    }

    fn scheme(&self, linear: &Linear) -> Option<Scheme> {
        self.linears.get(&linear.name).copied()
    }

    fn tensors(&self, linear: &Linear, scheme: Scheme) -> Vec<String> {
        Onnx.layout(linear, scheme).into_iter().map(|spec| spec.name).collect()
    }

    fn decode(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<QuantizedTensor, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        Self::parts(&stored)?.decode(&stored)
    }

    fn packed(
        &self,
        linear: &Linear,
        scheme: Scheme,
        checkpoint: &Checkpoint,
    ) -> Result<Option<PackedMatrix>, FormatsError> {
        let stored = StoredLinear { linear, scheme, checkpoint };
        Self::parts(&stored)?.packed(&stored).map(Some)
    }
}
