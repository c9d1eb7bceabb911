//! Several outputs of one run side by side: a table at the end of the text, and a page in the directory that they are in.

use std::path::Path;

use crate::render::html::{document, escape};
use crate::render::text::{bytes, table};
use crate::report::Report;

/// What is told of each output.
const HEADER: [&str; 6] =
    ["output", "size", "bits a weight", "perplexity", "KL mean (nats)", "same top token"];

/// The last part of an output's path.
fn name(report: &Report) -> String {
    let name = Path::new(&report.output).file_name();
    name.map_or_else(|| report.output.clone(), |name| name.to_string_lossy().into_owned())
}

fn cells(report: &Report) -> [String; 6] {
    let quality = report.evaluation.as_ref().and_then(|found| found.quantized.as_ref());
    let with_error = |value: Option<(f64, f64)>, digits: usize| {
        value.map_or_else(String::new, |(value, error)| format!("{value:.digits$} ± {error:.digits$}"))
    };
    [
        name(report),
        bytes(report.size.bytes),
        format!("{:.2}", report.size.bits_per_weight),
        with_error(quality.map(|quality| (quality.perplexity, quality.perplexity_stderr)), 3),
        with_error(quality.and_then(|quality| quality.kl_mean.zip(quality.kl_stderr)), 5),
        quality
            .and_then(|quality| quality.top1_agreement)
            .map_or_else(String::new, |share| format!("{:.2} %", share * 100.0)),
    ]
}

/// The original's perplexity, where it was measured.
fn original(reports: &[Report]) -> Option<String> {
    let measured = reports.iter().find_map(|report| report.evaluation.as_ref()?.original.as_ref())?;
    Some(format!("the original's perplexity is {:.3}", measured.perplexity))
}

/// A table of them, empty where there is only one.
#[must_use]
pub fn text(reports: &[Report]) -> String {
    if reports.len() < 2 {
        return String::new();
    }
    let mut rows = table(&HEADER);
    for report in reports {
        rows.add_row(cells(report));
    }
    let original = original(reports).map_or_else(String::new, |original| format!("{original}\n"));
    format!("{rows}\n{original}")
}

/// A page that leads to those of the outputs, whose directories are beside it.
#[must_use]
pub fn page(reports: &[Report]) -> String {
    let model = reports.first().map_or("", |report| report.model.path.as_str());
    let model = model.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let mut rows = String::new();
    for report in reports {
        let [name, rest @ ..] = cells(report);
        let loads = report.runtimes.iter().filter(|row| row.loads).map(|row| row.runtime.as_str());
        let loads = loads.collect::<Vec<_>>().join(", ");
        rows.push_str(&format!("<tr><td><a href=\"{0}/report.html\">{0}</a></td>", escape(&name)));
        rest.iter().for_each(|cell| rows.push_str(&format!("<td>{}</td>", escape(cell))));
        rows.push_str(&format!("<td>{}</td></tr>\n", escape(&loads)));
    }
    let header: String = HEADER.iter().chain(&["loads in"]).map(|cell| format!("<th>{cell}</th>")).collect();
    let original =
        original(reports).map_or_else(String::new, |text| format!("<p class=\"note\">{text}</p>\n"));
    let table = format!(
        "<section>\n<h2>Outputs of one run</h2>\n<div class=\"wide\"><table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n{original}</section>\n"
    );
    document(model, &format!("{} outputs", reports.len()), &table)
}
