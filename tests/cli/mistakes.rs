//! The mistakes that people make first: what is said, what to do instead, and that nothing is left behind.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json as object;

use crate::run::{copy, demo, files, json, quantc, succeed, text};

/// Runs `quantize MODEL -o OUT` with `more` and demands exit code 1, all `words`, and no output.
fn mistake(model: &Path, more: &[&str], words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let base =
        ["quantize", text(model), "-o", text(&output), "--no-evaluate", "--samples", "2", "--context", "64"];
    let kept: Vec<&str> = base.into_iter().collect();
    // A flag that is given again is the mistake.
    let kept = match more.first() {
        Some(flag) if kept.contains(flag) => {
            let at = kept.iter().position(|word| word == flag).unwrap();
            [&kept[..at], &kept[at + 2..]].concat()
        }
        _ => kept,
    };
    let found = quantc(&[&kept[..], more].concat());
    let message = String::from_utf8_lossy(&found.stderr);
    assert_eq!(found.status.code(), Some(1), "{message}");
    assert!(message.starts_with("error: ") && !message.contains("panicked"), "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is missing from: {message}");
    }
    assert_eq!(files(folder.path()), Vec::<String>::new());
}

#[test]
fn a_wrong_path() {
    let wrong = demo().with_file_name("modle");
    mistake(&wrong, &[], &["demo/modle: does not exist", "hint: did you mean", "demo/model?"]);
}

#[test]
fn a_file_instead_of_a_directory() {
    let file = demo().join("model.safetensors");
    mistake(&file, &[], &["is not a directory", "hint: the model is the whole directory", "demo/model"]);
}

#[test]
fn no_space_on_the_disk() {
    // A tensor that takes no room here, but would in the output, to which it is carried.
    let model = copy(&demo());
    let path = model.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let data = (bytes.len() - 8 - length) as u64;
    let values = 1_000_000_000_000_u64;
    header["sparse"] =
        object!({"dtype": "BF16", "shape": [values], "data_offsets": [data, data + 2 * values]});
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(&bytes[8 + length..]);
    fs::write(&path, file).unwrap();
    let whole = (8 + header.len()) as u64 + data + 2 * values;
    fs::File::options().write(true).open(&path).unwrap().set_len(whole).unwrap();
    mistake(
        model.path(),
        &["--recipe", "rtn"],
        &["the output with its journal takes 2.00 TB", "are free", "hint: make room"],
    );
}

#[test]
fn a_typo_in_a_flag() {
    mistake(
        &demo(),
        &["--bit", "3"],
        &["unexpected argument '--bit'", "a similar argument exists: '--bits'"],
    );
}

#[test]
fn a_model_that_is_not_supported() {
    let model = copy(&demo());
    let path = model.path().join("config.json");
    let mut config = json(&path);
    config["model_type"] = object!("lama");
    fs::write(path, config.to_string()).unwrap();
    mistake(model.path(), &[], &["`lama`", "llama", "--architecture FILE", "`quantc list architectures`"]);
}

#[test]
fn a_model_that_is_quantized_already() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let model = demo();
    succeed(&["quantize", text(&model), "-o", text(&output), "--recipe", "rtn", "--no-evaluate"]);
    // It is what it decodes to: the work is done, and what that means is said.
    let again = folder.path().join("again");
    let said = succeed(&["quantize", text(&output), "-o", text(&again), "--recipe", "rtn", "--no-evaluate"]);
    assert!(said.contains("already quantized (gptq, 4 bit"), "{said}");
    // Where nothing is packed, config.json is wrong.
    let model = copy(&demo());
    let path = model.path().join("config.json");
    let mut config = json(&path);
    config["quantization_config"] = json(&output.join("config.json"))["quantization_config"].take();
    fs::write(path, config.to_string()).unwrap();
    mistake(model.path(), &[], &["quantized in the format", "hint: take `quantization_config` out"]);
}

#[test]
fn a_tiny_context() {
    mistake(
        &demo(),
        &["--context", "1"],
        &["--context: expected at least 2 tokens, found 1", "hint: 2048 tokens"],
    );
    for command in [&["evaluate"][..], &["quantize", "-o", "out"]] {
        let found = quantc(&[command, &[text(&demo()), "--evaluate-context", "1"]].concat());
        let message = String::from_utf8_lossy(&found.stderr);
        assert!(
            message.contains("--evaluate-context: expected at least 2 tokens, found 1\nhint: 2048"),
            "{message}"
        );
    }
    // What can be done is done, and what it is worth is said.
    let folder = tempfile::tempdir().unwrap();
    let (model, output, report) = (demo(), folder.path().join("out"), folder.path().join("report.json"));
    let base =
        ["quantize", text(&model), "-o", text(&output), "--no-evaluate", "--recipe", "gptq", "--force"];
    let said = |more: &[&str], words: &str| {
        let found = quantc(&[&base[..], more, &["--export-json", text(&report)]].concat());
        let message = String::from_utf8_lossy(&found.stderr);
        assert!(found.status.success() && message.contains(&format!("warning: {words}")), "{message}");
        assert!(json(&report)["notes"].to_string().contains(words));
        String::from_utf8(found.stdout).unwrap()
    };
    let table = said(
        &["--context", "2", "--samples", "1"],
        "2 calibration tokens are fewer than the 768 inputs of `model.layers.0.mlp.down_proj`",
    );
    assert!(table.contains("1 window of 2 tokens"), "{table}");
    // However many they are.
    said(
        &["--context", "2", "--samples", "512"],
        "windows of 2 tokens of built-in calibration text show nothing",
    );
    said(&["--context", "100000", "--samples", "3"], "windows have 256 tokens, not 100000");
}

#[test]
fn an_output_that_exists() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    fs::create_dir(&output).unwrap();
    fs::write(output.join("notes.txt"), "mine").unwrap();
    let model = demo();
    for more in [&[][..], &["--force"]] {
        let found = quantc(&[&["quantize", text(&model), "-o", text(&output)], more].concat());
        let message = String::from_utf8_lossy(&found.stderr);
        assert_eq!(found.status.code(), Some(1), "{message}");
        assert!(message.contains("out") && message.contains("hint: "), "{message}");
        assert_eq!(files(&output), ["notes.txt"]);
    }
}

#[test]
fn an_output_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let (model, output) = (demo(), file.join("out"));
    let found = quantc(&["quantize", text(&model), "-o", text(&output), "--recipe", "rtn"]);
    let message = String::from_utf8_lossy(&found.stderr);
    assert_eq!(found.status.code(), Some(1), "{message}");
    let words = ["error: --output: nothing can be written in", "hint: name another place with -o"];
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
    // A file of an output is not the output.
    let found = quantc(&["verify", text(&demo().join("config.json"))]);
    let message = String::from_utf8_lossy(&found.stderr);
    assert!(message.contains("is not a directory\nhint: the model is the whole directory"), "{message}");
}

#[test]
fn a_tokenizer_that_is_missing() {
    let model = copy(&demo());
    fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    mistake(
        model.path(),
        &[],
        &["needs a tokenizer", "hint: put the original's tokenizer.json", "input_ids"],
    );
}

#[test]
fn a_bad_key_in_a_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.toml");
    fs::write(&path, "bit = 3\n").unwrap();
    mistake(&demo(), &["--recipe", text(&path)], &["recipe.toml", "`bit`", "hint: did you mean `bits`?"]);
}

#[test]
fn names_that_are_nearly_right() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.toml");
    fs::write(&path, "[[rule]]\nroles = [\"dwn\"]\nbits = 3\n").unwrap();
    mistake(&demo(), &["--recipe", text(&path)], &["recipe.toml", "`dwn`", "hint: did you mean `down`?"]);
    mistake(&demo(), &["--recipe", "gpqt"], &["it is not one of rtn", "hint: did you mean `gptq`?"]);
    mistake(&demo(), &["--runs-on", "vlm"], &["is called `vlm`", "hint: did you mean vLLM?"]);
    mistake(&demo(), &["--memory", "8"], &["8 B is too little", "hint: did you mean 8GB?"]);
}

#[test]
fn a_directory_that_holds_something_else() {
    let empty = tempfile::tempdir().unwrap();
    mistake(empty.path(), &[], &["no config.json here", "hint: name the directory"]);
    let above = demo().parent().unwrap().to_owned();
    mistake(&above, &[], &["no config.json here", "hint: did you mean", "demo/model?"]);
    mistake(&demo(), &["--calibration", text(empty.path())], &["directory", "hint: a text is a file"]);
}

#[test]
fn a_group_size_that_cannot_be() {
    let words = ["--group-size: group size is 7, expected 16 to 1024", "hint: 32, 64 and 128"];
    mistake(&demo(), &["--group-size", "7"], &words);
}

#[test]
fn a_run_that_was_killed_and_is_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let model = demo();
    let arguments = [
        "quantize",
        text(&model),
        "-o",
        text(&output),
        "--no-evaluate",
        "--samples",
        "16",
        "--context",
        "64",
    ];
    let mut child = Command::new(env!("CARGO_BIN_EXE_quantc"))
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Killed as soon as there is something to go on from.
    let layer = folder.path().join(".out.journal/layer-00000");
    let start = Instant::now();
    while !layer.exists() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!output.exists(), "nothing stands in the output's place before it is whole");
    let ended = quantc(&arguments);
    let message = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && message.contains("going on from"), "{message}");
    assert!(output.join("quantc.json").is_file());
    assert_eq!(files(folder.path()), ["out"]);
}
