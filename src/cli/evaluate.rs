//! Arguments of `evaluate`, and of every command that measures on a text.

use std::path::PathBuf;

use clap::Args;

use super::RunArgs;
use super::values::{ActivationType, at_revision, parse_size, window_request};
use crate::error::Error;
use crate::job::{EvaluateJob, Text, USUAL_CONTEXT, WindowRequest};

/// Arguments of `evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// An original checkpoint or an output of `quantize`, or its name on the hub, as org/name
    model: PathBuf,
    /// Branch, tag or commit of the model on the hub [default: main]
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// The model to compare with, usually the original
    #[arg(long, value_name = "MODEL")]
    reference: Option<PathBuf>,
    /// Measure with this LoRA adapter on top as well, such as OUT/adapter
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    evaluation: EvaluationArgs,
    /// What the packed weights of MODEL are multiplied with: int8 rounds activations, as `generate` does
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = ActivationType::F32)]
    activations: ActivationType,
    /// Answer multiple-choice questions too (JSON lines)
    ///
    /// Each line has `question`, `choices` and `answer` (from 0, or a letter), as in demo/choices.jsonl.
    #[arg(long, value_name = "FILE")]
    choices: Option<PathBuf>,
    /// Bound on memory, such as 8GB; the figures are the same
    ///
    /// It holds weights in work and hidden states; windows for which there is no room are measured after others.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Write the model's logits to this safetensors file
    ///
    /// f32 [windows, tokens, vocabulary], with the adapter if one is given, and the windows' lengths.
    #[arg(long, value_name = "FILE")]
    export_logits: Option<PathBuf>,
    #[command(flatten)]
    common: RunArgs,
}

/// The text that a model is measured on.
#[derive(Debug, Args)]
pub(super) struct EvaluationArgs {
    /// Evaluation text: a file, or a data set of the hub [default: built in]
    ///
    /// Files are UTF-8, or JSON lines or Parquet with `text`, `messages` or `input_ids`. Data sets are the hub's, as
    /// org/dataset:config:split.
    #[arg(long, value_name = "FILE")]
    evaluate_on: Option<PathBuf>,
    /// Windows of evaluation text [default: 128]
    #[arg(long, value_name = "N")]
    evaluate_samples: Option<usize>,
    /// Tokens of each, at most the model's context [default: 2048]
    #[arg(long, value_name = "N")]
    evaluate_context: Option<usize>,
    /// Draw windows at random instead of from the start of the text
    ///
    /// The same seed draws the same windows.
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,
}

impl EvaluateArgs {
    /// What every long run takes.
    #[must_use]
    pub fn run(&self) -> &RunArgs {
        &self.common
    }

    /// The validated job.
    ///
    /// # Errors
    /// A window without tokens.
    pub fn into_job(self) -> Result<EvaluateJob, Error> {
        let (text, windows) = self.evaluation.into_text()?;
        Ok(EvaluateJob {
            model: at_revision(self.model, self.revision.as_deref())?,
            reference: self.reference,
            adapter: self.adapter,
            activations: self.activations.into(),
            text,
            windows,
            choices: self.choices,
            memory: self.memory,
            export_logits: self.export_logits,
        })
    }
}

impl EvaluationArgs {
    pub(super) fn into_text(self) -> Result<(Text, WindowRequest), Error> {
        let windows = window_request(
            "--evaluate-samples",
            self.evaluate_samples.unwrap_or(128),
            "--evaluate-context",
            self.evaluate_context.unwrap_or(USUAL_CONTEXT),
            self.seed,
        )?;
        Ok((self.evaluate_on.map_or(Text::BuiltInEvaluation, Text::File), windows))
    }
}
