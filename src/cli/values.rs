//! Values of flags: sizes, groups, windows.

use std::path::PathBuf;

use calibration::weights::Activations;
use clap::ValueEnum;
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
    fn group_sizes_are_numbers_or_words() {
        assert_eq!(parse_granularity("channel").unwrap(), Granularity::PerChannel);
        assert_eq!(parse_granularity("-1").unwrap(), Granularity::PerChannel);
        assert_eq!(parse_granularity("tensor").unwrap(), Granularity::PerTensor);
        assert!(parse_granularity("12").is_err() && parse_granularity("many").is_err());
    }
}
