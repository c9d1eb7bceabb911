//! `--strict`: nothing is quantized otherwise than asked for without anybody being told.

use std::fs;
use std::path::Path;

use crate::run::{SMALL, copy, demo, fail, files, json, quantc, text};

/// Runs `quantize` on the demo model with and without `--strict`: an error and no output, or a warning and a line in the report, both with
/// `words`. Returns the report.
fn downgraded(more: &[&str], words: &[&str]) -> serde_json::Value {
    downgraded_of(&demo(), more, words)
}

/// The same of another model.
fn downgraded_of(model: &Path, more: &[&str], words: &[&str]) -> serde_json::Value {
    let folder = tempfile::tempdir().unwrap();
    let (output, report) = (folder.path().join("out"), folder.path().join("report.json"));
    let mut arguments = vec!["quantize", text(model), "-o", text(&output), "--no-evaluate"];
    arguments.extend(&SMALL[..4]);
    arguments.extend(more);
    let message = fail(1, &[&arguments[..], &["--strict"]].concat());
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    assert!(message.contains("without --strict"), "{message}");
    assert_eq!(files(folder.path()), Vec::<String>::new(), "left behind after: {message}");
    let done = quantc(&[&arguments[..], &["--export-json", text(&report)]].concat());
    let warnings = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{warnings}");
    let report = json(&report);
    let lines = report["downgrades"].to_string();
    for word in words {
        assert!(
            warnings.lines().any(|line| line.starts_with("warning: ") && line.contains(word)),
            "{warnings}"
        );
        assert!(lines.contains(word), "`{word}` is not in: {lines}");
    }
    let notes = report["notes"].as_array().unwrap();
    assert!(report["downgrades"].as_array().unwrap().iter().all(|line| notes.contains(line)), "{report}");
    report
}

#[test]
fn a_smaller_group_is_told_or_refused() {
    downgraded(&["--group-size", "1024", "--recipe", "rtn"], &["group size lowered from 1024 to 256"]);
}

#[test]
fn more_damping_is_told_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    // Fewer tokens than input features: without damping their second moment has no factor.
    fs::write(&recipe, "base = \"gptq\"\n[settings]\ndamping = 0.0\nguard = false\n").unwrap();
    let report = downgraded(
        &["--recipe", text(&recipe)],
        &["`model.layers.0.mlp.down_proj`: the Hessian is not positive definite, damping was raised"],
    );
    let rows = report["linears"].as_array().unwrap();
    let told = rows.iter().filter(|row| row["downgrade"].is_string()).count();
    assert_eq!(told, report["downgrades"].as_array().unwrap().len());
}

#[test]
fn a_linear_that_saw_nothing_is_told_or_refused() {
    let model = copy(&demo());
    let path = model.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let offsets = &header["model.embed_tokens.weight"]["data_offsets"];
    let [begin, end] = [0, 1].map(|side| 8 + length + offsets[side].as_u64().unwrap() as usize);
    bytes[begin..end].fill(0);
    fs::write(&path, bytes).unwrap();
    downgraded_of(
        model.path(),
        &["--recipe", "gptq"],
        &["`model.layers.0.self_attn.q_proj`: calibration saw nothing but zeros at its inputs"],
    );
}

#[test]
fn what_is_as_asked_for_passes() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let demo = demo();
    let done = quantc(&[
        "quantize",
        text(&demo),
        "-o",
        text(&output),
        "--no-evaluate",
        "--recipe",
        "rtn",
        "--strict",
    ]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
