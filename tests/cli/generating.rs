//! `generate` as its users run it.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::run::{demo, fail, json, quantc, quantize, succeed, text, tiny};

#[test]
fn a_prompt_is_gone_on_with_the_same_way_each_time() {
    let run = |more: &[&str]| {
        let model = demo();
        let mut arguments = vec!["generate", text(&model), "--prompt", "The old house", "-n", "24"];
        arguments.extend(more);
        succeed(&arguments)
    };
    let first = run(&["--seed", "3"]);
    assert!(first.trim().len() > 20, "{first:?}");
    assert_eq!(run(&["--seed", "3", "--threads", "1"]), first);
    assert_ne!(run(&["--seed", "4"]), first);
    let cold = run(&["--temperature", "0"]);
    assert_eq!(run(&["--temperature", "0", "--seed", "9"]), cold);
    // A sliver of the probability is the likeliest token's.
    assert_eq!(run(&["--top-p", "1e-9", "--temperature", "1"]), cold);
}

#[test]
fn a_quantized_model_writes_too_and_says_how_fast() {
    let folder = tempfile::tempdir().unwrap();
    let (output, _) = quantize(folder.path(), &demo(), &["--recipe", "rtn", "--no-evaluate"]);
    let found = quantc(&["generate", text(&output), "-p", "The old house", "-n", "8", "--temperature", "0"]);
    assert!(found.status.success());
    assert!(String::from_utf8(found.stdout).unwrap().trim().len() > 5);
    let said = String::from_utf8(found.stderr).unwrap();
    assert!(said.starts_with("8 tokens at ") && said.contains("cut at --tokens"), "{said}");
}

#[test]
fn packed_weights_are_multiplied_with_what_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (output, _) = quantize(folder.path(), &demo(), &["--recipe", "rtn", "--no-evaluate"]);
    let write = |model: &str, more: &[&str]| {
        let mut arguments = vec!["generate", model, "-p", "The old house", "-n", "48", "--temperature", "0"];
        arguments.extend(more);
        succeed(&arguments)
    };
    let model = demo();
    for (model, rounded) in [(text(&output), true), (text(&model), false)] {
        let (exact, int8) =
            (write(model, &["--activations", "f32"]), write(model, &["--activations", "int8"]));
        assert_eq!(int8, write(model, &["--threads", "1"]), "{model}");
        // An original has nothing that is packed.
        assert!(rounded || exact == int8, "{model}");
    }
    // What rounding does is measured by `evaluate`: something, and little.
    let divergence = |kind: &str| {
        let report = folder.path().join("report.json");
        let mut arguments =
            vec!["evaluate", text(&output), "--reference", text(&output), "--activations", kind];
        arguments.extend([
            "--evaluate-samples",
            "4",
            "--evaluate-context",
            "96",
            "--export-json",
            text(&report),
        ]);
        succeed(&arguments);
        json(&report)["evaluation"]["quantized"]["kl_mean"].as_f64().unwrap()
    };
    assert!(divergence("f32").abs() < 1e-9);
    let found = divergence("int8");
    assert!(found > 1e-9 && found < 1e-3, "{found}");
}

#[test]
fn a_prompt_may_come_from_standard_input() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_quantc"))
        .args(["generate", text(&demo()), "-n", "8", "--temperature", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"The old house\n").unwrap();
    let piped = child.wait_with_output().unwrap();
    let given = succeed(&["generate", text(&demo()), "-p", "The old house", "-n", "8", "--temperature", "0"]);
    assert_eq!(String::from_utf8(piped.stdout).unwrap(), given);
}

#[test]
fn what_cannot_be_is_said_before_anything_is_written() {
    let model = demo();
    let with = |more: &[&str]| {
        let mut arguments = vec!["generate", text(&model), "-p", "a b c d e f g"];
        arguments.extend(more);
        fail(1, &arguments)
    };
    assert!(with(&["--temperature", "-1"]).contains("--temperature"));
    assert!(with(&["--top-p", "0"]).contains("--top-p"));
    assert!(with(&["--context", "1"]).contains("--context"));
    assert!(with(&["--context", "4"]).contains("tokens, and the context 4"));
    assert!(with(&["--system", "Be brief."]).contains("chat template"));
    let bare = tiny("llama");
    let message = fail(1, &["generate", text(&bare), "-p", "hello"]);
    assert!(message.contains("tokenizer.json") && message.contains("hint: "), "{message}");
}
