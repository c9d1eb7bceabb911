//! `--adapter-rank`: a correction beside an output that stands without it.

use std::fs;

use crate::run::{copy, demo, fail, json, quantize, succeed, text};

fn relative_losses(report: &serde_json::Value, key: &str) -> Vec<f64> {
    let linears = report["linears"].as_array().unwrap();
    linears.iter().map(|linear| linear[key].as_f64().unwrap()).collect()
}

#[test]
fn an_adapter_lowers_the_divergence_and_leaves_the_output_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let windows = ["--bits", "3", "--samples", "24", "--evaluate-samples", "16"];
    let (output, plain) = quantize(folder.path(), &demo(), &windows);
    let before = fs::read(output.join("model.safetensors")).unwrap();
    let (output, report) =
        quantize(folder.path(), &demo(), &[&windows[..], &["--adapter-rank", "16"]].concat());
    assert_eq!(fs::read(output.join("model.safetensors")).unwrap(), before);
    assert_eq!(report["evaluation"]["quantized"], plain["evaluation"]["quantized"]);
    let kl = |key: &str| report["evaluation"][key]["kl_mean"].as_f64().unwrap();
    assert!(kl("adapted") < 0.95 * kl("quantized"), "{} and {}", kl("adapted"), kl("quantized"));
    let (with, without) =
        (relative_losses(&report, "adapted_relative_loss"), relative_losses(&report, "relative_loss"));
    assert!(with.iter().zip(&without).all(|(with, without)| with < without), "{with:?} {without:?}");
    assert_eq!(report["adapter"]["rank"], 16);

    let config = json(&output.join("adapter/adapter_config.json"));
    assert_eq!(
        (&config["peft_type"], &config["r"], &config["lora_alpha"]),
        (&"LORA".into(), &16.into(), &16.into())
    );
    assert_eq!(config["target_modules"].as_array().map(Vec::len), Some(35));
    let bytes = fs::read(output.join("adapter/adapter_model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let name = "base_model.model.model.layers.2.mlp.down_proj.lora_";
    assert_eq!(tensors.tensor(&format!("{name}A.weight")).unwrap().shape(), [16, 768]);
    let up = tensors.tensor(&format!("{name}B.weight")).unwrap();
    assert_eq!((up.shape(), up.dtype()), (&[256, 16][..], safetensors::Dtype::BF16));

    // Verified with the rest, and measured again.
    succeed(&["verify", text(&output)]);
    let again = folder.path().join("again.json");
    let (adapter, model) = (output.join("adapter"), demo());
    let mut arguments = vec!["evaluate", text(&output), "--adapter", text(&adapter)];
    arguments.extend(["--reference", text(&model), "--export-json", text(&again)]);
    arguments.extend(["--evaluate-samples", "16", "--evaluate-context", "96"]);
    assert!(succeed(&arguments).contains("with adapter"));
    assert_eq!(json(&again)["evaluation"], report["evaluation"]);
    let path = output.join("adapter/adapter_model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(fail(3, &["verify", text(&output)]).contains("adapter/adapter_model.safetensors"));
}

#[test]
fn rounding_to_nearest_is_corrected_without_any_text() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--recipe", "rtn", "--bits", "2", "--adapter-rank", "8", "--exclude", "q_proj|k_proj|v_proj"];
    let (output, report) = quantize(folder.path(), &demo(), &more);
    let kl = |key: &str| report["evaluation"][key]["kl_mean"].as_f64().unwrap();
    assert!(kl("adapted") < kl("quantized"));
    let config = json(&output.join("adapter/adapter_config.json"));
    assert_eq!(config["target_modules"].as_array().map(Vec::len), Some(20));
}

#[test]
fn ranks_and_adapters_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let model = demo();
    for rank in ["0", "129"] {
        let message = fail(1, &["quantize", text(&model), "-o", text(&output), "--adapter-rank", rank]);
        assert!(message.contains("--adapter-rank") && message.contains("1 to 128") && message.contains(rank));
        assert!(!output.exists());
    }
    let evaluate = |adapter: &str| fail(1, &["evaluate", text(&model), "--adapter", adapter]);
    assert!(evaluate("no/such").contains("no/such"));
    let (output, _) =
        quantize(folder.path(), &demo(), &["--recipe", "rtn", "--adapter-rank", "4", "--no-evaluate"]);
    let adapter = copy(&output.join("adapter"));
    let path = adapter.path().join("adapter_config.json");
    let mut config = json(&path);
    config["use_dora"] = true.into();
    fs::write(&path, config.to_string()).unwrap();
    assert!(evaluate(text(adapter.path())).contains("use_dora"));
    config["use_dora"] = false.into();
    config["r"] = 5.into();
    fs::write(&path, config.to_string()).unwrap();
    let message = evaluate(text(adapter.path()));
    assert!(message.contains("lora_A") && message.contains("[5, 256]"), "{message}");
}
