//! OUT/README.md: the model card, with what a hub reads and what was measured.

use std::fs;
use std::process::Command;

use crate::run::{copy, demo, fail, files, json, quantize, succeed, text};

#[test]
fn the_card_says_what_it_is_what_was_measured_and_how_to_run_it() {
    let model = copy(&demo());
    let original = "---\nlicense: apache-2.0\nlanguage:\n- en\ntags:\n- theirs\n---\n# The original\n";
    fs::write(model.path().join("README.md"), original).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // As the hub's cache calls it.
    let place = folder.path().join("models--org--name/snapshots/0123");
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::rename(model.path(), &place).unwrap();
    let (output, report) = quantize(folder.path(), &place, &["--recipe", "rtn", "--to", "awq"]);
    let card = fs::read_to_string(output.join("README.md")).unwrap();
    assert_eq!(fs::read_to_string(output.join("README.original.md")).unwrap(), original);
    let (front, body) = card.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap();
    for line in [
        "base_model: \"org/name\"",
        "base_model_relation: quantized",
        "library_name: transformers",
        "license: apache-2.0",
        "- en",
        "- \"awq\"",
        "- \"4-bit\"",
        "quantization_method: \"awq\"",
        "pipeline_tag: text-generation",
    ] {
        assert!(front.lines().any(|found| found == line), "{line}:\n{front}");
    }
    assert!(
        !front.contains("theirs") && !front.lines().any(|line| line.starts_with("quantized_by")),
        "{front}"
    );
    let measured = &report["evaluation"]["quantized"];
    let row = format!(
        "| this model | {:.3} ± {:.3} | {:.5} ± ",
        measured["perplexity"].as_f64().unwrap(),
        measured["perplexity_stderr"].as_f64().unwrap(),
        measured["kl_mean"].as_f64().unwrap()
    );
    assert!(body.contains(&row), "{row}:\n{body}");
    for runtime in report["runtimes"].as_array().unwrap() {
        let heading = format!("\n### {}\n", runtime["runtime"].as_str().unwrap());
        // Several kernels of one runtime are started alike.
        assert!(body.contains(&heading) || heading.contains("kernel"), "{heading}");
    }
    assert!(body.contains("vllm serve MODEL\n") && body.contains("quantc generate MODEL"), "{body}");
    // Nothing of this machine.
    assert!(!card.contains(text(folder.path())), "{card}");
}

#[test]
fn everything_but_the_report_is_the_same_from_run_to_run_and_is_verified() {
    let contents = |threads: &str| {
        let folder = tempfile::tempdir().unwrap();
        let (output, _) = quantize(folder.path(), &demo(), &["--recipe", "rtn", "--threads", threads]);
        let record = json(&output.join("quantc.json"));
        let dated: Vec<String> = serde_json::from_value(record["dated"].clone()).unwrap_or_default();
        let names = files(&output).into_iter().filter(|name| !dated.contains(name));
        let contents: Vec<_> = names.map(|name| (fs::read(output.join(&name)).unwrap(), name)).collect();
        (folder, output, contents)
    };
    let (_first, output, one) = contents("1");
    let (_second, _, two) = contents("2");
    assert!(one == two && one.iter().any(|(_, name)| name == "README.md"));
    assert_eq!(json(&output.join("quantc.json"))["dated"], serde_json::json!(["report.html"]));
    succeed(&["verify", text(&output)]);
    // The page states times, so it carries its own digest.
    let page = fs::read_to_string(output.join("report.html")).unwrap();
    assert!(
        page.contains("<svg") && page.contains("Do it again") && page.contains("What both write"),
        "{page}"
    );
    for outside in ["http://", "https://", "@import", "url("] {
        // But for the name of SVG's elements.
        assert!(!page.replace("http://www.w3.org/2000/svg", "").contains(outside), "{outside}");
    }
    fs::write(output.join("report.html"), page.replacen("Perplexity", "Perplexitx", 1)).unwrap();
    let message = fail(3, &["verify", text(&output)]);
    assert!(message.contains("report.html"), "{message}");
    fs::write(output.join("report.html"), page).unwrap();
    fs::write(output.join("README.md"), "something else").unwrap();
    let changed =
        Command::new(env!("CARGO_BIN_EXE_quantc")).args(["verify", text(&output)]).output().unwrap();
    assert_eq!(changed.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&changed.stdout).contains("`README.md`"));
}

#[test]
fn the_card_says_what_a_runtime_wants_beside_the_usual() {
    let folder = tempfile::tempdir().unwrap();
    let card = |options: &[&str]| {
        let options = [&["--recipe", "rtn", "--no-evaluate"], options].concat();
        fs::read_to_string(quantize(folder.path(), &demo(), &options).0.join("README.md")).unwrap()
    };
    let given = card(&["--to", "compressed-tensors", "--asymmetric", "--adapter-rank", "4"]);
    for words in [
        "import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig\n",
        "(\"MODEL\", quantization_config=CompressedTensorsConfig(dequantize=True), device_map=\"cpu\")",
        "correction of rank 4",
        "pip install peft transformers accelerate compressed-tensors\n",
        "(model, \"MODEL\", subfolder=\"adapter\")",
    ] {
        assert!(given.contains(words), "{words}:\n{given}");
    }
    let given = card(&["--to", "gptq"]);
    assert!(given.contains("pip install transformers accelerate gptqmodel optimum\n"), "{given}");
    assert!(!given.contains("PEFT") && !given.contains("quantization_config"), "{given}");
}

#[test]
fn what_is_converted_keeps_the_original_s_card() {
    let folder = tempfile::tempdir().unwrap();
    let (output, _) = quantize(folder.path(), &demo(), &["--recipe", "rtn", "--no-evaluate"]);
    let original = fs::read(demo().join("README.md")).unwrap();
    assert_eq!(fs::read(output.join("README.original.md")).unwrap(), original);
    let card = fs::read_to_string(output.join("README.md")).unwrap();
    assert!(card.contains("Nothing was measured") && card.contains("# base_model:"), "{card}");
    let converted = folder.path().join("converted");
    succeed(&["convert", text(&output), "--to", "compressed-tensors", "-o", text(&converted)]);
    assert_eq!(fs::read(converted.join("README.original.md")).unwrap(), original);
    let card = fs::read_to_string(converted.join("README.md")).unwrap();
    assert!(card.contains("Converted from `gptq`, with the same values."), "{card}");
}
