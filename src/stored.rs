//! A model on disk, original or quantized: its description, its checkpoint, and the weights that the forward pass asks for.

mod nearest;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use calibration::tokenizer::TextTokenizer;
use calibration::weights::{
    Activations, LayerWeights, LinearOperator, LinearWeights, Linears, OuterWeights, SourceError,
    WeightSource, read_norm, read_outer, read_router,
};
use formats::container::TensorSpec;
use formats::gguf::GgufFile;
use formats::target::{self, DESCRIPTIONS, StoredFormat};
use formats::{Checkpoint, Dtype};
use kernels::ArrangedMatrix;
use model::linear::{Linear, Part};
use model::{Layer, Model, ModelError};
use ndarray::{Array2, Axis, s};
use quantizer::scheme::Scheme;
use quantizer::tensor::QuantizedTensor;
use serde_json::Value;

use crate::error::{self, Error};
use crate::hub;
use crate::progress::Progress;
use crate::report::ModelSummary;

/// Rows that are compared at a time.
const COMPARED_ROWS: usize = 4096;

/// An open model directory.
#[derive(Debug)]
pub(crate) struct StoredModel {
    pub(crate) path: PathBuf,
    pub(crate) config: Value,
    pub(crate) model: Model,
    pub(crate) checkpoint: Checkpoint,
    /// How quantized linears are stored; none in an original.
    pub(crate) format: Option<Box<dyn StoredFormat>>,
    /// The embedding and the head as matrices that may be packed.
    outer: Outer,
    /// Whether weights are handed out as numbers, however they are stored: what is solved for is dense.
    dense: bool,
    /// What packed weights are handed out for.
    activations: Activations,
}

/// The matrices around the layers.
#[derive(Debug)]
struct Outer {
    embedding: Packable,
    /// The same where it is tied.
    head: Packable,
}

/// A matrix whose rows are asked for a few at a time.
#[derive(Debug)]
struct Packable {
    linear: Linear,
    /// Its codes, where rows cannot be read alone.
    whole: OnceLock<QuantizedTensor>,
}

impl Packable {
    fn of(linear: Linear) -> Self {
        Self { linear, whole: OnceLock::new() }
    }
}

impl Outer {
    fn of(model: &Model) -> Self {
        let tied = model.hyperparameters.tied_head;
        let head = if tied { model.embedding_linear() } else { model.head_linear() };
        Self { embedding: Packable::of(model.embedding_linear()), head: Packable::of(head) }
    }
}

impl StoredModel {
    /// Opens a model of this machine or of the hub.
    pub(crate) fn find(path: &Path, progress: &dyn Progress) -> Result<Self, Error> {
        Self::open(&hub::model_directory(path, progress)?)
    }

    /// Opens a directory and checks every tensor that the description expects.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        if let Some(file) = path.exists().then(|| GgufFile::find(path)).transpose()?.flatten() {
            return Self::open_gguf(&file);
        }
        if !path.is_dir() {
            return Err(no_directory(path));
        }
        if path.join("config.json").symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound)
        {
            return Err(no_checkpoint(path));
        }
        let config = formats::json::read_config(path)?;
        let checkpoint = Checkpoint::open(path);
        // A packed embedding has no `weight`.
        let holds = |name: &str| {
            let module = name.trim_end_matches("weight");
            checkpoint.as_ref().is_ok_and(|found| found.names().any(|name| name.starts_with(module)))
        };
        let model = Model::resolve_for(&config, &holds).map_err(|source| match (&source, &checkpoint) {
            (ModelError::UnknownArchitecture { found, .. }, Ok(checkpoint)) => {
                nearest::unknown(path, &config, checkpoint, found)
                    .unwrap_or(Error::Model { path: path.to_owned(), source })
            }
            _ => Error::Model { path: path.to_owned(), source },
        })?;
        let format = target::description(&config).map(target::open).transpose()?;
        let mut checkpoint = checkpoint?;
        checkpoint.split(&model.fused_experts());
        checkpoint.split_side_by_side(&model.side_by_side_experts());
        if let Some(format) = &format {
            checkpoint.split(&format.stacks(&model));
        }
        let outer = Outer::of(&model);
        let stored = Self {
            path: path.to_owned(),
            config,
            model,
            checkpoint,
            format,
            outer,
            dense: false,
            activations: Activations::F32,
        };
        stored.check_tensors()?;
        stored.check_tied_head()?;
        Ok(stored)
    }

    /// Opens a GGUF file, which says itself what model it holds.
    fn open_gguf(path: &Path) -> Result<Self, Error> {
        let file = GgufFile::open(path)?;
        let config = file.config()?;
        let model =
            Model::resolve(&config).map_err(|source| Error::Model { path: path.to_owned(), source })?;
        let (format, checkpoint) = file.into_parts(&model)?;
        // What else belongs to the model lies beside the file.
        let beside = path.parent().unwrap_or(Path::new(".")).to_owned();
        let (format, outer) = (Some(format), Outer::of(&model));
        let stored = Self {
            path: beside,
            config,
            model,
            checkpoint,
            format,
            outer,
            dense: false,
            activations: Activations::F32,
        };
        stored.check_tensors()?;
        Ok(stored)
    }

    /// Opens a model that is to be quantized. One that exists only quantized is what it decodes to.
    pub(crate) fn open_source(path: &Path) -> Result<Self, Error> {
        let mut stored = Self::open(path)?;
        if let Some(format) = stored.format.as_ref().filter(|_| target::description(&stored.config).is_some())
            && stored.matrices().all(|linear| stored.scheme(&linear).is_none())
        {
            return Err(Error::NotSuitable {
                path: path.to_owned(),
                problem: format!(
                    "config.json says that it is quantized in the format {}, and no linear is packed",
                    format.id()
                ),
                hint: "take `quantization_config` out of config.json if the weights are an original's",
            });
        }
        stored.dense = true;
        if let Some(config) = stored.config.as_object_mut() {
            config.retain(|key, _| !DESCRIPTIONS.contains(&key.as_str()));
        }
        Ok(stored)
    }

    /// The same model for products with these activations, where its weights are packed.
    pub(crate) fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// What a model that is quantized already is stored as, with the mean width of its linears' codes.
    pub(crate) fn quantized_as(&self) -> Option<(&'static str, f64)> {
        let widths = self.model.linears().filter_map(|linear| {
            let bits = f64::from(self.scheme(linear)?.bits.get());
            Some((bits, (linear.out_features * linear.in_features) as f64))
        });
        let (bits, weights) =
            widths.fold((0.0, 0.0), |(bits, all), (width, own)| (bits + width * own, all + own));
        let format = self.format.as_ref()?;
        (weights > 0.0).then(|| (format.id(), bits / weights))
    }

    /// The model's tokenizer, if it has one.
    pub(crate) fn tokenizer(&self) -> Result<Option<TextTokenizer>, Error> {
        Ok(TextTokenizer::open(&self.path)?)
    }

    /// The grid of a linear; none where its weight is dense.
    pub(crate) fn scheme(&self, linear: &Linear) -> Option<Scheme> {
        // Some formats call the codes as the dense weight is called.
        if self.checkpoint.info(&linear.weight_name()).is_ok_and(|found| found.dtype.is_float()) {
            return None;
        }
        self.format.as_ref().and_then(|format| format.scheme(linear))
    }

    /// Every matrix that may be packed: linears, embedding, head.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = Linear> + '_ {
        self.model.linears().cloned().chain(self.model.outer_linears())
    }

    /// The values of a linear, `[out_features, in_features]`, however it is stored.
    pub(crate) fn values(&self, linear: &Linear) -> Result<Array2<f32>, Error> {
        match (&self.format, self.scheme(linear)) {
            (Some(format), Some(scheme)) => Ok(format.values(linear, scheme, &self.checkpoint)?),
            _ => {
                let [rows, columns] = linear.weight_shape();
                let stored = self.checkpoint.read_matrix(&linear.weight_name(), (rows, columns))?;
                if linear.is_transposed() {
                    return Ok(stored.t().as_standard_layout().into_owned());
                }
                Ok(stored)
            }
        }
    }

    /// The same of some rows.
    pub(crate) fn row_values(&self, linear: &Linear, rows: Range<usize>) -> Result<Array2<f32>, Error> {
        let (Some(format), Some(scheme)) = (&self.format, self.scheme(linear)) else {
            return Ok(self.checkpoint.read_rows(&linear.weight_name(), rows)?);
        };
        if let Some(values) = format.rows(linear, scheme, &self.checkpoint, rows.clone())? {
            return Ok(values);
        }
        let known =
            [&self.outer.embedding, &self.outer.head].into_iter().find(|known| known.linear.id == linear.id);
        match known {
            None => Ok(self.values(linear)?.slice_move(s![rows, ..])),
            Some(known) => {
                if known.whole.get().is_none() {
                    // Of two threads one's is dropped, and both are the same.
                    let _ = known.whole.set(format.decode(linear, scheme, &self.checkpoint)?);
                }
                Ok(known.whole.get().map(|whole| whole.dequantize_rows(rows)).unwrap_or_default())
            }
        }
    }

    /// The codes and scales of a linear that has a grid.
    pub(crate) fn decode(&self, linear: &Linear) -> Result<QuantizedTensor, Error> {
        let (Some(format), Some(scheme)) = (&self.format, self.scheme(linear)) else {
            return Err(Error::Internal(format!("`{}` is not quantized", linear.name)));
        };
        Ok(format.decode(linear, scheme, &self.checkpoint)?)
    }

    /// The tensors of a linear that has a grid.
    pub(crate) fn packed_tensors(&self, linear: &Linear) -> Vec<String> {
        let stored = self.format.as_ref().zip(self.scheme(linear));
        stored.map_or_else(Vec::new, |(format, scheme)| format.tensors(linear, scheme))
    }

    /// Type of most of the weights that are not packed, or of the model that was packed.
    pub(crate) fn dtype(&self) -> Result<Dtype, Error> {
        if self.scheme(&self.outer.embedding.linear).is_none() {
            return Ok(self.checkpoint.info(&self.model.embedding())?.dtype);
        }
        let kinds = [Dtype::F16, Dtype::Bf16, Dtype::F32];
        let said = ["dtype", "torch_dtype"].iter().find_map(|key| self.config.get(key)?.as_str());
        let said = kinds.into_iter().find(|dtype| dtype.torch_name() == said);
        let norm = self.model.final_norm();
        let norm =
            norm.map_or(Ok(Dtype::F32), |norm| self.checkpoint.info(&norm.weight).map(|info| info.dtype))?;
        // A GGUF file says nothing, and widens norms.
        Ok(said.unwrap_or(if norm == Dtype::F32 { Dtype::F16 } else { norm }))
    }

    /// Every tensor as an original of this model would have it: those that are not packed, and the weights of those that are, in the type
    /// `runtime`. What the format widened, and holds the same numbers in `runtime`, is as narrow again.
    pub(crate) fn dense_tensors(&self, runtime: Dtype) -> Result<Vec<TensorSpec>, Error> {
        let packed: Vec<Linear> = self.matrices().filter(|linear| self.scheme(linear).is_some()).collect();
        let modules: BTreeSet<&str> = packed.iter().map(|linear| linear.name.as_str()).collect();
        let parts: BTreeSet<String> = packed.iter().flat_map(|linear| self.packed_tensors(linear)).collect();
        let is_part = |name: &str| {
            // Formats differ in what else they have beside the codes; a bias is the model's.
            let beside = name
                .rsplit_once('.')
                .is_some_and(|(module, part)| part != "bias" && modules.contains(module));
            beside || parts.contains(name)
        };
        let unknown: BTreeSet<String> = self.unknown_tensors().into_iter().collect();
        let mut tensors = Vec::new();
        for name in self.checkpoint.names().filter(|name| !is_part(name)) {
            let info = self.checkpoint.info(name)?;
            let mut dtype = info.dtype;
            if !packed.is_empty() && dtype == Dtype::F32 && runtime != Dtype::F32 && !unknown.contains(name) {
                let values = dtype.decode(&self.checkpoint.read(name)?).unwrap_or_default();
                let narrowed = runtime.encode(&values).and_then(|bytes| runtime.decode(&bytes));
                if narrowed.as_ref() == Some(&values) {
                    dtype = runtime;
                }
            }
            tensors.push(TensorSpec { name: name.to_owned(), dtype, shape: info.shape.to_vec() });
        }
        tensors.extend(packed.iter().map(|linear| TensorSpec {
            name: linear.weight_name(),
            dtype: runtime,
            shape: linear.weight_shape().to_vec(),
        }));
        Ok(tensors)
    }

    /// The packed matrix whose weight has this name.
    pub(crate) fn packed_matrix(&self, weight: &str) -> Option<Linear> {
        self.format.as_ref()?;
        self.matrices().find(|linear| linear.weight_name() == weight && self.scheme(linear).is_some())
    }

    /// Layer and number there of an expert by its number through all layers.
    pub(crate) fn expert_at(&self, place: usize) -> (usize, usize) {
        let mut left = place;
        for layer in &self.model.layers {
            if left < layer.experts() {
                return (layer.index, left);
            }
            left -= layer.experts();
        }
        (self.model.layers.len(), left)
    }

    /// Tensors that belong to no part of the description.
    pub(crate) fn unknown_tensors(&self) -> Vec<String> {
        let mut known: BTreeSet<String> = self.model.expected_tensors().map(|tensor| tensor.name).collect();
        // A tied model may store its head all the same.
        known.insert(self.model.untied_head());
        let mut modules = BTreeSet::new();
        for linear in self.matrices().filter(|linear| self.scheme(linear).is_some()) {
            known.extend(self.packed_tensors(&linear));
            modules.insert(linear.name);
        }
        // What formats have beside codes belongs to the linear, as scales of inputs do.
        let beside = |name: &str| {
            name.rsplit_once('.').is_some_and(|(module, part)| part != "bias" && modules.contains(module))
        };
        self.checkpoint
            .names()
            .filter(|name| !known.contains(*name) && !beside(name))
            .map(str::to_owned)
            .collect()
    }

    pub(crate) fn summary(&self) -> Result<ModelSummary, Error> {
        let linears: u64 =
            self.model.linears().map(|linear| (linear.out_features * linear.in_features) as u64).sum();
        let mut others = 0;
        let weights: std::collections::BTreeSet<String> =
            self.model.linears().map(Linear::weight_name).collect();
        for tensor in self.model.expected_tensors() {
            if !weights.contains(&tensor.name) {
                others += tensor.shape.iter().product::<usize>() as u64;
            }
        }
        Ok(ModelSummary {
            path: self.path.display().to_string(),
            architecture: self.model.architecture.model_type.to_owned(),
            layers: self.model.layers.len(),
            parameters: linears + others,
            dtype: self.dtype()?.torch_name().unwrap_or("unknown").to_owned(),
            format: self.format.as_ref().map(|format| format.id().to_owned()),
        })
    }

    /// Names and shapes against the file, before any work.
    fn check_tensors(&self) -> Result<(), Error> {
        let quantized: std::collections::BTreeMap<String, Linear> = self
            .matrices()
            .filter(|linear| self.scheme(linear).is_some())
            .map(|linear| (linear.weight_name(), linear))
            .collect();
        for tensor in self.model.expected_tensors() {
            if let Some(linear) = quantized.get(&tensor.name) {
                if let (Some(format), Some(scheme)) = (&self.format, self.scheme(linear)) {
                    for name in format.tensors(linear, scheme) {
                        self.checkpoint.info(&name)?;
                    }
                }
                continue;
            }
            self.checkpoint.expect_shape(&tensor.name, &tensor.shape)?;
            let found = self.checkpoint.info(&tensor.name)?;
            if !found.dtype.is_float() {
                let problem = format!(
                    "tensor `{}` of {} is {}, expected F32, F16 or BF16",
                    tensor.name,
                    found.file.display(),
                    found.dtype.name()
                );
                return Err(Error::Mismatch { path: self.path.clone(), problem });
            }
        }
        Ok(())
    }

    /// Whether the file holds a head of its own although config.json ties it to the embedding.
    pub(crate) fn stores_tied_head(&self) -> bool {
        self.model.hyperparameters.tied_head && self.checkpoint.contains(&self.model.untied_head())
    }

    /// Runtimes do not agree on which of two different heads counts: some tie, some take the file's.
    fn check_tied_head(&self) -> Result<(), Error> {
        if !self.stores_tied_head() {
            return Ok(());
        }
        let (head, embedding) = (self.model.untied_head(), self.model.embedding());
        let numbers = &self.model.hyperparameters;
        self.checkpoint.expect_shape(&head, &[numbers.vocabulary, numbers.embedding_size])?;
        for first in (0..numbers.vocabulary).step_by(COMPARED_ROWS) {
            let rows = first..(first + COMPARED_ROWS).min(numbers.vocabulary);
            let embedded = self.row_values(&self.outer.embedding.linear, rows.clone())?;
            if self.checkpoint.read_rows(&head, rows)? != embedded {
                let problem = format!(
                    "config.json ties the head to `{embedding}` (tie_word_embeddings), but `{head}` holds other numbers"
                );
                return Err(Error::Mismatch { path: self.path.clone(), problem });
            }
        }
        Ok(())
    }

    /// A linear's weights and bias, packed where the kernels have its grid.
    pub(crate) fn operator(&self, linear: &Linear) -> Result<LinearOperator, Error> {
        let packed = match (&self.format, self.scheme(linear)) {
            (Some(format), Some(scheme)) if !self.dense => format.packed(linear, scheme, &self.checkpoint)?,
            _ => None,
        };
        let weights = match packed {
            Some(packed) if self.activations == Activations::Int8 => {
                LinearWeights::Arranged(ArrangedMatrix::new(&packed))
            }
            Some(packed) => LinearWeights::Packed(packed),
            // Not packed, or the kernels have no such grid.
            None => LinearWeights::Dense(self.values(linear)?),
        };
        let bias = linear.bias_name().map(|name| self.checkpoint.read_vector(&name, linear.out_features));
        Ok(LinearOperator { weights, bias: bias.transpose()? })
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
        let weights = if rows == (0..linear.out_features) {
            self.operator(linear)?.weights
        } else {
            LinearWeights::Dense(self.row_values(linear, rows.clone())?)
        };
        let bias = match self.model.head_bias() {
            None => None,
            Some(name) => {
                let bias = self.checkpoint.read_vector(&name, linear.out_features)?;
                Some(bias.slice(s![rows]).to_owned())
            }
        };
        Ok(LinearOperator { weights, bias })
    }
}

/// A directory that holds no model, with one in it that does.
fn no_checkpoint(path: &Path) -> Error {
    let inside = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut models: Vec<PathBuf> = inside.filter(|inner| inner.join("config.json").is_file()).collect();
    models.sort_unstable();
    let hint = match models.first() {
        Some(model) => format!("did you mean {}?", model.display()),
        None => "name the directory that holds config.json and the safetensors files".to_owned(),
    };
    Error::NoModel {
        path: path.to_owned(),
        problem: "no config.json here, expected a checkpoint's directory",
        hint,
    }
}

/// Why a path is no model, with what may have been meant.
pub(crate) fn no_directory(path: &Path) -> Error {
    let wanted = "name the directory that holds config.json and the safetensors files";
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (problem, hint) = if path.exists() {
        let hint = match folder.join("config.json").is_file() {
            true => format!("the model is the whole directory: {}", folder.display()),
            false => wanted.to_owned(),
        };
        ("is not a directory", hint)
    } else {
        let beside = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let beside = beside.filter(|entry| entry.path().is_dir());
        let names: Vec<String> = beside.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let hint = match error::nearest(name, names.iter().map(String::as_str)) {
            Some(near) => format!("did you mean {}?", folder.join(near).display()),
            None => format!("{wanted}, or a model of the hub as org/name"),
        };
        ("does not exist", hint)
    };
    Error::NoModel { path: path.to_owned(), problem, hint }
}
