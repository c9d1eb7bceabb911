//! The examples of help texts and of the README, run as they stand, on a copy of the demo and on less text.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::run::{demo, repository, succeed};

const SUBCOMMANDS: [&str; 9] =
    ["quantize", "plan", "convert", "evaluate", "compare", "generate", "verify", "inspect", "list"];

/// Lines of `text` that run this program on files that there are, without the program's name; words in capitals stand for something.
fn examples(text: &str) -> Vec<Vec<String>> {
    let calls = text.lines().filter_map(|line| {
        let line = line.trim();
        let line = line.strip_prefix("cargo run --release --").or_else(|| line.strip_prefix("quantc "))?;
        Some(words(line))
    });
    calls
        .filter(|words| {
            let stands_for =
                |word: &String| word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_uppercase());
            !words.is_empty() && !words.iter().any(stands_for)
        })
        .collect()
}

/// As a shell splits them.
fn words(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, part) in line.split('\'').enumerate() {
        if number % 2 == 1 {
            found.push(part.to_owned());
        } else {
            found.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    found
}

/// Runs an example in `folder`.
fn run(folder: &Path, example: &[String]) {
    let calibration = ["--samples", "4", "--context", "64"];
    let evaluation = ["--evaluate-samples", "4", "--evaluate-context", "64"];
    let less: Vec<&str> = match example[0].as_str() {
        "quantize" => [&calibration[..], &evaluation, &["--force"]].concat(),
        "plan" => calibration.to_vec(),
        "evaluate" | "compare" => evaluation.to_vec(),
        "generate" => vec!["--tokens", "8"],
        "convert" => vec!["--force"],
        _ => Vec::new(),
    };
    let given = |flag: &&str| flag.starts_with("--") && example.iter().any(|word| word == *flag);
    let mut command = Command::new(env!("CARGO_BIN_EXE_quantc"));
    command.args(example);
    let mut skipped = false;
    for word in &less {
        // What the example says itself is not said again.
        skipped = if word.starts_with("--") { given(word) } else { skipped };
        if !skipped {
            command.arg(word);
        }
    }
    let output = command.current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{example:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A folder that has what the examples name.
fn stage() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("demo");
    fs::create_dir_all(copy.join("model")).unwrap();
    for (from, to) in [(demo(), copy.join("model")), (repository().join("demo"), copy)] {
        for entry in
            fs::read_dir(from).unwrap().map(|entry| entry.unwrap()).filter(|entry| entry.path().is_file())
        {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    folder
}

#[test]
fn the_examples_of_help_texts_and_of_the_readme_run() {
    let folder = stage();
    for subcommand in SUBCOMMANDS {
        let help = succeed(&[subcommand, "--help"]);
        let (_, after) = help.split_once("Example").unwrap_or_else(|| panic!("{subcommand} has no example"));
        let found = examples(after);
        assert!(!found.is_empty(), "no example of {subcommand} runs as it stands: {after}");
        found.iter().for_each(|example| run(folder.path(), example));
    }
    // Those that write below the user's home need a shell and a home.
    for (subcommand, written) in [
        ("completions", ".local/share/bash-completion/completions/quantc"),
        ("man", ".local/share/man/man1/quantc-quantize.1"),
    ] {
        let help = succeed(&[subcommand, "--help"]);
        let (_, after) = help.split_once("Example:\n").unwrap();
        let lines = after.lines().take_while(|line| line.starts_with("  ")).collect::<Vec<_>>().join("\n");
        let programs = Path::new(env!("CARGO_BIN_EXE_quantc")).parent().unwrap();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let mut shell = Command::new("bash");
        shell.args(["-ec", &lines]).env("HOME", folder.path()).env("PATH", path);
        assert!(shell.status().unwrap().success(), "{lines}");
        assert!(folder.path().join(written).is_file(), "{lines}");
    }
    for file in ["README.md", "docs/questions.md", "docs/usage.md"] {
        let text = fs::read_to_string(repository().join(file)).unwrap();
        let code: String = text.split("```").skip(1).step_by(2).collect();
        let found = examples(&code);
        assert!(!found.is_empty(), "{file} has no example");
        found.iter().for_each(|example| run(folder.path(), example));
    }
}

#[test]
fn help_fits_a_screen_and_says_where_the_rest_is() {
    for subcommand in quantc::cli::command().get_subcommands() {
        let name = subcommand.get_name();
        let screen = succeed(&[name, "--help"]);
        assert_eq!(screen, succeed(&[name, "-h"]));
        let (lines, columns) =
            (screen.lines().count(), screen.lines().map(|line| line.chars().count()).max().unwrap());
        assert!(lines <= 50 && columns <= 100, "{name}: {lines} lines of {columns} columns");
        assert!(screen.contains("Example:\n  "), "{name} has no example: {screen}");
        assert!(screen.ends_with(&format!("\n\nIn full: `quantc help {name}`\n")), "{screen}");
        let whole = succeed(&["help", name]);
        for flag in subcommand.get_arguments().filter(|flag| !flag.is_hide_set()) {
            let Some(long) = flag.get_long() else { continue };
            assert!(whole.contains(&format!("--{long}")), "`help {name}` lacks --{long}");
        }
        assert!(whole.contains("--log-format") && whole.contains("Example:\n  "), "{whole}");
    }
    let screen = succeed(&["--help"]);
    assert!(screen.lines().count() <= 50 && screen.ends_with("In full: `quantc help`\n"), "{screen}");
}
