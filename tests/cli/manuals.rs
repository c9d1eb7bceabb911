//! `completions`, `man`, and what is asked after a misspelled name.

use std::process::Command;

use crate::run::{demo, fail, files, succeed, text};

#[test]
fn every_shell_has_a_script_with_values() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = succeed(&["completions", shell]);
        assert!(script.contains("quantize") && script.contains("evaluate-samples"), "{shell}");
        if shell != "elvish" && shell != "powershell" {
            // zsh takes a colon for the end of a value.
            let plain = script.replace('\\', "");
            for value in ["gguf:q4_k_m", "compressed-tensors:nvfp4", "channel", "max", "llama.cpp"] {
                assert!(plain.contains(value), "{shell} offers no {value}");
            }
        }
    }
}

/// What bash offers for the last word of a line, cut at the colons and equals signs where readline ends words.
fn offered(words: &[&str]) -> Vec<String> {
    let lines = r#"
        . <("$0" completions bash)
        COMP_WORDBREAKS=$' \t\n"\'><=;|&(:'
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        _quantc_in_words "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let output = Command::new("bash")
        .args(["--norc", "--noprofile", "-c", lines, env!("CARGO_BIN_EXE_quantc")])
        .args(words)
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_values_behind_colons_and_in_lists() {
    assert_eq!(offered(&["quantc", "comp"]), ["compare", "completions"]);
    assert_eq!(offered(&["quantc", "quantize", "m", "--recipe", ""]), ["rtn", "gptq", "default", "max"]);
    // Nothing of ours: the shell goes on with the names of files.
    assert_eq!(offered(&["quantc", "quantize", "m", "--recipe", "mine.t"]), [""]);
    assert_eq!(offered(&["quantc", "quantize", "m", "--to", "gguf", ":", "iq4"]), ["iq4_nl", "iq4_xs"]);
    assert!(offered(&["quantc", "quantize", "m", "--to", "gguf", ":"]).contains(&"q4_k_m".to_owned()));
    assert_eq!(offered(&["quantc", "quantize", "m", "--to", "=", "aw"]), ["awq"]);
    assert_eq!(offered(&["quantc", "plan", "m", "--to", "gptq,onn"]), ["gptq,onnx"]);
    assert_eq!(offered(&["quantc", "plan", "m", "--to", "gptq,gguf", ":", "iq4_x"]), ["iq4_xs"]);
    assert_eq!(offered(&["quantc", "quantize", "m", "--runs-on", "vllm,trans"]), ["vllm,transformers"]);
    assert_eq!(offered(&["quantc", "quantize", "m", "--bits", ""]), ["2", "3", "4", "5", "6", "8"]);
    assert!(offered(&["quantc", "list", ""]).contains(&"formats".to_owned()));
}

#[test]
fn zsh_is_told_of_colons_lists_and_files() {
    let script = succeed(&["completions", "zsh"]);
    // A colon that is no end of a name, in a list whose items before are skipped.
    assert!(script.contains(r#"gguf\\\:q4_k_m\:"llama.cpp"#), "{script}");
    assert!(!script.contains(r"gguf\:q4_k_m"), "{script}");
    assert_eq!(script.matches(r#":FORMAT:{compset -P "*,"; local -a usual; usual=(gptq\:""#).count(), 3);
    assert_eq!(script.matches(r#":RUNTIME:{compset -P "*,"; local -a usual; usual=(exllamav2 "#).count(), 2);
    assert_eq!(script.matches(r#"_describe -t values value usual; _files -g "*.toml"}' \"#).count(), 2);
}

#[test]
fn every_command_has_a_page_with_all_of_its_flags_described() {
    let folder = tempfile::tempdir().unwrap();
    succeed(&["man", text(folder.path())]);
    let pages = files(folder.path());
    let commands = quantc::cli::command();
    let names: Vec<&str> = commands.get_subcommands().map(clap::Command::get_name).collect();
    assert_eq!(pages.len(), names.len() + 1, "{pages:?}");
    for name in names {
        let page = std::fs::read_to_string(folder.path().join(format!("quantc-{name}.1"))).unwrap();
        assert!(page.contains(&format!(".TH quantc-{name} 1  \"quantc 0")), "{page}");
        assert!(page.contains(".SH EXAMPLES\n.nf\n") && page.contains(".SH \"EXIT STATUS\""), "{page}");
        assert!(!page.contains("EXTRA") && !page.contains("In full"), "{page}");
        let flags = page.split(".TP\n").skip(1);
        assert!(flags.clone().any(|flag| flag.contains("\\-\\-log\\-format")), "{page}");
        for flag in flags {
            let what = flag.lines().nth(1).unwrap_or_default();
            assert!(!what.is_empty() && what.trim() == what, "not described: {flag}");
        }
        assert_eq!(page.matches(".ds Aq").count(), 2);
    }
    let page = std::fs::read_to_string(folder.path().join("quantc-quantize.1")).unwrap();
    let whole = page.replace("\\-", "-");
    assert!(whole.contains("Largest file of weights, such as 500MB"), "{page}");
    let program = std::fs::read_to_string(folder.path().join("quantc.1")).unwrap();
    assert!(program.contains("HF_HUB_OFFLINE") && program.contains("quantc\\-verify\\fR(1)"), "{program}");
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
