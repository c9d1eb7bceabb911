//! Mixtures of experts: every expert solved, whatever it saw, and the report that says what that was.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::run::{fail, quantize, succeed, text, tiny};

/// Texts of the tiny models' 64 tokens: so many windows of so many tokens.
fn tokens(folder: &Path, name: &str, windows: usize, length: usize) -> PathBuf {
    let path = folder.join(name);
    let line = |window: usize| {
        let ids: Vec<usize> = (0..length).map(|i| (i * i * 7 + window * 13 + i * 3) % 64).collect();
        format!("{{\"input_ids\": {ids:?}}}\n")
    };
    fs::write(&path, (0..windows).map(line).collect::<String>()).unwrap();
    path
}

/// Inner features of the tiny models fill no group.
const WHOLE_ROWS: [&str; 2] = ["--group-size", "channel"];

#[test]
fn every_expert_is_solved_and_the_report_says_on_what() {
    for (name, linears) in
        [("mixtral", 2 * (4 + 12)), ("qwen2_moe", 2 * (4 + 3 + 12)), ("qwen3_moe", 2 * (4 + 12))]
    {
        let folder = tempfile::tempdir().unwrap();
        let calibration = tokens(folder.path(), "calibration.jsonl", 24, 40);
        let evaluation = tokens(folder.path(), "evaluation.jsonl", 3, 31);
        let more = ["--samples", "24", "--context", "40", "--calibration", text(&calibration)];
        let measured = ["--evaluate-on", text(&evaluation), "--bits", "8"];
        let (output, report) =
            quantize(folder.path(), &tiny(name), &[&WHOLE_ROWS[..], &more, &measured].concat());
        assert_eq!(report["linears"].as_array().unwrap().len(), linears, "{name}");
        assert_eq!(report["verification"]["linears"], linears);
        let experts = report["experts"].as_array().unwrap();
        assert_eq!(experts.len(), 2 * 4);
        let seen: u64 = experts.iter().map(|expert| expert["tokens"].as_u64().unwrap()).sum();
        // Each token takes two experts in each of two layers.
        assert_eq!(seen, 24 * 40 * 2 * 2);
        let notes = report["notes"].to_string();
        assert!(notes.contains("experts are solved on the tokens that are sent to them"), "{notes}");
        // What is written computes with packed experts: eight bits cost little, though some tokens go to
        // other experts.
        let divergence = report["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap();
        assert!(divergence < 0.05, "{name}: {divergence}");
        assert!(succeed(&["verify", text(&output)]).contains("verified"));
        assert!(succeed(&["inspect", text(&output)]).contains(name));
        let runtimes = report["runtimes"].to_string();
        assert!(runtimes.contains("holds all experts of a layer in one tensor"), "{runtimes}");
    }
}

#[test]
fn an_expert_that_saw_nothing_is_solved_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let calibration = tokens(folder.path(), "calibration.jsonl", 1, 3);
    let more = ["--recipe", "gptq", "--no-evaluate", "--calibration", text(&calibration)];
    let (_, report) = quantize(folder.path(), &tiny("qwen3_moe"), &[&WHOLE_ROWS[..], &more].concat());
    let experts = report["experts"].as_array().unwrap();
    let nothing: Vec<&Value> = experts.iter().filter(|expert| expert["tokens"] == 0).collect();
    assert!(!nothing.is_empty() && nothing.iter().all(|expert| expert["pooled_share"] == 1.0));
    assert!(report["linears"].as_array().unwrap().iter().all(|linear| linear["rung"] != "no data"));
    let notes = report["notes"].to_string();
    assert!(notes.contains("saw fewer than 128 tokens") && notes.contains("(0)"), "{notes}");
}

#[test]
fn more_windows_are_drawn_until_every_expert_has_its_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let calibration = tokens(folder.path(), "calibration.jsonl", 60, 20);
    let more = ["--samples", "2", "--context", "20", "--recipe", "gptq", "--no-evaluate"];
    let with = |least: &str| {
        let drawn = ["--calibration", text(&calibration), "--min-expert-tokens", least];
        quantize(folder.path(), &tiny("mixtral"), &[&WHOLE_ROWS[..], &more, &drawn].concat()).1
    };
    let report = with("60");
    let windows = report["calibration"]["windows"].as_u64().unwrap();
    assert!(windows > 2 && windows < 60, "{windows}");
    // The first layers are the original's but for their attention, so nearly all tokens go where they were counted.
    let fewest =
        report["experts"].as_array().unwrap().iter().map(|expert| expert["tokens"].as_u64().unwrap()).min();
    assert!(fewest.unwrap() >= 40, "{fewest:?}");
    assert!(report["notes"].to_string().contains("with these every expert sees 60 tokens"));
    let report = with("100000");
    assert_eq!(report["calibration"]["windows"], 60);
    assert!(report["notes"].to_string().contains("do not send every expert 100000 tokens"));
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let calibration = tokens(folder.path(), "calibration.jsonl", 5, 40);
    let written = |threads: &str| {
        let more = ["--no-evaluate", "--calibration", text(&calibration), "--threads", threads];
        let (output, _) = quantize(folder.path(), &tiny("qwen2_moe"), &[&WHOLE_ROWS[..], &more].concat());
        fs::read(output.join("model.safetensors")).unwrap()
    };
    assert!(written("1") == written("3"));
}

#[test]
fn what_experts_cannot_have_is_refused_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let recipe = folder.path().join("rotate.toml");
    fs::write(&recipe, "base = 'rtn'\ntransforms = ['rotate-values']\n").unwrap();
    let (mixture, dense) = (tiny("mixtral"), tiny("llama"));
    for (model, more, reason) in [
        (&mixture, ["--runs-on", "transformers"], "one tensor"),
        (&mixture, ["--to", "onnx"], "experts"),
        (&mixture, ["--target-bits", "4"], "experts"),
        (&mixture, ["--adapter-rank", "4"], "experts"),
        (&mixture, ["--recipe", text(&recipe)], "transforms know no experts"),
        (&mixture, ["--export-imatrix", "x.gguf"], "experts"),
        (&dense, ["--min-expert-tokens", "4"], "no experts"),
    ] {
        let mut arguments = vec!["quantize", text(model), "-o", text(&output), "--group-size", "16"];
        arguments.extend(more);
        let message = fail(1, &arguments);
        assert!(message.contains(reason) && !output.exists(), "{more:?}: {message}");
    }
}
