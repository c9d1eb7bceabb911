//! A plan as text for a terminal.

use std::fmt::Write;

use super::text::{bytes, counted, table};
use crate::planning::{Candidate, Fit, ModelPlan, PlanReport};

/// The outcome of `plan`.
#[must_use]
pub fn plan(report: &PlanReport) -> String {
    let mut out = String::new();
    for (number, model) in report.models.iter().enumerate() {
        if number > 0 {
            out.push('\n');
        }
        model_plan(&mut out, model);
    }
    if let Some(fit) = &report.fit {
        out.push('\n');
        fitting(&mut out, fit);
    }
    out
}

fn model_plan(out: &mut String, plan: &ModelPlan) {
    let size = &plan.size;
    let _ = writeln!(
        out,
        "{}: {}, {} weights, {} -> {} in {} ({:.2} bits a weight over all tensors, {:.2} in the quantized linears)",
        plan.model.path,
        plan.model.architecture,
        count(plan.model.parameters),
        bytes(size.original_bytes),
        bytes(size.bytes),
        plan.format,
        size.bits_per_weight,
        size.linear_bits_per_weight
    );
    said_time(out, plan);
    let free = plan.free_bytes.map_or(String::new(), |free| format!(", of {} that are free", bytes(free)));
    let memory = bytes(plan.memory_bytes);
    let (output, most) = (bytes(size.bytes), bytes(plan.run_bytes));
    let _ = writeln!(out, "memory: about {memory}; disk: {output}, at most {most} while it runs{free}");
    let loss = match plan.predicted_kl {
        Some(kl) => format!("KL about {kl:.4} nats a token before refinements, which lower it"),
        None => "not predicted; --calibrate takes a short calibration for it".to_owned(),
    };
    let _ = writeln!(out, "loss: {loss}");
    let mut rows = table(&["linear", "count", "shape", "grid", "solver", "bytes"]);
    for row in &plan.linears {
        rows.add_row([
            row.linear.clone(),
            row.count.to_string(),
            format!("{} x {}", row.shape[0], row.shape[1]),
            row.scheme.clone().unwrap_or_else(|| "as it is".to_owned()),
            row.solver.clone().unwrap_or_default(),
            bytes(row.bytes),
        ]);
    }
    let _ = writeln!(out, "\n{}\n", rows.trim_fmt());
    let mut runtimes = table(&["runtime", "loads", "remark"]);
    for row in &plan.runtimes {
        runtimes.add_row([row.runtime.as_str(), if row.loads { "yes" } else { "no" }, row.remark.as_str()]);
    }
    let _ = writeln!(out, "{}", runtimes.trim_fmt());
    for kept in &plan.kept {
        let _ = writeln!(out, "kept: {} ({})", kept.name, kept.reason);
    }
    for note in &plan.notes {
        let _ = writeln!(out, "note: {note}");
    }
}

fn said_time(out: &mut String, plan: &ModelPlan) {
    let time = &plan.time;
    let phases = time.phases.iter().map(|p| format!("{} {}", p.name, clock(p.seconds)));
    let _ = writeln!(
        out,
        "time: about {} with {} as busy as this machine is now, {} of processors ({}; without {})",
        clock(time.seconds),
        counted(time.threads, "thread"),
        clock(time.cpu_seconds),
        phases.collect::<Vec<_>>().join(", "),
        time.without.join(", ")
    );
}

fn fitting(out: &mut String, fit: &Fit) {
    let contexts = || fit.candidates.iter().map(|candidate| candidate.context);
    let tokens = match (contexts().min(), contexts().max()) {
        (Some(least), Some(most)) if least < most => format!("{least} to {most} tokens, as models attend to"),
        (_, most) => {
            let tokens = most.unwrap_or(fit.context);
            let all = if tokens < fit.context { ", all that the model attends to" } else { "" };
            format!("{tokens} tokens{all}")
        }
    };
    let _ = writeln!(
        out,
        "in {} with keys and values of {tokens}; what runtimes take beside (buffers, activations) is not counted:",
        bytes(fit.bytes)
    );
    let number = |value: Option<f64>, digits: usize| value.map_or(String::new(), |v| format!("{v:.digits$}"));
    let column = |title, cell: &dyn Fn(usize, &Candidate) -> String| {
        let cells: Vec<String> =
            fit.candidates.iter().enumerate().map(|(row, candidate)| cell(row, candidate)).collect();
        (title, cells)
    };
    let mut columns = vec![
        column("", &|row, _| if fit.chosen == Some(row) { "->" } else { "" }.to_owned()),
        column("model", &|_, c| c.model.clone()),
        column("weights", &|_, c| count(c.parameters)),
        column("bits", &|_, c| match c.bits.fract() {
            0.0 => c.bits.to_string(),
            _ => format!("{:.2}", c.bits),
        }),
        column("files", &|_, c| bytes(c.weight_bytes)),
        column("keys and values", &|_, c| bytes(c.cache_bytes)),
        column("fits", &|_, c| if c.fits { "yes" } else { "no" }.to_owned()),
        column("perplexity", &|_, c| number(c.perplexity, 3)),
        column("predicted KL", &|_, c| number(c.predicted_kl, 4)),
        column("predicted perplexity", &|_, c| number(c.predicted_perplexity, 3)),
    ];
    // What nobody measured or chose has no column.
    columns.retain(|(_, cells)| cells.iter().any(|cell| !cell.is_empty()));
    let titles: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
    let mut rows = table(&titles);
    for row in 0..fit.candidates.len() {
        rows.add_row(columns.iter().map(|(_, cells)| cells[row].clone()));
    }
    let _ = writeln!(out, "\n{}\n{}", rows.trim_fmt(), fit.reason);
}

fn count(weights: u64) -> String {
    match weights {
        0..=999_999 => weights.to_string(),
        1_000_000..=999_999_999 => format!("{:.1} M", weights as f64 / 1e6),
        _ => format!("{:.2} G", weights as f64 / 1e9),
    }
}

/// Seconds as people say them.
pub(super) fn clock(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
