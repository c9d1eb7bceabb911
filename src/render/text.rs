//! Reports as text for a terminal: the verdict first, then what a user would ask next.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};

use crate::choices::ChoicesReport;
use crate::convert::{ConvertReport, Difference};
use crate::inspect::Inspection;
use crate::job::Budget;
use crate::render::overview;
use crate::report::{
    Allocation, EvaluateReport, EvaluationReport, LinearRow, RankCost, Report, RuntimeRow, StageWidth,
};
use crate::resources::Resources;
use crate::verify::Verification;

/// The outcome of `quantize`: a report for each output, and what all of them cost.
#[must_use]
pub fn reports(reports: &[Report]) -> String {
    let texts: Vec<String> = reports.iter().map(report).collect();
    let overview = overview::text(reports);
    let texts = texts.into_iter().chain((!overview.is_empty()).then_some(overview));
    texts.collect::<Vec<_>>().join("\n")
}

/// The report of one output.
#[must_use]
pub fn report(report: &Report) -> String {
    let mut out = String::new();
    let size = &report.size;
    line(
        &mut out,
        format_args!(
            "{}: {} in {}, {} -> {} ({:.2} bits a weight over all tensors, {:.2} in the {} quantized linears)",
            report.output,
            report.model.architecture,
            report.format,
            bytes(size.original_bytes),
            bytes(size.bytes),
            size.bits_per_weight,
            size.linear_bits_per_weight,
            report.linears.len(),
        ),
    );
    if !report.solved_with.is_empty() {
        line(&mut out, format_args!("the same solutions as in {}", report.solved_with.join(", ")));
    }
    if let Some(text) = &report.calibration {
        line(
            &mut out,
            format_args!(
                "recipe {}, calibrated on {} of {}, products in {}",
                report.recipe,
                windows(text.windows, text.context, text.tokens),
                text.text,
                report.products.unwrap_or("f32")
            ),
        );
        if let Some(own) = &report.own_text {
            let amount = windows(own.windows, own.context, own.tokens);
            line(&mut out, format_args!("and on {amount} of {}", own.text));
        }
    } else if let Some(imatrix) = &report.imatrix {
        line(
            &mut out,
            format_args!(
                "recipe {}, inputs weighed by {} ({} chunks of {})",
                report.recipe,
                imatrix.path,
                imatrix.chunks,
                imatrix.datasets.join(", ")
            ),
        );
    } else {
        line(&mut out, format_args!("recipe {}, which needs no calibration text", report.recipe));
    }
    if !report.transforms.is_empty() {
        let names =
            calibration::transforms::ALL.iter().filter(|(known, ..)| report.transforms.contains(known));
        let names: Vec<&str> = names.map(|&(_, name, _)| name).collect();
        line(&mut out, format_args!("transformed first, its function unchanged: {}", names.join(", ")));
    }
    if let Some(adapter) = &report.adapter {
        line(
            &mut out,
            format_args!(
                "adapter of rank {} for {} linears, {}: {}/adapter",
                adapter.rank,
                adapter.linears,
                bytes(adapter.bytes),
                report.output
            ),
        );
    }
    if let Some(learned) = &report.learned_scales {
        let stands = if learned.after < learned.before { "" } else { ", so that they stayed as solved" };
        line(
            &mut out,
            format_args!(
                "scales learned from {} windows: KL divergence on {} others {:.5}, before {:.5}{stands}",
                learned.windows, learned.held_out, learned.after, learned.before
            ),
        );
    }
    line(&mut out, format_args!("{}", verification(&report.verification)));
    if let Some(evaluation) = &report.evaluation {
        out.push('\n');
        out.push_str(&evaluation_table(evaluation));
    }
    if let Some(allocation) = &report.allocation {
        out.push('\n');
        out.push_str(&allocation_table(allocation));
    }
    out.push('\n');
    out.push_str(&linears_table(&report.linears));
    out.push('\n');
    line(&mut out, format_args!("{}", runtimes_table(&report.runtimes).trim_fmt()));
    if !report.kept.is_empty() {
        line(&mut out, format_args!("\nin 16 bit:"));
        for kept in &report.kept {
            line(&mut out, format_args!("  {} ({})", kept.name, kept.reason));
        }
    }
    if !report.unknown_tensors.is_empty() {
        line(&mut out, format_args!("\ncopied unchanged, not part of the architecture's description:"));
        for name in &report.unknown_tensors {
            line(&mut out, format_args!("  {name}"));
        }
    }
    notes(&mut out, &report.notes);
    line(&mut out, format_args!("\n{}", resources(&report.resources)));
    for cost in &report.ranks {
        line(&mut out, format_args!("{}", rank(cost)));
    }
    out
}

/// The outcome of `convert`.
#[must_use]
pub fn conversion(report: &ConvertReport) -> String {
    let mut out = String::new();
    let from = report.model.format.as_deref().unwrap_or("another format");
    line(
        &mut out,
        format_args!(
            "{}: {} in {}, from {from}, {} -> {}",
            report.output,
            report.model.architecture,
            report.format,
            bytes(report.original_bytes),
            bytes(report.bytes)
        ),
    );
    line(&mut out, format_args!("{} linears exact, {} tensors rounded", report.exact, report.rounded.len()));
    line(&mut out, format_args!("{}\n", verification(&report.verification)));
    line(&mut out, format_args!("{}", runtimes_table(&report.runtimes).trim_fmt()));
    if !report.rounded.is_empty() {
        line(&mut out, format_args!("\n{}", rounded_table(&report.rounded).trim_fmt()));
    }
    notes(&mut out, &report.notes);
    line(&mut out, format_args!("\n{}", resources(&report.resources)));
    out
}

/// Rounded tensors of one kind in one row, with the worst of them.
fn rounded_table(rounded: &[Difference]) -> Table {
    let kind = |found: &Difference| found.name.rsplit('.').next().unwrap_or_default().to_owned();
    let mut groups: Vec<(String, Vec<&Difference>)> = Vec::new();
    for found in rounded {
        match groups.iter_mut().find(|(known, _)| *known == kind(found)) {
            Some((_, group)) => group.push(found),
            None => groups.push((kind(found), vec![found])),
        }
    }
    let mut table = table(&["rounded", "count", "relative difference: worst", "largest", "in", "because"]);
    for (kind, group) in groups {
        let worst = group.iter().max_by(|a, b| a.relative_difference.total_cmp(&b.relative_difference));
        let Some(worst) = worst else { continue };
        table.add_row([
            kind,
            group.len().to_string(),
            format!("{:.2e}", worst.relative_difference),
            format!("{:.2e}", worst.largest_difference),
            worst.name.clone(),
            worst.reason.clone(),
        ]);
    }
    table
}

/// The outcome of `evaluate`.
#[must_use]
pub fn evaluate(report: &EvaluateReport) -> String {
    let mut out = String::new();
    let model = &report.model;
    let format = model.format.as_deref().unwrap_or("not quantized");
    line(&mut out, format_args!("{}: {}, {}, {}\n", model.path, model.architecture, model.dtype, format));
    out.push_str(&evaluation_table(&report.evaluation));
    if let Some(choices) = &report.choices {
        out.push('\n');
        out.push_str(&choices_table(choices));
    }
    notes(&mut out, &report.notes);
    line(&mut out, format_args!("\n{}", resources(&report.resources)));
    out
}

/// One line for a verification that passed, one for each problem otherwise.
#[must_use]
pub fn verification(found: &Verification) -> String {
    if found.problems.is_empty() {
        let kernel = match found.multiplied {
            0 => "no packed kernel has such a grid".to_owned(),
            _ => format!("kernel against f64: {:.1e} of the largest output", found.kernel_error),
        };
        format!(
            "verified: {} files by SHA-256, {} linears decoded and equal to what was solved, {} other tensors equal; {kernel}",
            found.files, found.linears, found.tensors
        )
    } else {
        let mut out = format!("VERIFICATION FAILED, {} problems:", found.problems.len());
        for problem in &found.problems {
            out.push_str("\n  ");
            out.push_str(problem);
        }
        out
    }
}

/// So many of what has this name.
pub(super) fn counted(number: usize, name: &str) -> String {
    format!("{number} {name}{}", if number == 1 { "" } else { "s" })
}

/// What a checkpoint is.
#[must_use]
pub fn inspection(found: &Inspection) -> String {
    let mut out = String::new();
    let model = &found.model;
    let format = model.format.as_deref().unwrap_or("not quantized");
    line(
        &mut out,
        format_args!(
            "{}: {}, {} layers, {} parameters, {}, {format}, {} in {}",
            model.path,
            model.architecture,
            model.layers,
            model.parameters,
            model.dtype,
            bytes(found.bytes),
            counted(found.files, "file")
        ),
    );
    for row in &found.schemes {
        line(&mut out, format_args!("  {} linears: {}", row.linears, row.scheme));
    }
    if !found.unknown_tensors.is_empty() {
        line(&mut out, format_args!("  {} tensors of unknown purpose", found.unknown_tensors.len()));
        for name in &found.unknown_tensors {
            line(&mut out, format_args!("    {name}"));
        }
    }
    if !found.runtimes.is_empty() {
        line(&mut out, format_args!("\n{}", runtimes_table(&found.runtimes).trim_fmt()));
    }
    out
}

/// A number of windows and their length.
pub(super) fn windows(count: usize, context: usize, tokens: usize) -> String {
    let up_to = if tokens < count * context { "up to " } else { "" };
    format!("{} of {up_to}{context} tokens", counted_windows(count))
}

/// `1 window`, or more of them.
pub(crate) fn counted_windows(count: usize) -> String {
    counted(count, "window")
}

fn runtimes_table(rows: &[RuntimeRow]) -> Table {
    let mut runtimes = table(&["runtime", "loads", "remark"]);
    for row in rows {
        runtimes.add_row([row.runtime.as_str(), if row.loads { "yes" } else { "no" }, &row.remark]);
    }
    runtimes
}

fn evaluation_table(evaluation: &EvaluationReport) -> String {
    let mut out = String::new();
    line(
        &mut out,
        format_args!(
            "on {}, {}:",
            evaluation.text,
            windows(evaluation.windows, evaluation.context, evaluation.tokens)
        ),
    );
    let measured = [("quantized", &evaluation.quantized), ("with adapter", &evaluation.adapted)];
    let measured: Vec<_> =
        measured.into_iter().filter_map(|(name, found)| Some((name, found.as_ref()?))).collect();
    // Without a reference there is nothing to be apart from.
    let apart = measured.iter().any(|(_, found)| found.kl_mean.is_some());
    let columns = if apart { 5 } else { 2 };
    let mut table = table(&["", "perplexity", "KL mean (nats)", "KL 99 %", "same top token"][..columns]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let pair = |value: f64, error: f64, digits: usize| format!("{value:.digits$} ± {error:.digits$}");
    if let Some(original) = &evaluation.original {
        table.add_row(["original".to_owned(), pair(original.perplexity, original.perplexity_stderr, 3)]);
    }
    for (name, quantized) in measured {
        let both = |value: Option<f64>, error: Option<f64>, digits| match (value, error) {
            (Some(value), Some(error)) => pair(value, error, digits),
            _ => String::new(),
        };
        let row = [
            name.to_owned(),
            pair(quantized.perplexity, quantized.perplexity_stderr, 3),
            both(quantized.kl_mean, quantized.kl_stderr, 5),
            both(quantized.kl_p99, quantized.kl_p99_stderr, 4),
            quantized.top1_agreement.map_or_else(String::new, |share| format!("{:.2} %", share * 100.0)),
        ];
        table.add_row(&row[..columns]);
    }
    line(&mut out, format_args!("{}", table.trim_fmt()));
    out
}

/// Answers of each model.
fn choices_table(choices: &ChoicesReport) -> String {
    let percent = |value: f64, error: f64| format!("{:.2} ± {:.2} %", value * 100.0, error * 100.0);
    let mut table = table(&["", "right", "right, by likelihood per character"]);
    let rows = [
        ("reference", choices.reference.as_ref()),
        ("measured", Some(&choices.measured)),
        ("with adapter", choices.adapted.as_ref()),
    ];
    for (name, found) in rows.into_iter().filter_map(|(name, found)| Some((name, found?))) {
        let normalized = percent(found.normalized, found.normalized_stderr);
        table.add_row([name.to_owned(), percent(found.accuracy, found.accuracy_stderr), normalized]);
    }
    if let Some(found) = &choices.difference {
        let signed = |value: f64, error: f64| format!("{:+.2} ± {:.2} %", value * 100.0, error * 100.0);
        table.add_row([
            "difference, paired".to_owned(),
            signed(found.accuracy, found.accuracy_stderr),
            signed(found.normalized, found.normalized_stderr),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let chance = choices.by_chance * 100.0;
    format!(
        "{} questions of {}, {chance:.0} % right by chance:\n{}\n",
        choices.questions,
        choices.file,
        table.trim_fmt()
    )
}

/// Stages of one kind side by side, with the width of each layer.
fn allocation_table(allocation: &Allocation) -> String {
    let asked = match allocation.target {
        Budget::MeanBits(bits) => format!("{bits} bits a weight"),
        Budget::Bytes(size) => bytes(size),
    };
    let mut kinds: Vec<(String, Vec<&StageWidth>)> = Vec::new();
    for stage in &allocation.stages {
        let own = |name: &String| name.rsplit('.').next().unwrap_or(name).to_owned();
        let kind = stage.linears.iter().map(own).collect::<Vec<_>>().join(" ");
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, stages)) => stages.push(stage),
            None => kinds.push((kind, vec![stage])),
        }
    }
    let mut table = table(&["stage", "bits by layer", "predicted KL (nats)"]);
    for (kind, stages) in kinds {
        let widths: Vec<_> = stages.iter().map(|stage| stage.bits.to_string()).collect();
        let sum: f64 = stages.iter().map(|stage| stage.predicted_kl).sum();
        table.add_row([kind, widths.join(" "), format!("{sum:.5}")]);
    }
    let mut out = String::new();
    line(
        &mut out,
        format_args!(
            "widths for at most {asked}: {:.3} bits a weight, predicted KL {:.5} in all",
            allocation.bits_per_weight, allocation.predicted_kl
        ),
    );
    line(&mut out, format_args!("{}", table.trim_fmt()));
    out
}

/// Linears of one role side by side; a large model has hundreds, so rows are roles and the figures span layers.
fn linears_table(linears: &[LinearRow]) -> String {
    let mut groups: Vec<(String, Vec<&LinearRow>)> = Vec::new();
    for row in linears {
        let role = row.name.rsplit('.').next().unwrap_or(&row.name).to_owned();
        let key = format!("{role}\u{0}{}\u{0}{:?}\u{0}{}", row.bits, row.group_size, row.solver);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((key, vec![row])),
        }
    }
    let mut table = table(&[
        "linear",
        "count",
        "shape",
        "bits",
        "group",
        "solver",
        "relative loss: median",
        "worst",
        "in",
    ]);
    for (_, rows) in &groups {
        let first = rows[0];
        let mut losses: Vec<f64> = rows.iter().map(|row| row.relative_loss).collect();
        losses.sort_by(f64::total_cmp);
        let worst = rows.iter().max_by(|a, b| a.relative_loss.total_cmp(&b.relative_loss)).unwrap_or(&first);
        table.add_row([
            first.name.rsplit('.').next().unwrap_or(&first.name).to_owned(),
            rows.len().to_string(),
            format!("{} x {}", first.shape[0], first.shape[1]),
            first.bits.to_string(),
            first.group_size.map_or_else(|| first.granularity.to_owned(), |columns| columns.to_string()),
            first.solver.clone(),
            format!("{:.2e}", losses[losses.len() / 2]),
            format!("{:.2e}", worst.relative_loss),
            worst.name.clone(),
        ]);
    }
    format!("{}\n", table.trim_fmt())
}

/// What was not done as asked.
pub(super) fn notes(out: &mut String, notes: &[String]) {
    if !notes.is_empty() {
        line(out, format_args!("\nnotes:"));
        for note in notes {
            line(out, format_args!("  {note}"));
        }
    }
}

/// What a run cost.
pub(super) fn resources(cost: &Resources) -> String {
    format!(
        "{:.1} s on the clock, {:.1} s of processors, {} at most in memory",
        cost.wall_seconds,
        cost.cpu_seconds,
        bytes(cost.peak_rss_bytes)
    )
}

/// What quantizing cost one of several processes.
fn rank(cost: &RankCost) -> String {
    format!(
        "rank {}: {:.1} s of processors until all was solved, {} at most in memory, {} sent, {} received",
        cost.rank,
        cost.cpu_seconds,
        bytes(cost.peak_rss_bytes),
        bytes(cost.sent_bytes),
        bytes(cost.received_bytes)
    )
}

/// A size with a unit of powers of ten, as disks and hubs count.
#[must_use]
pub fn bytes(count: u64) -> String {
    let units = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    let value = count as f64;
    units
        .iter()
        .find(|(_, size)| value >= *size)
        .map_or_else(|| format!("{count} B"), |(unit, size)| format!("{:.2} {unit}", value / size))
}

/// A table without frames.
#[must_use]
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    table
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing into a string cannot fail.
    let _ = out.write_fmt(text);
    out.push('\n');
}
