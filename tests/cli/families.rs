//! Every known family, on its tiny checkpoint: quantized, verified, measured; and models that are not known.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json as object};
use tempfile::TempDir;

use crate::run::{copy, fail, json, repository, succeed, text, tiny};

fn families() -> Vec<String> {
    let folders = fs::read_dir(repository().join("tests/data/hf_tiny")).unwrap().map(|entry| entry.unwrap());
    let names = folders.filter(|entry| entry.path().join("config.json").exists());
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Windows of tokens of the tiny vocabulary: the tiny models have no tokenizer.
fn tokens(folder: &Path) -> PathBuf {
    let path = folder.join("tokens.jsonl");
    let line = |w: usize| {
        let ids: Vec<usize> = (0..32).map(|i| (w * 17 + i * i * 3 + i * w) % 64).collect();
        format!("{{\"input_ids\": {ids:?}}}\n")
    };
    fs::write(&path, (0..12).map(line).collect::<String>()).unwrap();
    path
}

/// What every run is given beside the model.
fn windows(tokens: &Path) -> Vec<&str> {
    vec!["--calibration", text(tokens), "--samples", "8", "--context", "32", "--group-size", "16"]
}

#[test]
fn every_family_is_quantized_verified_and_measured() {
    for name in families() {
        let folder = tempfile::tempdir().unwrap();
        let (tokens, out) = (tokens(folder.path()), folder.path().join("out"));
        let stored = json(&tiny(&name).join("config.json"));
        // Mixtures of experts have tests of their own.
        if ["num_experts", "num_local_experts", "n_routed_experts"].iter().any(|key| stored[key].is_u64()) {
            continue;
        }
        // Linears of other classes than the usual are loaded in one format alone.
        let formats: &[&str] = if stored["model_type"] == "gpt2" || stored["model_type"] == "falcon" {
            &["gptq"]
        } else {
            &["gptq", "compressed-tensors"]
        };
        let (model, several) = (tiny(&name), formats.join(","));
        let mut arguments =
            vec!["quantize", text(&model), "-o", text(&out), "--to", &several, "--no-evaluate"];
        arguments.extend(windows(&tokens));
        succeed(&arguments);
        for format in formats {
            let out = if formats.len() == 1 { out.clone() } else { out.join(format) };
            succeed(&["verify", text(&out)]);
            let report = folder.path().join("evaluation.json");
            succeed(&[
                "evaluate",
                text(&out),
                "--reference",
                text(&model),
                "--evaluate-on",
                text(&tokens),
                "--evaluate-samples",
                "4",
                "--evaluate-context",
                "32",
                "--export-json",
                text(&report),
            ]);
            let divergence = json(&report)["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap();
            assert!((1e-6..0.5).contains(&divergence), "{name} in {format}: {divergence}");
        }
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (tokens, out) = (tokens(folder.path()), folder.path().join("out"));
    for (name, format, word) in [
        ("gpt2", "compressed-tensors", "in_features"),
        ("glm", "onnx", "gate and up"),
        ("phi2", "onnx", "parallel"),
        ("gemma2", "onnx", "RMS norm"),
        ("granite", "onnx", "factors"),
        ("gptj", "gguf:f16", "llama.cpp"),
    ] {
        let model = tiny(name);
        let mut arguments = vec!["quantize", text(&model), "-o", text(&out), "--to", format, "--no-evaluate"];
        arguments.extend(windows(&tokens));
        if format == "gguf:f16" {
            arguments.truncate(arguments.len() - 2);
        }
        let message = fail(1, &arguments);
        assert!(message.contains(word), "{name}: {message}");
    }
}

/// A tiny checkpoint with other tensor names and, beside them, more tensors.
fn renamed(
    name: &str,
    config: &Value,
    rename: &dyn Fn(&str) -> String,
    more: &[(&str, Vec<usize>)],
) -> TempDir {
    let model = copy(&tiny(name));
    fs::write(model.path().join("config.json"), config.to_string()).unwrap();
    let path = model.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let zeros = vec![7_u8; 1 << 16];
    let own = file.tensors().into_iter().map(|(name, view)| {
        (rename(&name), TensorView::new(view.dtype(), view.shape().to_vec(), view.data()).unwrap())
    });
    let more = more.iter().map(|(name, shape)| {
        let length = 4 * shape.iter().product::<usize>();
        ((*name).to_owned(), TensorView::new(Dtype::F32, shape.clone(), &zeros[..length]).unwrap())
    });
    let written = safetensors::serialize(own.chain(more), None).unwrap();
    fs::write(path, written).unwrap();
    model
}

#[test]
fn a_text_tower_is_quantized_and_the_rest_carried_over_and_listed() {
    let own = json(&tiny("gemma3").join("config.json"));
    let config = object!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": own,
        "vision_config": {"hidden_size": 8}, "tie_word_embeddings": true, "dtype": "float32"
    });
    let vision = ("vision_tower.encoder.layers.0.fc1.weight", vec![8, 16]);
    let model =
        renamed("gemma3", &config, &|name| format!("language_model.{name}"), std::slice::from_ref(&vision));
    let folder = tempfile::tempdir().unwrap();
    let (tokens, out) = (tokens(folder.path()), folder.path().join("out"));
    let mut arguments = vec![
        "quantize",
        text(model.path()),
        "-o",
        text(&out),
        "--to",
        "compressed-tensors",
        "--no-evaluate",
        "--recipe",
        "gptq",
    ];
    arguments.extend(windows(&tokens));
    let said = succeed(&arguments);
    assert!(said.contains(vision.0), "{said}");
    succeed(&["verify", text(&out)]);
    let written = json(&out.join("config.json"));
    assert_eq!(written["text_config"]["model_type"], "gemma3_text");
    let ignored = written["quantization_config"]["ignore"].as_array().unwrap();
    assert!(ignored.iter().any(|module| *module == vision.0.trim_end_matches(".weight")), "{ignored:?}");
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert!(file.tensor(vision.0).unwrap().data().iter().all(|&byte| byte == 7));
    assert!(file.tensor("language_model.model.layers.0.self_attn.q_proj.weight_packed").is_ok());
}

#[test]
fn layers_that_predict_further_tokens_are_carried_over_and_listed() {
    let config = json(&tiny("deepseek_v3").join("config.json"));
    let further = ("model.layers.2.eh_proj.weight", vec![32, 64]);
    let model = renamed("deepseek_v3", &config, &str::to_owned, std::slice::from_ref(&further));
    let folder = tempfile::tempdir().unwrap();
    let (tokens, out) = (tokens(folder.path()), folder.path().join("out"));
    let mut arguments = vec![
        "quantize",
        text(model.path()),
        "-o",
        text(&out),
        "--to",
        "compressed-tensors",
        "--no-evaluate",
        "--recipe",
        "gptq",
    ];
    // Inner features of the experts fill no group.
    arguments.extend(windows(&tokens).into_iter().map(|word| if word == "16" { "channel" } else { word }));
    let said = succeed(&arguments);
    assert!(said.contains(further.0), "{said}");
    succeed(&["verify", text(&out)]);
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert!(file.tensor(further.0).unwrap().data().iter().all(|&byte| byte == 7));
    assert!(file.tensor("model.layers.1.self_attn.kv_b_proj.weight_packed").is_ok());
    assert_eq!(
        file.tensor("model.layers.1.mlp.gate.e_score_correction_bias").unwrap().dtype(),
        safetensors::Dtype::F32
    );
}

#[test]
fn an_unknown_architecture_is_compared_with_the_known_ones_and_can_be_described() {
    let mut config = json(&tiny("gemma2").join("config.json"));
    config["model_type"] = object!("ours");
    let same = |name: &str| name.to_owned();
    let model = renamed("gemma2", &config, &same, &[("model.layers.0.self_attn.gain", vec![8])]);
    let message = fail(1, &["inspect", text(model.path())]);
    for word in
        ["unknown architecture `ours`", "`gemma2`", "24 tensors 24", "self_attn.gain", "--architecture"]
    {
        assert!(message.contains(word), "`{word}` is missing from: {message}");
    }

    let model = renamed("gemma2", &config, &|name| name.replace("mlp.up_proj", "mlp.wide"), &[]);
    let folder = tempfile::tempdir().unwrap();
    let tokens = tokens(folder.path());
    let description = folder.path().join("ours.toml");
    fs::write(
        &description,
        "base = \"gemma2\"\nmodel_type = \"ours\"\n[layer.mlp.gated]\ngate = \"mlp.gate_proj\"\nup = \"mlp.wide\"\ndown = \"mlp.down_proj\"\n",
    )
    .unwrap();
    let perplexity = |model: &Path, more: &[&str]| {
        let report = folder.path().join("report.json");
        let mut arguments = vec![
            "evaluate",
            text(model),
            "--evaluate-on",
            text(&tokens),
            "--evaluate-context",
            "32",
            "--evaluate-samples",
            "4",
            "--export-json",
            text(&report),
        ];
        arguments.extend(more);
        succeed(&arguments);
        json(&report)["evaluation"]["original"]["perplexity"].clone()
    };
    let described = perplexity(model.path(), &["--architecture", text(&description)]);
    assert_eq!(described, perplexity(&tiny("gemma2"), &[]));
    fs::write(&description, "base = \"gemma2\"\nmodel_type = \"ours\"\nlayers = 3\n").unwrap();
    let message = fail(1, &["inspect", text(model.path()), "--architecture", text(&description)]);
    assert!(message.contains("ours.toml") && message.contains("integer"), "{message}");
}
