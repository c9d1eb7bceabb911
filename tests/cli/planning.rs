//! `plan` says before what `quantize` does after, and chooses among models.

use serde_json::Value;

use crate::run::{SMALL, demo, fail, json, quantize, succeed, text, tiny};

fn planned(arguments: &[&str]) -> (String, Value) {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("plan.json");
    let said = succeed(&[&["plan", "--export-json", text(&report)], arguments].concat());
    (said, json(&report))
}

#[test]
fn sizes_are_those_that_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let model = demo();
    let cases = [
        &["--to", "gptq", "--recipe", "rtn", "--bits", "3"][..],
        &["--to", "mlx", "--recipe", "rtn", "--group-size", "64", "--exclude", "layers.0.mlp"],
        &["--to", "gguf:q4_k_m", "--recipe", "rtn"],
    ];
    for case in cases {
        let (said, plan) = planned(&[&[text(&model)], &SMALL[..], case].concat());
        let (_, report) = quantize(folder.path(), &model, &[case, &["--no-evaluate"]].concat());
        let plan = &plan["models"][0];
        for key in ["original_bytes", "bits_per_weight", "linear_bits_per_weight", "bytes"] {
            let (before, after) = (&plan["size"][key], &report["size"][key]);
            let near = (before.as_f64().unwrap() / after.as_f64().unwrap() - 1.0).abs();
            // Only GGUF's header, with its tokenizer, is known when it is written.
            assert!(
                near <= if case[1].starts_with("gguf") { 0.02 } else { 0.0 },
                "{key} {before} {after} {case:?}"
            );
        }
        assert_eq!(plan["runtimes"], report["runtimes"]);
        assert_eq!(plan["kept"], report["kept"]);
        let count: u64 =
            plan["linears"].as_array().unwrap().iter().map(|row| row["count"].as_u64().unwrap()).sum();
        assert_eq!(count, 35);
        assert!(said.contains("down_proj") && said.contains("--calibrate"), "{said}");
        assert!(plan["predicted_kl"].is_null() && plan["memory_bytes"].as_u64().unwrap() > 1_000_000);
    }
}

#[test]
fn time_is_made_of_phases_and_grows_with_the_text() {
    let model = demo();
    let time = |samples: &str| {
        let (_, plan) = planned(&[text(&model), "--samples", samples, "--context", "96", "--no-evaluate"]);
        let time = plan["models"][0]["time"].clone();
        let phases: f64 =
            time["phases"].as_array().unwrap().iter().map(|p| p["seconds"].as_f64().unwrap()).sum();
        assert!((phases - time["seconds"].as_f64().unwrap()).abs() < 1e-6);
        phases
    };
    let (few, many) = (time("8"), time("4000"));
    assert!(few > 0.0 && many > 2.0 * few, "{few} {many}");
}

#[test]
fn a_mixture_of_experts_takes_time_and_memory_too() {
    let planned_of = |samples: &str| {
        let model = tiny("qwen3_moe");
        let arguments = [text(&model), "--group-size", "channel", "--samples", samples, "--context", "32"];
        planned(&[&arguments[..], &["--evaluate-samples", "2", "--evaluate-context", "32"]].concat())
    };
    let ((said, few), (_, many)) = (planned_of("4"), planned_of("100000"));
    let of = |plan: &Value, key: &str| plan["models"][0][key].clone();
    assert!(said.contains("time: about") && said.contains("memory: about"), "{said}");
    let names: Vec<Value> =
        of(&few, "time")["phases"].as_array().unwrap().iter().map(|phase| phase["name"].clone()).collect();
    assert_eq!(names, ["weighing outputs", "quantizing", "measuring"]);
    let seconds = |plan: &Value| of(plan, "time")["seconds"].as_f64().unwrap();
    assert!(seconds(&many) > 2.0 * seconds(&few), "{} {}", seconds(&few), seconds(&many));
    let memory = |plan: &Value| of(plan, "memory_bytes").as_u64().unwrap();
    assert!(memory(&many) > 4 * memory(&few));
    // What cannot be done in a budget is said here as well.
    let model = tiny("qwen3_moe");
    let message = fail(1, &["plan", text(&model), "--group-size", "channel", "--memory", "1kB"]);
    assert!(message.contains("--memory"), "{message}");
}

#[test]
fn loss_is_predicted_and_falls_with_the_width() {
    let model = demo();
    let small = &SMALL[..4];
    let kl = |bits: &str| {
        let arguments = [&[text(&model), "--calibrate", "--no-evaluate", "--bits", bits], small].concat();
        planned(&arguments).1["models"][0]["predicted_kl"].as_f64().unwrap()
    };
    let (three, four) = (kl("3"), kl("4"));
    assert!(three > 2.0 * four && four > 0.0 && three < 1.0, "{three} {four}");
    let (said, plan) = planned(&[&[text(&model), "--target-bits", "5.5", "--calibrate"], small].concat());
    assert!(plan["models"][0]["predicted_kl"].as_f64().unwrap() < three, "{said}");
    assert!(plan["models"][0]["size"]["bits_per_weight"].as_f64().unwrap() <= 5.5);
}

#[test]
fn the_best_of_several_that_fits_is_chosen() {
    let (large, small) = (demo(), tiny("llama"));
    let base = [text(&large), text(&small), "--samples", "4", "--context", "48", "--group-size", "32"];
    let (said, plan) = planned(&[&base[..], &["--fit", "3MB", "--fit-context", "128"]].concat());
    let fit = &plan["fit"];
    assert!(fit["chosen"].is_null() && said.contains("--calibrate"), "{said}");
    // What was not measured has no column.
    assert!(!said.contains("predicted perplexity"), "{said}");
    let rows = fit["candidates"].as_array().unwrap();
    assert!(rows.len() >= 6);
    for row in rows {
        let bytes = row["weight_bytes"].as_u64().unwrap() + row["cache_bytes"].as_u64().unwrap();
        assert_eq!(row["fits"], bytes <= 3_000_000);
    }
    // 2 * 2 bytes * key and value heads * head dimension * layers * tokens
    let row = rows.iter().find(|row| row["model"] == "model").unwrap();
    assert_eq!(row["cache_bytes"].as_u64().unwrap() % (4 * 5 * 128), 0);
    let fail_with = |more: &[&str], word: &str| {
        let message = fail(1, &[&["plan"], &base[..], more].concat());
        assert!(message.contains(word), "{message}");
    };
    fail_with(&[], "--fit");
    fail_with(&["--fit", "1GB", "--perplexities", "3"], "expected 2");
    fail_with(&["--fit", "1GB", "--force"], "--force");
    fail_with(&["--fit", "1GB", "--to", "gptq,mlx"], "one format");
    fail_with(&["--fit", "1GB", "--bits", "3,4"], "--bits: expected one format at one width");
}

#[test]
fn what_a_bound_is_for_is_said() {
    let model = demo();
    let base = [text(&model), "--fit", "1GB", "--samples", "4", "--context", "48", "--to", "gguf:q4_k_m"];
    let (said, plan) = planned(&base);
    // The demo attends to 256 tokens.
    assert!(said.contains("keys and values of 256 tokens, all that the model attends to"), "{said}");
    assert!(said.contains("is not counted"), "{said}");
    assert!(said.lines().all(|line| line.trim_end() == line), "{said}");
    let row = &plan["fit"]["candidates"][0];
    assert_eq!(row["context"], 256);
    let bits = row["bits"].as_f64().unwrap();
    assert!(bits > 4.0 && bits < 6.0, "{bits}");
    let help = succeed(&["plan", "--help"]);
    assert!(!help.contains("3,4") && !help.contains("gptq,mlx"), "{help}");
}
