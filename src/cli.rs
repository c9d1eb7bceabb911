//! The command line: flags become jobs here and nowhere else. The arguments of each subcommand are in a file of their own.

mod compare;
mod convert;
mod evaluate;
mod generate;
mod plan;
mod quantize;
mod values;

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum, ValueHint};

use crate::error::Error;
use crate::progress::{LogFormat, Terminal, Verbosity};

pub use compare::CompareArgs;
pub use convert::ConvertArgs;
pub use evaluate::EvaluateArgs;
pub use generate::GenerateArgs;
pub use plan::PlanArgs;
pub use quantize::QuantizeArgs;

/// Quantize a Hugging Face checkpoint to 2 to 8 bits, prove what was written, and measure what it cost.
#[derive(Debug, Parser)]
#[command(
    name = "quantc",
    version,
    propagate_version = true,
    max_term_width = 100,
    disable_help_flag = true,
    after_help = "Example:\n  quantc quantize demo/model -o demo/model-4bit\n  quantc generate demo/model-4bit --prompt 'the old house'"
)]
pub struct Cli {
    /// Also know the architecture that this file describes (TOML, docs/architectures.md)
    #[arg(long, value_name = "FILE", global = true, hide_short_help = true, help_heading = EVERYWHERE, value_hint = ValueHint::FilePath)]
    pub architecture: Option<PathBuf>,
    /// Print help
    #[arg(short, long, global = true, action = ArgAction::HelpShort, display_order = 1000)]
    help: Option<bool>,
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
    #[arg(short, long, global = true, conflicts_with = "verbose", hide_short_help = true, help_heading = EVERYWHERE)]
    quiet: bool,
    /// Say every step, a line each
    #[arg(short, long, global = true, hide_short_help = true, help_heading = EVERYWHERE)]
    verbose: bool,
    /// Form of progress, warnings and errors
    #[arg(long, global = true, value_enum, default_value_t, hide_short_help = true, help_heading = EVERYWHERE)]
    log_format: LogFormat,
}

/// Heading of the flags that all commands have.
const EVERYWHERE: &str = "With every command";

/// The definition of the command line. `-h` and `--help` print what fits a screen; each screen ends by saying where all of it is.
#[must_use]
pub fn command() -> clap::Command {
    let whole = |name: &str| format!("In full: `quantc help{name}`");
    let add = |command: clap::Command, name: &str| {
        let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        command.after_help(format!("{examples}\n\n{}", whole(name))).after_long_help(examples)
    };
    let command = Cli::command().mut_subcommands(|subcommand| {
        let name = format!(" {}", subcommand.get_name());
        add(subcommand, &name)
    });
    add(command, "")
}

/// What is wrong with a command line that cannot be read, in the form of every other error.
#[must_use]
pub fn unreadable(error: &clap::Error) -> Error {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let hint = Some("`quantc help` lists them".to_owned());
        return Error::CommandLine { problem: "expected a command".to_owned(), hint };
    }
    let said = error.render().to_string();
    let problem = said.split("\n\n").next().unwrap_or_default();
    let problem: Vec<&str> = problem.trim_start_matches("error: ").lines().map(str::trim).collect();
    let tips: Vec<&str> = said.lines().filter_map(|line| line.trim().strip_prefix("tip: ")).collect();
    let hint = (!tips.is_empty()).then(|| tips.join("; "));
    Error::CommandLine { problem: problem.join(" "), hint }
}

/// Whether the words of a command line that cannot be read ask for errors as JSON.
#[must_use]
pub fn asks_for_json(words: &[String]) -> bool {
    let apart = words.windows(2).any(|pair| pair[0] == "--log-format" && pair[1] == "json");
    apart || words.iter().any(|word| word == "--log-format=json")
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
        mut_arg("seed", |flag| flag.long_help(
            "Draw windows at random instead of from the start of the text; seeds `--calibration self` too\n\nThe same seed draws the same windows."
        )),
        after_help = "Example:\n  quantc quantize demo/model -o demo/model-4bit\n  quantc quantize org/name -o OUT --to awq,gguf:q4_k_m --calibration text.txt"
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
    Verify(VerifyArgs),
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

impl Command {
    /// Threads that it is to use, where that is said.
    #[must_use]
    pub fn threads(&self) -> Option<usize> {
        match self {
            Self::Quantize(arguments) => arguments.run().threads,
            Self::Plan(arguments) => arguments.quantize().run().threads,
            Self::Convert(arguments) => arguments.common.threads,
            Self::Evaluate(arguments) => arguments.run().threads,
            Self::Compare(arguments) => arguments.run().threads,
            Self::Generate(arguments) => arguments.threads,
            Self::Verify(arguments) => arguments.common.threads,
            Self::Inspect(arguments) => arguments.common.threads,
            Self::Completions { .. } | Self::Man { .. } | Self::List { .. } => None,
        }
    }
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
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub export_json: Option<PathBuf>,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The directory
    pub directory: PathBuf,
    /// Memory for the linear in work, such as 1GB
    #[arg(long, value_name = "SIZE", value_parser = values::parse_size)]
    pub memory: Option<u64>,
    /// What every long run takes.
    #[command(flatten)]
    pub common: RunArgs,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct DirectoryArgs {
    /// The checkpoint's directory, or its name on the hub, as org/name
    pub directory: PathBuf,
    /// What every long run takes.
    #[command(flatten)]
    pub common: RunArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn what_is_wrong_with_a_command_line_is_one_line() {
        let said = |words: &[&str]| {
            let error = command().try_get_matches_from(words).unwrap_err();
            match unreadable(&error) {
                Error::CommandLine { problem, hint } => (problem, hint.unwrap_or_default()),
                other => panic!("{other}"),
            }
        };
        let (problem, hint) = said(&["quantc", "quantize", "--bit", "3"]);
        assert_eq!(problem, "unexpected argument '--bit' found");
        assert_eq!(hint, "a similar argument exists: '--bits'");
        let (problem, hint) = said(&["quantc", "quantize", "model"]);
        assert_eq!(problem, "the following required arguments were not provided: --output <OUT>");
        assert_eq!(hint, "");
        let (problem, hint) = said(&["quantc"]);
        assert!(problem.contains("a command") && hint.contains("quantc help"), "{problem} {hint}");
        let (problem, _) = said(&["quantc", "quantize", "m", "-o", "o", "--bits", "four"]);
        assert!(problem.contains("'four'") && problem.contains("'--bits <BITS>'"), "{problem}");
    }
}
