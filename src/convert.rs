//! `convert`: a quantized checkpoint in another format, with the same values or, when asked for, the nearest.
//!
//! ```text
//! open -> closest form of its grids that the format holds -> every tensor the same? -> write, verify, put in place
//! ```

mod beside;
mod forms;
mod nearest;
mod plan;

use std::collections::BTreeMap;
use std::path::PathBuf;

use formats::output::OutputDirectory;
use formats::side_files;
use serde::Serialize;

use crate::card::{Card, Origin};
use crate::error::Error;
use crate::outputs::OpenOutput;
use crate::plan::find_format;
use crate::progress::{Progress, go_on};
use crate::quantize::demand_outside;
use crate::record::{LinearRecord, solution_digest};
use crate::report::{ModelSummary, RuntimeRow};
use crate::resources::{Resources, Stopwatch};
use crate::stored::StoredModel;
use crate::verify::Verification;

use beside::Beside;
pub use nearest::Difference;
use plan::Conversion;

/// One checkpoint to convert.
#[derive(Clone, Debug)]
pub struct ConvertJob {
    /// A quantized checkpoint: a directory, or a GGUF file.
    pub model: PathBuf,
    /// Directory to write.
    pub output: PathBuf,
    /// Id of the format.
    pub format: String,
    /// Whether values that the format cannot hold are rounded to what it can.
    pub lossy: bool,
    /// Largest file of weights, bytes.
    pub max_shard_size: Option<u64>,
    /// Whether an existing output is replaced.
    pub force: bool,
}

/// The outcome of `convert`.
#[derive(Clone, Debug, Serialize)]
pub struct ConvertReport {
    /// Version of this program.
    pub version: &'static str,
    /// The checkpoint that was converted.
    pub model: ModelSummary,
    /// Directory written.
    pub output: String,
    /// Id of the format written.
    pub format: String,
    /// All files of weights.
    pub bytes: u64,
    /// All files of weights of the checkpoint that was converted.
    pub original_bytes: u64,
    /// Linears that have the same values in both.
    pub exact: usize,
    /// Linears and other tensors that were rounded.
    pub rounded: Vec<Difference>,
    /// What is not as in the source.
    pub notes: Vec<String>,
    /// Which runtimes load the output.
    pub runtimes: Vec<RuntimeRow>,
    /// What reopening the output found.
    pub verification: Verification,
    /// Cost of the whole run.
    pub resources: Resources,
}

/// Converts a checkpoint: everything the command does, without a terminal.
///
/// # Errors
/// A checkpoint that is not quantized; a format that cannot hold it or, unless the job is lossy, not exactly; whatever keeps the output
/// from being written. Nothing half-written stays.
pub fn convert(job: &ConvertJob, progress: &dyn Progress) -> Result<ConvertReport, Error> {
    let watch = Stopwatch::start();
    OutputDirectory::check(&job.output, job.force)?;
    demand_outside(&job.output, std::iter::once(&job.model))?;
    let format = find_format(&job.format)?;
    let source = StoredModel::find(&job.model, progress)?;
    let stamp = source.checkpoint.stamp()?;
    if source.model.linears().all(|linear| source.scheme(linear).is_none()) {
        return Err(Error::NotSuitable {
            path: job.model.clone(),
            problem: "no linear of the checkpoint is quantized, so there is nothing to convert".to_owned(),
            hint: "`quantc quantize` writes every format from an original",
        });
    }
    let beside = Beside::of(&job.model, &source.path)?;
    side_files::check(beside.path())?;
    let conversion = Conversion::make(&source, format, beside, progress)?;
    let contents = conversion.contents(job.max_shard_size);
    let mut notes = conversion.notes.clone();
    notes.extend(format.check(&contents).map_err(conversion.beside.missing())?);
    if !job.lossy {
        conversion.demand_exact(progress)?;
    }

    let copied = conversion.copied();
    let mut output = OpenOutput::create(&source, None, format, &contents, &copied, job.force, &job.output)?;
    let mut rounded = Vec::new();
    let mut records = BTreeMap::new();
    progress.phase("converting", contents.linears.len());
    for planned in contents.linears {
        if let Some(scheme) = planned.scheme {
            let linear = &planned.linear;
            let (tensor, difference) = nearest::on_grid(&linear.name, &source.decode(linear)?, scheme)?;
            rounded.extend(difference);
            output.sinks().0.put(linear, &tensor)?;
            let record = LinearRecord { scheme: tensor.scheme(), digest: solution_digest(&tensor) };
            records.insert(linear.name.clone(), record);
        }
        progress.step(&planned.linear.name);
        go_on(progress)?;
    }
    let unpacked = conversion.unpacked();
    for linear in &unpacked {
        let (bytes, difference) = conversion.unpack(linear)?;
        rounded.extend(difference);
        output.carry(linear.weight_name(), bytes)?;
        go_on(progress)?;
    }
    progress.finish();
    let converted = records.len() + unpacked.len();
    let exact = converted - rounded.len();
    rounded.extend(conversion.rounded_copies()?);
    stamp.demand_unchanged()?;
    let from = source.format.as_ref().map_or("another format", |format| format.id());
    let origin = Origin::Converted { from, rounded: rounded.len() };
    let runtimes = &conversion.form.runtimes;
    let beside = conversion.beside.path();
    let card = Card::new(&source, beside, format.id(), &origin, contents.linears, runtimes);
    let finished = output.close(records, None, None, card)?.verify(progress)?.commit()?;
    Ok(ConvertReport {
        version: env!("CARGO_PKG_VERSION"),
        model: source.summary()?,
        output: job.output.display().to_string(),
        format: format.id().to_owned(),
        bytes: finished.file_bytes()?,
        original_bytes: source.checkpoint.file_bytes()?,
        exact,
        rounded,
        notes,
        runtimes: conversion.form.runtimes.clone(),
        verification: finished.verification,
        resources: watch.read(),
    })
}
