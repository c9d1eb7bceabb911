//! What the forward pass asks a stored model for: layers, experts, rows of the matrices around them.

use std::ops::Range;

use calibration::weights::{
    Activations, LayerWeights, LinearOperator, LinearWeights, Linears, OuterWeights, SourceError,
    WeightSource, read_norm, read_outer, read_router,
};
use kernels::ArrangedMatrix;
use model::Layer;
use model::linear::{Linear, Part};
use ndarray::{Array2, Axis, s};
use quantizer::inputs::InputRounding;

use super::StoredModel;
use crate::error::Error;

impl StoredModel {
    /// A linear's weights and bias, packed where the kernels have its grid.
    pub(crate) fn operator(&self, linear: &Linear) -> Result<LinearOperator, Error> {
        let packed = match (&self.format, self.scheme(linear)) {
            (Some(format), Some(scheme)) if !self.dense => format.packed(linear, scheme, &self.checkpoint)?,
            _ => None,
        };
        let inputs = self.input_rounding(linear)?;
        let weights = match packed {
            // What runtimes round is not rounded in another way.
            Some(packed) if self.activations == Activations::Int8 && inputs.is_none() => {
                LinearWeights::Arranged(ArrangedMatrix::new(&packed))
            }
            Some(packed) => LinearWeights::Packed(packed),
            // Not packed, or the kernels have no such grid.
            None => LinearWeights::Dense(self.values(linear)?),
        };
        let bias = linear.bias_name().map(|name| self.checkpoint.read_vector(&name, linear.out_features));
        Ok(LinearOperator { weights, bias: bias.transpose()?, inputs })
    }

    /// How a linear's inputs are rounded: not those of what is to be quantized, which is what its weights decode to.
    fn input_rounding(&self, linear: &Linear) -> Result<Option<InputRounding>, Error> {
        match (&self.format, self.scheme(linear)) {
            (Some(format), Some(scheme)) if !self.dense => {
                Ok(format.input_rounding(linear, scheme, &self.checkpoint)?)
            }
            _ => Ok(None),
        }
    }

    /// Some linears of a layer, by their places.
    fn operators<'l>(&self, linears: impl Iterator<Item = &'l Linear>) -> Result<Linears, Error> {
        linears.map(|linear| Ok((linear.id.slot(), self.operator(linear)?))).collect()
    }

    /// The weights of one layer, without its experts.
    pub(crate) fn layer_weights(&self, layer: &Layer) -> Result<LayerWeights, Error> {
        let linears = layer.linears().filter(|linear| linear.id.part.expert().is_none());
        let vector = |name: &str, features| self.checkpoint.read_vector(name, features);
        let matrix = |name: &str, shape| self.checkpoint.read_matrix(name, shape);
        let norms = layer.norms.iter().map(|(&place, norm)| Ok((place, read_norm(norm, &vector)?)));
        let router = layer.router.as_ref().map(|tensors| read_router(tensors, &vector, &matrix));
        Ok(LayerWeights {
            linears: self.operators(linears)?,
            norms: norms.collect::<Result<_, Error>>()?,
            router: router.transpose()?,
            sinks: layer.sinks.as_ref().map(|(name, heads)| vector(name, *heads)).transpose()?,
        })
    }

    /// Rows of the embedding, read one by one: a window needs few of them.
    pub(crate) fn embedded(&self, tokens: &[u32]) -> Result<Array2<f32>, Error> {
        let linear = &self.outer.embedding.linear;
        let mut rows = Array2::zeros((tokens.len(), self.model.hyperparameters.embedding_size));
        for (mut row, &token) in rows.axis_iter_mut(Axis(0)).zip(tokens) {
            let token = token as usize;
            row.assign(&self.row_values(linear, token..token + 1)?.row(0));
        }
        Ok(rows)
    }
}

impl WeightSource for StoredModel {
    fn embed(&self, tokens: &[u32]) -> Result<Array2<f32>, SourceError> {
        Ok(self.embedded(tokens)?)
    }

    fn layer(&self, layer: &Layer) -> Result<LayerWeights, SourceError> {
        Ok(self.layer_weights(layer)?)
    }

    fn expert(&self, layer: &Layer, expert: usize) -> Result<Linears, SourceError> {
        Ok(self.operators(layer.linears_of(Part::Expert(expert)))?)
    }

    fn positions(&self, rows: Range<usize>) -> Result<Array2<f32>, SourceError> {
        let (name, offset) = self.model.positions().ok_or("the model has no learned positions")?;
        Ok(self.checkpoint.read_rows(&name, offset + rows.start..offset + rows.end)?)
    }

    fn outer(&self) -> Result<OuterWeights, SourceError> {
        let vector = |name: &str, features| self.checkpoint.read_vector(name, features);
        let matrix = |name: &str, shape| self.checkpoint.read_matrix(name, shape);
        Ok(read_outer(&self.model, &vector, &matrix)?)
    }

    fn head_rows(&self, rows: Range<usize>) -> Result<LinearOperator, SourceError> {
        let linear = &self.outer.head.linear;
        let (weights, inputs) = if rows == (0..linear.out_features) {
            let whole = self.operator(linear)?;
            (whole.weights, whole.inputs)
        } else {
            (LinearWeights::Dense(self.row_values(linear, rows.clone())?), self.input_rounding(linear)?)
        };
        let bias = match self.model.head_bias() {
            None => None,
            Some(name) => {
                let bias = self.checkpoint.read_vector(&name, linear.out_features)?;
                Some(bias.slice(s![rows]).to_owned())
            }
        };
        Ok(LinearOperator { weights, bias, inputs })
    }
}
