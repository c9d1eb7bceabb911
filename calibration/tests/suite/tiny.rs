//! The tiny random checkpoints of tests/data/hf_tiny, wholly in memory.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::LazyLock;

use calibration::weights::{
    LayerWeights, LinearOperator, LinearWeights, Linears, OuterWeights, SourceError, WeightSource, read_norm,
    read_outer, read_router,
};
use model::linear::{Linear, Part};
use model::{Layer, Model};
use ndarray::{Array1, Array2, Axis, s};
use serde_json::Value;

/// All of them.
pub(crate) static TINY: LazyLock<Vec<String>> = LazyLock::new(|| {
    let folders = fs::read_dir(folder("")).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<String> = folders
        .filter(|entry| entry.path().join("config.json").exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
});

/// Those that every transform suits.
pub(crate) const LLAMA_LIKE: [&str; 5] = ["llama", "llama31", "mistral_sw", "qwen2", "qwen3"];

pub(crate) fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/hf_tiny").join(name)
}

/// A checkpoint of f32 tensors, wholly in memory.
pub(crate) struct InMemory {
    pub(crate) model: Model,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl InMemory {
    pub(crate) fn open(name: &str) -> Self {
        let config = fs::read_to_string(folder(name).join("config.json")).unwrap();
        let bytes = fs::read(folder(name).join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            let values =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            (name, (view.shape().to_vec(), values))
        });
        let config: Value = serde_json::from_str(&config).unwrap();
        let mut source = Self { model: Model::resolve(&config).unwrap(), tensors: tensors.collect() };
        source.split_side_by_side();
        source
    }

    /// Outputs of experts that lie side by side become matrices and biases of each.
    fn split_side_by_side(&mut self) {
        for tensor in self.model.side_by_side_experts() {
            let (shape, values) = self.tensors.remove(&tensor.name).unwrap();
            let (outputs, step) = (shape[shape.len() - 1], tensor.alternating);
            let inputs = if shape.len() == 3 { shape[1] } else { 1 };
            for (number, member) in tensor.members.into_iter().enumerate() {
                let of_expert = &values[number / step * inputs * outputs..];
                let (rows, first) = (outputs / step, number % step);
                let cell = |place: usize| of_expert[place % inputs * outputs + place / inputs * step + first];
                let own: Vec<f32> = (0..rows * inputs).map(cell).collect();
                let shape = if shape.len() == 3 { vec![rows, inputs] } else { vec![rows] };
                self.tensors.insert(member, (shape, own));
            }
        }
    }

    /// The same model with every weight of its decoder layers' linears off by up to `share` of itself.
    pub(crate) fn perturbed(name: &str, share: f32) -> Self {
        let mut source = Self::open(name);
        for linear in source.model.linears() {
            let (_, values) = source.tensors.get_mut(&linear.weight_name()).unwrap();
            for (index, value) in values.iter_mut().enumerate() {
                *value *= 1.0 + share * (index as f32 * 0.7).sin();
            }
        }
        source
    }

    /// Tokens of a long window: many times the tiny context, except where positions are learned.
    pub(crate) fn longest(&self) -> usize {
        if self.model.positions().is_some() { self.model.hyperparameters.context } else { 150 }
    }

    /// Puts one number into a tensor.
    pub(crate) fn set(&mut self, tensor: &str, index: usize, value: f32) {
        self.tensors.get_mut(tensor).unwrap().1[index] = value;
    }

    fn vector(&self, name: &str) -> Array1<f32> {
        Array1::from(self.tensors[name].1.clone())
    }

    /// The head's bias, where it has one.
    fn head_bias(&self, rows: Range<usize>) -> Option<Array1<f32>> {
        self.model.head_bias().map(|name| self.vector(&name).slice(s![rows]).to_owned())
    }

    fn matrix(&self, name: &str) -> Array2<f32> {
        let (shape, values) = &self.tensors[name];
        Array2::from_shape_vec((shape[0], shape[1]), values.clone()).unwrap()
    }
}

impl InMemory {
    fn linears<'l>(&self, linears: impl Iterator<Item = &'l Linear>) -> Linears {
        let read = |linear: &Linear| {
            let stored = self.matrix(&linear.weight_name());
            let matrix =
                if linear.is_transposed() { stored.t().as_standard_layout().into_owned() } else { stored };
            let operator = LinearOperator {
                weights: LinearWeights::Dense(matrix),
                bias: linear.bias_name().map(|name| self.vector(&name)),
                inputs: None,
            };
            (linear.id.slot(), operator)
        };
        linears.map(read).collect()
    }

    /// A layer with all its experts.
    pub(crate) fn whole_layer(&self, layer: &Layer) -> LayerWeights {
        let mut weights = self.layer(layer).unwrap();
        for expert in 0..layer.experts() {
            weights.fetch(layer, Part::Expert(expert), self).unwrap();
        }
        weights
    }
}

impl WeightSource for InMemory {
    fn embed(&self, tokens: &[u32]) -> Result<Array2<f32>, SourceError> {
        let rows: Vec<usize> = tokens.iter().map(|&token| token as usize).collect();
        Ok(self.matrix(&self.model.embedding()).select(Axis(0), &rows))
    }

    fn layer(&self, layer: &Layer) -> Result<LayerWeights, SourceError> {
        let vector = |name: &str, _: usize| Ok::<_, SourceError>(self.vector(name));
        let matrix = |name: &str, _: (usize, usize)| Ok::<_, SourceError>(self.matrix(name));
        let norms = layer.norms.iter().map(|(&place, norm)| Ok((place, read_norm(norm, &vector)?)));
        let router = layer.router.as_ref().map(|tensors| read_router(tensors, &vector, &matrix));
        Ok(LayerWeights {
            linears: self.linears(layer.linears().filter(|linear| linear.id.part.expert().is_none())),
            norms: norms.collect::<Result<_, SourceError>>()?,
            router: router.transpose()?,
            sinks: layer.sinks.as_ref().map(|(name, _)| self.vector(name)),
        })
    }

    fn expert(&self, layer: &Layer, expert: usize) -> Result<Linears, SourceError> {
        Ok(self.linears(layer.linears_of(Part::Expert(expert))))
    }

    fn positions(&self, rows: Range<usize>) -> Result<Array2<f32>, SourceError> {
        let (name, offset) = self.model.positions().unwrap();
        Ok(self.matrix(&name).slice(s![offset + rows.start..offset + rows.end, ..]).to_owned())
    }

    fn outer(&self) -> Result<OuterWeights, SourceError> {
        read_outer(&self.model, &|name, _| Ok(self.vector(name)), &|name, _| Ok(self.matrix(name)))
    }

    fn head_rows(&self, rows: Range<usize>) -> Result<LinearOperator, SourceError> {
        let weights = self.matrix(&self.model.head()).slice(s![rows.clone(), ..]).to_owned().into();
        Ok(LinearOperator { weights, bias: self.head_bias(rows), inputs: None })
    }
}
