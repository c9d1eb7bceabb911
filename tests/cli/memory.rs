//! `--memory`: a budget is kept or refused, and changes no byte.

use std::fs;

use serde_json::Value;

use crate::run::{demo, fail, json, quantize, succeed, text, tiny};

/// The least that a refusal names.
fn least(arguments: &[&str]) -> String {
    let message = fail(1, arguments);
    assert!(message.contains("--memory: ") && message.contains("is too little for this job"), "{message}");
    let number = message.split(" bytes), which").next().and_then(|text| text.rsplit('(').next());
    let number = number.expect("a number of bytes").to_owned();
    assert!(number.parse::<u64>().is_ok_and(|bytes| bytes > 1_000_000), "{message}");
    number
}

#[test]
fn the_least_budget_writes_the_same_bytes_and_a_smaller_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    let every_path = "base = 'max'\nown_text = 1\nscale_passes = 1\n[settings]\nrefits = 1\nsweeps = 1\ncoupled_sweeps = 1\n";
    fs::write(&recipe, every_path).unwrap();
    let output = folder.path().join("out");
    let shapes = [
        vec!["--recipe", text(&recipe), "--no-evaluate", "--samples", "4", "--context", "48"],
        vec!["--recipe", "gptq", "--to", "compressed-tensors", "--target-bits", "8", "--samples", "4"],
    ];
    for shape in &shapes {
        let mut written = Vec::new();
        let mut measured = Vec::new();
        let model = demo();
        let mut arguments = vec!["quantize", text(&model), "-o", text(&output), "--memory", "1KB"];
        arguments.extend(shape);
        let least = least(&arguments);
        let half_more = (least.parse::<u64>().unwrap() * 5 / 4).to_string();
        for budget in [None, Some(least.as_str()), Some(&half_more)] {
            let budget = budget.map(|bytes| vec!["--memory", bytes]).unwrap_or_default();
            let (output, report) = quantize(folder.path(), &demo(), &[&shape[..], &budget].concat());
            written.push(fs::read(output.join("model.safetensors")).unwrap());
            measured.push((report["evaluation"].clone(), report["linears"].clone()));
            fs::remove_dir_all(output).unwrap();
        }
        assert!(written.iter().all(|bytes| *bytes == written[0]), "{shape:?}");
        assert!(measured.iter().all(|found| *found == measured[0]), "{shape:?}");
    }
}

#[test]
fn of_a_mixture_experts_read_the_rows_of_their_tokens_and_write_the_same_bytes() {
    for (name, recipe) in [("qwen3_moe", "default"), ("deepseek_v2", "gptq"), ("deepseek_v3", "default")] {
        let folder = tempfile::tempdir().unwrap();
        let calibration = folder.path().join("calibration.jsonl");
        let line = |window: usize| {
            let ids: Vec<usize> = (0..40).map(|i| (i * i * 7 + window * 13 + i * 3) % 64).collect();
            format!("{{\"input_ids\": {ids:?}}}\n")
        };
        fs::write(&calibration, (0..12).map(line).collect::<String>()).unwrap();
        let shape = ["--group-size", "channel", "--bits", "8", "--recipe", recipe, "--no-evaluate"];
        let windows = ["--samples", "12", "--context", "40", "--calibration", text(&calibration)];
        let output = folder.path().join("out");
        let model = tiny(name);
        let asked = ["quantize", text(&model), "-o", text(&output), "--memory", "1KB"];
        let least = least(&[&asked[..], &shape, &windows].concat());
        let run = |budget: &[&str]| {
            let (output, report) = quantize(folder.path(), &model, &[&shape[..], &windows, budget].concat());
            let written = fs::read(output.join("model.safetensors")).unwrap();
            fs::remove_dir_all(output).unwrap();
            (written, report["experts"].clone(), report["linears"].clone())
        };
        let free = run(&[]);
        assert_eq!(run(&["--memory", &least]), free, "{name}");
        let more = (least.parse::<u64>().unwrap() + 200_000).to_string();
        assert_eq!(run(&["--memory", &more]), free, "{name}");
    }
}

#[test]
fn verifying_and_comparing_keep_a_budget_or_refuse_it() {
    let folder = tempfile::tempdir().unwrap();
    let (output, _) = quantize(folder.path(), &demo(), &["--recipe", "rtn", "--no-evaluate"]);
    let verify = least(&["verify", text(&output), "--memory", "1KB"]);
    assert!(succeed(&["verify", text(&output), "--memory", &verify]).contains("verified"));
    let model = demo();
    let report = folder.path().join("report.json");
    let asked =
        ["compare", text(&model), text(&output), "--evaluate-samples", "5", "--evaluate-context", "64"];
    let asked = [&asked[..], &["--export-json", text(&report)]].concat();
    let run = |budget: &[&str]| {
        succeed(&[&asked[..], budget].concat());
        let mut found = json(&report);
        found.as_object_mut().unwrap().remove("resources");
        // Clocks differ.
        found["models"].as_array_mut().unwrap().iter_mut().for_each(|model| model["speed"] = Value::Null);
        found
    };
    let compare = least(&[&asked[..], &["--memory", "1KB"]].concat());
    assert_eq!(run(&["--memory", &compare]), run(&[]));
}

#[test]
fn figures_do_not_depend_on_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let arguments = |budget: &[&'static str]| {
        let mut arguments: Vec<String> =
            ["evaluate", text(&demo()), "--evaluate-samples", "6"].map(str::to_owned).into();
        arguments.extend(["--evaluate-context", "96", "--export-json", text(&report)].map(str::to_owned));
        arguments.extend(budget.iter().map(|&word| word.to_owned()));
        arguments
    };
    let run = |budget: &[&'static str]| {
        let arguments = arguments(budget);
        succeed(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        json(&report)["evaluation"].clone()
    };
    let refused = arguments(&["--memory", "1"]);
    let least: &'static str = least(&refused.iter().map(String::as_str).collect::<Vec<_>>()).leak();
    assert_eq!(run(&[]), run(&["--memory", least]));
}
