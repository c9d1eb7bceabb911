//! The outcome of `compare` as text: figures, what the differences prove, and where they are.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table};

use super::text::{bytes, notes, resources, table, windows};
use crate::compare::{CompareReport, Guess, Measured, ModelFigures, Pair};

/// Layers that have a row each; of more, those after which models are further apart than before by most.
const LAYERS: usize = 12;

/// The outcome of `compare`.
#[must_use]
pub fn comparison(report: &CompareReport) -> String {
    let text = &report.text;
    let mut out = format!("on {}, {}:\n", text.text, windows(text.windows, text.context, text.tokens));
    put(&mut out, &figures(&report.models));
    out.push_str("A is the reference. Tokens a second: through all layers, and written one by one, by this program on this machine.\n\n");
    put(&mut out, &pairs(&report.pairs));
    out.push_str("Differences are paired, token by token; * marks what chance alone would show less than 5 times in 100.\n");
    for pair in &report.pairs {
        out.push_str(&format!("  {}\n", pair.verdict));
    }
    let measured: Vec<&ModelFigures> =
        report.models.iter().filter(|model| model.layers.as_ref().is_some_and(|l| !l.is_empty())).collect();
    if !measured.is_empty() {
        out.push_str("\nhidden states, mean relative distance from A's:\n");
        put(&mut out, &layers(&measured));
    }
    for model in &report.models {
        places(&mut out, model);
    }
    notes(&mut out, &report.notes);
    let _ = writeln!(out, "\n{}", resources(&report.resources));
    out
}

fn put(out: &mut String, table: &Table) {
    // Writing into a string cannot fail.
    let _ = writeln!(out, "{}", table.trim_fmt());
}

fn right_from(table: &mut Table, first: usize) {
    for column in table.column_iter_mut().skip(first) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

fn with_error(found: Measured, digits: usize) -> String {
    format!("{:.digits$} ± {:.digits$}", found.value, found.stderr)
}

fn percent(found: Measured) -> String {
    format!("{:.2} ± {:.2} %", found.value * 100.0, found.stderr * 100.0)
}

fn figures(models: &[ModelFigures]) -> Table {
    let mut table = table(&[
        "",
        "model",
        "format",
        "size",
        "bits",
        "perplexity",
        "KL mean (nats)",
        "KL 99 %",
        "same top token",
        "tokens/s read",
        "written",
    ]);
    for model in models {
        let or_empty =
            |found: Option<Measured>, shown: fn(Measured) -> String| found.map_or_else(String::new, shown);
        let written = model.speed.written_tokens_per_second;
        table.add_row([
            model.letter.clone(),
            model.model.path.clone(),
            model.model.format.clone().unwrap_or_else(|| "-".to_owned()),
            bytes(model.bytes),
            format!("{:.2}", model.bits_per_weight),
            with_error(model.perplexity, 3),
            or_empty(model.kl_mean, |found| with_error(found, 5)),
            or_empty(model.kl_p99, |found| with_error(found, 4)),
            or_empty(model.top1_agreement, percent),
            format!("{:.0}", model.speed.read_tokens_per_second),
            written.map_or_else(String::new, |rate| format!("{rate:.1}")),
        ]);
    }
    right_from(&mut table, 3);
    table
}

fn pairs(pairs: &[Pair]) -> Table {
    let mut table = table(&["", "perplexity", "KL to A (nats)", "same top token"]);
    let mark = |text: String, significant: bool| format!("{text} {}", if significant { "*" } else { " " });
    for pair in pairs {
        let share = |value: f64, stderr: f64| format!("{:+.3} ± {:.3} %", value * 100.0, stderr * 100.0);
        table.add_row([
            format!("{} against {}", pair.model, pair.against),
            mark(share(pair.perplexity.value, pair.perplexity.stderr), pair.perplexity.significant),
            pair.kl_mean.map_or_else(String::new, |found| {
                mark(format!("{:+.5} ± {:.5}", found.value, found.stderr), found.significant)
            }),
            pair.top1_agreement
                .map_or_else(String::new, |found| mark(share(found.value, found.stderr), found.significant)),
        ]);
    }
    right_from(&mut table, 1);
    table
}

fn layers(models: &[&ModelFigures]) -> Table {
    let mut header = vec!["after layer".to_owned()];
    header.extend(models.iter().map(|model| model.letter.clone()));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = table(&header);
    let of =
        |model: &ModelFigures, layer: usize| model.layers.as_ref().map_or(0.0, |layers| layers[layer].value);
    let count = models.iter().filter_map(|model| model.layers.as_ref()).map(Vec::len).min().unwrap_or(0);
    let added = |layer: usize| {
        let growth =
            models.iter().map(|model| of(model, layer) - if layer == 0 { 0.0 } else { of(model, layer - 1) });
        growth.fold(f64::NEG_INFINITY, f64::max)
    };
    let mut shown: Vec<usize> = (0..count).collect();
    if count > LAYERS {
        shown.sort_by(|&a, &b| added(b).total_cmp(&added(a)));
        shown.truncate(LAYERS - 1);
        // Where they end is always of interest.
        shown.push(count - 1);
        shown.sort_unstable();
        shown.dedup();
    }
    for layer in shown {
        let mut row = vec![layer.to_string()];
        row.extend(models.iter().map(|model| format!("{:.4}", of(model, layer))));
        table.add_row(row);
    }
    right_from(&mut table, 1);
    table
}

/// Tokens and passages on which a model is farthest from the reference.
fn places(out: &mut String, model: &ModelFigures) {
    if model.tokens.is_empty() {
        return;
    }
    let letter = &model.letter;
    let _ = writeln!(out, "\ntokens on which {letter} is farthest from A:");
    let mut found = table(&["KL", "text so far", "goes on", "A says", &format!("{letter} says")]);
    let said = |guess: &Guess| format!("{} {:.0} %", quoted(&guess.text), guess.probability * 100.0);
    for token in &model.tokens {
        found.add_row([
            format!("{:.2}", token.kl),
            format!("...{}", last_characters(&plain(&token.context), 44)),
            quoted(&token.text),
            said(&token.reference),
            said(&token.model),
        ]);
    }
    put(out, &found);
    let _ = writeln!(out, "\npassages on which {letter} is farthest from A:");
    for passage in &model.passages {
        let worst: Vec<String> = passage.worst.iter().map(|text| quoted(text)).collect();
        let _ = writeln!(
            out,
            "  KL {:.3}, loss {:.2} -> {:.2}, window {}, most at {}\n    {}",
            passage.kl,
            passage.reference_nll,
            passage.model_nll,
            passage.window,
            worst.join(" "),
            plain(&passage.text)
        );
    }
}

/// Text of others on one line of a terminal, which must not take it for commands.
fn plain(text: &str) -> String {
    let shown = text.chars().map(|c| match c {
        '\n' => "\u{23ce}".to_owned(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    });
    shown.collect()
}

fn quoted(text: &str) -> String {
    format!("\u{ab}{}\u{bb}", plain(text))
}

fn last_characters(text: &str, count: usize) -> String {
    let skipped = text.chars().count().saturating_sub(count);
    text.chars().skip(skipped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_model_gives_no_commands_to_a_terminal() {
        assert_eq!(plain("a\u{1b}[2J\nb\u{7}"), "a\\u{1b}[2J\u{23ce}b\\u{7}");
        assert_eq!(last_characters("abcdef", 3), "def");
    }
}
