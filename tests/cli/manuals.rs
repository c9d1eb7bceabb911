//! `completions`, `man`, and what is asked after a misspelled name.

use crate::run::{demo, fail, files, succeed, text};

#[test]
fn every_shell_has_a_script_and_every_command_a_page() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = succeed(&["completions", shell]);
        assert!(script.contains("quantize") && script.contains("evaluate-samples"), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    succeed(&["man", text(folder.path())]);
    let pages = files(folder.path());
    for page in ["quantc.1", "quantc-quantize.1", "quantc-compare.1", "quantc-completions.1"] {
        assert!(pages.iter().any(|found| found == page), "{page} is missing from {pages:?}");
    }
    let page = std::fs::read_to_string(folder.path().join("quantc-quantize.1")).unwrap();
    assert!(page.contains(".TH") && page.contains("group\\-size"), "{page}");
    // A folder that is not there yet is made; what cannot be one is said.
    succeed(&["man", text(&folder.path().join("new/man1"))]);
    assert!(folder.path().join("new/man1/quantc.1").is_file());
    let message = fail(1, &["man", text(&folder.path().join("quantc.1/below"))]);
    assert!(message.contains("quantc.1/below"), "{message}");
}

#[test]
fn a_misspelled_name_is_asked_about() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let demo = demo();
    let run = |more: &[&str]| fail(1, &[&["quantize", text(&demo), "-o", text(&out)], more].concat());
    assert!(
        run(&["--to", "gguf:q4km"])
            .contains("unknown format `gguf:q4km` (did you mean gguf:q4_k_m?), expected one of")
    );
    assert!(run(&["--to", "gtpq"]).contains("(did you mean gptq?)"));
    // Nothing like it: no guess.
    assert!(!run(&["--to", "xyz"]).contains("did you mean"));
}
