//! Weights that are needed again for every token: in memory where they fit, in as few bytes as hold them; read again otherwise.

use std::borrow::Cow;
use std::ops::Range;

use kernels::bf16::Precision;
use model::linear::Part;
use model::{Layer, Model};
use ndarray::{Array2, ArrayView2, s};

use crate::error::CalibrationError;
use crate::forward::Forward;
use crate::weights::{LayerWeights, LinearOperator, OuterWeights, Pass, WeightSource};

/// Bytes of f32 weights that are kept in memory between steps.
const HELD_BYTES: usize = 4 << 30;
/// Numbers of a slice of the head that is read at a time where it is not kept.
const HEAD_SLICE: usize = 1 << 22;

/// Bytes of weights that are kept in memory: all, or none where they are too many.
pub(crate) fn bytes(model: &Model) -> usize {
    let linears: usize = model.linears().map(|linear| linear.out_features * linear.in_features).sum();
    let all = linears.saturating_add(model.hyperparameters.vocabulary * model.hyperparameters.hidden_size);
    Some(all.saturating_mul(4)).filter(|&bytes| bytes <= HELD_BYTES).unwrap_or(0)
}

/// The weights of a model that is run again and again.
pub(crate) struct HeldWeights<'s> {
    pub(crate) source: &'s dyn WeightSource,
    outer: OuterWeights,
    vocabulary: usize,
    hidden: usize,
    held: Option<(Vec<LayerWeights>, LinearOperator)>,
}

impl<'s> HeldWeights<'s> {
    /// Those that are held are for products whose factors are rounded to `precision`.
    pub(crate) fn open(
        model: &Model,
        source: &'s dyn WeightSource,
        precision: Precision,
    ) -> Result<Self, CalibrationError> {
        let numbers = &model.hyperparameters;
        let (vocabulary, hidden) = (numbers.vocabulary, numbers.hidden_size);
        let held = if bytes(model) > 0 {
            let whole = |layer: &Layer| {
                let mut weights = source.layer(layer)?;
                for expert in 0..layer.experts() {
                    weights.fetch(layer, Part::Expert(expert), source)?;
                }
                Ok(match precision {
                    Precision::Single => weights.narrowed(),
                    Precision::Bf16 => weights.at(precision, Pass::Forward),
                })
            };
            let layers = model.layers.iter().map(whole);
            let layers = layers.collect::<Result<_, _>>().map_err(CalibrationError::Source)?;
            let head = source.head_rows(0..vocabulary).map_err(CalibrationError::Source)?;
            let head = match precision {
                Precision::Single => head.narrowed(),
                Precision::Bf16 => head.at(precision, Pass::Forward),
            };
            Some((layers, head))
        } else {
            None
        };
        let outer = source.outer().map_err(CalibrationError::Source)?;
        Ok(Self { source, outer, vocabulary, hidden, held })
    }

    pub(crate) fn layer(&self, layer: &Layer) -> Result<Cow<'_, LayerWeights>, CalibrationError> {
        match &self.held {
            Some((layers, _)) => Ok(Cow::Borrowed(&layers[layer.index])),
            None => self.source.layer(layer).map(Cow::Owned).map_err(CalibrationError::Source),
        }
    }

    /// `[sequences, vocabulary]` for the residual streams `[sequences, hidden]`.
    pub(crate) fn logits(
        &self,
        forward: &Forward<'_>,
        hidden: ArrayView2<'_, f32>,
    ) -> Result<Array2<f32>, CalibrationError> {
        if let Some((_, head)) = &self.held {
            return Ok(forward.logits(&self.outer, head, hidden));
        }
        let slice = (HEAD_SLICE / self.hidden).clamp(1, self.vocabulary);
        let mut logits = Array2::zeros((hidden.nrows(), self.vocabulary));
        for first in (0..self.vocabulary).step_by(slice) {
            let rows: Range<usize> = first..(first + slice).min(self.vocabulary);
            let head = self.source.head_rows(rows.clone()).map_err(CalibrationError::Source)?;
            logits.slice_mut(s![.., rows]).assign(&forward.logits(&self.outer, &head, hidden));
        }
        Ok(logits)
    }
}
