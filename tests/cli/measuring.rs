//! `evaluate`: the same figures by every road.

use crate::run::{SMALL, demo, json, quantize, succeed, text};

const WINDOWS: [&str; 4] = ["--evaluate-samples", "4", "--evaluate-context", "96"];

#[test]
fn a_model_does_not_diverge_from_itself() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut arguments =
        vec!["evaluate", text_of_demo(), "--reference", text_of_demo(), "--export-json", text(&report)];
    arguments.extend(WINDOWS);
    succeed(&arguments);
    let evaluation = &json(&report)["evaluation"];
    assert!(evaluation["quantized"]["kl_mean"].as_f64().unwrap().abs() < 1e-9, "{evaluation}");
    assert_eq!(evaluation["quantized"]["top1_agreement"], 1.0);
    assert_eq!(evaluation["quantized"]["perplexity"], evaluation["original"]["perplexity"]);
}

#[test]
fn evaluate_repeats_the_figures_of_quantize() {
    for format in ["gptq", "compressed-tensors"] {
        let folder = tempfile::tempdir().unwrap();
        let (output, first) = quantize(folder.path(), &demo(), &["--to", format, "--recipe", "gptq"]);
        let report = folder.path().join("again.json");
        let mut arguments = vec!["evaluate", text(&output), "--reference", text_of_demo()];
        arguments.extend(["--export-json", text(&report)]);
        arguments.extend(&SMALL[4..]);
        succeed(&arguments);
        assert_eq!(first["evaluation"], json(&report)["evaluation"]);
    }
}

#[test]
fn logits_are_exported_for_other_programs_to_compare() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("logits.safetensors");
    succeed(&[
        "evaluate",
        text_of_demo(),
        "--evaluate-samples",
        "2",
        "--evaluate-context",
        "16",
        "--export-logits",
        text(&file),
    ]);
    let bytes = std::fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("logits").unwrap().shape(), [2, 16, 2048]);
}

fn text_of_demo() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/demo/model")
}

#[test]
fn the_demo_model_scores_what_the_reference_implementation_scored() {
    assert!(demo().is_dir());
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let arguments = ["evaluate", text_of_demo(), "--evaluate-samples", "128", "--export-json", text(&report)];
    succeed(&arguments);
    let evaluation = &json(&report)["evaluation"];
    // transformers 5.23 in f32, 128 windows of 256 tokens: 40.135.
    let perplexity = evaluation["original"]["perplexity"].as_f64().unwrap();
    assert!((perplexity - 40.135).abs() < 0.002, "{perplexity}");
}
