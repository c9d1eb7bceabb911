//! Arguments of `compare`.

use std::path::PathBuf;

use clap::Args;

use super::RunArgs;
use super::evaluate::EvaluationArgs;
use super::values::parse_size;
use crate::compare::CompareJob;
use crate::error::Error;

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Originals or outputs, in any format that is read; divergences are from the first
    #[arg(value_name = "MODELS", required = true, num_args = 1..)]
    models: Vec<PathBuf>,
    /// The model that divergences are from, instead of the first
    #[arg(long, value_name = "MODEL")]
    reference: Option<PathBuf>,
    #[command(flatten)]
    evaluation: EvaluationArgs,
    /// Bound on memory, such as 8GB; the figures are the same
    ///
    /// It holds weights in work and hidden states; windows for which there is no room are measured after others.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    #[command(flatten)]
    common: RunArgs,
}

impl CompareArgs {
    /// What every long run takes.
    #[must_use]
    pub fn run(&self) -> &RunArgs {
        &self.common
    }

    /// The validated job.
    ///
    /// # Errors
    /// A window without tokens.
    pub fn into_job(self) -> Result<CompareJob, Error> {
        let (text, windows) = self.evaluation.into_text()?;
        let Self { models, reference, memory, .. } = self;
        Ok(CompareJob { models, reference, text, windows, memory })
    }
}
