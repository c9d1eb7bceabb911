//! `evaluate`: the same figures by every road.

use crate::run::{SMALL, demo, fail, json, quantize, succeed, text};

const WINDOWS: [&str; 4] = ["--evaluate-samples", "4", "--evaluate-context", "96"];

#[test]
fn a_model_does_not_diverge_from_itself() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut arguments =
        vec!["evaluate", text_of_demo(), "--reference", text_of_demo(), "--export-json", text(&report)];
    arguments.extend(WINDOWS);
    succeed(&arguments);
    let evaluation = &json(&report)["evaluation"];
    assert!(evaluation["quantized"]["kl_mean"].as_f64().unwrap().abs() < 1e-9, "{evaluation}");
    assert_eq!(evaluation["quantized"]["top1_agreement"], 1.0);
    assert_eq!(evaluation["quantized"]["perplexity"], evaluation["original"]["perplexity"]);
}

#[test]
fn what_is_not_measured_has_no_column_and_json_may_be_all_that_is_said() {
    let base = [&["evaluate", text_of_demo()][..], &WINDOWS].concat();
    let table = succeed(&base);
    assert!(table.contains("perplexity") && !table.contains("KL"), "{table}");
    assert!(table.lines().all(|line| line.trim_end() == line), "{table}");
    let said = succeed(&[&base[..], &["--export-json", "-"]].concat());
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(report["evaluation"]["original"]["perplexity"].as_f64().unwrap() > 1.0);
    for command in ["evaluate", "compare"] {
        let help = succeed(&[command, "--help"]);
        assert!(!help.contains("in the same forms") && !help.contains("--calibration"), "{help}");
    }
}

#[test]
fn evaluate_repeats_the_figures_of_quantize() {
    for format in ["gptq", "compressed-tensors"] {
        let folder = tempfile::tempdir().unwrap();
        let (output, first) = quantize(folder.path(), &demo(), &["--to", format, "--recipe", "gptq"]);
        let report = folder.path().join("again.json");
        let mut arguments = vec!["evaluate", text(&output), "--reference", text_of_demo()];
        arguments.extend(["--export-json", text(&report)]);
        arguments.extend(&SMALL[4..]);
        succeed(&arguments);
        assert_eq!(first["evaluation"], json(&report)["evaluation"]);
    }
}

#[test]
fn inputs_are_rounded_where_config_json_says_that_runtimes_do() {
    let folder = tempfile::tempdir().unwrap();
    let options = ["--to", "compressed-tensors:w8a8-int8", "--recipe", "rtn"];
    let (output, first) = quantize(folder.path(), &demo(), &options);
    let config = output.join("config.json");
    let written = json(&config);
    // As it is, and then with other words about inputs.
    let measured = |said: Option<serde_json::Value>| {
        let mut changed = written.clone();
        if let Some(said) = said {
            changed["quantization_config"]["config_groups"]["group_0"]["input_activations"] = said;
        }
        std::fs::write(&config, changed.to_string()).unwrap();
        let report = folder.path().join("again.json");
        let mut arguments = vec!["evaluate", text(&output), "--export-json", text(&report)];
        arguments.extend(&SMALL[4..]);
        succeed(&arguments);
        let report = json(&report);
        (report["evaluation"]["quantized"]["perplexity"].as_f64().unwrap(), report["notes"].to_string())
    };
    let (rounded, notes) = measured(None);
    assert_eq!(first["evaluation"]["quantized"]["perplexity"], rounded);
    assert_eq!(notes, "[]");
    let (plain, _) = measured(Some(serde_json::Value::Null));
    let apart = (rounded / plain - 1.0).abs();
    assert!(apart > 1e-5 && apart < 0.02, "{rounded} {plain}");
    let other = serde_json::json!({"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": true});
    let (found, notes) = measured(Some(other));
    assert_eq!(found, plain);
    assert!(notes.contains("round the inputs of linears too") && notes.contains("not done here"), "{notes}");
}

#[test]
fn logits_are_exported_for_other_programs_to_compare() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("logits.safetensors");
    succeed(&[
        "evaluate",
        text_of_demo(),
        "--evaluate-samples",
        "2",
        "--evaluate-context",
        "16",
        "--export-logits",
        text(&file),
    ]);
    let bytes = std::fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("logits").unwrap().shape(), [2, 16, 2048]);
}

#[test]
fn logits_of_windows_of_different_lengths_are_exported_with_their_lengths() {
    let folder = tempfile::tempdir().unwrap();
    let (file, ids) = (folder.path().join("logits.safetensors"), folder.path().join("ids.jsonl"));
    std::fs::write(&ids, "{\"input_ids\": [5, 6, 7, 8]}\n{\"input_ids\": [5, 6]}\n").unwrap();
    let arguments = ["evaluate", text_of_demo(), "--evaluate-on", text(&ids), "--export-logits", text(&file)];
    let table = succeed(&arguments);
    assert!(table.contains("windows of up to 4 tokens") && table.contains("shorter than"), "{table}");
    let bytes = std::fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let logits = tensors.tensor("logits").unwrap();
    assert_eq!(logits.shape(), [2, 4, 2048]);
    let row = 4 * 2048;
    let rows: Vec<&[u8]> = logits.data().chunks_exact(row).collect();
    assert_eq!(rows[..2], rows[4..6]);
    assert!(rows[6..].iter().all(|row| row.iter().all(|&byte| byte == 0)));
    assert_eq!(tensors.tensor("lengths").unwrap().data()[..9], [4, 0, 0, 0, 0, 0, 0, 0, 2]);
}

#[cfg(unix)]
#[test]
fn a_text_that_comes_through_a_pipe_is_read_from_its_start() {
    let folder = tempfile::tempdir().unwrap();
    let figures = |text_file: &str, stdin: std::process::Stdio| {
        let report = folder.path().join("report.json");
        let status = std::process::Command::new(env!("CARGO_BIN_EXE_quantc"))
            .args(["evaluate", text_of_demo(), "--evaluate-on", text_file, "--export-json", text(&report)])
            .args(["--evaluate-samples", "2", "--evaluate-context", "64"])
            .stdin(stdin)
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.unwrap().success());
        json(&report)["evaluation"]["fingerprint"].clone()
    };
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/calibration.txt");
    let mut cat =
        std::process::Command::new("cat").arg(file).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let piped = figures("/dev/stdin", cat.stdout.take().unwrap().into());
    cat.wait().unwrap();
    assert_eq!(piped, figures(file, std::process::Stdio::null()));
}

#[test]
fn a_reference_may_be_quantized() {
    let folder = tempfile::tempdir().unwrap();
    let (output, _) = quantize(folder.path(), &demo(), &["--recipe", "rtn", "--no-evaluate"]);
    let report = folder.path().join("report.json");
    let few = ["--evaluate-samples", "4", "--evaluate-context", "64", "--export-json", text(&report)];
    for (measured, differs) in [(text_of_demo(), true), (text(&output), false)] {
        succeed(&[&["evaluate", measured, "--reference", text(&output)], &few[..]].concat());
        let divergence = json(&report)["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap();
        assert_eq!(divergence > 1e-4, differs, "{divergence}");
    }
}

fn text_of_demo() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/demo/model")
}

#[test]
fn the_demo_model_scores_what_the_reference_implementation_scored() {
    assert!(demo().is_dir());
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let arguments = ["evaluate", text_of_demo(), "--evaluate-samples", "128", "--export-json", text(&report)];
    succeed(&arguments);
    let evaluation = &json(&report)["evaluation"];
    // transformers 5.23 in f32, 128 windows of 256 tokens: 40.135.
    let perplexity = evaluation["original"]["perplexity"].as_f64().unwrap();
    assert!((perplexity - 40.135).abs() < 0.002, "{perplexity}");
}

#[test]
fn questions_are_answered_by_every_model_beside_perplexity() {
    let folder = tempfile::tempdir().unwrap();
    let (output, _) = quantize(folder.path(), &demo(), &["--recipe", "rtn", "--bits", "3", "--no-evaluate"]);
    let report = folder.path().join("report.json");
    let choices = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/choices.jsonl");
    let mut arguments = vec!["evaluate", text(&output), "--reference", text_of_demo(), "--choices", choices];
    arguments.extend(["--export-json", text(&report)]);
    arguments.extend(WINDOWS);
    let table = succeed(&arguments);
    assert!(table.contains("12 questions of") && table.contains("difference, paired"), "{table}");
    let report = json(&report);
    let found = &report["choices"];
    let answers = found["answers"].as_array().unwrap();
    let right = answers.iter().filter(|answered| answered["answer"] == answered["likeliest"]).count();
    let share = found["measured"]["accuracy"].as_f64().unwrap();
    assert!((share - right as f64 / 12.0).abs() < 1e-12 && share > 0.8, "{found}");
    assert!((found["by_chance"].as_f64().unwrap() - 0.375).abs() < 1e-9);
    assert!(report["evaluation"]["quantized"]["perplexity"].as_f64().unwrap() > 1.0);
}

#[test]
fn a_question_that_is_none_is_named_by_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("questions.jsonl");
    let arguments = ["evaluate", text_of_demo(), "--choices", text(&file)];
    for (line, problem) in [
        ("{\"question\": \"q\", \"choices\": [\"a\"], \"answer\": 0}", "expected 2 to 26"),
        ("{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": \"C\"}", "letter from A to B"),
        ("{\"text\": \"q\"}", "found no `question`"),
        ("[1", "EOF"),
    ] {
        std::fs::write(&file, format!("\n{line}\n")).unwrap();
        let message = fail(1, &arguments);
        assert!(message.contains("line 2: ") && message.contains(problem), "{message}");
    }
    // What is before a choice may be cut, and then a note says so; the choice itself may not.
    let long = "word ".repeat(400);
    let questions = format!(
        "{{\"question\": \"{long}\", \"choices\": [\"a\", \"b\"], \"answer\": 0}}\n{}",
        "{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": 0}"
    );
    std::fs::write(&file, questions).unwrap();
    let table = succeed(&[&arguments[..], &WINDOWS].concat());
    assert!(table.contains("1 of 2 questions of"), "{table}");
    std::fs::write(
        &file,
        format!("{{\"question\": \"q\", \"choices\": [\"a\", \"{long}\"], \"answer\": 0}}"),
    )
    .unwrap();
    let message = fail(1, &arguments);
    assert!(message.contains("the model attends to 256"), "{message}");
}
