//! Mixtures of experts: every expert solved, whatever it saw, and the report that says what that was.

use std::fs;
use std::path::{Path, PathBuf};

use formats::Dtype;
use formats::container::{SafetensorsWriter, TensorData, TensorSpec};
use kernels::random::SplitMix;
use model::Model;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::run::{copy, demo, fail, quantize, repository, succeed, text, tiny};

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
    for (name, layers, linears) in [
        ("mixtral", 2, 2 * (4 + 12)),
        ("qwen2_moe", 2, 2 * (4 + 3 + 12)),
        ("qwen3_moe", 2, 2 * (4 + 12)),
        // The first layer is dense.
        ("deepseek_v2", 1, 2 * 4 + 3 + 3 + 12),
        ("deepseek_v3", 1, 2 * 5 + 3 + 3 + 12),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let calibration = tokens(folder.path(), "calibration.jsonl", 24, 40);
        let evaluation = tokens(folder.path(), "evaluation.jsonl", 3, 31);
        let more = ["--samples", "24", "--context", "40", "--calibration", text(&calibration)];
        let measured = ["--evaluate-on", text(&evaluation), "--bits", "8"];
        // No runtime takes GPTQ of experts with such names and so few features.
        let format = ["--to", if name == "mixtral" { "compressed-tensors" } else { "gptq" }];
        let (output, report) =
            quantize(folder.path(), &tiny(name), &[&WHOLE_ROWS[..], &more, &measured, &format].concat());
        assert_eq!(report["linears"].as_array().unwrap().len(), linears, "{name}");
        assert_eq!(report["verification"]["linears"], linears);
        let experts = report["experts"].as_array().unwrap();
        assert_eq!(experts.len(), layers * 4);
        let seen: u64 = experts.iter().map(|expert| expert["tokens"].as_u64().unwrap()).sum();
        // Each token takes two experts in each of these layers.
        assert_eq!(seen, (24 * 40 * 2 * layers) as u64);
        let notes = report["notes"].to_string();
        assert!(notes.contains("experts are solved on the tokens that are sent to them"), "{notes}");
        // What is written computes with packed experts: eight bits cost little, though some tokens go to
        // other experts.
        let divergence = report["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap();
        assert!(divergence < 0.05, "{name}: {divergence}");
        assert!(succeed(&["verify", text(&output)]).contains("verified"));
        assert!(succeed(&["inspect", text(&output)]).contains(name));
        let runtimes = report["runtimes"].to_string();
        let held = runtimes.contains("holds all experts of a layer in one tensor");
        assert_eq!(held, name != "mixtral", "{runtimes}");
    }
}

#[test]
fn the_loss_that_is_predicted_is_about_what_comes() {
    for name in ["qwen2_moe", "qwen3_moe", "deepseek_v3", "mixtral"] {
        let folder = tempfile::tempdir().unwrap();
        let calibration = tokens(folder.path(), "calibration.jsonl", 24, 40);
        let evaluation = tokens(folder.path(), "evaluation.jsonl", 12, 39);
        let asked = |bits| {
            let texts = ["--samples", "24", "--context", "40", "--calibration", text(&calibration)];
            let grid = ["--recipe", "gptq", "--bits", bits, "--to", "compressed-tensors"];
            [&texts[..], &grid, &WHOLE_ROWS].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let predicted = |bits| {
            let (model, plan) = (tiny(name), folder.path().join("plan.json"));
            let asked = asked(bits);
            let more: Vec<&str> = asked.iter().map(String::as_str).collect();
            succeed(
                &[&["plan", text(&model), "--calibrate", "--export-json", text(&plan)], &more[..]].concat(),
            );
            crate::run::json(&plan)["models"][0]["predicted_kl"].as_f64().unwrap()
        };
        let (three, four) = (predicted("3"), predicted("4"));
        assert!(three > 2.0 * four && four > 0.0, "{name}: {three} {four}");
        let asked = asked("4");
        let more: Vec<&str> = asked.iter().map(String::as_str).collect();
        let measured = ["--evaluate-on", text(&evaluation)];
        let (_, report) = quantize(folder.path(), &tiny(name), &[&more[..], &measured].concat());
        let found = report["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap();
        let ratio = four / found;
        assert!((0.5..2.0).contains(&ratio), "{name}: predicted {four}, found {found}");
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
        quantize(folder.path(), &tiny("qwen3_moe"), &[&WHOLE_ROWS[..], &more, &drawn].concat()).1
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
        (&mixture, ["--to", "onnx"], "no graph of experts"),
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

#[test]
fn experts_in_four_bit_floats_are_read_and_written_for_those_who_know_them() {
    let model = repository().join("tests/data/mxfp4");
    let golden = crate::run::json(&model.join("golden.json"));
    let folder = tempfile::tempdir().unwrap();
    let window = folder.path().join("window.jsonl");
    fs::write(&window, format!("{{\"input_ids\": {}}}\n", golden["input_ids"])).unwrap();
    let (logits, report) = (folder.path().join("logits.safetensors"), folder.path().join("report.json"));
    let texts = ["--evaluate-on", text(&window), "--evaluate-samples", "1", "--evaluate-context", "12"];
    succeed(&[&["evaluate", text(&model)], &texts[..], &["--export-logits", text(&logits)]].concat());
    let bytes = fs::read(&logits).unwrap();
    let found = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let found = found
        .tensor("logits")
        .unwrap()
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let expected = golden["logits"].as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap());
    let mut count = 0;
    for (found, expected) in found.zip(expected) {
        let expected = expected.as_f64().unwrap();
        assert!((f64::from(found) - expected).abs() < 1e-4, "{count}: {found} {expected}");
        count += 1;
    }
    assert_eq!(count, 12 * 64);

    let calibration = tokens(folder.path(), "calibration.jsonl", 8, 32);
    let output = folder.path().join("out");
    let mut arguments =
        vec!["quantize", text(&model), "-o", text(&output), "--calibration", text(&calibration)];
    arguments.extend([
        "--samples",
        "8",
        "--context",
        "32",
        "--group-size",
        "32",
        "--bits",
        "8",
        "--recipe",
        "gptq",
    ]);
    arguments.extend(["--export-json", text(&report)]);
    arguments.extend(texts);
    arguments.extend(["--to", "mlx"]);
    succeed(&arguments);
    assert!(succeed(&["verify", text(&output)]).contains("verified"));
    let report = crate::run::json(&report);
    assert_eq!(report["linears"].as_array().unwrap().len(), 2 * (4 + 12));
    assert!(report["notes"].to_string().contains("mxfp4"), "{}", report["notes"]);
    let divergence = report["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap();
    assert!(divergence < 0.02, "{divergence}");
    let bytes = fs::read(output.join("model.safetensors")).unwrap();
    let written = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| written.tensor(name).unwrap().shape().to_vec();
    assert_eq!(shape("model.layers.1.mlp.experts.gate_proj.scales"), [4, 96, 2]);
    assert_eq!(shape("model.layers.1.mlp.experts.down_proj.bias"), [4, 64]);
    assert_eq!(shape("model.layers.0.self_attn.sinks"), [4]);
    assert!(written.names().iter().all(|name| !name.contains("_blocks") && !name.contains("_scales")));
}

#[test]
fn gate_and_up_by_turns_are_refused_where_a_runtime_would_take_them_for_halves() {
    let folder = tempfile::tempdir().unwrap();
    let (model, output) = (tiny("gpt_oss"), folder.path().join("out"));
    for format in ["gptq", "awq", "compressed-tensors", "nf4"] {
        let message = fail(
            1,
            &[
                "quantize",
                text(&model),
                "-o",
                text(&output),
                "--to",
                format,
                "--group-size",
                "32",
                "--recipe",
                "rtn",
            ],
        );
        assert!(message.contains("no runtime could load"), "{message}");
        assert_eq!(message.contains("by turns"), format != "nf4", "{message}");
        assert!(!output.exists());
    }
}

/// A small mixture of random weights with the demo's tokenizer, wide enough for every format's groups.
fn small(config: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(demo().join(name), folder.path().join(name)).unwrap();
    }
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let model = Model::resolve(config).unwrap();
    let spec = |tensor: model::graph::ExpectedTensor| TensorSpec {
        name: tensor.name,
        dtype: Dtype::Bf16,
        shape: tensor.shape,
    };
    let specs: Vec<TensorSpec> = model.expected_tensors().map(spec).collect();
    let mut writer = SafetensorsWriter::create(folder.path(), &specs, u64::MAX, "pt").unwrap();
    for (seed, spec) in specs.iter().enumerate() {
        let mut random = SplitMix::new(seed as u64);
        let center = f32::from(spec.shape.len() == 1);
        let count = spec.shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| center + 0.15 * random.normal() as f32).collect();
        let bytes = Dtype::Bf16.encode(&values).unwrap();
        writer.put(&TensorData { name: spec.name.clone(), bytes }).unwrap();
    }
    writer.finish().unwrap();
    folder
}

fn small_config(model_type: &str, class: &str) -> Value {
    let vocabulary = crate::run::json(&demo().join("config.json"))["vocab_size"].clone();
    json!({
        "architectures": [class], "model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 96, "num_experts": 5, "num_local_experts": 5, "num_experts_per_tok": 2, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": vocabulary, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu", "dtype": "bfloat16",
        "norm_topk_prob": model_type != "qwen2_moe", "bos_token_id": 0, "eos_token_id": 1
    })
}

#[test]
fn experts_lie_stacked_where_runtimes_want_them_so() {
    for (model_type, class) in [
        ("qwen3_moe", "Qwen3MoeForCausalLM"),
        ("qwen2_moe", "Qwen2MoeForCausalLM"),
        ("mixtral", "MixtralForCausalLM"),
    ] {
        let model = small(&small_config(model_type, class));
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out");
        let asked = ["--recipe", "rtn", "--bits", "8", "--group-size", "32", "--to", "gguf:q8_0,mlx"];
        let texts = ["--evaluate-samples", "2", "--evaluate-context", "64"];
        let mut arguments = vec!["quantize", text(model.path()), "-o", text(&output)];
        arguments.extend(asked.iter().chain(&texts));
        succeed(&arguments);
        let mlx = fs::read(output.join("mlx-8bit/model.safetensors"))
            .or_else(|_| fs::read(output.join("mlx/model.safetensors")));
        let mlx = mlx.unwrap();
        let found = safetensors::SafeTensors::deserialize(&mlx).unwrap();
        let stack =
            found.names().into_iter().find(|name| name.ends_with("layers.1.mlp.switch_mlp.up_proj.scales"));
        let stack =
            stack.or(found.names().into_iter().find(|name| name.ends_with("switch_mlp.up_proj.scales")));
        assert_eq!(
            found.tensor(stack.unwrap()).unwrap().shape(),
            [5, if model_type == "mixtral" { 96 } else { 64 }, 2]
        );
        for entry in fs::read_dir(&output).unwrap() {
            let written = entry.unwrap().path();
            if !written.is_dir() {
                continue;
            }
            let report = folder.path().join("evaluation.json");
            let more = ["--reference", text(model.path()), "--export-json", text(&report)];
            let evaluated = [&["evaluate", text(&written)], &more[..], &texts].concat();
            succeed(&evaluated);
            let divergence = &crate::run::json(&report)["evaluation"]["quantized"]["kl_mean"];
            assert!(divergence.as_f64().unwrap() < 0.03, "{}: {divergence}", written.display());
        }
        // Experts of two types have no place in one tensor.
        let other = folder.path().join("other");
        let kept = ["--exclude", r"experts\.3\.", "--to", "gguf:q8_0", "--recipe", "rtn"];
        let message = fail(1, &[&["quantize", text(model.path()), "-o", text(&other)], &kept[..]].concat());
        assert!(message.contains("needs one scheme for all experts of a layer"), "{message}");
    }
}

#[test]
fn experts_in_one_tensor_are_those_in_many() {
    let fused = copy(&tiny("mixtral"));
    let path = fused.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let old = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let config = crate::run::json(&fused.path().join("config.json"));
    let stacks = Model::resolve(&config).unwrap().fused_experts();
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, view) in old.tensors() {
        if !stacks.values().flatten().any(|member| *member == name) {
            tensors.push((name, view.shape().to_vec(), view.data().to_vec()));
        }
    }
    for (stack, members) in &stacks {
        let parts: Vec<_> = members.iter().map(|member| old.tensor(member).unwrap()).collect();
        let shape = parts[0].shape();
        let data: Vec<u8> = parts.iter().flat_map(safetensors::tensor::TensorView::data).copied().collect();
        tensors.push((stack.clone(), vec![4, parts.len() / 4 * shape[0], shape[1]], data));
    }
    let views = tensors.iter().map(|(name, shape, data)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data);
        (name.clone(), view.unwrap())
    });
    let meta = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    fs::write(&path, safetensors::serialize(views, Some(meta)).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let written = |model: &Path| {
        let more = ["--recipe", "rtn", "--no-evaluate", "--to", "compressed-tensors"];
        let (output, _) = quantize(folder.path(), model, &[&WHOLE_ROWS[..], &more].concat());
        fs::read(output.join("model.safetensors")).unwrap()
    };
    assert!(written(fused.path()) == written(&tiny("mixtral")));
}
