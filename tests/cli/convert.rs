//! `convert`: the same values in another format, or a reason.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;

use crate::run::{demo, fail, files, json, quantize, repository, succeed, text, with_tokenizer};

/// The demo model rounded to nearest, in `folder/out`.
fn rounded(folder: &Path, more: &[&str]) -> PathBuf {
    quantize(folder, &demo(), &[&["--recipe", "rtn", "--no-evaluate"], more].concat()).0
}

/// Converts `from` to `folder/name`; returns the output and the JSON report.
fn convert(from: &Path, to: &str, folder: &Path, more: &[&str]) -> (PathBuf, Value) {
    let output = folder.join(to.replace(':', "-"));
    let report = folder.join("convert.json");
    let arguments = ["convert", text(from), "--to", to, "-o", text(&output), "--export-json", text(&report)];
    let shown = succeed(&[&arguments[..], more].concat());
    assert!(shown.contains("verified") && shown.contains("linears exact"), "{shown}");
    succeed(&["verify", text(&output)]);
    (output, json(&report))
}

/// What a model computes, as bytes.
fn logits(model: &Path, folder: &Path) -> Vec<u8> {
    let file = folder.join("logits.safetensors");
    let windows = ["--evaluate-samples", "1", "--evaluate-context", "32"];
    let arguments = [&["evaluate", text(model), "--export-logits", text(&file)][..], &windows].concat();
    succeed(&arguments);
    std::fs::read(file).unwrap()
}

/// Largest difference of two exports of logits, over the largest logit.
fn difference(one: &[u8], other: &[u8]) -> f32 {
    let numbers = |file: &[u8]| -> Vec<f32> {
        let logits = SafeTensors::deserialize(file).unwrap();
        let bytes = logits.tensor("logits").unwrap().data().to_vec();
        bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    };
    let (one, other) = (numbers(one), numbers(other));
    assert_eq!(one.len(), other.len());
    let most = one.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    one.iter().zip(&other).map(|(one, other)| (one - other).abs() / most).fold(0.0, f32::max)
}

fn digests(output: &Path) -> Value {
    json(&output.join("quantc.json"))["linears"].clone()
}

#[test]
fn formats_that_hold_the_same_grids_hold_the_same_solution() {
    let folder = tempfile::tempdir().unwrap();
    let original = rounded(folder.path(), &[]);
    let expected = logits(&original, folder.path());
    let mut from = original.clone();
    for to in ["compressed-tensors", "gptq-v2", "awq", "gptq"] {
        let (output, report) = convert(&from, to, folder.path(), &[]);
        assert_eq!(report["exact"], 35, "{to}");
        assert_eq!(report["rounded"], serde_json::json!([]), "{to}");
        assert!(report["runtimes"].to_string().contains("\"loads\":true"), "{to}");
        assert!(logits(&output, folder.path()) == expected, "{to}");
        let config = json(&output.join("config.json"));
        let method = if to == "gptq-v2" { "gptq" } else { to };
        assert_eq!(config["quantization_config"]["quant_method"], method);
        from = output;
    }
    // There and back, it is what it was: the zero points that one format cannot do without are gone again.
    let weights = |output: &Path| std::fs::read(output.join("model.safetensors")).unwrap();
    assert_eq!(digests(&from), digests(&original));
    assert!(weights(&from) == weights(&original));
}

#[test]
fn descriptions_and_parts_of_the_source_do_not_survive() {
    let folder = tempfile::tempdir().unwrap();
    let original = rounded(folder.path(), &["--to", "mlx", "--asymmetric", "--group-size", "64"]);
    // Minimums are any numbers, so no grid with whole zero points has them.
    let output = folder.path().join("refused");
    let arguments = ["convert", text(&original), "--to", "gptq", "-o", text(&output)];
    assert!(fail(1, &arguments).contains("zero is between two codes"));
    let (output, report) = convert(&original, "compressed-tensors", folder.path(), &["--lossy"]);
    assert_eq!(report["exact"].as_u64().unwrap() + report["rounded"].as_array().unwrap().len() as u64, 35);
    let config = json(&output.join("config.json"));
    assert!(config.get("quantization").is_none(), "{config}");
    assert_eq!(config["quantization_config"]["quant_method"], "compressed-tensors");
    let listed = succeed(&["inspect", text(&output)]);
    assert!(!listed.contains("not part of"), "{listed}");
}

#[test]
fn every_format_goes_where_its_values_can_be_had() {
    let folder = tempfile::tempdir().unwrap();
    for (format, flags, to) in [
        ("gptq", &["--group-size", "32"][..], "gguf:q4_0"),
        ("gguf:q4_0", &[], "gptq"),
        ("gptq", &["--asymmetric"], "compressed-tensors"),
        ("awq", &["--asymmetric"], "gptq-v2"),
        ("gptq", &["--bits", "8"], "onnx"),
        ("onnx", &[], "gptq"),
        ("gguf:q5_0", &[], "mlx"),
        ("compressed-tensors", &["--bits", "5", "--group-size", "64"], "gptq"),
        ("nf4", &["--group-size", "64"], "gguf:f32"),
        ("nf4:double", &["--group-size", "64"], "nf4"),
        ("mlx:mxfp4", &[], "compressed-tensors:mxfp4"),
        ("mlx:nvfp4", &[], "compressed-tensors:nvfp4"),
        ("compressed-tensors:nvfp4", &[], "compressed-tensors:nvfp4"),
        ("compressed-tensors:int8", &[], "gptq"),
        ("gguf:q4_k_m", &[], "gguf:f32"),
    ] {
        let place = tempfile::tempdir().unwrap();
        let original = rounded(place.path(), &[&["--to", format], flags].concat());
        let (output, report) = convert(&original, to, folder.path(), &["--force"]);
        assert_eq!(report["exact"], 35, "{format} to {to}");
        let [found, expected] = [&output, &original].map(|model| logits(model, place.path()));
        // Kernels of other grids sum in other orders.
        let difference = difference(&found, &expected);
        assert!(difference < 1e-4, "{format} to {to}: {difference}");
    }
}

#[test]
fn published_four_bit_floats_are_the_same_in_llama_cpp_s_file() {
    let source = with_tokenizer(&repository().join("tests/data/mxfp4"));
    // llama.cpp rounds the ends of the ramp, which the report says; here so does the model.
    let mut config = json(&source.path().join("config.json"));
    config["rope_parameters"]["truncate"] = true.into();
    std::fs::write(source.path().join("config.json"), config.to_string()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (output, report) = convert(source.path(), "gguf:mxfp4", folder.path(), &[]);
    assert_eq!((&report["exact"], &report["rounded"]), (&(2 * 4 * 3).into(), &serde_json::json!([])));
    let window = folder.path().join("window.jsonl");
    std::fs::write(&window, "{\"input_ids\": [5, 9, 63, 2, 17, 40, 8, 33, 21, 0, 50, 11]}\n").unwrap();
    let [found, expected] = [&output, source.path()].map(|model| {
        let file = folder.path().join("logits.safetensors");
        let windows = ["--evaluate-samples", "1", "--evaluate-context", "12"];
        let from = ["evaluate", text(model), "--evaluate-on", text(&window), "--export-logits", text(&file)];
        succeed(&[&from[..], &windows].concat());
        std::fs::read(file).unwrap()
    });
    let difference = difference(&found, &expected);
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn what_a_format_cannot_hold_is_refused_or_rounded_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let mixed = rounded(folder.path(), &["--to", "gguf:q4_k_m"]);
    let output = folder.path().join("refused");
    let arguments = ["convert", text(&mixed), "--to", "gptq", "-o", text(&output)];
    let message = fail(1, &arguments);
    for words in ["35 tensors", "q_proj", "and 31 more", "in gptq", "of its norm", "hint: --lossy"] {
        assert!(message.contains(words), "`{words}` is missing from: {message}");
    }
    assert!(!output.exists());
    let (output, report) = convert(&mixed, "gptq", folder.path(), &["--lossy"]);
    let rounded = report["rounded"].as_array().unwrap();
    assert_eq!(rounded.len(), 35);
    let difference = |row: &Value| row["relative_difference"].as_f64().unwrap();
    assert!(rounded.iter().all(|row| (1e-6..0.1).contains(&difference(row))), "{rounded:?}");
    assert_eq!(digests(&output).as_object().unwrap().len(), 35);
    // Half precision holds neither the linears' values nor the embedding's.
    let arguments = ["convert", text(&mixed), "--to", "gguf:f16", "-o", text(&output), "--force"];
    assert!(fail(1, &arguments).contains("F16"));
}

#[test]
fn a_file_that_stands_alone_takes_nothing_along() {
    let folder = tempfile::tempdir().unwrap();
    let original = rounded(folder.path(), &["--to", "gguf:q4_0"]);
    let alone = tempfile::tempdir().unwrap();
    let file = alone.path().join("alone.gguf");
    std::fs::copy(original.join("model-q4_0.gguf"), &file).unwrap();
    std::fs::write(alone.path().join("diary.txt"), "none of the model's").unwrap();
    let (output, report) = convert(&file, "compressed-tensors", folder.path(), &[]);
    assert_eq!(files(&output), ["README.md", "config.json", "model.safetensors", "quantc.json"]);
    assert!(report["notes"].to_string().contains("tokenizer.json"), "{}", report["notes"]);
    let config = json(&output.join("config.json"));
    assert_eq!(config["architectures"][0], "LlamaForCausalLM");
    assert!(config["eos_token_id"].is_u64() && config["dtype"] == "bfloat16", "{config}");
    let output = folder.path().join("refused");
    let message = fail(1, &["convert", text(&file), "--to", "gguf:f32", "-o", text(&output)]);
    assert!(message.contains("alone.gguf") && message.contains("tokenizer.json"), "{message}");
}

#[test]
fn mistakes_are_named_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let three = rounded(folder.path(), &["--bits", "3"]);
    let before = files(folder.path());
    let output = folder.path().join("new");
    let refused = |model: &Path, output: &Path, more: &[&str], words: &[&str]| {
        let message = fail(1, &[&["convert", text(model), "-o", text(output)], more].concat());
        for word in words {
            assert!(message.contains(word), "`{word}` is missing from: {message}");
        }
        assert_eq!(files(folder.path()), before);
    };
    let awq = ["q_proj", "3 bits, expected 4", "compressed-tensors"];
    refused(&three, &output, &["--to", "awq"], &awq);
    refused(&three, &output, &["--to", "awq", "--lossy"], &awq);
    refused(&three, &output, &["--to", "awk"], &["awk", "gptq"]);
    refused(&demo(), &output, &["--to", "gptq"], &["no linear", "quantc quantize"]);
    refused(&folder.path().join("nowhere"), &output, &["--to", "gptq"], &["does not exist"]);
    refused(&three, &three, &["--to", "gptq"], &["exists already", "--force"]);
    refused(&three, &three, &["--to", "gptq", "--force"], &["would be replaced"]);
    refused(&three, folder.path(), &["--to", "gptq", "--force"], &["hint"]);
    let inside = output.join("report.json");
    std::fs::create_dir(&output).unwrap();
    let arguments =
        ["convert", text(&three), "--to", "gptq-v2", "-o", text(&output), "--export-json", text(&inside)];
    assert!(fail(1, &arguments).contains("is in the output"));
}
