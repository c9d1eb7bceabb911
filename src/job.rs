//! Validated inputs of a run: what the command line or another program asks for.

use std::path::PathBuf;

use calibration::weights::Activations;
use quantizer::scheme::{BitWidth, Granularity, Symmetry};
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::recipe::Recipe;

/// One checkpoint to quantize.
#[derive(Clone, Debug)]
pub struct QuantizeJob {
    /// Directory of the original.
    pub model: PathBuf,
    /// Directory to write: the output, or a directory of each of several.
    pub output: PathBuf,
    /// What is written; at least one.
    pub targets: Vec<Target>,
    /// Which scheme and solver each linear gets.
    pub recipe: Recipe,
    /// How large the output may be; then each stage's width is chosen for it, and not the recipe's.
    pub budget: Option<Budget>,
    /// Width of the embedding's codes; none: 16 bit. A tied head is the same matrix.
    pub embedding_bits: Option<BitWidth>,
    /// Width of the head's codes, where it is not tied; none: 16 bit.
    pub head_bits: Option<BitWidth>,
    /// Rank of the adapter that is written beside; none: no adapter.
    pub adapter_rank: Option<usize>,
    /// Linears whose name matches stay in 16 bit.
    pub exclude: Vec<Regex>,
    /// Runtimes that must load the output, by the beginning of their names.
    pub runs_on: Vec<String>,
    /// Devices that a runtime cuts the model over.
    pub tensor_parallel: usize,
    /// llama.cpp's importance matrix, used as diagonal Hessians; then no calibration text is read.
    pub imatrix: Option<PathBuf>,
    /// Where an importance matrix of the original goes, if anywhere.
    pub export_imatrix: Option<PathBuf>,
    /// What the Hessians are gathered on.
    pub calibration: Calibration,
    /// How much of it.
    pub calibration_windows: WindowRequest,
    /// Calibration tokens that every expert is to see, for which more windows are drawn.
    pub min_expert_tokens: Option<usize>,
    /// Text that both models are measured on; none: no measurement.
    pub evaluation: Option<(Text, WindowRequest)>,
    /// Largest file of weights, bytes; none: what the format's readers are used to.
    pub max_shard_size: Option<u64>,
    /// Whether a head that is tied to the embedding is written as a tensor of its own.
    pub untie: bool,
    /// Whether an existing output is replaced.
    pub force: bool,
    /// Whether the job begins anew, whatever an earlier run left of it.
    pub fresh: bool,
    /// The command that asks for it, word by word, for the HTML report; empty where another program asks.
    pub command: Vec<String>,
    /// Whether a linear that is not quantized as asked for (a smaller group, more damping, a fallback) ends the job, and nothing is written.
    pub strict: bool,
    /// Bytes that the large pieces of the work may take together; none: as much as they take.
    pub memory: Option<u64>,
}

/// One output of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Id of the format.
    pub format: String,
    /// Width of a code instead of the recipe's.
    pub bits: Option<BitWidth>,
}

impl Target {
    /// Name of its directory beside others.
    #[must_use]
    pub fn directory(&self) -> String {
        // A colon is no character for names of files everywhere.
        let format = self.format.replace(':', "-");
        self.bits.map_or(format.clone(), |bits| format!("{format}-{}bit", bits.get()))
    }
}

impl QuantizeJob {
    /// The default recipe on the built-in texts, as `quantc quantize MODEL -o OUT --to FORMAT` does it; what is wanted otherwise is set in it.
    ///
    /// # Errors
    /// None that a caller could cause: the default recipe is built in.
    pub fn new(
        model: impl Into<PathBuf>,
        output: impl Into<PathBuf>,
        format: impl Into<String>,
    ) -> Result<Self, Error> {
        let windows = WindowRequest { samples: 128, context: 2048, seed: None };
        Ok(Self {
            model: model.into(),
            output: output.into(),
            targets: vec![Target { format: format.into(), bits: None }],
            recipe: Recipe::load("default", &Overrides::default())?,
            budget: None,
            embedding_bits: None,
            head_bits: None,
            adapter_rank: None,
            exclude: Vec::new(),
            runs_on: Vec::new(),
            tensor_parallel: 1,
            imatrix: None,
            export_imatrix: None,
            calibration: Calibration::Text(Text::BuiltInCalibration),
            calibration_windows: windows,
            min_expert_tokens: None,
            evaluation: Some((Text::BuiltInEvaluation, windows)),
            max_shard_size: None,
            untie: false,
            force: false,
            fresh: false,
            memory: None,
            command: Vec::new(),
            strict: false,
        })
    }

    /// Where the outputs go, in the order of the targets.
    #[must_use]
    pub fn places(&self) -> Vec<PathBuf> {
        match self.targets.as_slice() {
            [_] => vec![self.output.clone()],
            several => several.iter().map(|target| self.output.join(target.directory())).collect(),
        }
    }
}

/// A bound on the size of an output.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Bits of all tensors, scales included, divided by the weights of the original, embedding and head included.
    MeanBits(f64),
    /// All files of weights, bytes.
    Bytes(u64),
}

/// One model to measure.
#[derive(Clone, Debug)]
pub struct EvaluateJob {
    /// An original, or an output of ours.
    pub model: PathBuf,
    /// The model that divergence is measured against.
    pub reference: Option<PathBuf>,
    /// Directory of a LoRA adapter that the model is measured with as well.
    pub adapter: Option<PathBuf>,
    /// What the measured model's packed weights are multiplied with.
    pub activations: Activations,
    /// Text to measure on.
    pub text: Text,
    /// How much of it.
    pub windows: WindowRequest,
    /// Multiple-choice questions to answer as well (JSON lines).
    pub choices: Option<PathBuf>,
    /// Bytes that the large pieces of the work may take together; none: as much as they take.
    pub memory: Option<u64>,
    /// Where the model's logits go, if anywhere.
    pub export_logits: Option<PathBuf>,
}

/// What a model is calibrated on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Calibration {
    /// A text.
    Text(Text),
    /// Text that the original writes itself; the request's seed is that of its draws.
    Own,
}

/// Where text comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// The calibration text that is compiled in.
    BuiltInCalibration,
    /// The evaluation text that is compiled in.
    BuiltInEvaluation,
    /// A file: plain UTF-8, or JSON lines.
    File(PathBuf),
    /// Tokens of the model's own vocabulary, each list a document that is cut into windows and taken as it is.
    Windows(Vec<Vec<u32>>),
}

impl Text {
    /// What the report calls it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::BuiltInCalibration => "built-in calibration text".to_owned(),
            Self::BuiltInEvaluation => "built-in evaluation text".to_owned(),
            Self::File(path) => path.display().to_string(),
            Self::Windows(_) => "the caller's tokens".to_owned(),
        }
    }
}

/// Tokens of a window where nobody says how many.
pub const USUAL_CONTEXT: usize = 2048;

/// How many windows of how many tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WindowRequest {
    /// Windows wanted.
    pub samples: usize,
    /// Tokens of a window; lowered to what the model can attend to.
    pub context: usize,
    /// Seed of the random draw; none: the first windows of the text, and 0 for text that the model writes.
    pub seed: Option<u64>,
}

/// Parts of a scheme that the command line sets over the recipe's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Overrides {
    /// Width of a code.
    pub bits: Option<BitWidth>,
    /// Which weights share a scale.
    pub granularity: Option<Granularity>,
    /// Where zero lies.
    pub symmetry: Option<Symmetry>,
}
