//! `--memory`: a budget is kept or refused, and changes no byte.

use std::fs;

use crate::run::{demo, fail, json, quantize, succeed, text};

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
