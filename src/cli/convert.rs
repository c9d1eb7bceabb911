//! Arguments of `convert`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::RunArgs;
use super::values::{parse_size, usual_formats};
use crate::convert::ConvertJob;

/// Arguments of `convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A quantized checkpoint in any format that is read, or a GGUF file
    model: PathBuf,
    /// Format (`quantc list formats`)
    #[arg(long, value_name = "FORMAT", value_parser = usual_formats(), hide_possible_values = true)]
    to: String,
    /// Directory to write; it must not exist unless --force is given
    #[arg(short, long, value_name = "OUT", value_hint = ValueHint::DirPath)]
    output: PathBuf,
    /// Round what the format cannot hold to the nearest that it can, instead of refusing
    #[arg(long)]
    lossy: bool,
    /// Largest file of weights, such as 500MB; without it 5GB, and GGUF and ONNX in one
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_shard_size: Option<u64>,
    /// Replace an existing output
    #[arg(long)]
    force: bool,
    /// What every long run takes.
    #[command(flatten)]
    pub common: RunArgs,
}

impl ConvertArgs {
    /// The job.
    #[must_use]
    pub fn into_job(self) -> ConvertJob {
        ConvertJob {
            model: self.model,
            output: self.output,
            format: self.to,
            lossy: self.lossy,
            max_shard_size: self.max_shard_size,
            force: self.force,
        }
    }
}
