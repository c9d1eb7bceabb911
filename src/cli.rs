//! The command line: flags become jobs here and nowhere else. The arguments of each subcommand are in a file of their own.

mod compare;
mod convert;
mod evaluate;
mod generate;
mod plan;
mod quantize;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::progress::{LogFormat, Terminal, Verbosity};

pub use compare::CompareArgs;
pub use convert::ConvertArgs;
pub use evaluate::EvaluateArgs;
pub use generate::GenerateArgs;
pub use plan::PlanArgs;
pub use quantize::QuantizeArgs;

/// Quantize a Hugging Face checkpoint to 2 to 8 bits, prove what was written, and measure what it cost.
#[derive(Debug, Parser)]
#[command(name = "quantc", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    /// Also know the architecture that this file describes (TOML, docs/architectures.md)
    #[arg(long, value_name = "FILE", global = true, hide_short_help = true)]
    pub architecture: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What standard error says.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What standard error says of the work; standard output has the report in any case.
#[derive(Clone, Copy, Debug, Args)]
pub struct LogArgs {
    /// Say nothing on standard error but errors; the report is printed all the same
    #[arg(short, long, global = true, conflicts_with = "verbose", hide_short_help = true)]
    quiet: bool,
    /// Say every step, a line each
    #[arg(short, long, global = true, hide_short_help = true)]
    verbose: bool,
    /// Form of progress, warnings and errors
    #[arg(long, global = true, value_enum, default_value_t, hide_short_help = true)]
    log_format: LogFormat,
}

impl LogArgs {
    /// Standard error as asked for.
    #[must_use]
    pub fn terminal(self) -> Terminal {
        let verbosity = match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        };
        Terminal::new(verbosity, self.log_format)
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a packed checkpoint, verify it, and measure perplexity and KL divergence before and after
    #[command(
        mut_arg("evaluate_on", |flag| flag.help("Evaluation text, in the same forms [default: built in]")),
        mut_arg("seed", |flag| flag.help(
            "Draw windows at random with this seed instead of from the start of the text; seeds `--calibration self` too"
        )),
        after_help = "Example:\n  quantc quantize demo/model -o demo/model-4bit\n  quantc quantize MODEL -o OUT --bits 3 --group-size 64 --to compressed-tensors --calibration text.txt"
    )]
    Quantize(Box<QuantizeArgs>),
    /// Say what quantizing would give and take: grids, size, loss, time, memory; which model fits a bound on memory
    #[command(
        mut_arg("output", |output| {
            output.required(false).default_value(".").help("Where the output would go").hide_short_help(true)
        }),
        mut_arg("force", |force| force.hide(true)),
        mut_arg("fresh", |fresh| fresh.hide(true)),
        mut_arg("bits", |bits| bits.help("Bits of a code, 2 to 8 [default: 4 or recipe's]")),
        mut_arg("to", |to| to.help("Format (`quantc list formats`)")),
        mut_arg("evaluate_on", |flag| flag.hide_short_help(true)),
        mut_arg("evaluate_samples", |flag| flag.hide_short_help(true)),
        mut_arg("evaluate_context", |flag| flag.hide_short_help(true)),
        mut_arg("threads", |flag| flag.hide_short_help(true)),
        mut_arg("symmetric", |flag| flag.hide_short_help(true)),
        mut_arg("asymmetric", |flag| flag.hide_short_help(true)),
        mut_arg("imatrix", |flag| flag.hide_short_help(true)),
        mut_arg("seed", |flag| flag.hide_short_help(true)),
        mut_arg("tensor_parallel", |flag| flag.hide_short_help(true)),
        mut_arg("export_imatrix", |export| export.hide(true)),
        mut_arg("adapter_rank", |rank| rank.hide(true)),
        after_help = "Example:\n  quantc plan demo/model --bits 3\n  quantc plan SMALL LARGE --fit 8GB --calibrate"
    )]
    Plan(Box<PlanArgs>),
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
    /// Measure several models side by side: perplexity, divergence, size, speed, and where they differ most
    #[command(after_help = "Example:\n  quantc compare demo/model demo/model-4bit")]
    Compare(CompareArgs),
    /// Let a model write: the answer to a prompt, or a conversation when no prompt is given
    #[command(after_help = "Example:\n  quantc generate demo/model-4bit --prompt 'the old house'")]
    Generate(GenerateArgs),
    /// Reopen an output, decode every tensor, and compare it with what was solved (exit code 3 if it differs)
    #[command(after_help = "Example:\n  quantc verify demo/model-4bit")]
    Verify(DirectoryArgs),
    /// Say what a checkpoint is: architecture, format, schemes, sizes, and which runtimes load it
    #[command(after_help = "Example:\n  quantc inspect demo/model-4bit")]
    Inspect(DirectoryArgs),
    /// Print the completion script of a shell
    #[command(
        after_help = "Example:\n  mkdir -p ~/.local/share/bash-completion/completions\n  quantc completions bash > ~/.local/share/bash-completion/completions/quantc"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one for each command, into a directory
    #[command(after_help = "Example:\n  quantc man ~/.local/share/man/man1")]
    Man {
        /// Directory, made where there is none
        directory: PathBuf,
    },
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

/// Arguments that every long run takes.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Threads to use [default: all processors]; results do not depend on it
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Write the report as JSON to this file; `-`: to standard output
    #[arg(long, value_name = "FILE")]
    pub export_json: Option<PathBuf>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
