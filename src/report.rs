//! What a run found, as plain data. Field names are the JSON that other tools read; every number carries its unit in its name.

use calibration::transforms::Transform;
use kernels::account::{Spent, Time};
use quantizer::Shares;
use quantizer::guard::held_out::HeldOutLoss;
use serde::{Deserialize, Serialize};

use crate::choices::ChoicesReport;
use crate::experts::ExpertCoverage;
use crate::job::{Budget, WindowRequest};
use crate::resources::Resources;
use crate::scales::LearnedScales;
use crate::verify::Verification;

/// The outcome of `quantize`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// The original.
    pub model: ModelSummary,
    /// Directory written.
    pub output: String,
    /// Id of the format written.
    pub format: String,
    /// Directories of outputs that hold the same solutions in other formats.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub solved_with: Vec<String>,
    /// Built-in name or path of the recipe.
    pub recipe: String,
    /// Changes of the weights that leave the function as it is, made before anything was rounded.
    pub transforms: Vec<Transform>,
    /// Calibration text that was used; none for a recipe that needs no data.
    pub calibration: Option<TextSummary>,
    /// Text that the model wrote beside it, as the recipe asks.
    pub own_text: Option<TextSummary>,
    /// What calibration multiplied in, `f32` or `bf16`, where there was any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub products: Option<&'static str>,
    /// The importance matrix that was used instead.
    pub imatrix: Option<ImatrixSummary>,
    /// Size of the output.
    pub size: Size,
    /// Widths that were chosen for a budget.
    pub allocation: Option<Allocation>,
    /// The adapter that was written beside.
    pub adapter: Option<AdapterSummary>,
    /// What came of letting scales learn from the original, where the recipe asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learned_scales: Option<LearnedScales>,
    /// One row for each quantized linear, in forward order.
    pub linears: Vec<LinearRow>,
    /// What each expert was solved on, in forward order; empty where there are none, or none is solved with data.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub experts: Vec<ExpertCoverage>,
    /// Linears that stay in 16 bit, with the reason.
    pub kept: Vec<Kept>,
    /// Tensors that no description of the architecture knows; copied unchanged.
    pub unknown_tensors: Vec<String>,
    /// What was not done as asked: lowered group sizes, fewer windows, stronger damping, fallbacks.
    pub notes: Vec<String>,
    /// What has a coarser grid or a worse solution than was asked for, which the notes say too; with `--strict` there is no output.
    pub downgrades: Vec<String>,
    /// Which runtimes load the output.
    pub runtimes: Vec<RuntimeRow>,
    /// What reopening the output found.
    pub verification: Verification,
    /// Perplexity and divergence; none when not asked for.
    pub evaluation: Option<EvaluationReport>,
    /// Cost of the whole run.
    pub resources: Resources,
    /// What quantizing cost each of several processes that did it together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<RankCost>,
    /// Cost of each phase, in order.
    pub phases: Vec<Phase>,
    /// What the time of all phases went into, less what is inside of it and has a row of its own.
    pub account: Vec<Phase>,
}

/// The outcome of `evaluate`.
#[derive(Clone, Debug, Serialize)]
pub struct EvaluateReport {
    /// Version of this program.
    pub version: &'static str,
    /// The model that was measured.
    pub model: ModelSummary,
    /// Perplexity and divergence.
    pub evaluation: EvaluationReport,
    /// Multiple-choice questions, where some were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choices: Option<ChoicesReport>,
    /// What was not done as asked.
    pub notes: Vec<String>,
    /// Cost of the whole run.
    pub resources: Resources,
}

/// A checkpoint in a few words.
#[derive(Clone, Debug, Serialize)]
pub struct ModelSummary {
    /// Its directory.
    pub path: String,
    /// Architecture, as its description names it.
    pub architecture: String,
    /// Decoder layers.
    pub layers: usize,
    /// Weights of all tensors, each counted once.
    pub parameters: u64,
    /// Type that a runtime multiplies in.
    pub dtype: String,
    /// Format of a quantized checkpoint.
    pub format: Option<String>,
}

/// An importance matrix that was used instead of calibration text.
#[derive(Clone, Debug, Serialize)]
pub struct ImatrixSummary {
    /// The file.
    pub path: String,
    /// What it was gathered on, as it says.
    pub datasets: Vec<String>,
    /// Windows, as it says.
    pub chunks: u32,
}

/// An adapter that was written beside the output.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct AdapterSummary {
    /// Rank of each correction.
    pub rank: usize,
    /// Linears that have one.
    pub linears: usize,
    /// All its tensors.
    pub bytes: u64,
}

/// Widths that were chosen for a budget.
#[derive(Clone, Debug, Serialize)]
pub struct Allocation {
    /// What was asked for.
    pub target: Budget,
    /// Bits of all tensors divided by the weights of the original, embedding and head included.
    pub bits_per_weight: f64,
    /// Sum over the stages, nats a token.
    pub predicted_kl: f64,
    /// One row for each stage whose width was chosen, in forward order.
    pub stages: Vec<StageWidth>,
}

/// A stage whose width was chosen.
#[derive(Clone, Debug, Serialize)]
pub struct StageWidth {
    /// Its decoder layer.
    pub layer: usize,
    /// Module paths of its linears.
    pub linears: Vec<String>,
    /// Bits of a code.
    pub bits: u8,
    /// What the stage's own errors do to the model, to second order: KL divergence to the original, nats a token.
    pub predicted_kl: f64,
    /// What there was to choose from.
    pub choices: Vec<WidthChoice>,
}

/// A width that a stage could have.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct WidthChoice {
    /// Bits of a code.
    pub bits: u8,
    /// Bytes of the stage's tensors.
    pub bytes: u64,
    /// As [`StageWidth::predicted_kl`].
    pub predicted_kl: f64,
}

/// Text that was read, as windows.
#[derive(Clone, Debug, Serialize)]
pub struct TextSummary {
    /// File, or which built-in text.
    pub text: String,
    /// Windows used.
    pub windows: usize,
    /// Tokens of the longest.
    pub context: usize,
    /// Tokens of all.
    pub tokens: usize,
    /// What was asked for.
    pub requested: WindowRequest,
    /// SHA-256 of the token windows.
    pub fingerprint: String,
}

impl TextSummary {
    /// Both texts as one.
    pub(crate) fn with(&self, other: Option<&Self>) -> Self {
        let Some(other) = other else { return self.clone() };
        Self {
            text: format!("{}, {}", self.text, other.text),
            windows: self.windows + other.windows,
            context: self.context.max(other.context),
            tokens: self.tokens + other.tokens,
            requested: self.requested,
            fingerprint: format!("{}, {}", self.fingerprint, other.fingerprint),
        }
    }
}

/// Size of an output.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Size {
    /// All files of weights.
    pub bytes: u64,
    /// All files of weights of the original.
    pub original_bytes: u64,
    /// Bits of all tensors divided by the weights of the original, embedding and head included.
    pub bits_per_weight: f64,
    /// The same over the quantized linears alone: codes, scales and zero points.
    pub linear_bits_per_weight: f64,
}

/// One quantized linear.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinearRow {
    /// Module path.
    pub name: String,
    /// `[out_features, in_features]`.
    pub shape: [usize; 2],
    /// Bits of a code.
    pub bits: u8,
    /// Columns that share a scale; none: the whole row or matrix.
    pub group_size: Option<usize>,
    /// `tensor`, `channel` or `group`.
    pub granularity: String,
    /// Whether zero points are fixed.
    pub symmetric: bool,
    /// Name of the solver.
    pub solver: String,
    /// tr((W-Q) H (W-Q)ᵀ) / tr(W H Wᵀ) on the calibration inputs.
    pub relative_loss: f64,
    /// The same before any refinement, that is of plain GPTQ.
    pub relative_loss_unrefined: f64,
    /// What its errors weigh in the model's metric, `tr(A D H Dᵀ)` with `A` and `H` damped, against the target that was solved for: to compare
    /// linears, not to add up. None where it was solved row by row.
    pub coupled_loss: Option<f64>,
    /// tr((W-Q) H (W-Q)ᵀ), H averaged over tokens.
    pub loss: f64,
    /// Errors on held-out windows, this solution's and those of rounding to nearest, both less the same constant.
    pub held_out: Option<HeldOutLoss>,
    /// The relative loss that is left with the adapter.
    pub adapted_relative_loss: Option<f64>,
    /// λ over the mean diagonal of H that the factorization needed.
    pub damping: f64,
    /// Shares of the earlier layers' error that the target makes up for: `alpha` of the input's, `beta` of the residual stream's, as held-out
    /// windows bear them out, and λ' over the mean diagonal of the regression behind them.
    pub made_up_for: Option<Shares>,
    /// How the factorization went: `cholesky`, `raised damping`, `diagonal`.
    pub rung: String,
    /// Input columns that were zero on all calibration tokens.
    pub dead_inputs: usize,
    /// What of it was not done as asked for: more damping, a fallback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downgrade: Option<String>,
}

/// A linear that was not quantized.
#[derive(Clone, Debug, Serialize)]
pub struct Kept {
    /// Module path.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Whether one runtime loads the output.
#[derive(Clone, Debug, Serialize)]
pub struct RuntimeRow {
    /// The runtime, with the version whose rules are checked.
    pub runtime: String,
    /// Whether it loads.
    pub loads: bool,
    /// Why not, or what to mind.
    pub remark: String,
}

/// What quantizing cost one of several processes, from its start until all layers were solved.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct RankCost {
    /// Its number.
    pub rank: usize,
    /// Seconds on the clock.
    pub wall_seconds: f64,
    /// Processor seconds.
    pub cpu_seconds: f64,
    /// Largest resident set, bytes.
    pub peak_rss_bytes: u64,
    /// Bytes to other ranks.
    pub sent_bytes: u64,
    /// Bytes from other ranks.
    pub received_bytes: u64,
}

/// Cost of one phase.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    /// What was done.
    pub name: &'static str,
    /// Seconds on the clock.
    pub wall_seconds: f64,
    /// Processor seconds.
    pub cpu_seconds: f64,
}

impl From<Spent> for Phase {
    fn from(spent: Spent) -> Self {
        let Time { wall, cpu } = spent.time;
        Self { name: spent.name, wall_seconds: wall, cpu_seconds: cpu }
    }
}

/// Perplexity and divergence on one text.
#[derive(Clone, Debug, Serialize)]
pub struct EvaluationReport {
    /// File, or which built-in text.
    pub text: String,
    /// Windows scored.
    pub windows: usize,
    /// Tokens in each; the first is not predicted.
    pub context: usize,
    /// Tokens of all windows.
    pub tokens: usize,
    /// What was asked for.
    pub requested: WindowRequest,
    /// SHA-256 of the token windows.
    pub fingerprint: String,
    /// The original, when one was given.
    pub original: Option<Perplexity>,
    /// The quantized model, when one was given.
    pub quantized: Option<QuantizedQuality>,
    /// The same with an adapter on top, when one was given.
    pub adapted: Option<QuantizedQuality>,
    /// Mean negative log-likelihood of each window, nats a token, of the measured model.
    pub window_nll: Vec<f64>,
}

/// How well a model predicts the text.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Perplexity {
    /// exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Standard error of it.
    pub perplexity_stderr: f64,
}

/// How well a quantized model predicts the text, and how far it is from the original.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct QuantizedQuality {
    /// exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Standard error of it.
    pub perplexity_stderr: f64,
    /// Mean KL divergence of the original to this model, nats a token.
    pub kl_mean: Option<f64>,
    /// Standard error of it.
    pub kl_stderr: Option<f64>,
    /// 99th percentile of the divergence over tokens, nats.
    pub kl_p99: Option<f64>,
    /// Standard error of it.
    pub kl_p99_stderr: Option<f64>,
    /// Share of tokens where both models rank the same token first.
    pub top1_agreement: Option<f64>,
}
