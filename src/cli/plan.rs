//! Arguments of `plan`: those of `quantize`, for one model or several, and what only a plan is asked.

use std::path::PathBuf;

use clap::Args;
use clap::builder::Resettable;

use super::quantize::QuantizeArgs;
use super::values::{argument, parse_size};
use crate::error::Error;
use crate::planning::{FitRequest, PlanJob};

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    quantize: QuantizeArgs,
    /// More models, as of one family
    #[arg(help_heading = Resettable::Reset)]
    more: Vec<PathBuf>,
    /// Predict loss on some text; with --fit, measure perplexity too
    #[arg(long, help_heading = Resettable::Reset)]
    calibrate: bool,
    /// Which model at which width runs in so much memory, such as 8GB
    ///
    /// What counts is weights, and keys and values of --fit-context tokens.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = Resettable::Reset)]
    fit: Option<u64>,
    /// Tokens whose keys and values are held, for --fit
    #[arg(
        long,
        value_name = "N",
        default_value_t = 4096,
        requires = "fit",
        hide_short_help = true,
        help_heading = Resettable::Reset
    )]
    fit_context: usize,
    /// Perplexities of the originals, in the order of the models, instead of measured ones
    #[arg(
        long,
        value_name = "P,P",
        value_delimiter = ',',
        requires = "fit",
        allow_hyphen_values = true,
        hide_short_help = true,
        help_heading = Resettable::Reset
    )]
    perplexities: Vec<f64>,
}

impl PlanArgs {
    /// What `quantize` would be told.
    #[must_use]
    pub fn quantize(&self) -> &QuantizeArgs {
        &self.quantize
    }

    /// The validated job.
    ///
    /// # Errors
    /// As of `quantize`; a flag that a plan has no use for; perplexities that are not one for each model.
    pub fn into_job(self) -> Result<PlanJob, Error> {
        let first = self.quantize.into_job()?;
        let idle = [
            ("--force", first.force),
            ("--fresh", first.fresh),
            ("--export-imatrix", first.export_imatrix.is_some()),
            ("--adapter-rank", first.adapter_rank.is_some()),
        ];
        if let Some((flag, _)) = idle.into_iter().find(|(_, given)| *given) {
            return Err(argument(flag, &"is of no use in a plan, which writes nothing"));
        }
        if let [one, others @ ..] = first.targets.as_slice()
            && !others.is_empty()
        {
            let alike = others.iter().all(|other| other.format == one.format);
            let flag = if alike { "--bits" } else { "--to" };
            return Err(argument(flag, &"expected one format at one width: a plan is for one output"));
        }
        let models = 1 + self.more.len();
        if models > 1 && self.fit.is_none() {
            return Err(argument(
                "--fit",
                &"several models are planned to choose one for a bound on memory; give it",
            ));
        }
        if !matches!(self.perplexities.len(), 0) && self.perplexities.len() != models {
            let problem = format!("expected {models}, one for each model, found {}", self.perplexities.len());
            return Err(argument("--perplexities", &problem));
        }
        if let Some(bad) = self.perplexities.iter().find(|value| !(value.is_finite() && **value >= 1.0)) {
            return Err(argument("--perplexities", &format!("expected numbers from 1 up, found {bad}")));
        }
        let others = self.more.into_iter().map(|model| crate::job::QuantizeJob { model, ..first.clone() });
        let jobs: Vec<_> = std::iter::once(first.clone()).chain(others).collect();
        let fit = self.fit.map(|bytes| FitRequest {
            bytes,
            context: self.fit_context,
            perplexities: self.perplexities,
        });
        Ok(PlanJob { jobs, calibrate: self.calibrate, fit })
    }
}
