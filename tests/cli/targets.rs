//! Several outputs of one run.

use crate::run::{SMALL, demo, fail, files, json, quantize, succeed, text};

fn run(output: &std::path::Path, report: &std::path::Path, more: &[&str]) -> serde_json::Value {
    let model = demo();
    let mut arguments =
        vec!["quantize", text(&model), "-o", text(output), "--export-json", text(report), "--no-evaluate"];
    arguments.extend(&SMALL[..4]);
    arguments.extend(more);
    succeed(&arguments);
    json(report)
}

#[test]
fn several_formats_hold_what_each_would_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (output, report) = (folder.path().join("all"), folder.path().join("all.json"));
    let reports = run(&output, &report, &["--to", "gptq,compressed-tensors,gguf:q4_0", "--recipe", "gptq"]);
    assert_eq!(files(&output), ["compressed-tensors", "gguf-q4_0", "gptq", "report.html"]);
    let page = std::fs::read(output.join("report.html")).unwrap();
    assert!(quantc::render::html::is_whole(&page));
    let page = String::from_utf8(page).unwrap();
    for place in ["compressed-tensors", "gguf-q4_0", "gptq"] {
        assert!(page.contains(&format!("href=\"{place}/report.html\"")), "{place}");
    }
    let reports = reports.as_array().unwrap();
    assert_eq!(reports.len(), 3);
    // Two share a grid and so a solve; the third has another.
    let with = |number: usize| reports[number].get("solved_with").cloned();
    assert!(with(0).unwrap().to_string().contains("compressed-tensors"), "{:?}", with(0));
    assert!(with(1).unwrap().to_string().contains("gptq"), "{:?}", with(1));
    assert!(with(2).is_none());
    for (number, format) in ["gptq", "compressed-tensors", "gguf:q4_0"].into_iter().enumerate() {
        let place = output.join(format.replace(':', "-"));
        succeed(&["verify", text(&place)]);
        assert_eq!(reports[number]["format"], format);
        let (alone, _) =
            quantize(folder.path(), &demo(), &["--no-evaluate", "--to", format, "--recipe", "gptq"]);
        let [found, expected] =
            [&place, &alone].map(|place| json(&place.join("quantc.json"))["linears"].clone());
        assert_eq!(found, expected, "{format}");
    }
}

#[test]
fn several_widths_are_outputs_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let (output, report) = (folder.path().join("all"), folder.path().join("all.json"));
    let reports = run(&output, &report, &["--bits", "3,4", "--recipe", "rtn"]);
    assert_eq!(files(&output), ["gptq-3bit", "gptq-4bit", "report.html"]);
    for (number, bits) in [3, 4].into_iter().enumerate() {
        assert_eq!(reports[number]["linears"][0]["bits"], bits);
    }
    // Each may be replaced, when asked for.
    let model = demo();
    let again =
        ["quantize", text(&model), "-o", text(&output), "--bits", "3,4", "--recipe", "rtn", "--no-evaluate"];
    assert!(fail(1, &again).contains("exists"));
    succeed(&[&again[..], &["--force"]].concat());
}

#[test]
fn what_goes_with_one_output_is_refused_for_several() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("all");
    let model = demo();
    let with = |more: &[&str]| {
        let mut arguments = vec!["quantize", text(&model), "-o", text(&output), "--no-evaluate"];
        arguments.extend(more);
        let message = fail(1, &arguments);
        assert!(!output.exists(), "{message}");
        message
    };
    assert!(with(&["--to", "gptq,gptq"]).contains("twice"));
    assert!(with(&["--to", "gptq,mlx", "--target-bits", "5"]).contains("--target-bits"));
    assert!(with(&["--to", "gptq,mlx", "--adapter-rank", "4"]).contains("--adapter-rank"));
    assert!(with(&["--to", "gptq,nothing"]).contains("nothing"));
    // Nothing is left that these could mean.
    assert!(with(&["--to", "gguf:q4_k_m", "--bits", "3,4"]).contains("--bits"));
    assert!(with(&["--to", "gguf:q4_k_m,gguf:q8_0", "--bits", "3"]).contains("--bits"));
    assert!(with(&["--to", "gptq,mlx", "--runs-on", "llama.cpp"]).contains("llama.cpp"));
    assert!(with(&["--to", "gptq,awq", "--bits", "3"]).contains("awq"));
}
