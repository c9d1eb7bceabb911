//! `--target-bits` and `--target-size`: widths chosen for a bound.

use std::fs;

use serde_json::Value;

use crate::run::{demo, fail, json, quantize, succeed, text};

fn kl(report: &Value) -> f64 {
    report["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap()
}

fn mean_bits(report: &Value) -> f64 {
    report["size"]["bits_per_weight"].as_f64().unwrap()
}

#[test]
fn chosen_widths_beat_one_width_of_the_same_size() {
    let folder = tempfile::tempdir().unwrap();
    let windows = ["--recipe", "gptq", "--samples", "24", "--evaluate-samples", "16"];
    let run = |more: &[&str]| quantize(folder.path(), &demo(), &[&windows, more].concat()).1;
    let three = run(&["--bits", "3"]);
    let chosen = run(&["--target-bits", &format!("{}", mean_bits(&three) + 1e-9)]);
    assert!(mean_bits(&chosen) <= mean_bits(&three) + 1e-9, "{} bits", mean_bits(&chosen));
    assert!(kl(&chosen) < kl(&three), "{} and {}", kl(&chosen), kl(&three));
    let allocation = &chosen["allocation"];
    assert_eq!(allocation["stages"].as_array().map(Vec::len), Some(5 * 4));
    assert_eq!(allocation["bits_per_weight"], chosen["size"]["bits_per_weight"]);
    let predicted = allocation["predicted_kl"].as_f64().unwrap();
    assert!((0.3..3.0).contains(&(predicted / kl(&chosen))), "{predicted} and {}", kl(&chosen));
}

#[test]
fn stages_have_one_width_and_the_record_and_the_configuration_say_which() {
    for format in ["gptq", "compressed-tensors"] {
        let folder = tempfile::tempdir().unwrap();
        let more = ["--target-bits", "4.4", "--to", format, "--recipe", "rtn", "--no-evaluate"];
        let (output, report) = quantize(folder.path(), &demo(), &more);
        let record = json(&output.join("quantc.json"));
        assert_eq!(record["budget"]["mean_bits"], 4.4);
        let mut widths = Vec::new();
        for stage in report["allocation"]["stages"].as_array().unwrap() {
            widths.push(stage["bits"].as_u64().unwrap());
            for linear in stage["linears"].as_array().unwrap() {
                let scheme = &record["linears"][linear.as_str().unwrap()]["scheme"];
                assert_eq!(scheme["bits"], stage["bits"], "{linear}");
            }
        }
        assert!(widths.iter().any(|&bits| bits != widths[0]), "{widths:?}");
        // Decodes by config.json alone.
        succeed(&["verify", text(&output)]);
        assert!(succeed(&["inspect", text(&output)]).contains("2 bit, symmetric"));
    }
}

#[test]
fn files_are_no_larger_than_the_target_in_any_number_of_shards() {
    for shard in ["5GB", "300KB"] {
        let folder = tempfile::tempdir().unwrap();
        let more = ["--target-size", "2.6MB", "--max-shard-size", shard, "--recipe", "rtn", "--no-evaluate"];
        let (output, report) = quantize(folder.path(), &demo(), &more);
        let files = fs::read_dir(&output).unwrap().map(|entry| entry.unwrap().path());
        let weights = files.filter(|path| path.extension().is_some_and(|kind| kind == "safetensors"));
        let bytes: u64 = weights.map(|path| fs::metadata(path).unwrap().len()).sum();
        assert_eq!(report["size"]["bytes"].as_u64(), Some(bytes));
        // No stage of the demo model takes more than 1 % of it for a step.
        assert!((2_550_000..=2_600_000).contains(&bytes), "{bytes}");
    }
}

#[test]
fn rules_and_exclusions_win_over_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    fs::write(&recipe, "base = 'rtn'\n[[rule]]\nroles = ['down']\nbits = 8\n").unwrap();
    let more =
        ["--recipe", text(&recipe), "--target-bits", "8", "--exclude", r"layers\.0\.mlp", "--no-evaluate"];
    let (_, report) = quantize(folder.path(), &demo(), &more);
    for linear in report["linears"].as_array().unwrap() {
        let name = linear["name"].as_str().unwrap();
        assert!(!name.contains("layers.0.mlp"), "{name}");
        assert!(linear["bits"] == 8 || !name.contains("down_proj"), "{linear}");
    }
    assert_eq!(report["allocation"]["stages"].as_array().map(Vec::len), Some(5 * 2 + 4));
    assert!(mean_bits(&report) <= 8.0);
}

#[test]
fn what_cannot_be_reached_or_chosen_is_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let refuse = |more: &[&str], words: &[&str]| {
        let model = demo();
        let arguments = [&["quantize", text(&model), "-o", text(&output)], more].concat();
        let message = fail(1, &arguments);
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
        assert!(!output.exists());
    };
    refuse(&["--target-bits", "3.5"], &["--target-bits", "3.5", "3.87 to 9.19", "embedding"]);
    refuse(&["--target-size", "1MB"], &["--target-size", "2.17 MB to"]);
    refuse(&["--target-bits", "-1"], &["--target-bits", "above 0"]);
    refuse(&["--target-bits", "NaN"], &["--target-bits", "above 0"]);
    let recipe = folder.path().join("recipe.toml");
    fs::write(&recipe, "[[rule]]\nlayers = '0-4'\nbits = 3\n").unwrap();
    refuse(&["--target-bits", "5", "--recipe", text(&recipe)], &["--target-bits", "none is left to choose"]);
    let both = ["quantize", "demo/model", "-o", "out", "--target-bits", "4", "--bits", "3"];
    assert!(fail(1, &both).contains("cannot be used with"));
    let both = ["quantize", "demo/model", "-o", "out", "--target-bits", "4", "--target-size", "3MB"];
    assert!(fail(1, &both).contains("cannot be used with"));
}

#[test]
fn more_than_the_widest_is_noted() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--target-bits", "16", "--recipe", "rtn", "--no-evaluate"];
    let (_, report) = quantize(folder.path(), &demo(), &more);
    assert!(report["linears"].as_array().unwrap().iter().all(|linear| linear["bits"] == 8));
    assert!(report["notes"].to_string().contains("widest"), "{}", report["notes"]);
}
