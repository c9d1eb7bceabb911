//! Arguments of `compare`.

use std::path::PathBuf;

use clap::Args;

use super::RunArgs;
use super::evaluate::EvaluationArgs;
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
        Ok(CompareJob { models: self.models, reference: self.reference, text, windows })
    }
}
