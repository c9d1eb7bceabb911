//! What standard error says of the work, and that it has no effect on what is written.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::run::{demo, quantc, text};

const WORK: [&str; 7] = ["--recipe", "gptq", "--no-evaluate", "--samples", "12", "--context", "64"];

/// Standard error of a run that writes to `output`.
fn said(output: &Path, more: &[&str]) -> String {
    let model = demo();
    let found = quantc(&[&["quantize", text(&model), "-o", text(output)], &WORK[..], more].concat());
    let message = String::from_utf8(found.stderr).unwrap();
    assert!(found.status.success(), "{message}");
    message
}

#[test]
fn a_log_is_silent_detailed_or_for_programs_and_changes_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    // Short work in a log is not worth a line.
    let plain = said(&place("plain"), &[]);
    assert!(plain.lines().count() <= 4 && plain.lines().all(|line| line.contains(" s")), "{plain}");
    assert_eq!(said(&place("quiet"), &["--quiet"]), "");
    let lines = said(&place("verbose"), &["-v"]);
    assert!(lines.contains("quantizing: 2 of 5, layer 1, down_proj, 768 tokens, relative loss"), "{lines}");
    assert!(lines.contains(" left") && lines.contains("quantizing: done in"), "{lines}");
    let events = said(&place("json"), &["--log-format", "json"]);
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| events.iter().filter(|event| event["event"] == kind).cloned().collect::<Vec<_>>();
    assert!(of("phase").iter().any(|event| event["name"] == "quantizing" && event["steps"] == 5));
    let steps: Vec<Value> = of("step").into_iter().filter(|event| event["phase"] == "quantizing").collect();
    assert_eq!(steps.len(), 5);
    assert!(
        steps[3]["seconds_left"].as_f64().unwrap() >= 0.0
            && steps[3]["place"] == "layer 3, down_proj, 768 tokens"
    );
    assert!(steps[2].get("run_seconds_left").is_some());
    let checked: Vec<Value> = of("step").into_iter().filter(|event| event["phase"] == "verifying").collect();
    assert!(!checked.is_empty());
    assert!(checked.iter().all(|event| event["place"].as_str().unwrap().ends_with("_proj")), "{checked:?}");
    assert!(of("finished").iter().any(|event| event["phase"] == "quantizing"));
    let weights = |name: &str| fs::read(place(name).join("model.safetensors")).unwrap();
    for name in ["quiet", "verbose", "json"] {
        assert_eq!(weights(name), weights("plain"));
    }
}

#[test]
fn errors_have_the_form_of_the_log() {
    let found = quantc(&["--log-format", "json", "inspect", "no/such/model"]);
    let message = String::from_utf8(found.stderr).unwrap();
    let event: Value = serde_json::from_str(message.trim()).unwrap();
    assert_eq!(event["event"], "error");
    assert!(event["message"].as_str().unwrap().contains("no/such/model") && event["hint"].is_string());
    // A command line that cannot be read has it too.
    for words in
        [&["--log-format", "json", "quantize", "m", "--bit", "3"][..], &["list", "--log-format=json"]]
    {
        let found = quantc(words);
        assert_eq!(found.status.code(), Some(1));
        let message = String::from_utf8(found.stderr).unwrap();
        assert_eq!(message.lines().count(), 1, "{message}");
        let event: Value = serde_json::from_str(message.trim()).unwrap();
        assert!(event["event"] == "error" && !event["message"].as_str().unwrap().contains('\n'), "{event}");
        assert_eq!(event["hint"].is_string(), words.contains(&"--bit"), "{event}");
    }
    assert!(
        String::from_utf8(quantc(&["--log-format", "json", "list", "-h"]).stdout).unwrap().contains("Usage")
    );
    let found = quantc(&["inspect", "no/such/model", "-q"]);
    assert!(String::from_utf8(found.stderr).unwrap().starts_with("error: "));
}
