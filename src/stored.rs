//! A model on disk, original or quantized: its description, its checkpoint, and the weights that the forward pass asks for.

mod missing;
mod nearest;
mod tensors;
mod weights;

use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use calibration::tokenizer::TextTokenizer;
use calibration::weights::Activations;
use formats::gguf::GgufFile;
use formats::target::{self, DESCRIPTIONS, StoredFormat};
use formats::{Checkpoint, Dtype};
use model::linear::Linear;
use model::{Model, ModelError};
use ndarray::{Array2, s};
use quantizer::scheme::Scheme;
use quantizer::tensor::QuantizedTensor;
use serde_json::Value;

pub(crate) use missing::no_directory;

use crate::error::Error;
use crate::hub;
use crate::progress::Progress;
use crate::report::ModelSummary;

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
            return Err(missing::no_checkpoint(path));
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

    /// What has to be said of a model whose runtimes round inputs in a way that is not computed here.
    pub(crate) fn unrounded_inputs(&self) -> Option<String> {
        let how = self.format.as_ref()?.unrounded_inputs()?;
        let path = self.path.display();
        Some(format!("{path}: its runtimes round the inputs of linears too ({how}), which is not done here"))
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
}
