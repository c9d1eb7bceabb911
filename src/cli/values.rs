//! Values of flags: sizes, groups, windows.

use std::ffi::OsStr;
use std::path::PathBuf;

use calibration::weights::Activations;
use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Command, ValueEnum};
use quantizer::scheme::{Granularity, GroupSize};

use crate::error::Error;
use crate::job::WindowRequest;

/// Type of activations that packed weights are multiplied with.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ActivationType {
    F32,
    Int8,
}

impl From<ActivationType> for Activations {
    fn from(kind: ActivationType) -> Self {
        match kind {
            ActivationType::F32 => Self::F32,
            ActivationType::Int8 => Self::Int8,
        }
    }
}

/// Takes what `parser` takes, and has completion scripts offer what is usual.
#[derive(Clone)]
pub(super) struct Usual<P> {
    parser: P,
    values: fn() -> Vec<PossibleValue>,
}

impl<P: TypedValueParser> TypedValueParser for Usual<P> {
    type Value = P::Value;

    fn parse_ref(
        &self,
        command: &Command,
        argument: Option<&Arg>,
        value: &OsStr,
    ) -> Result<Self::Value, clap::Error> {
        self.parser.parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new((self.values)().into_iter()))
    }
}

/// Widths of codes.
pub(super) fn usual_bits() -> Usual<impl TypedValueParser<Value = u8>> {
    Usual { parser: clap::value_parser!(u8), values: || named(&["2", "3", "4", "5", "6", "8"]) }
}

/// Columns that share a scale.
pub(super) fn usual_groups() -> Usual<StringValueParser> {
    let values = || named(&["16", "32", "64", "128", "channel", "tensor"]);
    Usual { parser: StringValueParser::new(), values }
}

/// The built-in recipes, beside files.
pub(super) fn usual_recipes() -> Usual<StringValueParser> {
    let values = || {
        let known = quantizer::settings::BUILT_IN.iter();
        known.map(|known| described(known.name, known.summary)).collect()
    };
    Usual { parser: StringValueParser::new(), values }
}

/// Formats that are written.
pub(super) fn usual_formats() -> Usual<StringValueParser> {
    let values = || {
        let known = formats::target::all();
        known.map(|known| described(known.id(), known.summary())).collect()
    };
    Usual { parser: StringValueParser::new(), values }
}

/// Runtimes of whose loaders the rules are known, without their versions.
pub(super) fn usual_runtimes() -> Usual<StringValueParser> {
    Usual { parser: StringValueParser::new(), values: runtimes }
}

fn runtimes() -> Vec<PossibleValue> {
    let rules = formats::target::all().flat_map(formats::target::TargetFormat::loaders);
    let names = rules.filter_map(|rule| rule.runtime.split_whitespace().next());
    let mut names: Vec<String> = names.map(str::to_lowercase).collect();
    names.sort();
    names.dedup();
    names.into_iter().map(PossibleValue::new).collect()
}

fn named(names: &[&'static str]) -> Vec<PossibleValue> {
    names.iter().copied().map(PossibleValue::new).collect()
}

fn described(name: &'static str, summary: &'static str) -> PossibleValue {
    PossibleValue::new(name).help(summary)
}

pub(super) fn window_request(
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

/// A model of the hub at a revision.
pub(super) fn at_revision(model: PathBuf, revision: Option<&str>) -> Result<PathBuf, Error> {
    let Some(revision) = revision else { return Ok(model) };
    if model.exists() {
        let problem = format!("is for models of the hub, and {} is on this machine", model.display());
        return Err(argument("--revision", &problem));
    }
    let mut name = model.into_os_string();
    name.push("@");
    name.push(revision);
    Ok(name.into())
}

pub(super) fn argument(flag: &'static str, problem: &dyn std::fmt::Display) -> Error {
    Error::Argument { flag, problem: problem.to_string() }
}

pub(super) fn parse_granularity(text: &str) -> Result<Granularity, Error> {
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
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
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
    fn what_is_not_usual_is_taken_too() {
        let command = Command::new("test").arg(Arg::new("recipe").value_parser(usual_recipes()));
        let found = command.clone().get_matches_from(["test", "mine.toml"]);
        assert_eq!(found.get_one::<String>("recipe").map(String::as_str), Some("mine.toml"));
        let offered: Vec<String> =
            usual_recipes().possible_values().unwrap().map(|value| value.get_name().to_owned()).collect();
        assert_eq!(offered, ["rtn", "gptq", "default", "max"]);
        let offered: Vec<String> = runtimes().iter().map(|value| value.get_name().to_owned()).collect();
        assert!(offered.contains(&"vllm".to_owned()) && offered.contains(&"llama.cpp".to_owned()));
    }

    #[test]
    fn group_sizes_are_numbers_or_words() {
        assert_eq!(parse_granularity("channel").unwrap(), Granularity::PerChannel);
        assert_eq!(parse_granularity("-1").unwrap(), Granularity::PerChannel);
        assert_eq!(parse_granularity("tensor").unwrap(), Granularity::PerTensor);
        assert!(parse_granularity("12").is_err() && parse_granularity("many").is_err());
    }
}
