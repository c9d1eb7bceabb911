//! A plan as text for a terminal.

use std::fmt::Write;

use super::text::{bytes, table};
use crate::planning::{Fit, ModelPlan, PlanReport};

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
        "time: about {} with {} threads as busy as this machine is now, {} of processors ({}; without {})",
        clock(time.seconds),
        time.threads,
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
    let mut rows = table(&[
        "",
        "model",
        "weights",
        "bits",
        "files",
        "keys and values",
        "fits",
        "perplexity",
        "predicted KL",
        "predicted perplexity",
    ]);
    let number = |value: Option<f64>, digits: usize| value.map_or(String::new(), |v| format!("{v:.digits$}"));
    for (index, c) in fit.candidates.iter().enumerate() {
        rows.add_row([
            if fit.chosen == Some(index) { "->" } else { "" }.to_owned(),
            c.model.clone(),
            count(c.parameters),
            if c.bits.fract() == 0.0 { c.bits.to_string() } else { format!("{:.2}", c.bits) },
            bytes(c.weight_bytes),
            bytes(c.cache_bytes),
            if c.fits { "yes" } else { "no" }.to_owned(),
            number(c.perplexity, 3),
            number(c.predicted_kl, 4),
            number(c.predicted_perplexity, 3),
        ]);
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
