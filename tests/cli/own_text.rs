//! `--calibration self`: the model writes the text that it is calibrated on.

use serde_json::Value;

use crate::run::{demo, fail, quantize, text, tiny};

const OWN: [&str; 5] = ["--calibration", "self", "--no-evaluate", "--recipe", "gptq"];

#[test]
fn the_model_writes_as_many_windows_as_asked_for_the_same_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let calibration = |more: &[&str]| -> Value {
        let (_, report) = quantize(folder.path(), &demo(), &[&OWN, more].concat());
        assert!(report["phases"].to_string().contains("writing text"), "{}", report["phases"]);
        report["calibration"].clone()
    };
    let first = calibration(&["--threads", "1"]);
    let name = first["text"].as_str().unwrap();
    assert!(name.contains("the model wrote from its beginning token") && name.contains("seed 0"), "{name}");
    assert_eq!((first["windows"].as_u64(), first["tokens"].as_u64()), (Some(6), Some(6 * 96)));
    assert_eq!(calibration(&["--threads", "3"]), first);
    assert_ne!(calibration(&["--seed", "1"])["fingerprint"], first["fingerprint"]);
}

#[test]
fn what_the_model_writes_calibrates_it() {
    let folder = tempfile::tempdir().unwrap();
    let kl = |more: &[&str]| {
        let more = [&["--bits", "3"], more].concat();
        let (_, report) = quantize(folder.path(), &demo(), &more);
        report["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap()
    };
    let (own, none) = (kl(&["--calibration", "self", "--recipe", "gptq"]), kl(&["--recipe", "rtn"]));
    assert!(own < 0.8 * none, "own text {own}, no text {none}");
}

#[test]
fn a_model_without_a_tokenizer_writes_too() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama", "qwen3"] {
        let (_, report) = quantize(folder.path(), &tiny(name), &[&OWN[..], &["--group-size", "16"]].concat());
        assert_eq!(report["calibration"]["windows"], 6, "{name}");
    }
}

#[test]
fn text_that_nobody_needs_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--calibration", "self", "--no-evaluate", "--recipe", "rtn"];
    let (_, report) = quantize(folder.path(), &demo(), &more);
    assert!(report["notes"].to_string().contains("wrote no text"), "{}", report["notes"]);
    assert!(report["calibration"].is_null());
}

#[test]
fn a_file_called_self_is_named_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let message = fail(
        1,
        &["quantize", text(&demo()), "-o", text(&output), "--calibration", "./self", "--no-evaluate"],
    );
    assert!(message.contains("./self"), "{message}");
}
