//! Several outputs of one run side by side: a table at the end of the text, and a page in the directory that they are in.

use std::path::Path;

use crate::render::html::scatter::{self, Point};
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
    format!("{}\n{original}", rows.trim_fmt())
}

/// A page that leads to those of the outputs, whose directories are beside it.
#[must_use]
pub fn page(reports: &[Report]) -> String {
    let model = reports.first().map_or("", |report| report.model.path.as_str());
    let model = model.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let labels = HEADER.iter().chain(&["loads in"]);
    let header: String = labels.clone().map(|label| format!("<th>{label}</th>")).collect();
    let mut rows = String::new();
    for report in reports {
        let [name, rest @ ..] = cells(report).map(|cell| escape(&cell));
        let loads = report.runtimes.iter().filter(|row| row.loads).map(|row| row.runtime.as_str());
        let loads = escape(&loads.collect::<Vec<_>>().join(", "));
        let link = format!("<a href=\"{name}/report.html\">{name}</a>");
        let values = std::iter::once(&link).chain(&rest).chain([&loads]);
        // A phone shows each cell on a line of its own, behind its label.
        let row = labels
            .clone()
            .zip(values)
            .map(|(label, value)| format!("<td data-label=\"{label}\">{value}</td>"));
        rows.push_str(&format!("<tr>{}</tr>\n", row.collect::<String>()));
    }
    let original =
        original(reports).map_or_else(String::new, |text| format!("<p class=\"note\">{text}</p>\n"));
    let content = format!(
        "<section class=\"verdict\">\n<p class=\"lead\">{}</p>\n</section>\n{}<section>\n<h2>Side by side</h2>\n<table class=\"stack\">\n<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n{original}</section>\n",
        sentence(reports),
        chart(reports)
    );
    document(model, &format!("{} outputs of one run", reports.len()), &content)
}

/// How far each is from the original, in nats a token, where it was measured.
fn divergences(reports: &[Report]) -> impl Iterator<Item = (&Report, f64)> {
    reports.iter().filter_map(|report| {
        let quality = report.evaluation.as_ref()?.quantized.as_ref()?;
        Some((report, quality.kl_mean?))
    })
}

/// Which are the ends of what was made.
fn sentence(reports: &[Report]) -> String {
    let named = |report: &Report| format!("<b>{}</b>", escape(&name(report)));
    let mut out = String::new();
    if let Some(smallest) = reports.iter().min_by_key(|report| report.size.bytes) {
        out.push_str(&format!("{} is the smallest, {}.", named(smallest), bytes(smallest.size.bytes)));
    }
    if let Some((closest, kl)) = divergences(reports).min_by(|a, b| a.1.total_cmp(&b.1)) {
        out.push_str(&format!(
            " {} is the closest to the original, {kl:.5} nats a token from it in {}.",
            named(closest),
            bytes(closest.size.bytes)
        ));
    }
    out
}

/// Divergence over size.
fn chart(reports: &[Report]) -> String {
    let points: Vec<Point> = divergences(reports)
        .map(|(report, kl)| Point { name: name(report), bytes: report.size.bytes, divergence: kl })
        .collect();
    if points.len() < 2 {
        return String::new();
    }
    format!(
        "<section>\n<h2>What the bytes buy</h2>\n<figure><div class=\"chart\">{}</div><figcaption>Mean KL divergence from the original, nats a token, over the size of all files of weights: lower is closer, further left is smaller.</figcaption></figure>\n</section>\n",
        scatter::draw(&points)
    )
}
