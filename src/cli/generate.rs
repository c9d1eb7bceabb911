//! Arguments of `generate`.

use std::path::PathBuf;

use calibration::sampling::Sampling;
use clap::Args;

use super::values::{ActivationType, argument};
use crate::error::Error;
use crate::generate::GenerateJob;

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// An original checkpoint or an output of `quantize`, or its name on the hub, as org/name
    directory: PathBuf,
    /// What to answer, or to go on with [default: standard input; one prompt a line when it is a terminal]
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Tokens of an answer, at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256)]
    tokens: usize,
    /// Tokens of the whole conversation, at most the model's context
    #[arg(long, value_name = "N", default_value_t = 4096)]
    context: usize,
    /// Divides the logits before a token is drawn; 0 takes the likeliest
    #[arg(long, value_name = "T", default_value_t = 0.7, allow_hyphen_values = true)]
    temperature: f32,
    /// Draw from the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_hyphen_values = true)]
    top_p: f32,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Go on with the prompt as it is, even if the model has a chat template
    #[arg(long)]
    raw: bool,
    /// What packed weights are multiplied with: int8 rounds activations to eight bits, 32 to a scale, which is faster
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = ActivationType::Int8)]
    activations: ActivationType,
    /// What the model is told before the first question
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Threads to use [default: all processors]; results do not depend on it
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

impl GenerateArgs {
    /// The validated job.
    ///
    /// # Errors
    /// A temperature or share that no number of tokens could be drawn with.
    pub fn job(&self) -> Result<GenerateJob, Error> {
        let (temperature, top_p) = (self.temperature, self.top_p);
        if !(temperature.is_finite() && temperature >= 0.0) {
            let problem = format!("expected a number from 0 up, found {temperature}");
            return Err(argument("--temperature", &problem));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(argument("--top-p", &format!("expected a share above 0, at most 1, found {top_p}")));
        }
        if self.context < 2 {
            return Err(argument(
                "--context",
                &format!("expected at least 2 tokens, found {}", self.context),
            ));
        }
        Ok(GenerateJob {
            model: self.directory.clone(),
            tokens: self.tokens,
            context: self.context,
            sampling: Sampling { temperature, top_p },
            seed: self.seed,
            raw: self.raw,
            activations: self.activations.into(),
            system: self.system.clone(),
        })
    }
}
