//! What formats of packed integers have in common when they are read: three arrays, checked, that are a solution or a matrix to multiply
//! with.

use kernels::{CodeLayout, PackedMatrix, PackedShape};
use model::linear::Linear;
use ndarray::{Array2, ArrayView2, s};
use quantizer::scheme::{Granularity, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;

use crate::checkpoint::{Checkpoint, Dtype};
use crate::error::FormatsError;
use crate::packing::{from_bytes, padding, transposed, unpack_rows, words_for};

/// The stored parts of one linear.
#[derive(Debug)]
pub(super) struct PackedParts {
    pub(super) scheme: Scheme,
    /// `[out, words]` or, input-major, `[words, out]`.
    pub(super) words: Array2<u32>,
    pub(super) layout: CodeLayout,
    /// `[groups, out]`.
    pub(super) scales: Array2<f32>,
    /// `[groups, out]`.
    pub(super) zero_points: Array2<u8>,
}

/// One linear of a checkpoint, for reading its parts and for naming them in errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoredLinear<'a> {
    pub(super) linear: &'a Linear,
    pub(super) scheme: Scheme,
    pub(super) checkpoint: &'a Checkpoint,
}

impl StoredLinear<'_> {
    /// The tensor's full name.
    pub(super) fn name(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.linear.name)
    }

    /// An error about one of the linear's tensors.
    pub(super) fn fail(&self, suffix: &str, problem: impl Into<String>) -> FormatsError {
        let name = self.name(suffix);
        let file = self.checkpoint.info(&name).map_or(self.checkpoint.directory(), |found| found.file);
        FormatsError::tensor(file, &name, problem)
    }

    /// Zero points of a symmetric grid are all the same, also where they are stored.
    pub(super) fn demand_symmetric(
        &self,
        suffix: &str,
        zero_points: ArrayView2<'_, u8>,
    ) -> Result<(), FormatsError> {
        let expected = self.scheme.bits.symmetric_zero();
        match zero_points.iter().find(|&&zero| zero != expected) {
            None => Ok(()),
            Some(zero) => {
                Err(self.fail(suffix, format!("holds zero point {zero}, a symmetric grid has {expected}")))
            }
        }
    }

    /// Columns that share a scale, and how many such groups a row has.
    pub(super) fn groups(&self) -> Result<(usize, usize), FormatsError> {
        let inputs = self.linear.in_features;
        let columns = self.scheme.granularity.columns_per_scale(inputs);
        if inputs == 0 || self.linear.out_features == 0 || !inputs.is_multiple_of(columns) {
            let problem =
                format!("has groups of {columns} columns, which do not divide {inputs} input features");
            return Err(FormatsError::tensor(self.checkpoint.directory(), &self.linear.name, problem));
        }
        Ok((columns, inputs / columns))
    }

    /// The group of each column, where a tensor of them says that columns do not lie in order; none where they do, or there is no such tensor.
    pub(super) fn group_order(
        &self,
        suffix: &str,
        columns: usize,
        groups: usize,
    ) -> Result<Option<Vec<usize>>, FormatsError> {
        if !self.checkpoint.contains(&self.name(suffix)) {
            return Ok(None);
        }
        let order = self.checkpoint.read_as(&self.name(suffix), Dtype::I32, &[self.linear.in_features])?;
        let order: Vec<usize> = from_bytes(&order).into_iter().map(|group| group as usize).collect();
        // Some programs write -1 everywhere for columns in order.
        if order.iter().enumerate().all(|(input, &group)| group == input / columns)
            || order.iter().all(|&group| group == u32::MAX as usize)
        {
            return Ok(None);
        }
        match order.iter().find(|&&group| group >= groups) {
            None => Ok(Some(order)),
            Some(group) => Err(self.fail(suffix, format!("names group {group}, there are {groups}"))),
        }
    }

    /// Fails where columns do not lie in order: no solution has such groups.
    pub(super) fn demand_in_order(&self, suffix: &str, order: Option<&[usize]>) -> Result<(), FormatsError> {
        match order {
            None => Ok(()),
            Some(_) => {
                let problem = "gives columns groups out of order (act-order, `desc_act`), which no other format has; \
                               `quantize` solves such a model again";
                Err(self.fail(suffix, problem))
            }
        }
    }

    /// A tensor of words.
    pub(super) fn words(&self, suffix: &str, shape: [usize; 2]) -> Result<Array2<u32>, FormatsError> {
        self.typed_words(suffix, Dtype::I32, shape)
    }

    fn typed_words(
        &self,
        suffix: &str,
        dtype: Dtype,
        shape: [usize; 2],
    ) -> Result<Array2<u32>, FormatsError> {
        let bytes = self.checkpoint.read_as(&self.name(suffix), dtype, &shape)?;
        Array2::from_shape_vec(shape, from_bytes(&bytes)).map_err(|e| self.fail(suffix, e.to_string()))
    }

    /// A tensor of words in which each row, or with `down` each column, is the stream of `codes` codes; `streams` of them. Bits after a
    /// stream's end must be zero: nobody reads them, so nothing else would notice that they changed.
    pub(super) fn streams(
        &self,
        suffix: &str,
        streams: usize,
        codes: usize,
        down: bool,
    ) -> Result<Array2<u32>, FormatsError> {
        let bits = self.scheme.bits.get();
        let length = words_for(codes, bits);
        let words = self.words(suffix, if down { [length, streams] } else { [streams, length] })?;
        self.demand_padding(suffix, &words, codes, down)?;
        Ok(words)
    }

    /// [`StoredLinear::streams`] in rows of words of another type.
    pub(super) fn typed_streams(
        &self,
        suffix: &str,
        dtype: Dtype,
        streams: usize,
        codes: usize,
    ) -> Result<Array2<u32>, FormatsError> {
        let words = self.typed_words(suffix, dtype, [streams, words_for(codes, self.scheme.bits.get())])?;
        self.demand_padding(suffix, &words, codes, false)?;
        Ok(words)
    }

    fn demand_padding(
        &self,
        suffix: &str,
        words: &Array2<u32>,
        codes: usize,
        down: bool,
    ) -> Result<(), FormatsError> {
        let bits = self.scheme.bits.get();
        let length = words_for(codes, bits);
        let mut last = if down { words.row(length - 1) } else { words.column(length - 1) }.into_iter();
        if let Some(stream) = last.position(|&word| padding(word, codes, bits) != 0) {
            let problem =
                format!("has bits after the last of {codes} codes of stream {stream}, expected zeros");
            return Err(self.fail(suffix, problem));
        }
        Ok(())
    }
}

/// The values of a matrix whose column `k` has the scale and zero of group `order[k]`.
pub(super) fn gathered(parts: PackedParts, linear: &Linear, order: &[usize]) -> Array2<f32> {
    let words = match parts.layout {
        CodeLayout::OutputMajor => parts.words,
        CodeLayout::InputMajor => transposed(parts.words.view()),
    };
    let codes = unpack_rows(words.view(), parts.scheme.bits.get(), linear.in_features);
    Array2::from_shape_fn(codes.dim(), |(row, column)| {
        let group = [order[column], row];
        parts.scales[group] * (f32::from(codes[[row, column]]) - f32::from(parts.zero_points[group]))
    })
}

impl PackedParts {
    /// Codes, scales and zero points, checked as a solution is.
    pub(super) fn decode(self, stored: &StoredLinear<'_>) -> Result<QuantizedTensor, FormatsError> {
        let bits = self.scheme.bits.get();
        let words = match self.layout {
            CodeLayout::OutputMajor => self.words,
            CodeLayout::InputMajor => transposed(self.words.view()),
        };
        let codes = unpack_rows(words.view(), bits, stored.linear.in_features);
        let mut scales = self.scales.reversed_axes();
        let mut zeros =
            (self.scheme.symmetry == Symmetry::Asymmetric).then(|| self.zero_points.reversed_axes());
        if self.scheme.granularity == Granularity::PerTensor {
            // These formats store the one scale once for each output.
            let same = scales.iter().all(|scale| scale.to_bits() == scales[[0, 0]].to_bits());
            let same_zeros = zeros.iter().all(|zeros| zeros.iter().all(|zero| *zero == zeros[[0, 0]]));
            if !same || !same_zeros {
                let problem = "has several scales or zero points, expected one for the whole tensor";
                return Err(FormatsError::tensor(
                    stored.checkpoint.directory(),
                    &stored.linear.name,
                    problem,
                ));
            }
            scales = scales.slice_move(s![..1, ..1]);
            zeros = zeros.map(|zeros| zeros.slice_move(s![..1, ..1]));
        }
        let standard = |scales: Array2<f32>| scales.as_standard_layout().into_owned();
        QuantizedTensor::new(self.scheme, codes, standard(scales), zeros).map_err(|e| {
            FormatsError::tensor(
                stored.checkpoint.directory(),
                &stored.linear.name,
                format!("is no solution: {e}"),
            )
        })
    }

    /// The words as they are, ready to multiply with.
    pub(super) fn packed(self, stored: &StoredLinear<'_>) -> Result<PackedMatrix, FormatsError> {
        let shape = PackedShape {
            bits: self.scheme.bits.get(),
            layout: self.layout,
            out_features: stored.linear.out_features,
            in_features: stored.linear.in_features,
            group_size: self.scheme.granularity.columns_per_scale(stored.linear.in_features),
        };
        let (words, _) = self.words.into_raw_vec_and_offset();
        PackedMatrix::new(shape, words, self.scales, self.zero_points.mapv(f32::from)).map_err(|e| {
            FormatsError::tensor(stored.checkpoint.directory(), &stored.linear.name, e.to_string())
        })
    }
}
