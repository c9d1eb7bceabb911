//! OUT/README.md: the model card that a hub shows, with the metadata it reads. It states no time and no path of this machine, so that it is
//! the same from run to run.

mod front_matter;

use std::fmt::Write;
use std::path::Path;

use formats::adapter::DIRECTORY as ADAPTER_DIRECTORY;
use formats::side_files::{CARD, KEPT_CARD};
use formats::target::PlannedLinear;
use formats::target::usage::{self, Usage};
use quantizer::scheme::{Granularity, Scheme};
use serde_json::json;

use crate::record::RECORD_FILE;
use crate::render::text::{bytes, counted_windows};
use crate::report::{AdapterSummary, EvaluationReport, RuntimeRow, TextSummary};
use crate::stored::StoredModel;

/// What a card says, apart from what is measured.
#[derive(Clone, Debug)]
pub(crate) struct Card {
    /// What the original is called here.
    name: String,
    /// What the hub calls it, if that is known.
    hub_name: Option<String>,
    /// Lines of the original's front matter.
    carried: Vec<String>,
    format: String,
    /// One sentence: from what, by what.
    made: Vec<String>,
    recipe: Option<String>,
    schemes: Vec<Scheme>,
    parameters: u64,
    runtimes: Vec<RuntimeRow>,
    /// Whether there is another card beside it.
    keeps_card: bool,
}

/// How an output came about.
pub(crate) enum Origin<'o> {
    /// Quantized from an original.
    Quantized {
        /// Name of the recipe.
        recipe: &'o str,
        /// Texts that it was calibrated on.
        texts: Vec<&'o TextSummary>,
    },
    /// Converted from an output in another format.
    Converted {
        /// Id of that format.
        from: &'o str,
        /// Tensors that were rounded once more.
        rounded: usize,
    },
}

impl Card {
    /// Of an output that `source`, whose side files are in `beside`, was made into.
    pub(crate) fn new(
        source: &StoredModel,
        beside: &Path,
        format: &str,
        origin: &Origin<'_>,
        linears: &[PlannedLinear],
        runtimes: &[RuntimeRow],
    ) -> Self {
        let original = if beside.join(RECORD_FILE).exists() { KEPT_CARD } else { CARD };
        let card = std::fs::read_to_string(beside.join(original)).ok();
        let whole = std::path::absolute(&source.path).unwrap_or_else(|_| source.path.clone());
        let hub_name = front_matter::hub_name(&source.path);
        let folder = || whole.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = hub_name.clone().or_else(folder).unwrap_or_else(|| "a model".to_owned());
        let mut schemes: Vec<Scheme> = Vec::new();
        for scheme in linears.iter().filter_map(|planned| planned.scheme) {
            if !schemes.contains(&scheme) {
                schemes.push(scheme);
            }
        }
        let quantized = linears.iter().filter(|planned| planned.scheme.is_some()).count();
        let mut made = vec![origin.sentence()];
        made.push(format!("{quantized} of {} linears are quantized: {}.", linears.len(), grids(&schemes)));
        Self {
            name: plain(&name),
            hub_name,
            carried: card.as_deref().map(front_matter::carried).unwrap_or_default(),
            format: format.to_owned(),
            made,
            recipe: match origin {
                Origin::Quantized { recipe, .. } => Some((*recipe).to_owned()),
                Origin::Converted { .. } => None,
            },
            schemes,
            parameters: source.summary().map_or(0, |summary| summary.parameters),
            runtimes: runtimes.to_vec(),
            keeps_card: card.is_some(),
        }
    }

    /// The text of README.md for tensors of so many bytes; `file` is the output's one file of weights, where it has one, and `adapter` what
    /// stands beside it.
    pub(crate) fn text(
        &self,
        tensor_bytes: u64,
        file: &str,
        adapter: Option<&AdapterSummary>,
        measured: Option<&EvaluationReport>,
    ) -> String {
        let mut out = self.front_matter();
        let version = env!("CARGO_PKG_VERSION");
        let bits = tensor_bytes as f64 * 8.0 / self.parameters.max(1) as f64;
        // Writing into a string cannot fail.
        let _ = writeln!(out, "\n# {} in {}\n", self.name, self.format);
        let _ = writeln!(
            out,
            "Made from `{}` by quantc {version}: {} of tensors, {bits:.2} bits a weight with everything counted.",
            self.name,
            bytes(tensor_bytes)
        );
        for sentence in &self.made {
            let _ = writeln!(out, "{sentence}");
        }
        if self.keeps_card {
            let _ = writeln!(out, "The original's card is [{KEPT_CARD}]({KEPT_CARD}).");
        }
        out.push_str("\n## Measured\n\n");
        match measured {
            Some(measured) => out.push_str(&table(measured)),
            None => out.push_str("Nothing was measured on this output.\n"),
        }
        out.push_str("\n## Run it\n\n`MODEL` is this directory");
        out.push_str(", or its name on a hub where the runtime takes names.\n");
        self.run_it(&mut out, file);
        if let Some(adapter) = adapter {
            self.run_adapter(&mut out, adapter);
        }
        let _ = writeln!(
            out,
            "\n### quantc\n\n```sh\nquantc generate MODEL --prompt The\nquantc verify MODEL\n```\n\nThe second line proves that the files are what was solved (`{RECORD_FILE}` holds the digests)."
        );
        out
    }

    fn front_matter(&self) -> String {
        let usage =
            self.runtimes.iter().filter(|row| row.loads).find_map(|row| usage::of(&row.runtime).next());
        let mut out = "---\n".to_owned();
        match &self.hub_name {
            Some(name) => {
                let _ = writeln!(out, "base_model: {}\nbase_model_relation: quantized", json!(name));
            }
            None => out.push_str("# base_model: ORGANIZATION/NAME of the original on the hub\n"),
        }
        out.push_str("# quantized_by: who publishes this\n");
        if let Some(usage) = usage {
            let _ = writeln!(out, "library_name: {}", usage.library);
        }
        if !self.carried.iter().any(|line| line.starts_with("license:")) {
            out.push_str("# license: the original's card names none\n");
        }
        for line in &self.carried {
            let _ = writeln!(out, "{line}");
        }
        if !self.carried.iter().any(|line| line.starts_with("pipeline_tag:")) {
            out.push_str("pipeline_tag: text-generation\n");
        }
        let mut tags = vec!["quantized".to_owned(), "quantc".to_owned()];
        tags.extend(self.format.split(':').map(str::to_owned));
        tags.extend(self.widths().iter().map(|bits| format!("{bits}-bit")));
        out.push_str("tags:\n");
        for tag in tags {
            let _ = writeln!(out, "- {}", json!(tag));
        }
        let _ = writeln!(out, "quantization_method: {}", json!(self.format));
        out.push_str("quantization:\n");
        let _ = writeln!(out, "  bits: {}", json!(self.widths()));
        if let Some(recipe) = &self.recipe {
            let _ = writeln!(out, "  recipe: {}", json!(file_name(recipe)));
        }
        out.push_str("---\n");
        out
    }

    fn widths(&self) -> Vec<u8> {
        let mut widths: Vec<u8> = self.schemes.iter().map(|scheme| scheme.bits.get()).collect();
        widths.sort_unstable();
        widths.dedup();
        widths
    }

    fn run_it(&self, out: &mut String, file: &str) {
        let mut told: Vec<&str> = Vec::new();
        for row in self.runtimes.iter().filter(|row| row.loads) {
            let mut headed = false;
            for usage in usage::of(&row.runtime) {
                // One runtime may stand there with several kernels.
                if told.contains(&usage.lines) {
                    continue;
                }
                told.push(usage.lines);
                if !std::mem::replace(&mut headed, true) {
                    let _ = writeln!(out, "\n### {}\n", row.runtime);
                } else {
                    out.push_str("\nor\n\n");
                }
                snippet(out, row, usage, None, file);
            }
        }
    }
}

impl Card {
    /// How the adapter is put on top, where a runtime that takes one loads the output.
    fn run_adapter(&self, out: &mut String, adapter: &AdapterSummary) {
        let _ = writeln!(
            out,
            "\n### PEFT\n\n`{ADAPTER_DIRECTORY}` is a LoRA adapter with the best correction of rank {}; the model stands without it.\n",
            adapter.rank
        );
        let on = |row: &&RuntimeRow| row.loads && row.runtime.starts_with(usage::ADAPTER.runtime);
        if let Some(row) = self.runtimes.iter().find(on) {
            snippet(out, row, &usage::ADAPTER, usage::under_adapter(&row.runtime), "");
        }
    }
}

impl Origin<'_> {
    fn sentence(&self) -> String {
        match self {
            Self::Quantized { recipe, texts } if texts.is_empty() => {
                format!("Recipe `{}`, without calibration text.", plain(&file_name(recipe)))
            }
            Self::Quantized { recipe, texts } => {
                let texts: Vec<String> = texts
                    .iter()
                    .map(|text| {
                        let (windows, tokens) = (counted_windows(text.windows), text.context);
                        format!("{windows} of {tokens} tokens of {}", plain(&file_name(&text.text)))
                    })
                    .collect();
                format!("Recipe `{}`, calibrated on {}.", plain(&file_name(recipe)), texts.join(" and "))
            }
            Self::Converted { from, rounded: 0 } => {
                format!("Converted from `{}`, with the same values.", plain(from))
            }
            Self::Converted { from, rounded } => {
                format!("Converted from `{}`; {rounded} tensors were rounded once more.", plain(from))
            }
        }
    }
}

fn grids(schemes: &[Scheme]) -> String {
    let grid = |scheme: &Scheme| {
        let group = match scheme.granularity {
            Granularity::PerTensor => "one scale a matrix".to_owned(),
            Granularity::PerChannel => "one scale a row".to_owned(),
            Granularity::PerGroup(size) => format!("groups of {}", size.get()),
        };
        format!("{} bit, {group}", scheme.bits.get())
    };
    let mut grids: Vec<String> = schemes.iter().map(grid).collect();
    grids.sort();
    grids.dedup();
    if grids.is_empty() { "none".to_owned() } else { grids.join("; ") }
}

fn table(measured: &EvaluationReport) -> String {
    let mut out = "| | perplexity | KL to the original (nats a token) | KL 99 % | same top token |\n|---|---|---|---|---|\n".to_owned();
    if let Some(original) = &measured.original {
        let (value, stderr) = (original.perplexity, original.perplexity_stderr);
        let _ = writeln!(out, "| original | {value:.3} ± {stderr:.3} | | | |");
    }
    let rows = [("this model", &measured.quantized), ("with its adapter", &measured.adapted)];
    for (name, found) in rows.into_iter().filter_map(|(name, found)| Some((name, found.as_ref()?))) {
        let pair = |value: Option<f64>, stderr: Option<f64>| {
            value.zip(stderr).map_or_else(String::new, |(value, stderr)| format!("{value:.5} ± {stderr:.5}"))
        };
        let same = found.top1_agreement.map_or_else(String::new, |share| format!("{:.2} %", share * 100.0));
        let _ = writeln!(
            out,
            "| {name} | {:.3} ± {:.3} | {} | {} | {same} |",
            found.perplexity,
            found.perplexity_stderr,
            pair(found.kl_mean, found.kl_stderr),
            pair(found.kl_p99, found.kl_p99_stderr),
        );
    }
    let text = plain(&file_name(&measured.text));
    let _ = writeln!(
        out,
        "\nOn {text}, {} of {} tokens, in f32; ± is the standard error over windows.",
        counted_windows(measured.windows),
        measured.context
    );
    out
}

/// How one runtime is started; `told` is a configuration that it needs whatever its remark says.
fn snippet(out: &mut String, row: &RuntimeRow, usage: &Usage, told: Option<&str>, file: &str) {
    // Flags that a runtime needs are said as `with --flag ...`.
    let flags = row.remark.split("; ").find_map(|part| part.strip_prefix("with --"));
    let remarks: Vec<&str> =
        row.remark.split("; ").filter(|part| !part.is_empty() && !part.starts_with("with --")).collect();
    if !remarks.is_empty() {
        let _ = writeln!(out, "Mind: {}.\n", remarks.join("; "));
    }
    let with = row.runtime.split_once("(with ").map(|(_, rest)| rest.trim_end_matches(')'));
    let with = with.map(|rest| rest.split(' ').find(|word| *word != "its").unwrap_or_default());
    let beside = with.map(usage::beside).unwrap_or_default();
    let packages: Vec<&str> =
        usage.packages.iter().copied().chain(with).chain(beside.iter().copied()).collect();
    if !packages.is_empty() {
        let on_linux = usage.on_linux.map_or_else(String::new, |others| format!("  # on Linux: {others}"));
        let _ = writeln!(out, "```sh\npip install {}{on_linux}\n```\n", packages.join(" "));
    }
    let flags = flags.map_or_else(String::new, |flags| format!(" --{flags}"));
    // What has to be said in the call of a library is the last word of a remark.
    let call = row
        .remark
        .split("; ")
        .find_map(|part| part.rsplit_once(" with ").filter(|(_, call)| call.ends_with(')')));
    let told = told.or(call.map(|(_, call)| call));
    let lines = told.map_or_else(|| usage.lines.to_owned(), |told| usage.configured(told));
    let _ = writeln!(out, "```{}\n{}{flags}\n```", usage.language, lines.replace("FILE", file));
}

/// The last part of a path: a card says nothing of this machine.
fn file_name(path: &str) -> String {
    Path::new(path).file_name().map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Names from outside in Markdown: on one line, and without what would end code or begin markup.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || "`<>|[]".contains(c) { '_' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_make_no_markup() {
        assert_eq!(plain("a`b\n<script>|x"), "a_b__script__x");
        assert_eq!(file_name("/home/someone/text.txt"), "text.txt");
        assert_eq!(file_name("built-in calibration text"), "built-in calibration text");
    }
}
