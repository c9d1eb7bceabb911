//! OUT/report.html: one file that needs nothing else, the verdict first.
//!
//! Everything that comes from outside passes `escape`; the page forbids itself every request. Its last line is the SHA-256 of what is
//! before, since the file states times and so has no digest in the record.

mod charts;
pub(super) mod scatter;

use std::fmt::Write;

use crate::record::bytes_digest;
use crate::render::text::{bytes, counted_windows};
use crate::report::{EvaluationReport, LinearRow, Phase, QuantizedQuality, Report};
use crate::showing::{Completion, Shown};

const STYLE: &str = include_str!("html/page.css");
const SCRIPT: &str = include_str!("html/page.js");

/// Linears that are named as the worst.
const WORST: usize = 5;
/// How the last line begins.
const SEAL: &str = "<!-- sha256 of what is before: ";

/// The page.
#[must_use]
pub fn page(report: &Report, shown: &Shown) -> String {
    let name = report.model.path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let sections = [
        verdict(report),
        runtimes(report),
        losses(report),
        distributions(shown),
        completions(&shown.completions),
        experts(report),
        solving(report),
        repeating(report, shown),
        linears(report),
    ];
    document(name, &format!("in {}", report.format), &sections.concat())
}

/// A page of its own about `name`, of which `what` is said, around its content.
pub(super) fn document(name: &str, what: &str, content: &str) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">\n<meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n<title>{name} {what}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header><div><p class=\"kind\">quantc report</p><h1>{name} <span>{what}</span></h1></div><button id=\"theme\" type=\"button\" aria-label=\"light or dark\">◐</button></header>\n<main>\n{content}</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        name = escape(name),
        what = escape(what),
    );
    let digest = bytes_digest(out.as_bytes());
    let _ = writeln!(out, "{SEAL}{digest} -->");
    out
}

/// Whether a page is as it was written.
#[must_use]
pub fn is_whole(page: &[u8]) -> bool {
    let Some(place) = page.windows(SEAL.len()).rposition(|found| found == SEAL.as_bytes()) else {
        return false;
    };
    let expected = format!("{SEAL}{} -->\n", bytes_digest(&page[..place]));
    page[place..] == *expected.as_bytes()
}

/// Text in HTML.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            // What is no character of a document, and what turns the direction of others.
            c if c.is_control()
                || ('\u{202a}'..='\u{202e}').contains(&c)
                || ('\u{2066}'..='\u{2069}').contains(&c) =>
            {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    out
}

/// A module path in HTML, which may be broken behind its dots.
fn path(name: &str) -> String {
    escape(name).replace('.', ".<wbr>")
}

fn section(title: &str, content: &str) -> String {
    if content.is_empty() {
        String::new()
    } else {
        format!("<section>\n<h2>{title}</h2>\n{content}</section>\n")
    }
}

fn tile(label: &str, value: &str, note: &str) -> String {
    format!(
        "<div class=\"tile\"><p class=\"label\">{label}</p><p class=\"value\">{value}</p><p class=\"note\">{note}</p></div>\n"
    )
}

/// Size and quality, before and after.
fn verdict(report: &Report) -> String {
    let size = &report.size;
    let share = size.bytes as f64 / size.original_bytes.max(1) as f64 * 100.0;
    let mut tiles = tile(
        "Size",
        &bytes(size.bytes),
        &format!(
            "{share:.0} % of {}; {:.2} bits a weight, everything counted, {:.2} in the quantized linears",
            bytes(size.original_bytes),
            size.bits_per_weight,
            size.linear_bits_per_weight
        ),
    );
    let measured = report.evaluation.as_ref();
    let quality = measured.and_then(|found| found.quantized.as_ref());
    if let Some((measured, quality)) = measured.zip(quality) {
        tiles.push_str(&perplexity_tile(measured, quality));
        if let Some((kl, stderr)) = quality.kl_mean.zip(quality.kl_stderr) {
            let p99 = quality.kl_p99.map_or_else(String::new, |kl| format!("; 99 % of tokens below {kl:.4}"));
            tiles.push_str(&tile(
                "KL divergence",
                &format!("{kl:.5}"),
                &format!("± {stderr:.5} nats a token{p99}"),
            ));
        }
        if let Some(same) = quality.top1_agreement {
            tiles.push_str(&tile(
                "Same next token",
                &format!("{:.1} %", same * 100.0),
                "both models rank it first",
            ));
        }
    }
    let found = &report.verification;
    tiles.push_str(&tile(
        "Verified",
        &format!("{} linears", found.linears),
        &format!("decoded again and equal to what was solved; {} files by SHA-256", found.files),
    ));
    let mut out = format!(
        "<section class=\"verdict\">\n<p class=\"lead\">{}</p>\n<div class=\"tiles\">\n{tiles}</div>\n",
        sentence(report)
    );
    match measured {
        Some(measured) => {
            let _ = writeln!(
                out,
                "<p class=\"note\">Measured on {}, {} of {} tokens, in f32, on the files as written; ± is the standard error.</p>",
                escape(&measured.text),
                counted_windows(measured.windows),
                measured.context
            );
        }
        None => out.push_str("<p class=\"note\">Perplexity and divergence were not measured.</p>\n"),
    }
    // What flatters or spoils the figures is not left to those who read to the end.
    let notes = report.notes.len();
    if notes > 0 {
        let (what, are) = if notes == 1 { ("note", "is") } else { ("notes", "are") };
        let _ = writeln!(out, "<p class=\"note\">{notes} {what} on this run {are} under {SOLVING}.</p>");
    }
    out.push_str("</section>\n");
    out
}

fn perplexity_tile(measured: &EvaluationReport, quality: &QuantizedQuality) -> String {
    let after = quality.perplexity;
    let note = format!("± {:.3}", quality.perplexity_stderr);
    match &measured.original {
        None => tile("Perplexity", &format!("{after:.3}"), &note),
        Some(original) => {
            let before = original.perplexity;
            let change = (after / before - 1.0) * 100.0;
            tile(
                "Perplexity",
                &format!("{after:.3}"),
                &format!("{change:+.2} %, the original has {before:.3}; {note}"),
            )
        }
    }
}

fn sentence(report: &Report) -> String {
    let size = &report.size;
    let times = size.original_bytes as f64 / size.bytes.max(1) as f64;
    let loads = report.runtimes.iter().filter(|row| row.loads).count();
    let quality = report.evaluation.as_ref().and_then(|found| found.quantized);
    let agreement = quality.and_then(|found| found.top1_agreement);
    let same = agreement.map_or_else(String::new, |same| {
        format!(" It would go on with the original’s own next token {:.1} % of the time.", same * 100.0)
    });
    let smaller = if times >= 1.0 {
        format!("{times:.1} times smaller than the original")
    } else {
        format!("{:.1} times as large as the original", 1.0 / times)
    };
    format!(
        "The quantized model is {smaller}; {loads} of {} runtimes whose rules were checked load it.{same}",
        report.runtimes.len()
    )
}

fn runtimes(report: &Report) -> String {
    let rows = report.runtimes.iter().map(|row| {
        let (class, mark) = if row.loads { ("yes", "✓") } else { ("no", "✗") };
        let remark = if row.remark.is_empty() {
            String::new()
        } else {
            format!("<span>{}</span>", escape(&row.remark))
        };
        format!("<li class=\"{class}\"><b>{mark}</b> {}{remark}</li>\n", escape(&row.runtime))
    });
    section("Where it runs", &format!("<ul class=\"runtimes\">\n{}</ul>\n", rows.collect::<String>()))
}

/// Loss by layer and role, and the widths where they differ.
fn losses(report: &Report) -> String {
    if report.linears.is_empty() {
        return String::new();
    }
    let cells = charts::Cells::of(&report.linears, |row| row.relative_loss);
    let mut out = "<p>Squared error of each linear’s output on the calibration text, relative to the output itself; one column a decoder layer.</p>\n".to_owned();
    // Of few layers the map leaves room beside it.
    let beside = if cells.is_wide() { "" } else { " class=\"charts\"" };
    let map = cells.heat_map("relative loss by layer and role", false);
    let _ = writeln!(out, "<div{beside}>\n<div>\n<div class=\"chart\">{map}</div>");
    out.push_str(&cells.legend());
    let widths: Vec<u8> = report.linears.iter().map(|row| row.bits).collect();
    if widths.iter().any(|&bits| bits != widths[0]) {
        let cells = charts::Cells::of(&report.linears, |row| f64::from(row.bits));
        let _ = writeln!(
            out,
            "<h3>Bits</h3>\n<div class=\"chart\">{}</div>",
            cells.heat_map("bits by layer and role", true)
        );
        out.push_str(&cells.legend());
    }
    let mut worst: Vec<&LinearRow> = report.linears.iter().collect();
    worst.sort_by(|a, b| b.relative_loss.total_cmp(&a.relative_loss));
    out.push_str("</div>\n<div>\n<h3>Worst</h3>\n<table><thead><tr><th>linear</th><th>bits</th><th>relative loss</th></tr></thead><tbody>\n");
    for row in worst.into_iter().take(WORST) {
        let _ = writeln!(
            out,
            "<tr><td><code>{}</code></td><td>{}</td><td>{:.2e}</td></tr>",
            path(&row.name),
            row.bits,
            row.relative_loss
        );
    }
    out.push_str("</tbody></table>\n</div>\n</div>\n");
    section("Loss by layer and role", &out)
}

fn distributions(shown: &Shown) -> String {
    let found = &shown.distributions;
    if found.linears == 0 {
        return String::new();
    }
    let content = format!(
        "<div class=\"charts\">\n<figure><div class=\"chart\">{}</div><figcaption>Share of the weights, by their size over the standard deviation of their linear<br><span class=\"key original\">original</span> <span class=\"key output\">quantized</span></figcaption></figure>\n<figure><div class=\"chart\">{}</div><figcaption>Share of the scales, by their magnitude, logarithmic</figcaption></figure>\n</div>\n<p class=\"note\">A sample of rows of {} linears.</p>\n",
        charts::weights(&found.original, &found.quantized),
        charts::scales(&found.scales),
        found.linears
    );
    section("Weights and scales", &content)
}

/// Both models' words side by side; what they have in common is set back.
fn completions(completions: &[Completion]) -> String {
    let shown = completions.iter().map(|found| {
        // A page has no use for the lines that a model begins with.
        let (original, quantized) = (found.original.trim_start(), found.quantized.trim_start());
        let common = original.chars().zip(quantized.chars()).take_while(|(a, b)| a == b);
        let common: usize = common.map(|(c, _)| c.len_utf8()).sum();
        let text = |text: &str| {
            format!("<span class=\"common\">{}</span><span class=\"own\">{}</span>", escape(&text[..common]), escape(&text[common..]))
        };
        let same = if original == quantized { " <span class=\"same\">the same</span>" } else { "" };
        format!(
            "<article><p class=\"prompt\">{}</p>\n<div class=\"pair\"><div><h4>original</h4><p>{}</p></div><div><h4>quantized{same}</h4><p>{}</p></div></div></article>\n",
            escape(&found.prompt),
            text(original),
            text(quantized)
        )
    });
    let shown: String = shown.collect();
    if shown.is_empty() {
        return String::new();
    }
    section(
        "What both write",
        &format!("<p>Greedy, at most 40 tokens; bold from where they part.</p>\n{shown}"),
    )
}

/// How many calibration tokens each expert saw; nothing for a model without.
fn experts(report: &Report) -> String {
    let mut layers: Vec<usize> = report.experts.iter().map(|expert| expert.layer).collect();
    layers.dedup();
    let Some(least) = report.experts.iter().min_by_key(|expert| expert.tokens) else { return String::new() };
    let values = report.experts.iter().filter_map(|expert| {
        let row = layers.iter().position(|layer| *layer == expert.layer)?;
        Some((row, expert.expert, expert.tokens as f64))
    });
    let cells =
        charts::Cells::new(layers.iter().map(|layer| format!("layer {layer}")).collect(), values.collect());
    let leaning = report.experts.iter().filter(|expert| expert.pooled_share > 0.0).count();
    let content = format!(
        "<p>Calibration tokens that were sent to each expert, one column an expert. {leaning} of {} saw so few that they lean on their layer’s; the fewest are the {} of expert {} in layer {}.</p>\n<div class=\"chart\">{}</div>\n{}",
        report.experts.len(),
        least.tokens,
        least.expert,
        least.layer,
        cells.heat_map("tokens by layer and expert", false),
        cells.legend()
    );
    section("Experts", &content)
}

/// How a factorization went that needed nothing more.
const SURE: &str = "cholesky";

const SOLVING: &str = "Damping, fallbacks and notes";

/// Damping, fallbacks, what stayed in 16 bit, and notes.
fn solving(report: &Report) -> String {
    let mut damping: Vec<f64> = report.linears.iter().map(|row| row.damping).collect();
    damping.sort_by(f64::total_cmp);
    let mut out = "<dl class=\"facts\">\n".to_owned();
    let mut fact = |name: &str, value: String| {
        let _ = writeln!(out, "<dt>{name}</dt><dd>{value}</dd>");
    };
    fact("recipe", escape(&report.recipe));
    for text in report.calibration.iter().chain(&report.own_text) {
        fact(
            "calibrated on",
            format!("{}, {} of {} tokens", escape(&text.text), counted_windows(text.windows), text.context),
        );
    }
    if let (Some(least), Some(most)) = (damping.first(), damping.last()) {
        let median = damping[damping.len() / 2];
        fact("damping", format!("{least:.3} to {most:.3} of the mean diagonal, median {median:.3}"));
    }
    let fallbacks: Vec<&LinearRow> = report.linears.iter().filter(|row| row.rung != SURE).collect();
    fact("fallbacks", if fallbacks.is_empty() { "none".to_owned() } else { fallbacks.len().to_string() });
    let dead: usize = report.linears.iter().map(|row| row.dead_inputs).sum();
    fact("inputs that were always zero", dead.to_string());
    out.push_str("</dl>\n");
    if !fallbacks.is_empty() {
        let rows = fallbacks
            .iter()
            .map(|row| format!("<li><code>{}</code>: {}</li>\n", path(&row.name), escape(&row.rung)));
        let _ = write!(
            out,
            "<details><summary>Fallbacks</summary><ul>\n{}</ul></details>\n",
            rows.collect::<String>()
        );
    }
    if !report.kept.is_empty() {
        let rows = report
            .kept
            .iter()
            .map(|kept| format!("<li><code>{}</code>: {}</li>\n", path(&kept.name), escape(&kept.reason)));
        let _ = write!(
            out,
            "<details><summary>{} linears in 16 bit</summary><ul>\n{}</ul></details>\n",
            report.kept.len(),
            rows.collect::<String>()
        );
    }
    if !report.notes.is_empty() {
        let rows = report.notes.iter().map(|note| format!("<li>{}</li>\n", escape(note)));
        let _ = write!(out, "<h3>Notes</h3>\n<ul class=\"notes\">\n{}</ul>\n", rows.collect::<String>());
    }
    section(SOLVING, &out)
}

/// Command, versions, hashes, times.
fn repeating(report: &Report, shown: &Shown) -> String {
    let mut out = String::new();
    if !shown.command.is_empty() {
        let words: Vec<String> = shown.command.iter().map(|word| quoted(word)).collect();
        let _ = writeln!(out, "<pre><code>{}</code></pre>", escape(&words.join(" ")));
    }
    out.push_str("<dl class=\"facts\">\n");
    let mut fact = |name: &str, value: String| {
        let _ = writeln!(out, "<dt>{name}</dt><dd>{value}</dd>");
    };
    fact("quantc", escape(report.version));
    for text in report.calibration.iter().chain(&report.own_text) {
        fact("calibration windows, SHA-256", format!("<code>{}</code>", escape(&text.fingerprint)));
    }
    if let Some(measured) = &report.evaluation {
        fact("evaluation windows, SHA-256", format!("<code>{}</code>", escape(&measured.fingerprint)));
    }
    let cost = &report.resources;
    fact(
        "cost",
        format!(
            "{:.1} s on the clock, {:.1} s of processors, {} at most in memory",
            cost.wall_seconds,
            cost.cpu_seconds,
            bytes(cost.peak_rss_bytes)
        ),
    );
    out.push_str("</dl>\n");
    for (title, files) in
        [("Files of the original", &shown.original_files), ("Files of the output", &shown.files)]
    {
        let rows = files.iter().map(|(name, file)| {
            format!(
                "<tr><td>{}</td><td>{}</td><td><code>{}</code></td></tr>\n",
                escape(name),
                bytes(file.bytes),
                escape(&file.sha256)
            )
        });
        let _ = write!(
            out,
            "<details><summary>{title}, with SHA-256</summary><table class=\"files\"><tbody>\n{}</tbody></table></details>\n",
            rows.collect::<String>()
        );
    }
    let row = |phase: &Phase| {
        format!(
            "<tr><td>{}</td><td>{:.1} s</td><td>{:.1} s</td></tr>\n",
            escape(phase.name),
            phase.wall_seconds,
            phase.cpu_seconds
        )
    };
    let table = |first: &str, phases: &[Phase]| {
        let rows: String = phases.iter().map(row).collect();
        format!(
            "<table><thead><tr><th>{first}</th><th>clock</th><th>processors</th></tr></thead><tbody>\n{rows}</tbody></table>"
        )
    };
    let _ = writeln!(
        out,
        "<details><summary>Times</summary>{}{}</details>",
        table("phase", &report.phases),
        table("what it went into", &report.account)
    );
    section("Do it again", &out)
}

fn linears(report: &Report) -> String {
    if report.linears.is_empty() {
        return String::new();
    }
    let rows = report.linears.iter().map(|row| {
        let group = row.group_size.map_or_else(|| row.granularity.to_owned(), |columns| columns.to_string());
        format!(
            "<tr><td><code>{}</code></td><td>{:.2e}</td><td>{}</td><td>{group}</td><td>{} × {}</td><td>{}</td><td>{:.3}</td><td>{}</td></tr>\n",
            path(&row.name),
            row.relative_loss,
            row.bits,
            row.shape[0],
            row.shape[1],
            escape(&row.solver),
            row.damping,
            escape(&row.rung)
        )
    });
    let table = format!(
        "<details><summary>All {} linears</summary><div class=\"wide\"><table><thead><tr><th>linear</th><th>relative loss</th><th>bits</th><th>group</th><th>shape</th><th>solver</th><th>damping</th><th>factorization</th></tr></thead><tbody>\n{}</tbody></table></div></details>\n",
        report.linears.len(),
        rows.collect::<String>()
    );
    section("Every linear", &table)
}

/// A word of a command as a shell takes it.
fn quoted(word: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(harmless) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_is_text() {
        assert_eq!(escape("<b a='1'>&\"\u{202e}\u{1}"), "&lt;b a=&#39;1&#39;&gt;&amp;&quot;\u{fffd}\u{fffd}");
        assert_eq!(quoted("it's a"), "'it'\\''s a'");
        assert_eq!(quoted("--to"), "--to");
    }

    #[test]
    fn a_page_knows_whether_it_was_changed() {
        let page = "<p>a</p>\n";
        let mut page = format!("{page}{SEAL}{} -->\n", bytes_digest(page.as_bytes())).into_bytes();
        assert!(is_whole(&page));
        page[3] ^= 1;
        assert!(!is_whole(&page) && !is_whole(b"<p>"));
    }
}
