//! The command line: flags become jobs here and nowhere else.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use regex::Regex;

use calibration::sampling::Sampling;

use crate::convert::ConvertJob;
use crate::error::Error;
use crate::generate::GenerateJob;
use crate::job::{Budget, Calibration, EvaluateJob, Overrides, QuantizeJob, Target, Text, WindowRequest};
use crate::recipe::Recipe;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, Symmetry};

/// Quantize a Hugging Face checkpoint to 2 to 8 bits, prove what was written, and measure what it cost.
#[derive(Debug, Parser)]
#[command(name = "quantc", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a packed checkpoint, verify it, and measure perplexity and KL divergence before and after
    #[command(
        after_help = "Example:\n  quantc quantize demo/model -o demo/model-4bit\n  quantc quantize MODEL -o OUT --bits 3 --group-size 64 --to compressed-tensors --calibration text.txt"
    )]
    Quantize(Box<QuantizeArgs>),
    /// Write a quantized checkpoint in another format: the same values or, with --lossy, the nearest
    #[command(
        after_help = "Example:\n  quantc convert demo/model-4bit --to compressed-tensors -o demo/model-ct"
    )]
    Convert(ConvertArgs),
    /// Measure a model's perplexity and, against a reference, its KL divergence and top-1 agreement
    #[command(
        after_help = "Example:\n  quantc evaluate demo/model-4bit --reference demo/model --evaluate-on demo/evaluation.txt"
    )]
    Evaluate(EvaluateArgs),
    /// Let a model write: the answer to a prompt, or a conversation when no prompt is given
    #[command(after_help = "Example:\n  quantc generate demo/model-4bit --prompt 'the old house'")]
    Generate(GenerateArgs),
    /// Reopen an output, decode every tensor, and compare it with what was solved (exit code 3 if it differs)
    #[command(after_help = "Example:\n  quantc verify demo/model-4bit")]
    Verify(DirectoryArgs),
    /// Say what a checkpoint is: architecture, format, schemes, sizes, and which runtimes load it
    #[command(after_help = "Example:\n  quantc inspect demo/model-4bit")]
    Inspect(DirectoryArgs),
    /// List what is known, one line each
    #[command(after_help = "Example:\n  quantc list formats")]
    List {
        /// Which list
        what: Listed,
    },
}

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Listed {
    /// Model families that are read
    Architectures,
    /// Formats that are written
    Formats,
    /// Rounding algorithms
    Solvers,
    /// Changes of the weights that a recipe may ask for before they are rounded
    Transforms,
}

/// Arguments of `quantize`.
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// Directory of the Hugging Face checkpoint
    model: PathBuf,
    /// Directory to write; it must not exist unless --force is given
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Bits of a code, 2 to 8, or 3,4 for both [default: 4 or recipe's]
    #[arg(long, value_delimiter = ',')]
    bits: Vec<u8>,
    /// Choose widths for at most N bits a weight, everything counted
    #[arg(long, value_name = "N", conflicts_with_all = ["bits", "target_size"], allow_hyphen_values = true)]
    target_bits: Option<f64>,
    /// Choose widths for at most so large files of weights, such as 2GB
    #[arg(long, value_name = "SIZE", conflicts_with = "bits", value_parser = parse_size)]
    target_size: Option<u64>,
    /// Input columns that share a scale, 16 to 1024, or `channel`, or `tensor` [default: 128, or the recipe's]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    group_size: Option<String>,
    /// Zero points fixed at the middle of the grid (the default)
    #[arg(long, conflicts_with = "asymmetric")]
    symmetric: bool,
    /// A zero point for every scale
    #[arg(long)]
    asymmetric: bool,
    /// `rtn`, `gptq`, `default`, `max`, or a recipe file (TOML)
    #[arg(long, default_value = "default")]
    recipe: String,
    /// Format, or several: gptq,mlx (`quantc list formats`)
    #[arg(long, value_name = "FORMAT", default_value = "gptq", value_delimiter = ',')]
    to: Vec<String>,
    /// Calibration text: UTF-8, or JSON lines with `text`, `messages` or `input_ids` [default: built in];
    /// `self`: the model writes it (a file of that name is `./self`)
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Solve by llama.cpp's importance matrix instead of calibration text
    #[arg(long, value_name = "FILE", conflicts_with_all = ["calibration", "samples", "context", "target_bits", "target_size", "export_imatrix"])]
    imatrix: Option<PathBuf>,
    /// Write the original's importance matrix to this file (GGUF)
    #[arg(long, value_name = "FILE")]
    export_imatrix: Option<PathBuf>,
    /// Windows of calibration text
    #[arg(long, value_name = "N", default_value_t = 128)]
    samples: usize,
    /// Tokens of a calibration window, at most the model's context
    #[arg(long, value_name = "N", default_value_t = 2048)]
    context: usize,
    #[command(flatten)]
    evaluation: EvaluationArgs,
    /// Write OUT/adapter too: the best correction of this rank, for PEFT
    #[arg(long, value_name = "RANK")]
    adapter_rank: Option<usize>,
    /// Leave linears whose name matches in 16 bit; may be given several times
    #[arg(long, value_name = "REGEX")]
    exclude: Vec<String>,
    /// Refuse what one of these would not load, as vllm,transformers
    #[arg(long, value_name = "RUNTIME", value_delimiter = ',')]
    runs_on: Vec<String>,
    /// Refuse what a runtime would not load cut over N devices
    #[arg(long, value_name = "N", default_value_t = 1)]
    tensor_parallel: usize,
    /// Largest file of weights, such as 5GB or 500MB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = parse_size, hide_short_help = true)]
    max_shard_size: u64,
    /// Do not measure perplexity and KL divergence
    #[arg(long, conflicts_with_all = ["evaluate_on", "evaluate_samples", "evaluate_context"])]
    no_evaluate: bool,
    /// Give a head that is tied to the embedding a tensor of its own, which a rotated residual stream needs
    #[arg(long, hide_short_help = true)]
    untie: bool,
    /// Replace an existing output
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: RunArgs,
}

/// The text that a model is measured on.
#[derive(Debug, Args)]
struct EvaluationArgs {
    /// Evaluation text, in the same forms [default: built in]
    #[arg(long, value_name = "FILE")]
    evaluate_on: Option<PathBuf>,
    /// Windows of evaluation text [default: 128]
    #[arg(long, value_name = "N")]
    evaluate_samples: Option<usize>,
    /// Tokens of an evaluation window, at most the model's context [default: 2048]
    #[arg(long, value_name = "N")]
    evaluate_context: Option<usize>,
    /// Draw windows at random with this seed instead of from the start of the text; seeds `--calibration self` too
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// Arguments that every long run takes.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Threads to use [default: all processors]; results do not depend on it
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Write the report as JSON to this file
    #[arg(long, value_name = "FILE")]
    pub export_json: Option<PathBuf>,
}

/// Arguments of `convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A quantized checkpoint in any format that is read, or a GGUF file
    model: PathBuf,
    /// Format (`quantc list formats`)
    #[arg(long, value_name = "FORMAT")]
    to: String,
    /// Directory to write; it must not exist unless --force is given
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Round what the format cannot hold to the nearest that it can, instead of refusing
    #[arg(long)]
    lossy: bool,
    /// Largest file of weights, such as 5GB or 500MB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = parse_size)]
    max_shard_size: u64,
    /// Replace an existing output
    #[arg(long)]
    force: bool,
    /// What every long run takes.
    #[command(flatten)]
    pub common: RunArgs,
}

/// Arguments of `evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// An original checkpoint or an output of `quantize`
    model: PathBuf,
    /// The model to compare with, usually the original
    #[arg(long, value_name = "MODEL")]
    reference: Option<PathBuf>,
    /// Measure with this LoRA adapter on top as well, such as OUT/adapter
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    evaluation: EvaluationArgs,
    /// Write the model's logits (with the adapter, if one is given), f32 [windows, tokens, vocabulary], and the windows' lengths to this
    /// safetensors file
    #[arg(long, value_name = "FILE")]
    export_logits: Option<PathBuf>,
    #[command(flatten)]
    common: RunArgs,
}

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// An original checkpoint or an output of `quantize`
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
    /// What the model is told before the first question
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Threads to use [default: all processors]; results do not depend on it
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// Arguments of `verify` and `inspect`.
#[derive(Debug, Args)]
pub struct DirectoryArgs {
    /// The directory
    pub directory: PathBuf,
    /// What every long run takes.
    #[command(flatten)]
    pub common: RunArgs,
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
            model: self.model,
            output: self.output,
            targets: targets(&self.to, &widths)?,
            budget,
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
            evaluation: (!self.no_evaluate).then(|| self.evaluation.into_text()).transpose()?,
            exclude,
            runs_on: self.runs_on,
            tensor_parallel: self.tensor_parallel,
            max_shard_size: self.max_shard_size,
            untie: self.untie,
            force: self.force,
        })
    }
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
            model: self.model,
            reference: self.reference,
            adapter: self.adapter,
            text,
            windows,
            export_logits: self.export_logits,
        })
    }
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
            system: self.system.clone(),
        })
    }
}

impl EvaluationArgs {
    fn into_text(self) -> Result<(Text, WindowRequest), Error> {
        let windows = window_request(
            "--evaluate-samples",
            self.evaluate_samples.unwrap_or(128),
            "--evaluate-context",
            self.evaluate_context.unwrap_or(2048),
            self.seed,
        )?;
        Ok((self.evaluate_on.map_or(Text::BuiltInEvaluation, Text::File), windows))
    }
}

/// Each format at each width; a format that leaves no choice of width once.
fn targets(formats: &[String], widths: &[BitWidth]) -> Result<Vec<Target>, Error> {
    let several: Vec<Option<BitWidth>> = match widths {
        [] | [_] => vec![None],
        several => several.iter().copied().map(Some).collect(),
    };
    let target = |format: &String, bits| Target { format: format.clone(), bits };
    let fixed = |id: &String| formats::target::ALL.iter().any(|known| known.id() == id && known.fixes_grid());
    if several.len() > 1 && formats.iter().all(fixed) {
        return Err(argument("--bits", &"no format of --to leaves a choice of width"));
    }
    let at_widths = formats.iter().flat_map(|format| {
        let widths = if fixed(format) { &[None][..] } else { &several[..] };
        widths.iter().map(move |&bits| target(format, bits))
    });
    Ok(at_widths.collect())
}

fn window_request(
    samples_flag: &'static str,
    samples: usize,
    context_flag: &'static str,
    context: usize,
    seed: Option<u64>,
) -> Result<WindowRequest, Error> {
    if samples == 0 {
        return Err(argument(samples_flag, &"expected at least 1 window, found 0"));
    }
    if context < 2 {
        return Err(argument(context_flag, &format!("expected at least 2 tokens, found {context}")));
    }
    Ok(WindowRequest { samples, context, seed })
}

fn argument(flag: &'static str, problem: &dyn std::fmt::Display) -> Error {
    Error::Argument { flag, problem: problem.to_string() }
}

fn parse_granularity(text: &str) -> Result<Granularity, Error> {
    match text {
        "channel" | "-1" => Ok(Granularity::PerChannel),
        "tensor" => Ok(Granularity::PerTensor),
        number => number
            .parse::<usize>()
            .map_err(|_| {
                argument(
                    "--group-size",
                    &format!("expected a number, `channel` or `tensor`, found `{number}`"),
                )
            })
            .and_then(|columns| GroupSize::new(columns).map_err(|e| argument("--group-size", &e)))
            .map(Granularity::PerGroup),
    }
}

/// Bytes from `5GB`, `500MB`, `10KB` (powers of ten), `5GiB`, ... (powers of two), or a plain number.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1_u32,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        unit => return Err(format!("unknown unit `{unit}`, expected KB, MB, GB, KiB, MiB or GiB")),
    };
    let number: f64 =
        digits.trim().parse().map_err(|_| format!("expected a size such as 5GB, found `{text}`"))?;
    let bytes = number * f64::from(unit);
    if (1.0..=MOST_SIZE).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err(format!("`{text}` is not a usable size"))
    }
}

/// An exabyte: whole numbers up to here are exact enough.
const MOST_SIZE: f64 = 1e18;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(parse_size("5GB"), Ok(5_000_000_000));
        assert_eq!(parse_size("1MiB"), Ok(1 << 20));
        assert_eq!(parse_size("77"), Ok(77));
        assert_eq!(parse_size("1.5GB"), Ok(1_500_000_000));
        assert!(
            parse_size("0").is_err() && parse_size("5XB").is_err() && parse_size("99999999999GB").is_err()
        );
    }

    #[test]
    fn group_sizes_are_numbers_or_words() {
        assert_eq!(parse_granularity("channel").unwrap(), Granularity::PerChannel);
        assert_eq!(parse_granularity("-1").unwrap(), Granularity::PerChannel);
        assert_eq!(parse_granularity("tensor").unwrap(), Granularity::PerTensor);
        assert!(parse_granularity("12").is_err() && parse_granularity("many").is_err());
    }
}
