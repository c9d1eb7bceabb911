//! `quantize`: what is written, what is reported, what does not change it.

use std::fs;

use serde_json::Value;

use crate::run::{copy, demo, fail, files, json, quantc, quantize, repository, succeed, text, tiny};

#[test]
fn the_readme_command_writes_a_checkpoint_with_every_side_file_and_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let (output, report) = quantize(folder.path(), &demo(), &[]);
    let written = files(&output);
    for name in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "quantc.json",
        "quantize_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        assert!(written.iter().any(|file| file == name), "{name} is missing from {written:?}");
    }
    let config = json(&output.join("config.json"));
    assert_eq!(config["quantization_config"]["quant_method"], "gptq");
    assert_eq!(config["quantization_config"]["desc_act"], false);
    assert_eq!(config["dtype"], "bfloat16");

    let evaluation = &report["evaluation"];
    let original = evaluation["original"]["perplexity"].as_f64().unwrap();
    let quantized = &evaluation["quantized"];
    let perplexity = quantized["perplexity"].as_f64().unwrap();
    assert!((perplexity / original - 1.0).abs() < 0.05, "{original} -> {perplexity}");
    for key in ["perplexity_stderr", "kl_mean", "kl_stderr", "kl_p99", "top1_agreement"] {
        assert!(quantized[key].as_f64().unwrap() > 0.0, "{key}");
    }
    assert!(quantized["kl_mean"].as_f64().unwrap() < 0.05);
    assert_eq!((evaluation["windows"].as_u64(), evaluation["context"].as_u64()), (Some(4), Some(96)));
    for key in ["wall_seconds", "cpu_seconds", "peak_rss_bytes"] {
        assert!(report["resources"][key].as_f64().unwrap() > 0.0, "{key}");
    }
    let account = report["account"].as_array().unwrap();
    let took = |name: &str| {
        let section = account.iter().find(|section| section["name"] == name);
        section.unwrap_or_else(|| panic!("{name} is not in {account:?}"))["cpu_seconds"].as_f64().unwrap()
    };
    for name in ["forward, original", "cross moments", "factorization", "range search", "solve", "verifying"]
    {
        assert!(took(name) > 0.0, "{name}");
    }
    // Nothing is counted twice or left out.
    let all: f64 = account.iter().map(|section| section["cpu_seconds"].as_f64().unwrap()).sum();
    let whole = report["resources"]["cpu_seconds"].as_f64().unwrap();
    assert!((all / whole - 1.0).abs() < 0.05, "{all} of {whole}");
    let linears = report["linears"].as_array().unwrap();
    assert_eq!(linears.len(), 5 * 7);
    for linear in linears {
        assert_eq!((linear["bits"].as_u64(), linear["group_size"].as_u64()), (Some(4), Some(128)));
        assert!(linear["relative_loss"].as_f64().unwrap() < 0.05, "{linear}");
        assert!(linear["damping"].as_f64().unwrap() > 0.0);
    }
    let bits = report["size"]["linear_bits_per_weight"].as_f64().unwrap();
    assert!((4.12..4.3).contains(&bits), "{bits}");
    let bytes: u64 = fs::metadata(output.join("model.safetensors")).unwrap().len();
    assert_eq!(report["size"]["bytes"].as_u64(), Some(bytes));
}

#[test]
fn the_solver_beats_rounding_to_nearest_at_three_bits() {
    let folder = tempfile::tempdir().unwrap();
    let kl = |recipe: &str| {
        let (_, report) = quantize(folder.path(), &demo(), &["--bits", "3", "--recipe", recipe]);
        report["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap()
    };
    let (rtn, gptq) = (kl("rtn"), kl("gptq"));
    assert!(gptq < 0.7 * rtn, "gptq {gptq}, rtn {rtn}");
}

#[test]
fn shards_are_split_by_size_and_listed_in_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let (output, report) =
        quantize(folder.path(), &demo(), &["--max-shard-size", "1500KB", "--no-evaluate", "--recipe", "rtn"]);
    let index = json(&output.join("model.safetensors.index.json"));
    let weight_map = index["weight_map"].as_object().unwrap();
    let mut shards: Vec<&str> = weight_map.values().map(|file| file.as_str().unwrap()).collect();
    shards.sort_unstable();
    shards.dedup();
    assert!(shards.len() > 1 && !output.join("model.safetensors").exists(), "{shards:?}");
    let total: u64 = shards.iter().map(|file| fs::metadata(output.join(file)).unwrap().len()).sum();
    assert_eq!(report["size"]["bytes"].as_u64(), Some(total));
    succeed(&["verify", text(&output)]);
}

#[test]
fn every_width_and_granularity_is_written_and_verified() {
    for format in ["gptq", "compressed-tensors"] {
        for bits in ["2", "3", "4", "8"] {
            for (group, symmetry) in [
                ("32", "--symmetric"),
                ("channel", "--asymmetric"),
                ("tensor", "--symmetric"),
                ("64", "--asymmetric"),
            ] {
                let folder = tempfile::tempdir().unwrap();
                let more = [
                    "--to",
                    format,
                    "--bits",
                    bits,
                    "--group-size",
                    group,
                    symmetry,
                    "--recipe",
                    "rtn",
                    "--no-evaluate",
                ];
                let (output, report) = quantize(folder.path(), &demo(), &more);
                assert_eq!(report["verification"]["problems"].as_array().map(Vec::len), Some(0));
                succeed(&["verify", text(&output)]);
            }
        }
    }
}

#[test]
fn a_group_size_that_does_not_divide_is_lowered_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let model = narrow_model();
    let (output, report) =
        quantize(folder.path(), model.path(), &["--no-evaluate", "--calibration", text(&ids(folder.path()))]);
    for linear in report["linears"].as_array().unwrap() {
        assert_eq!(linear["group_size"], 16, "{linear}");
    }
    let notes = report["notes"].to_string();
    assert!(notes.contains("128") && notes.contains("16"), "{notes}");
    assert_eq!(json(&output.join("config.json"))["quantization_config"]["group_size"], 16);
}

#[test]
fn excluded_linears_stay_and_the_format_says_so() {
    for format in ["gptq", "compressed-tensors"] {
        let folder = tempfile::tempdir().unwrap();
        let more = ["--exclude", r"layers\.0\..*down_proj", "--to", format, "--no-evaluate"];
        let (output, report) = quantize(folder.path(), &demo(), &more);
        assert_eq!(report["linears"].as_array().unwrap().len(), 34);
        assert_eq!(report["kept"][0]["name"], "model.layers.0.mlp.down_proj");
        let config = json(&output.join("config.json"))["quantization_config"].to_string();
        assert!(config.contains("down_proj"), "{config}");
        succeed(&["verify", text(&output)]);
        succeed(&["evaluate", text(&output), "--evaluate-samples", "1", "--evaluate-context", "32"]);
    }
}

#[test]
fn a_recipe_file_gives_linears_their_own_schemes() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("mixed.toml");
    fs::write(&recipe, "base = 'gptq'\nbits = 3\n[[rule]]\nroles = ['down']\nbits = 4\n").unwrap();
    let more = ["--recipe", text(&recipe), "--to", "compressed-tensors", "--group-size", "64"];
    let (output, report) = quantize(folder.path(), &demo(), &more);
    for linear in report["linears"].as_array().unwrap() {
        let down = linear["name"].as_str().unwrap().ends_with("down_proj");
        assert_eq!(linear["bits"], if down { 4 } else { 3 }, "{linear}");
        assert_eq!(linear["group_size"], 64);
    }
    succeed(&["verify", text(&output)]);
}

#[test]
fn unknown_tensors_are_carried_over_and_listed() {
    let model = copy(&tiny("llama"));
    let weights = model.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let old = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let extra =
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &[0, 0, 128, 63, 0, 0, 0, 64]);
    let mut tensors: Vec<(String, safetensors::tensor::TensorView<'_>)> = old.tensors();
    tensors.push(("vision.patch.weight".to_owned(), extra.unwrap()));
    let meta = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    fs::write(&weights, safetensors::serialize(tensors, Some(meta)).unwrap()).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let ids = ids(folder.path());
    let more =
        ["--no-evaluate", "--group-size", "16", "--calibration", text(&ids), "--to", "compressed-tensors"];
    let (output, report) = quantize(folder.path(), model.path(), &more);
    assert_eq!(report["unknown_tensors"], Value::from(vec!["vision.patch.weight"]));
    let written = fs::read(output.join("model.safetensors")).unwrap();
    let written = safetensors::SafeTensors::deserialize(&written).unwrap();
    assert_eq!(written.tensor("vision.patch.weight").unwrap().data(), &[0, 0, 128, 63, 0, 0, 0, 64]);
}

#[test]
fn an_existing_output_is_kept_unless_force_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    fs::create_dir(&output).unwrap();
    fs::write(output.join("precious.txt"), "mine").unwrap();
    let run = quantc(&["quantize", text(&demo()), "-o", text(&output)]);
    assert_eq!(run.status.code(), Some(1));
    let message = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(message.contains("exists") && message.contains("--force"), "{message}");
    let message = fail(1, &["quantize", text(&demo()), "-o", text(&output), "--force"]);
    assert!(message.contains("precious.txt"), "{message}");
    assert_eq!(fs::read_to_string(output.join("precious.txt")).unwrap(), "mine");
    assert_eq!(files(folder.path()), ["out"]);
    let model = copy(&demo());
    let message = fail(1, &["quantize", text(model.path()), "-o", text(model.path()), "--force"]);
    assert!(message.contains("not replaced") && model.path().join("model.safetensors").exists(), "{message}");
}

#[test]
fn fewer_windows_than_asked_for_are_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let short = folder.path().join("short.txt");
    let passage = fs::read_to_string(repository().join("demo/calibration.txt")).unwrap();
    fs::write(&short, passage.chars().take(2000).collect::<String>()).unwrap();
    let (_, report) = quantize(
        folder.path(),
        &demo(),
        &["--calibration", text(&short), "--samples", "50", "--no-evaluate"],
    );
    assert!(report["calibration"]["windows"].as_u64().unwrap() < 50);
    assert!(report["notes"].to_string().contains("50"), "{}", report["notes"]);
}

#[test]
fn evaluation_on_the_text_of_the_calibration_is_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let same = repository().join("demo/calibration.txt");
    // Other windows of the same text: what counts is what is in them.
    let more = ["--recipe", "gptq", "--context", "80", "--evaluate-on", text(&same)];
    let (_, report) = quantize(folder.path(), &demo(), &more);
    let notes = report["notes"].to_string();
    assert!(notes.contains("% of the evaluation text is in the calibration text"), "{notes}");
}

#[test]
fn a_calibration_text_that_is_not_needed_is_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let unused = repository().join("demo/calibration.txt");
    let more = ["--recipe", "rtn", "--no-evaluate", "--calibration", text(&unused)];
    let (_, report) = quantize(folder.path(), &demo(), &more);
    assert!(report["notes"].to_string().contains("was not read"), "{}", report["notes"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_quantc"))
        .args(["quantize", text(&demo()), "-o", text(&output)])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    while files(folder.path()).is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it wrote anything");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{message}");
    assert!(message.contains("interrupted"), "{message}");
    assert_eq!(files(folder.path()), Vec::<String>::new());
}

/// A tiny Llama whose widths 128 does not divide.
fn narrow_model() -> tempfile::TempDir {
    copy(&tiny("llama31"))
}

/// JSON lines of token ids for models without a tokenizer.
fn ids(folder: &std::path::Path) -> std::path::PathBuf {
    let path = folder.join("ids.jsonl");
    let lines: String = (0..40)
        .map(|line| {
            let ids: Vec<String> = (0..40).map(|i| ((line * 7 + i * i) % 61 + 1).to_string()).collect();
            format!("{{\"input_ids\": [{}]}}\n", ids.join(", "))
        })
        .collect();
    fs::write(&path, lines).unwrap();
    path
}

#[test]
fn the_slow_recipe_writes_text_of_its_own_and_weighs_outputs() {
    let folder = tempfile::tempdir().unwrap();
    let (output, report) = quantize(folder.path(), &demo(), &["--bits", "3", "--recipe", "max"]);
    succeed(&["verify", text(&output)]);
    let [real, own] = ["calibration", "own_text"].map(|key| report[key]["windows"].as_u64().unwrap());
    assert_eq!((real, own), (6, 42));
    let expected = |report: &Value| -> Vec<f64> {
        let linears = report["linears"].as_array().unwrap();
        linears.iter().filter_map(|linear| linear["coupled_loss"].as_f64()).collect()
    };
    let slow = expected(&report);
    assert!(slow.len() == 35 && slow.iter().all(|loss| *loss > 0.0 && *loss < 0.1), "{slow:?}");
    let (_, report) = quantize(folder.path(), &demo(), &["--bits", "3", "--recipe", "gptq"]);
    assert!(report["own_text"].is_null() && expected(&report).is_empty());
}

#[test]
fn no_linear_is_worse_than_nearest_rounding_on_held_out_windows_or_than_plain_gptq_on_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    fs::write(&recipe, "base = 'default'\n[settings]\ncoupled_sweeps = 0\n").unwrap();
    for (recipe, bits, samples, context) in
        [("gptq", "2", "2", "4"), (text(&recipe), "3", "6", "96"), ("default", "8", "3", "32")]
    {
        let shape = ["--samples", samples, "--context", context, "--no-evaluate"];
        let flags = ["--bits", bits, "--recipe", recipe];
        let (_, report) = quantize(folder.path(), &demo(), &[&shape[..], &flags].concat());
        let mut dampings = Vec::new();
        for linear in report["linears"].as_array().unwrap() {
            let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{linear}"));
            let held_out = &linear["held_out"];
            assert!(number(&held_out["solved"]) <= number(&held_out["nearest"]), "{recipe} {linear}");
            let fell_back = held_out["fell_back"].as_bool().unwrap();
            let (refined, plain) =
                (number(&linear["relative_loss"]), number(&linear["relative_loss_unrefined"]));
            // Coupled descent trades a linear's own loss for the model's.
            assert!(recipe == "default" || fell_back || refined <= plain * 1.0001, "{recipe} {linear}");
            dampings.push(number(&linear["damping"]));
        }
        assert_eq!(dampings.len(), 5 * 7);
        assert!(dampings.iter().any(|&damping| damping > 0.01), "few tokens raised no damping: {dampings:?}");
    }
}

#[test]
fn scales_learn_from_the_original_and_what_is_written_is_what_they_learned() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    let run = |passes: usize| {
        fs::write(&recipe, format!("base = 'gptq'\nbits = 2\nscale_passes = {passes}\n")).unwrap();
        // Verified against the record before it is put in its place.
        let (output, report) = quantize(folder.path(), &demo(), &["--recipe", text(&recipe)]);
        (json(&output.join("quantc.json"))["linears"].clone(), report)
    };
    let (solved, plain) = run(0);
    let (learned, report) = run(2);
    assert!(plain["learned_scales"].is_null());
    let found = &report["learned_scales"];
    assert_eq!((found["windows"].as_u64(), found["held_out"].as_u64()), (Some(5), Some(1)));
    assert!(found["after"].as_f64().unwrap() < found["before"].as_f64().unwrap(), "{found}");
    let kl = |report: &Value| report["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap();
    assert!(kl(&report) < kl(&plain), "{} {}", kl(&report), kl(&plain));
    for (name, linear) in solved.as_object().unwrap() {
        assert_ne!(linear["digest"], learned[name]["digest"], "{name}");
    }
}

#[test]
fn what_is_quantized_already_is_quantized_again_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (first, _) = quantize(
        folder.path(),
        &demo(),
        &["--to", "mlx", "--group-size", "64", "--recipe", "rtn", "--no-evaluate"],
    );
    let source = folder.path().join("mlx");
    std::fs::rename(first, &source).unwrap();
    let (output, report) =
        quantize(folder.path(), &source, &["--to", "gptq", "--bits", "8", "--exclude", "o_proj$"]);
    let notes = report["notes"].as_array().unwrap();
    let said = |note: &serde_json::Value| {
        note.as_str().is_some_and(|note| note.contains("already quantized (mlx, 4 bit"))
    };
    assert_eq!(notes.iter().filter(|note| said(note)).count(), 1, "{notes:?}");
    assert_eq!(report["model"]["format"], "mlx");
    // What the first output decodes to is the original: 8 bits are close to it, however far 4 bits are from the demo model.
    assert!(
        report["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap() < 1e-3,
        "{}",
        report["evaluation"]
    );
    let config = json(&output.join("config.json"));
    assert!(config.get("quantization").is_none() && config["quantization_config"]["quant_method"] == "gptq");
    succeed(&["verify", text(&output)]);
    let again = folder.path().join("again");
    let arguments = ["quantize", text(&source), "-o", text(&again), "--recipe", "rtn", "--no-evaluate"];
    let warned = String::from_utf8(quantc(&arguments).stderr).unwrap();
    assert!(warned.contains("already quantized (mlx, 4 bit"), "{warned}");
}
