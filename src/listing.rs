//! What is known, one line each.

use std::fmt::Write;

use crate::cli::Listed;

/// The lines of one list: a name and what it is.
#[must_use]
pub fn list(what: Listed) -> String {
    let items: Vec<(&str, &str)> = match what {
        Listed::Architectures => {
            model::registry::all().into_iter().map(|known| (known.model_type, known.summary)).collect()
        }
        Listed::Formats => formats::target::all().map(|known| (known.id(), known.summary())).collect(),
        Listed::Solvers => {
            quantizer::solver::ALL.iter().map(|known| (known.name(), known.summary())).collect()
        }
        Listed::Transforms => {
            calibration::transforms::ALL.iter().map(|&(_, name, summary)| (name, summary)).collect()
        }
    };
    let width = items.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    items.iter().fold(String::new(), |mut out, (name, summary)| {
        let _ = writeln!(out, "{name:<width$}  {summary}");
        out
    })
}
