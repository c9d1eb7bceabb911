//! Arguments of `quantize`.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use quantizer::scheme::{BitWidth, Symmetry};
use regex::Regex;

use super::RunArgs;
use super::evaluate::EvaluationArgs;
use super::values::{
    argument, at_revision, parse_granularity, parse_size, usual_bits, usual_formats, usual_groups,
    usual_recipes, usual_runtimes, window_request,
};
use crate::error::Error;
use crate::job::{Budget, Calibration, Overrides, QuantizeJob, Target, Text, USUAL_CONTEXT};
use crate::recipe::Recipe;

/// Heading of the flags that say what is calibrated and measured on.
const TEXTS: &str = "Texts";
/// Heading of the flags that say how the work is done.
const WORK: &str = "Work";

/// Arguments of `quantize`.
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// Directory of the Hugging Face checkpoint, or its name on the hub, as org/name
    model: PathBuf,
    /// Branch, tag or commit on the hub [default: main]
    #[arg(long, value_name = "REVISION", hide_short_help = true)]
    revision: Option<String>,
    /// Directory to write; it must not exist unless --force is given
    #[arg(short, long, value_name = "OUT", value_hint = ValueHint::DirPath)]
    output: PathBuf,
    /// Bits of a code, 2 to 8, or 3,4 for both [default: 4 or recipe's]
    #[arg(long, value_delimiter = ',', value_parser = usual_bits(), hide_possible_values = true)]
    bits: Vec<u8>,
    /// Choose widths for at most N bits a weight, everything counted
    #[arg(long, value_name = "N", conflicts_with_all = ["bits", "target_size"], allow_hyphen_values = true)]
    target_bits: Option<f64>,
    /// Choose widths for at most so large files of weights, such as 2GB
    #[arg(long, value_name = "SIZE", conflicts_with = "bits", value_parser = parse_size)]
    target_size: Option<u64>,
    /// Columns to a scale: 16 to 1024, `channel`, `tensor` [default: 128]
    ///
    /// A recipe's own width of groups comes before the default. `channel` is one scale for each row, `tensor` one for all rows.
    #[arg(
        long,
        value_name = "N",
        allow_hyphen_values = true,
        value_parser = usual_groups(),
        hide_possible_values = true
    )]
    group_size: Option<String>,
    /// Zero points fixed at the middle of the grid (the default)
    #[arg(long, conflicts_with = "asymmetric", hide_short_help = true)]
    symmetric: bool,
    /// A zero point for every scale
    #[arg(long)]
    asymmetric: bool,
    /// `rtn`, `gptq`, `default`, `max`, or a file (TOML)
    ///
    /// Each of the four is closer to the original and slower than the one before. A file gives linears their own schemes (docs/usage.md).
    #[arg(long, default_value = "default", value_parser = usual_recipes(), hide_possible_values = true)]
    recipe: String,
    /// Format, or several: gptq,mlx (`quantc list formats`)
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "gptq",
        value_delimiter = ',',
        value_parser = usual_formats(),
        hide_possible_values = true
    )]
    to: Vec<String>,
    /// Bits of the embedding, 2 to 8, where the format takes it below 16; a tied head is the same matrix
    #[arg(
        long,
        value_name = "N",
        hide_short_help = true,
        value_parser = usual_bits(),
        hide_possible_values = true
    )]
    embedding_bits: Option<u8>,
    /// Bits of the head, 2 to 8, where the format takes it below 16
    #[arg(
        long,
        value_name = "N",
        hide_short_help = true,
        value_parser = usual_bits(),
        hide_possible_values = true
    )]
    head_bits: Option<u8>,
    /// Write OUT/adapter too: the best correction of this rank, for PEFT
    #[arg(long, value_name = "RANK")]
    adapter_rank: Option<usize>,
    /// Leave linears whose name matches in 16 bit; may be given again
    #[arg(long, value_name = "REGEX")]
    exclude: Vec<String>,
    /// Refuse what one of these would not load, as vllm,transformers
    #[arg(
        long,
        value_name = "RUNTIME",
        value_delimiter = ',',
        value_parser = usual_runtimes(),
        hide_possible_values = true
    )]
    runs_on: Vec<String>,
    /// Refuse what a runtime would not load cut over N devices
    #[arg(long, value_name = "N", default_value_t = 1, hide_short_help = true)]
    tensor_parallel: usize,
    /// Largest file of weights, such as 500MB; without it 5GB, and GGUF and ONNX in one
    #[arg(long, value_name = "SIZE", value_parser = parse_size, hide_short_help = true)]
    max_shard_size: Option<u64>,
    /// Give a head that is tied to the embedding a tensor of its own, which a rotated residual stream needs
    #[arg(long, hide_short_help = true)]
    untie: bool,
    /// End with an error, and write nothing, where a linear would be solved worse than asked for
    #[arg(long, hide_short_help = true)]
    strict: bool,
    /// Calibration text: a file, a data set, or `self` [default: built in]
    ///
    /// Files are UTF-8, or JSON lines or Parquet with `text`, `messages` or `input_ids`. Data sets are the hub's, as
    /// org/dataset:config:split. `self`: the model writes it (a file of that name is `./self`).
    #[arg(long, value_name = "FILE", help_heading = TEXTS)]
    calibration: Option<PathBuf>,
    /// Solve by llama.cpp's importance matrix instead of calibration text
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["calibration", "samples", "context", "target_bits", "target_size", "export_imatrix"],
        help_heading = TEXTS
    )]
    imatrix: Option<PathBuf>,
    /// Write the original's importance matrix to this file (GGUF)
    #[arg(long, value_name = "FILE", hide_short_help = true, help_heading = TEXTS)]
    export_imatrix: Option<PathBuf>,
    /// Windows of calibration text
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = TEXTS)]
    samples: usize,
    /// Tokens of each, at most the model's context
    #[arg(long, value_name = "N", default_value_t = USUAL_CONTEXT, help_heading = TEXTS)]
    context: usize,
    /// Draw more windows until each expert of a mixture sees N tokens
    #[arg(long, value_name = "N", conflicts_with = "imatrix", hide_short_help = true, help_heading = TEXTS)]
    min_expert_tokens: Option<usize>,
    /// Do not measure perplexity and KL divergence
    #[arg(
        long,
        conflicts_with_all = ["evaluate_on", "evaluate_samples", "evaluate_context"],
        help_heading = TEXTS
    )]
    no_evaluate: bool,
    #[command(flatten, next_help_heading = TEXTS)]
    evaluation: EvaluationArgs,
    /// Replace an existing output
    #[arg(long, help_heading = WORK)]
    force: bool,
    /// Bound on memory, such as 8GB; the same bytes come out
    ///
    /// It holds weights in work, Hessians and hidden states; states beyond it go to disk.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = WORK)]
    memory: Option<u64>,
    /// Begin anew, not from the journal of an earlier run
    #[arg(long, help_heading = WORK)]
    fresh: bool,
    #[command(flatten, next_help_heading = WORK)]
    common: RunArgs,
}

impl QuantizeArgs {
    /// What every long run takes.
    #[must_use]
    pub fn run(&self) -> &RunArgs {
        &self.common
    }

    /// The validated job.
    ///
    /// # Errors
    /// A width, group size, expression or recipe that cannot be.
    pub fn into_job(self) -> Result<QuantizeJob, Error> {
        let symmetry = match (self.symmetric, self.asymmetric) {
            (true, _) => Some(Symmetry::Symmetric),
            (_, true) => Some(Symmetry::Asymmetric),
            _ => None,
        };
        let widths = self.bits.iter().map(|&bits| BitWidth::new(bits)).collect::<Result<Vec<_>, _>>();
        let widths = widths.map_err(|e| argument("--bits", &e))?;
        let overrides = Overrides {
            bits: widths.first().copied().filter(|_| widths.len() == 1),
            granularity: self.group_size.as_deref().map(parse_granularity).transpose()?,
            symmetry,
        };
        let budget = match (self.target_bits, self.target_size) {
            (Some(bits), _) if !(bits.is_finite() && bits > 0.0) => {
                return Err(argument("--target-bits", &format!("expected a number above 0, found {bits}")));
            }
            (Some(bits), _) => Some(Budget::MeanBits(bits)),
            (None, bytes) => bytes.map(Budget::Bytes),
        };
        if self.tensor_parallel == 0 {
            return Err(argument("--tensor-parallel", &"expected at least 1 device, found 0"));
        }
        let exclude = self
            .exclude
            .iter()
            .map(|text| Regex::new(text).map_err(|e| argument("--exclude", &e)))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(QuantizeJob {
            recipe: Recipe::load(&self.recipe, &overrides)?,
            model: at_revision(self.model, self.revision.as_deref())?,
            output: self.output,
            targets: targets(&self.to, &widths)?,
            budget,
            embedding_bits: width("--embedding-bits", self.embedding_bits)?,
            head_bits: width("--head-bits", self.head_bits)?,
            adapter_rank: self.adapter_rank,
            imatrix: self.imatrix,
            export_imatrix: self.export_imatrix,
            calibration: match self.calibration {
                None => Calibration::Text(Text::BuiltInCalibration),
                Some(own) if own.as_os_str() == "self" => Calibration::Own,
                Some(path) => Calibration::Text(Text::File(path)),
            },
            calibration_windows: window_request(
                "--samples",
                self.samples,
                "--context",
                self.context,
                self.evaluation.seed,
            )?,
            min_expert_tokens: self.min_expert_tokens,
            evaluation: (!self.no_evaluate).then(|| self.evaluation.into_text()).transpose()?,
            exclude,
            runs_on: self.runs_on,
            tensor_parallel: self.tensor_parallel,
            max_shard_size: self.max_shard_size,
            untie: self.untie,
            force: self.force,
            fresh: self.fresh,
            command: std::env::args().collect(),
            strict: self.strict,
            memory: self.memory,
        })
    }
}

fn width(flag: &'static str, bits: Option<u8>) -> Result<Option<BitWidth>, Error> {
    bits.map(BitWidth::new).transpose().map_err(|e| argument(flag, &e))
}

/// Each format at each width; a format that leaves no choice of width once.
fn targets(formats: &[String], widths: &[BitWidth]) -> Result<Vec<Target>, Error> {
    let several: Vec<Option<BitWidth>> = match widths {
        [] | [_] => vec![None],
        several => several.iter().copied().map(Some).collect(),
    };
    let target = |format: &String, bits| Target { format: format.clone(), bits };
    let fixed =
        |id: &String| formats::target::find(id).is_some_and(formats::target::TargetFormat::fixes_grid);
    if several.len() > 1 && formats.iter().all(fixed) {
        return Err(argument("--bits", &"no format of --to leaves a choice of width"));
    }
    let at_widths = formats.iter().flat_map(|format| {
        let widths = if fixed(format) { &[None][..] } else { &several[..] };
        widths.iter().map(move |&bits| target(format, bits))
    });
    Ok(at_widths.collect())
}
