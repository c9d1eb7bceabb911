//! Jobs that take every path on which ranks meet, none of them often.

#[path = "../support/contents.rs"]
mod contents;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use contents::contents;

pub(crate) struct Job {
    pub(crate) name: &'static str,
    arguments: &'static [&'static str],
}

/// The job on a model that has experts; the others are on the demo's.
const EXPERTS: &str = "mixture of experts";

pub(crate) const JOBS: [Job; 6] = [
    Job { name: "two tracks", arguments: &["--to", "gptq,gguf:q4_0", "--recipe", "gptq"] },
    Job { name: "default, states on disk", arguments: &["--to", "gptq", "--memory", "least"] },
    Job { name: EXPERTS, arguments: &["--group-size", "channel", "--calibration", "ids.jsonl"] },
    Job {
        name: "adapter and importance matrix",
        arguments: &["--adapter-rank", "4", "--export-imatrix", "imatrix.gguf", "--recipe", "gptq"],
    },
    Job {
        name: "embedding and head too",
        arguments: &[
            "--to",
            "mlx",
            "--untie",
            "--head-bits",
            "4",
            "--embedding-bits",
            "8",
            "--recipe",
            "gptq",
        ],
    },
    Job { name: "max, fewer sweeps", arguments: &["--recipe", "recipe.toml"] },
];

/// Tokens weighed, text of the model's own, scales that learn.
const RECIPE: &str = "base = 'max'\nbits = 3\nown_text = 1\nscale_passes = 1\n[settings]\nrefits = 1\nsweeps = 1\ncoupled_sweeps = 1\n";

impl Job {
    /// The command line behind the program's name; output and files are in `folder`.
    pub(crate) fn arguments(&self, folder: &Path) -> Vec<String> {
        let model = if self.name == EXPERTS { "tests/data/hf_tiny/qwen3_moe" } else { "demo/model" };
        let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(model);
        fs::write(folder.join("recipe.toml"), RECIPE).expect("the folder can be written");
        // The tiny model has 64 tokens, and no tokenizer.
        let ids = |line: usize| (0..48).map(|i| (i * i * 7 + line * 13 + i * 3) % 64).collect::<Vec<usize>>();
        let lines: String = (0..5).map(|line| format!("{{\"input_ids\": {:?}}}\n", ids(line))).collect();
        fs::write(folder.join("ids.jsonl"), lines).expect("the folder can be written");
        let text = |path: PathBuf| path.to_str().expect("paths of tests are text").to_owned();
        let own = self.arguments.iter().map(|&word| match word {
            "imatrix.gguf" | "ids.jsonl" | "recipe.toml" => text(folder.join(word)),
            _ => word.to_owned(),
        });
        // Windows that no number of ranks divides.
        let common = ["--samples", "5", "--context", "48", "--no-evaluate"].map(str::to_owned);
        let output = ["quantize".to_owned(), text(model), "-o".to_owned(), text(folder.join("out"))];
        output.into_iter().chain(common).chain(own).collect()
    }
}

/// The arguments with the least memory in its place, as the message that refuses less says it.
pub(crate) fn with_least_memory(
    mut arguments: Vec<String>,
    refusal: impl FnOnce(&[String]) -> String,
) -> Vec<String> {
    let Some(place) = arguments.iter().position(|word| word == "least") else { return arguments };
    arguments[place] = "1".to_owned();
    let message = refusal(&arguments);
    let number = message.split(" bytes), which").next().and_then(|text| text.rsplit('(').next());
    arguments[place] = number.unwrap_or_else(|| panic!("no least size in {message}")).to_owned();
    arguments
}

/// Demands the same files with the same bytes.
pub(crate) fn demand_same(what: &str, found: &Path, expected: &Path) {
    let (found, expected) = (contents(found), contents(expected));
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected), "{what}");
    for (name, bytes) in &found {
        assert!(*bytes == expected[name], "{what}: {} differs", name.display());
    }
}
