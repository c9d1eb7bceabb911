//! Runs the program in a directory of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn demo() -> PathBuf {
    repository().join("demo/model")
}

pub(crate) fn tiny(name: &str) -> PathBuf {
    repository().join("tests/data/hf_tiny").join(name)
}

/// Few and short windows: enough to take every path, quick in a build without optimization.
pub(crate) const SMALL: [&str; 8] =
    ["--samples", "6", "--context", "96", "--evaluate-samples", "4", "--evaluate-context", "96"];

pub(crate) fn quantc(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quantc")).args(arguments).output().expect("the program starts")
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// Runs, demands success, returns standard output.
pub(crate) fn succeed(arguments: &[&str]) -> String {
    let output = quantc(arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("reports are text")
}

/// Runs, demands the exit code and one error, before which warnings may be, returns standard error.
pub(crate) fn fail(code: i32, arguments: &[&str]) -> String {
    let output = quantc(arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
    let first = message.lines().find(|line| !line.starts_with("warning: "));
    assert!(first.is_some_and(|line| line.starts_with("error: ")), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

/// Quantizes into `folder/out` with small windows and returns the output and the JSON report.
pub(crate) fn quantize(folder: &Path, model: &Path, more: &[&str]) -> (PathBuf, Value) {
    let output = folder.join("out");
    let report = folder.join("report.json");
    let mut arguments =
        vec!["quantize", text(model), "-o", text(&output), "--export-json", text(&report), "--force"];
    let wanted = if more.contains(&"--no-evaluate") { &SMALL[..4] } else { &SMALL[..] };
    for pair in wanted.chunks(2).filter(|pair| !more.contains(&pair[0])) {
        arguments.extend(pair);
    }
    arguments.extend(more);
    succeed(&arguments);
    (output, json(&report))
}

pub(crate) fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// A copy of a checkpoint that a test may damage.
pub(crate) fn copy(model: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(model).unwrap() {
        let entry = entry.unwrap();
        fs::write(folder.path().join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
    }
    folder
}

/// A copy of a tiny checkpoint of 64 tokens, with a tokenizer of as many.
pub(crate) fn with_tokenizer(model: &Path) -> TempDir {
    let folder = copy(model);
    let tokens: serde_json::Map<String, Value> = (0..64).map(|id| (format!("t{id}"), id.into())).collect();
    let tokenizer = serde_json::json!({
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": tokens, "merges": []}
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

/// Names of the files of a directory, sorted.
pub(crate) fn files(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
